"""The TensorFlow decoder: against stock Keras layers, the float64 twin, and its own claims."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thesis.config import REFERENCE_DECODER, DecoderConfig
from thesis.dilated_conv import DilatedConvStack

BOUNDED = ("none", "frame", "batch")
"""Norms that see no more than the convolutions do."""


def decoder_with(config, weights, n_outputs=5):
    decoder = DilatedConvStack(config, n_outputs)
    assert weights.keys() == decoder.weights.keys()
    for name, value in weights.items():
        decoder.weights[name].assign(value)
    return decoder


def frames_reached(config, at, n_frames):
    """Returns the output frames that depend on one input frame: NaN there is NaN here.

    Unlike a small change, NaN passes a ReLU and is never rounded away, whatever the weights.
    """
    inputs = np.random.default_rng(0).normal(size=(1, n_frames, 2)).astype(np.float32)
    inputs[:, at] = np.nan
    outputs = DilatedConvStack(config, 7)(inputs).numpy()[0]
    reached = np.isnan(outputs)
    assert (reached.all(axis=1) == reached.any(axis=1)).all()
    return np.flatnonzero(reached.any(axis=1))


def test_what_nan_does_not_reach_does_not_change():
    decoder = DilatedConvStack(REFERENCE_DECODER, 7)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(8, 120, 2)).astype(np.float32)
    changed = inputs.copy()
    changed[:, 40] = rng.normal(size=(8, 2))
    difference = (decoder(inputs).numpy() != decoder(changed).numpy()).any(axis=(0, 2))
    assert (
        np.flatnonzero(difference).tolist() == frames_reached(REFERENCE_DECODER, 40, 120).tolist()
    )


def keras_decoder(config, weights, inputs):
    """The causal decoder in stock Keras layers: what the plan means."""
    from thesis._ddsp import tf, tf_keras

    layers = tf_keras.layers

    def load(layer, x, *names):
        layer.build(x.shape)
        layer.set_weights([weights[name] for name in names])
        return layer(x)

    def conv(x, name, k=1, dilation=1, relu6=True, depthwise=False):
        normed = config.norm != "none" and name != "output"
        per_channel = () if normed else (f"{name}/bias",)
        kernel = weights[f"{name}/kernel"]
        options = {"use_bias": bool(per_channel), "dilation_rate": dilation}
        if depthwise:
            options["groups"] = x.shape[-1]
        layer = layers.Conv1D(kernel.shape[-1], k, padding="causal", **options)
        y = load(layer, x, f"{name}/kernel", *per_channel)
        if normed and config.norm == "batch":
            norm = layers.BatchNormalization(epsilon=1e-3)
            y = load(norm, y, *(f"{name}/{n}" for n in ("scale", "shift", "mean", "variance")))
        elif normed and config.norm == "time":
            y = load(ddsp_norm(), y, f"{name}/scale", f"{name}/shift")
        elif normed:
            norm = layers.LayerNormalization(axis=-1, epsilon=1e-5)
            y = load(norm, y, f"{name}/scale", f"{name}/shift")
        return tf.nn.relu6(y) if relu6 else y

    x = conv(tf.constant(inputs), "input", config.kernel_size)
    for i in range(config.layers_per_stack * config.stacks):
        dilation = config.dilation_base ** (i % config.layers_per_stack)
        if config.block == "plain":
            x += conv(x, f"block_{i}", config.kernel_size, dilation)
        else:
            y = conv(x, f"block_{i}/expand")
            y = conv(y, f"block_{i}/depthwise", config.kernel_size, dilation, depthwise=True)
            x += conv(y, f"block_{i}/project", relu6=False)
    return conv(x, "output", relu6=False).numpy()


def ddsp_norm():
    """ddsp's `Normalize('layer')` over [batch, time, 1, channels], in stock Keras."""
    from thesis._ddsp import tf_keras

    class Normalize(tf_keras.layers.GroupNormalization):
        def call(self, x):
            return super().call(x[:, :, None])[:, :, 0]

    return Normalize(groups=1, epsilon=1e-5)


