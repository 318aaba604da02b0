"""The TensorFlow decoder: against stock Keras layers, the float64 twin, and its own claims."""

import dataclasses
import importlib
import math
import sys
import types
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thesis.config import REFERENCE_DECODER, DecoderConfig, DilatedConvStackConfig, RnnFcConfig
from thesis.decoder import Decoder

BOUNDED = ("none", "frame", "batch")
"""Norms that see no more than the convolutions do."""


def decoder_with(config, weights, n_outputs=5):
    decoder = Decoder(config, n_outputs)
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
    outputs = Decoder(config, 7)(inputs).numpy()[0]
    reached = np.isnan(outputs)
    assert (reached.all(axis=1) == reached.any(axis=1)).all()
    return np.flatnonzero(reached.any(axis=1))


RESAMPLED = DilatedConvStackConfig(
    8, 2, 2, 3, 2, resample="downsample", conditioning="scale_and_shift"
)
RECURRENT = RnnFcConfig(6, 5, 1)


@pytest.mark.parametrize("config", [REFERENCE_DECODER, RESAMPLED], ids=["tiny", "resampled"])
def test_what_nan_does_not_reach_does_not_change(config):
    decoder = Decoder(config, 7)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(8, 120, 2)).astype(np.float32)
    changed = inputs.copy()
    changed[:, 40] = rng.normal(size=(8, 2))
    difference = (decoder(inputs).numpy() != decoder(changed).numpy()).any(axis=(0, 2))
    assert np.flatnonzero(difference).tolist() == frames_reached(config, 40, 120).tolist()


