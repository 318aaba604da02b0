"""The TensorFlow decoder: against stock Keras layers, the float64 twin, and its own claims."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thesis import reference
from thesis.config import REFERENCE_DECODER, DecoderConfig
from thesis.dilated_conv import DilatedConvStack

SHIPPING = {"norm": "frame"}


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
        normed = config.norm == "frame" and name != "output"
        per_channel = () if normed else (f"{name}/bias",)
        kernel = weights[f"{name}/kernel"]
        options = {"use_bias": bool(per_channel), "dilation_rate": dilation}
        if depthwise:
            options["groups"] = x.shape[-1]
        layer = layers.Conv1D(kernel.shape[-1], k, padding="causal", **options)
        y = load(layer, x, f"{name}/kernel", *per_channel)
        if normed:
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


@pytest.mark.parametrize("norm", ["none", "frame"])
@pytest.mark.parametrize("block", ["plain", "inverted_bottleneck"])
def test_the_decoder_is_the_one_that_stock_keras_layers_make(block, norm, weights_of):
    config = DecoderConfig(4, 3, 2, 3, 2, block=block, norm=norm)
    weights = weights_of(config.blocks(5))
    inputs = np.random.default_rng(0).normal(size=(2, 40, 2)).astype(np.float32)
    ours = decoder_with(config, weights)(inputs).numpy()
    np.testing.assert_allclose(ours, keras_decoder(config, weights, inputs), atol=1e-4)
    assert abs(ours).max() > 0.1


@settings(max_examples=30)
@given(config=st.from_type(DecoderConfig), n_frames=st.integers(1, 60), seed=st.integers(0, 99))
def test_the_decoder_equals_its_float64_twin(weights_of, config, n_frames, seed):
    weights = weights_of(config.blocks(5), seed)
    inputs = np.random.default_rng(seed).normal(size=(2, n_frames, 2)).astype(np.float32)
    outputs = decoder_with(config, weights)(inputs).numpy()
    assert outputs.shape == (2, n_frames, 5)
    for clip, expected in zip(inputs, outputs, strict=True):
        twin = reference.decode(clip, weights, config)
        np.testing.assert_allclose(expected, twin, rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(config=st.from_type(DecoderConfig).map(lambda c: dataclasses.replace(c, **SHIPPING)))
def test_the_receptive_field_is_its_closed_form(config):
    field = config.receptive_field_frames
    at, n_frames = field, 2 * field + 1
    reached = frames_reached(config, at, n_frames)
    # From first to last: where the dilation outgrows the kernel there are gaps between them.
    assert 1 + reached[-1] - reached[0] == field
    if config.causal:
        assert reached[0] == at


@pytest.mark.parametrize("kernel_size", [2, 3, 5])
@pytest.mark.parametrize("dilation_base", [1, 2, 3])
def test_the_receptive_field_of_shipped_spaces_is_its_closed_form(kernel_size, dilation_base):
    config = DecoderConfig(8, 3, 2, kernel_size, dilation_base, **SHIPPING)
    powers = sum(dilation_base**j for j in range(3))
    field = 1 + (kernel_size - 1) * (1 + 2 * powers)
    assert config.receptive_field_frames == field
    assert frames_reached(config, 3, field + 10).tolist() == list(range(3, 3 + field))


@pytest.mark.parametrize("block", ["plain", "inverted_bottleneck"])
def test_a_causal_decoder_as_it_ships_never_sees_the_future(block):
    config = dataclasses.replace(REFERENCE_DECODER, block=block)
    assert frames_reached(config, 30, 60)[0] == 30


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_a_centred_decoder_sees_as_far_ahead_as_back(kernel_size):
    config = dataclasses.replace(REFERENCE_DECODER, causal=False, kernel_size=kernel_size)
    half = config.receptive_field_frames // 2
    reached = frames_reached(config, half + 5, 2 * half + 11)
    assert (reached[0], reached[-1]) == (5, 2 * half + 5)


def test_the_decoder_runs_in_a_graph_with_frames_left_open(weights_of):
    from thesis._ddsp import tf

    decoder = decoder_with(REFERENCE_DECODER, weights_of(REFERENCE_DECODER.blocks(5)))
    graph = tf.function(decoder, input_signature=[tf.TensorSpec([None, None, 2])])
    inputs = np.random.default_rng(0).normal(size=(1, 33, 2)).astype(np.float32)
    np.testing.assert_allclose(graph(inputs), decoder(inputs), atol=1e-5)


def test_named_weights_are_copies():
    decoder = DilatedConvStack(REFERENCE_DECODER, 5)
    before = decoder.named_weights()
    decoder.weights["output/bias"].assign(np.ones(5, np.float32))
    assert not before["output/bias"].any()
    assert decoder.named_weights()["output/bias"].all()


def test_every_weight_is_trained():
    from thesis._ddsp import tf

    for block in ("plain", "inverted_bottleneck"):
        decoder = DilatedConvStack(dataclasses.replace(REFERENCE_DECODER, block=block), 5)
        inputs = np.random.default_rng(0).normal(size=(4, 40, 2)).astype(np.float32)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(decoder(inputs) ** 2)
        gradients = tape.gradient(loss, decoder.weights)
        silent = [name for name, g in gradients.items() if g is None or not np.any(g)]
        assert not silent