@pytest.mark.parametrize("norm", ["none", "frame", "batch", "time"])
@pytest.mark.parametrize("block", ["plain", "inverted_bottleneck"])
def test_the_decoder_is_the_one_that_stock_keras_layers_make(block, norm, weights_of):
    config = DecoderConfig(4, 3, 2, 3, 2, block=block, norm=norm)
    weights = weights_of(config.plan(5))
    inputs = np.random.default_rng(0).normal(size=(2, 40, 2)).astype(np.float32)
    ours = decoder_with(config, weights)(inputs).numpy()
    np.testing.assert_allclose(ours, keras_decoder(config, weights, inputs), atol=1e-4)
    assert abs(ours).max() > 0.1


@settings(max_examples=30)
@given(config=st.from_type(DecoderConfig), n_frames=st.integers(1, 60), seed=st.integers(0, 99))
def test_the_decoder_equals_its_float64_twin(
    weights_of, assert_equals_twin, config, n_frames, seed
):
    weights = weights_of(config.plan(5), seed)
    inputs = np.random.default_rng(seed).normal(size=(2, n_frames, 2)).astype(np.float32)
    for clip, outputs in zip(inputs, decoder_with(config, weights)(inputs), strict=True):
        assert_equals_twin(outputs.numpy(), clip, weights, config)


@settings(max_examples=20)
@given(config=st.from_type(DecoderConfig).filter(lambda config: config.norm in BOUNDED))
def test_the_receptive_field_is_what_an_output_depends_on(config):
    field, ahead = config.receptive_field_frames, config.lookahead_frames
    at, n_frames = field, 2 * field + 1
    reached = frames_reached(config, at, n_frames)
    # From first to last: where the dilation outgrows the kernel there are gaps between them.
    assert (reached[0], reached[-1]) == (at - ahead, at - ahead + field - 1)
    if config.causal:
        assert config.streamable
        assert reached[0] == at


@pytest.mark.parametrize("causal", [False, True])
def test_a_norm_over_time_sees_the_whole_clip_also_when_convolutions_are_causal(causal):
    config = dataclasses.replace(REFERENCE_DECODER, norm="time", causal=causal)
    assert frames_reached(config, 30, 60).tolist() == list(range(60))
    assert config.receptive_field_frames is None
    assert not config.streamable


@pytest.mark.parametrize("kernel_size", [2, 3, 5])
@pytest.mark.parametrize("dilation_base", [1, 2, 3])
@pytest.mark.parametrize("norm", BOUNDED)
def test_the_receptive_field_of_shipped_spaces_is_its_closed_form(kernel_size, dilation_base, norm):
    config = DecoderConfig(8, 3, 2, kernel_size, dilation_base, norm=norm)
    powers = sum(dilation_base**j for j in range(3))
    field = 1 + (kernel_size - 1) * (1 + 2 * powers)
    assert config.receptive_field_frames == field
    assert frames_reached(config, 3, field + 10).tolist() == list(range(3, 3 + field))


@pytest.mark.parametrize("norm", BOUNDED)
@pytest.mark.parametrize("block", ["plain", "inverted_bottleneck"])
def test_a_causal_decoder_as_it_ships_never_sees_the_future(block, norm):
    config = dataclasses.replace(REFERENCE_DECODER, block=block, norm=norm)
    assert frames_reached(config, 30, 60)[0] == 30


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_a_centred_decoder_sees_as_far_ahead_as_back(kernel_size):
    config = dataclasses.replace(REFERENCE_DECODER, causal=False, kernel_size=kernel_size)
    half = config.receptive_field_frames // 2
    reached = frames_reached(config, half + 5, 2 * half + 11)
    assert (reached[0], reached[-1]) == (5, 2 * half + 5)


def test_the_decoder_runs_in_a_graph_with_frames_left_open(weights_of):
    from thesis._ddsp import tf

    decoder = decoder_with(REFERENCE_DECODER, weights_of(REFERENCE_DECODER.plan(5)))
    graph = tf.function(decoder, input_signature=[tf.TensorSpec([None, None, 2])])
    inputs = np.random.default_rng(0).normal(size=(1, 33, 2)).astype(np.float32)
    np.testing.assert_allclose(graph(inputs), decoder(inputs), atol=1e-5)