def keras_decoder(config, weights, n_frames):
    """The decoder as a stock Keras model: what the plan means.

    `n_frames` is a multiple of the total factor of the resampling. There a centred decoder is what
    Keras's own padding 'same' makes; a causal one is cropped at the end.
    """
    from thesis._ddsp import tf_keras

    layers, ch = tf_keras.layers, config.channels
    padding = "causal" if config.causal else "same"
    to_load = []

    def load(layer, x, *names):
        to_load.append((layer, names))
        return layer(x)

    def finish(x, name, relu6, affine=True):
        per_channel = [f"{name}/scale", f"{name}/shift"] if affine else []
        options = {"center": affine, "scale": affine}
        if config.norm == "batch":
            moments = (f"{name}/mean", f"{name}/variance")
            x = load(layers.BatchNormalization(epsilon=1e-3, **options), x, *per_channel, *moments)
        elif config.norm == "frame":
            x = load(layers.LayerNormalization(epsilon=1e-5, **options), x, *per_channel)
        elif config.norm == "time":
            norm = layers.GroupNormalization(groups=1, epsilon=1e-5, **options)
            x = load(norm, x, *per_channel)
        return layers.ReLU(6.0)(x) if relu6 else x

    def conv(x, name, ch_out, k=1, relu6=True, affine=True, **options):
        biased = name == "output" or (config.norm == "none" and affine)
        names = [f"{name}/kernel", f"{name}/bias"][: 1 + biased]
        layer = layers.Conv1D(ch_out, k, padding=padding, use_bias=biased, **options)
        x = load(layer, x, *names)
        return x if name == "output" else finish(x, name, relu6, affine)

    def upsample(x, name, stride):
        names = [f"{name}/transposed", f"{name}/bias"]
        if config.causal:
            layer = layers.Conv1DTranspose(ch, 2 * stride, stride, padding="valid")
            return layers.Cropping1D((0, stride))(load(layer, x, *names))
        return load(layers.Conv1DTranspose(ch, 2 * stride, stride, padding="same"), x, *names)

    def downsample(x, name, stride):
        layer = layers.Conv1D(ch, stride, stride, padding=padding)
        return load(layer, x, f"{name}/kernel", f"{name}/bias")

    def film(x, name, relu6):
        controls = inputs[:, :: n_frames // x.shape[1]]
        linear = {
            kind: load(layers.Dense(ch), controls, f"{name}/{kind}_kernel", f"{name}/{kind}")
            for kind in ("scale", "shift")
            if kind == "shift" or config.conditioning == "scale_and_shift"
        }
        x = layers.Multiply()([x, linear["scale"]]) if "scale" in linear else x
        x = layers.Add()([x, linear["shift"]])
        return layers.ReLU(6.0)(x) if relu6 else x

    def block(x, name, dilation):
        learned = config.conditioning == "none"
        dilated = {"k": config.kernel_size, "dilation_rate": dilation}
        if config.block == "plain":
            y = conv(x, name, ch, **dilated, relu6=learned, affine=learned)
        else:
            wide = ch * config.expansion
            y = conv(x, f"{name}/expand", wide)
            y = conv(y, f"{name}/depthwise", wide, **dilated, groups=wide)
            y = conv(y, f"{name}/project", ch, relu6=False, affine=learned)
        y = y if learned else film(y, f"{name}/film", config.block == "plain")
        return layers.Add()([x, y])

    inputs = layers.Input([n_frames, 2])
    x = conv(inputs, "input", ch, config.kernel_size)
    stride, every, after = (
        config.resample_stride, config.stacks_per_resample, config.resample_after_convolve
    )  # fmt: skip
    done, in_all = 0, config.stacks // every if after else -(-config.stacks // every)
    resample = {"downsample": downsample, "upsample": upsample, "none": None}[config.resample]
    if config.resample == "upsample":
        x = downsample(x, "mirror", stride**in_all)
    for stack in range(config.stacks):
        if resample and not after and stack % every == 0:
            x, done = resample(x, f"resample_{done}", stride), done + 1
        for layer in range(config.layers_per_stack):
            number = stack * config.layers_per_stack + layer
            x = block(x, f"block_{number}", config.dilation_base**layer)
        if resample and after and (stack + 1) % every == 0:
            x, done = resample(x, f"resample_{done}", stride), done + 1
    if config.resample == "downsample":
        x = upsample(x, "mirror", stride**in_all)
    model = tf_keras.Model(inputs, conv(x, "output", 5, relu6=False))
    # [taps, in, out] is [taps, out, in] to Keras.
    known = weights | {
        name.replace("kernel", "transposed"): kernel.transpose(0, 2, 1)
        for name, kernel in weights.items()
        if name.endswith("/kernel")
    }
    for layer, names in to_load:
        layer.set_weights([known[name] for name in names])
    return model


def keras_macs(model):
    """Multiply-accumulates of a clip: each kernel is used once a frame, of its input or output."""
    total = 0
    for layer in model.layers:
        kind = type(layer).__name__
        if kind in ("Conv1D", "Dense"):
            total += int(np.prod(layer.kernel.shape)) * layer.output_shape[1]
        elif kind == "Conv1DTranspose":
            total += int(np.prod(layer.kernel.shape)) * layer.input_shape[1]
    return total


@pytest.fixture(scope="module")
def stock_rnn():
    """ddsp's own `RnnFcDecoder`.

    The package around it needs what is not installed, its file does not; and gin is to know one
    `DilatedConvStack` only, ours.
    """
    from thesis._ddsp import ddsp

    package = types.ModuleType("ddsp.training")
    package.__path__ = [str(Path(ddsp.__file__).parent / "training")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "ddsp.training", package)
        patched.setattr("gin.register", lambda configurable, **_: configurable)
        module = importlib.import_module("ddsp.training.decoders")

    def stock_rnn(config, n_outputs):
        decoder = module.RnnFcDecoder(
            config.rnn_channels,
            ch=config.channels,
            layers_per_stack=config.layers_per_stack,
            input_keys=("ld_scaled", "f0_scaled"),
            output_splits=(("outputs", n_outputs),),
        )
        decoder(dict.fromkeys(("ld_scaled", "f0_scaled"), np.zeros((1, 1, 1), np.float32)))
        return decoder

    return stock_rnn


@pytest.mark.parametrize(
    "config", [RnnFcConfig(4, 5, 3), RnnFcConfig(6, 5, 1), RnnFcConfig(3, 5, 0)]
)
def test_the_recurrent_decoder_is_ddsps_own(config, weights_of, stock_rnn):
    weights = weights_of(config.plan(7))
    theirs = stock_rnn(config, 7)
    shapes = [weight.shape for weight in theirs.get_weights()]
    theirs.set_weights([w.reshape(s) for w, s in zip(weights.values(), shapes, strict=True)])
    inputs = np.random.default_rng(0).normal(size=(2, 30, 2)).astype(np.float32)
    expected = theirs({"ld_scaled": inputs[..., :1], "f0_scaled": inputs[..., 1:]})["outputs"]
    np.testing.assert_allclose(decoder_with(config, weights, 7)(inputs), expected, atol=1e-5)
    assert abs(expected).numpy().max() > 0.1


@pytest.mark.parametrize(
    ("config", "count"), [(RnnFcConfig(), 4_801_150), (RnnFcConfig(256, 512, 0), 232_314)]
)
def test_the_thesis_recurrent_models_have_as_many_parameters_as_ddsps(config, count, stock_rnn):
    assert config.parameter_count(126) == stock_rnn(config, 126).count_params() == count


NORMS = ("none", "frame", "batch", "time")
SAME_AS_KERAS = [
    *(
        DilatedConvStackConfig(4, 2, 1, 3, 2, block=block, norm=norm, causal=norm != "batch")
        for block in ("plain", "inverted_bottleneck")
        for norm in NORMS
    ),
    *(
        DilatedConvStackConfig(
            4, 1, 3, 3, norm=norm, causal=causal, resample=resample, resample_stride=stride,
            stacks_per_resample=every, resample_after_convolve=after, conditioning=conditioning,
            block=block,
        )
        for norm, causal, resample, stride, every, after, conditioning, block in (
            ("frame", True, "downsample", 2, 1, True, "none", "plain"),
            ("none", False, "downsample", 3, 2, True, "none", "plain"),
            ("batch", True, "downsample", 4, 2, False, "shift", "plain"),
            ("time", False, "downsample", 2, 1, False, "scale_and_shift", "inverted_bottleneck"),
            ("none", True, "upsample", 2, 1, True, "scale_and_shift", "plain"),
            ("batch", False, "upsample", 3, 2, False, "none", "inverted_bottleneck"),
            ("frame", False, "upsample", 2, 2, False, "shift", "inverted_bottleneck"),
            ("time", True, "upsample", 4, 3, True, "shift", "plain"),
            ("frame", True, "none", 2, 1, True, "scale_and_shift", "inverted_bottleneck"),
            ("none", False, "none", 2, 1, True, "shift", "plain"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("config", SAME_AS_KERAS, ids=str)
def test_the_decoder_is_the_one_that_stock_keras_layers_make(config, weights_of):
    plan = config.plan(5)
    weights = weights_of(plan)
    n_frames = 5 * max(node.period for node in plan)
    model = keras_decoder(config, weights, n_frames)
    inputs = np.random.default_rng(0).normal(size=(2, n_frames, 2)).astype(np.float32)
    ours = decoder_with(config, weights)(inputs).numpy()
    np.testing.assert_allclose(ours, model(inputs).numpy(), atol=1e-4)
    assert abs(ours).max() > 0.1
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert config.parameter_count(5) == trainable
    assert config.macs_per_frame(5) == math.ceil(Fraction(keras_macs(model), n_frames))


@settings(max_examples=30)
@given(config=st.from_type(DecoderConfig), n_frames=st.integers(1, 60), seed=st.integers(0, 99))
def test_the_decoder_equals_its_float64_twin(
    weights_of, assert_equals_twin, config, n_frames, seed
):
    weights = weights_of(config.plan(5), seed)
    inputs = np.random.default_rng(seed).normal(size=(2, n_frames, 2)).astype(np.float32)
    for clip, outputs in zip(inputs, decoder_with(config, weights)(inputs), strict=True):
        assert_equals_twin(outputs.numpy(), clip, weights, config)


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
    config = DilatedConvStackConfig(8, 3, 2, kernel_size, dilation_base, norm=norm)
    powers = sum(dilation_base**j for j in range(3))
    field = 1 + (kernel_size - 1) * (1 + 2 * powers)
    assert config.receptive_field_frames == field
    assert frames_reached(config, 3, field + 10).tolist() == list(range(3, 3 + field))


@pytest.mark.parametrize("norm", BOUNDED)
@pytest.mark.parametrize("block", ["plain", "inverted_bottleneck"])
@pytest.mark.parametrize("resample", ["none", "downsample", "upsample"])
def test_a_causal_decoder_as_it_ships_never_sees_the_future(block, norm, resample):
    config = dataclasses.replace(
        REFERENCE_DECODER, block=block, norm=norm, resample=resample, conditioning="shift"
    )
    assert config.streamable
    for at in range(30, 34):
        assert frames_reached(config, at, 60)[0] >= at


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_a_centred_decoder_sees_as_far_ahead_as_back(kernel_size):
    config = dataclasses.replace(REFERENCE_DECODER, causal=False, kernel_size=kernel_size)
    half = config.receptive_field_frames // 2
    reached = frames_reached(config, half + 5, 2 * half + 11)
    assert (reached[0], reached[-1]) == (5, 2 * half + 5)


@pytest.mark.parametrize(
    "config", [REFERENCE_DECODER, RESAMPLED, RECURRENT], ids=["tiny", "resampled", "recurrent"]
)
def test_the_decoder_runs_in_a_graph_with_frames_left_open(config, weights_of):
    from thesis._ddsp import tf

    decoder = decoder_with(config, weights_of(config.plan(5)))
    graph = tf.function(decoder, input_signature=[tf.TensorSpec([None, None, 2])])
    inputs = np.random.default_rng(0).normal(size=(1, 33, 2)).astype(np.float32)
    np.testing.assert_allclose(graph(inputs), decoder(inputs), atol=1e-5)


@pytest.mark.parametrize("resample", ["downsample", "upsample"])
def test_a_resampled_decoder_compiles_as_training_has_it(resample, weights_of):
    from thesis._ddsp import tf

    config = dataclasses.replace(RESAMPLED, resample=resample)
    decoder = decoder_with(config, weights_of(config.plan(5)))
    compiled = tf.function(decoder, jit_compile=True)
    inputs = np.random.default_rng(0).normal(size=(2, 33, 2)).astype(np.float32)
    np.testing.assert_allclose(compiled(inputs), decoder(inputs), atol=1e-4)


def test_named_weights_are_copies():
    decoder = Decoder(REFERENCE_DECODER, 5)
    before = decoder.named_weights()
    decoder.weights["output/bias"].assign(np.ones(5, np.float32))
    assert not before["output/bias"].any()
    assert decoder.named_weights()["output/bias"].all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("block", ["plain", "inverted_bottleneck"])
@pytest.mark.parametrize("conditioning", ["none", "shift", "scale_and_shift"])
def test_every_weight_is_trained(block, norm, conditioning):
    resample = "upsample" if conditioning == "none" else "downsample"
    config = DilatedConvStackConfig(
        layers_per_stack=1, block=block, norm=norm, conditioning=conditioning, resample=resample
    )
    assert_every_weight_is_trained(config)


@pytest.mark.parametrize("layers_per_stack", [0, 1, 2])
def test_every_weight_of_a_recurrent_decoder_is_trained(layers_per_stack):
    assert_every_weight_is_trained(RnnFcConfig(4, 5, layers_per_stack))


def assert_every_weight_is_trained(config):
    from thesis._ddsp import tf

    decoder = Decoder(config, 5)
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
    config = DilatedConvStackConfig(4, 1, 1, 1, norm="batch")
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
    decoder = Decoder(DilatedConvStackConfig(2, 1, 1, 1, norm="batch"), 5)
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
    decoder = Decoder(DilatedConvStackConfig(norm="batch"), 5)
    inputs = np.random.default_rng(0).normal(size=(2, 30, 2)).astype(np.float32)
    decoder(inputs, training=True)
    before = decoder.named_weights()
    first = decoder(inputs).numpy()
    np.testing.assert_array_equal(decoder(inputs), first)
    after = decoder.named_weights()
    assert all((before[name] == after[name]).all() for name in before)