def test_named_weights_are_copies():
    decoder = DilatedConvStack(REFERENCE_DECODER, 5)
    before = decoder.named_weights()
    decoder.weights["output/bias"].assign(np.ones(5, np.float32))
    assert not before["output/bias"].any()
    assert decoder.named_weights()["output/bias"].all()


@pytest.mark.parametrize("norm", ["none", "frame", "batch", "time"])
@pytest.mark.parametrize("block", ["plain", "inverted_bottleneck"])
def test_every_weight_is_trained(block, norm):
    from thesis._ddsp import tf

    decoder = DilatedConvStack(dataclasses.replace(REFERENCE_DECODER, block=block, norm=norm), 5)
    assert sum(int(tf.size(v)) for v in decoder.trainable_variables) == (
        decoder.config.parameter_count(5)
    )
    inputs = np.random.default_rng(0).normal(size=(4, 40, 2)).astype(np.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(decoder(inputs, training=True) ** 2)
    trained = {v.name: v for v in decoder.trainable_variables}
    gradients = tape.gradient(loss, trained)
    silent = [name for name, g in gradients.items() if g is None or not np.any(g)]
    assert not silent


# --- Batch norm ---


def test_in_training_a_batch_norm_takes_the_moments_of_the_batch(weights_of):
    config = DecoderConfig(4, 1, 1, 1, norm="batch")
    weights = weights_of(config.plan(5))
    decoder = decoder_with(config, weights)
    inputs = np.random.default_rng(0).normal(size=(3, 50, 2)).astype(np.float32)
    outputs = decoder(inputs, training=True).numpy()

    def normed(x, name):
        y = x @ weights[f"{name}/kernel"][0]
        y = (y - y.mean((0, 1))) / np.sqrt(y.var((0, 1)) + 1e-3)
        return np.clip(y * weights[f"{name}/scale"] + weights[f"{name}/shift"], 0, 6)

    hidden = normed(inputs.astype(float), "input")
    hidden = hidden + normed(hidden, "block_0")
    expected = hidden @ weights["output/kernel"][0] + weights["output/bias"]
    np.testing.assert_allclose(outputs, expected, atol=1e-4)


def test_running_moments_are_the_mean_of_all_batches_from_the_first_one_on():
    """Without the zeros and ones that they start as; then the older ones fade."""
    decoder = DilatedConvStack(DecoderConfig(2, 1, 1, 1, norm="batch"), 5)
    kernel = decoder.weights["input/kernel"].numpy()[0].astype(float)
    rng = np.random.default_rng(0)
    means, variances = [], []
    for n in range(1, 131):
        inputs = rng.normal(n, 1 + n / 10, size=(2, 20, 2)).astype(np.float32)
        decoder(inputs, training=True)
        seen = inputs.astype(float) @ kernel
        means.append(seen.mean((0, 1)))
        variances.append(seen.var((0, 1)))
        if n in (1, 2, 100):
            weights = decoder.named_weights()
            np.testing.assert_allclose(weights["input/mean"], np.mean(means, 0), rtol=1e-4)
            np.testing.assert_allclose(weights["input/variance"], np.mean(variances, 0), rtol=1e-4)
    expected = np.mean(means[:100], 0)
    for mean in means[100:]:
        expected = 0.99 * expected + 0.01 * mean
    np.testing.assert_allclose(decoder.named_weights()["input/mean"], expected, rtol=1e-4)


def test_what_a_batch_norm_does_after_training_moves_nothing():
    decoder = DilatedConvStack(DecoderConfig(norm="batch"), 5)
    inputs = np.random.default_rng(0).normal(size=(2, 30, 2)).astype(np.float32)
    decoder(inputs, training=True)
    before = decoder.named_weights()
    first = decoder(inputs).numpy()
    np.testing.assert_array_equal(decoder(inputs), first)
    after = decoder.named_weights()
    assert all((before[name] == after[name]).all() for name in before)
