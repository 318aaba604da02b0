"""Models block by block: the whole clip's equals, whatever the blocks."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from thesis import reference
from thesis.config import REFERENCE_DECODER, DecoderConfig, SynthConfig
from thesis.controls import absolute_levels, decoder_inputs, white_noise
from thesis.errors import ExportError, StreamError
from thesis.export import decoder_stream_onnx, synth_stream_onnx
from thesis.runtimes.onnx_runtime import Session
from thesis.stream import DecoderStream, SynthStream

SYNTH = SynthConfig(n_harmonics=3, n_noise_bands=4)


def blocks(n_frames, cycle, seed):
    """Bounds of blocks of one cycle to the whole clip, as (first, end)."""
    rng = np.random.default_rng(seed)
    first = 0
    while first < n_frames:
        cycles = int(np.exp(rng.uniform(0, np.log(n_frames / cycle + 1))))
        end = min(first + cycle * max(cycles, 1), n_frames)
        yield first, end
        first = end


# --- The decoder ---


@settings(max_examples=40)
@given(config=st.from_type(DecoderConfig), n_cycles=st.integers(1, 40), seed=st.integers(0, 1000))
def test_any_decoder_on_any_blocks_is_the_whole_clips_later(
    weights_of, assert_equals_twin, rates, config, n_cycles, seed
):
    assume(getattr(config, "norm", "") != "time")
    weights = weights_of(config.plan(SYNTH.n_outputs), seed)
    stream = DecoderStream(decoder_stream_onnx(config, SYNTH, weights, **rates))
    n_frames = n_cycles * stream.cycle
    inputs = np.random.default_rng(seed).uniform(0, 1, (n_frames, 2)).astype(np.float32)
    streamed = [stream(inputs[None, a:b])[0] for a, b in blocks(n_frames, stream.cycle, seed)]
    outputs = np.concatenate(streamed)[stream.delay_frames :]
    if len(outputs):
        assert_equals_twin(outputs, inputs, weights, config, frames=len(outputs))


def test_a_stream_begins_anew_after_a_reset_and_goes_on_from_a_state(weights_of, rates):
    weights = weights_of(REFERENCE_DECODER.plan(SYNTH.n_outputs))
    stream = DecoderStream(decoder_stream_onnx(REFERENCE_DECODER, SYNTH, weights, **rates))
    inputs = np.random.default_rng(0).uniform(0, 1, (1, 30, 2)).astype(np.float32)
    first = stream(inputs)
    state = stream.state
    second = stream(inputs)
    assert abs(second - first).max() > 1e-3
    stream.state = state
    np.testing.assert_array_equal(stream(inputs), second)
    stream.reset()
    np.testing.assert_array_equal(stream(inputs), first)


# --- The whole model ---


def pitch(n_frames, seed):
    """Pitch that glides, jumps, stops, and crosses Nyquist, [frames]."""
    rng = np.random.default_rng(seed)
    glide = 300.0 * 2.0 ** np.cumsum(rng.normal(0, 0.1, n_frames))
    jumps = np.where(rng.random(n_frames) < 0.05, 30.0, 1.0)
    voiced = np.repeat(rng.random(-(-n_frames // 7)) < 0.8, 7)[:n_frames]
    return (np.clip(glide * jumps, 20, 20_000) * voiced).astype(np.float32)


def played(stream, f0_hz, loudness_db, seed):
    """What a stream plays, in random blocks, [samples]."""
    return np.concatenate(
        [
            stream(f0_hz[first:end], loudness_db[first:end])
            for first, end in blocks(len(f0_hz), stream.cycle, seed)
        ]
    )


def clip_by_reference(stream, weights, config, response, f0_hz, loudness_db, seed):
    """The float64 twin's audio of the whole clip, late as the stream's."""
    inputs = decoder_inputs(f0_hz, loudness_db)
    outputs = absolute_levels(reference.decode(inputs, weights, config), inputs, stream.synth)
    rates = {"sample_rate": stream.sample_rate, "hop_size": stream.hop_size}
    noise = white_noise(seed, 1, len(f0_hz) * stream.hop_size)[0]
    clip = reference.synthesize(outputs, f0_hz, noise, response, config=stream.synth, **rates)
    return np.concatenate([np.zeros(stream.latency_samples), clip])[: clip.size]


synths = st.builds(
    SynthConfig,
    n_harmonics=st.one_of(st.integers(1, 70), st.just(200)),
    n_noise_bands=st.one_of(st.integers(3, 80), st.just(257)),
    levels=st.sampled_from(["loudness", "absolute"]),
)


@settings(max_examples=30)
@given(
    config=st.from_type(DecoderConfig),
    synth=synths,
    hop_size=st.sampled_from([1, 7, 63, 64, 80, 128, 256, 1024]),
    sample_rate=st.sampled_from([8000, 16_000, 44_100]),
    taps=st.sampled_from([0, 1, 2, 700, 1024, 1025, 5000]),
    n_cycles=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_any_model_on_any_blocks_plays_the_whole_clip_later(
    weights_of, config, synth, hop_size, sample_rate, taps, n_cycles, seed
):
    assume(getattr(config, "norm", "") != "time")
    rng = np.random.default_rng(seed)
    # As after training: the weights of a test, unscaled, make outputs of hundreds.
    weights = {
        name: weight * (0.1 if name.startswith("output/") else 1.0)
        for name, weight in weights_of(config.plan(synth.n_outputs), seed).items()
    }
    response = (rng.normal(0, 0.02, taps) * np.exp(-3 * np.arange(taps) / max(taps, 1))).astype("f")
    rates = {"sample_rate": sample_rate, "hop_size": hop_size}
    model = synth_stream_onnx(config, synth, weights, response, **rates)
    stream = SynthStream(model, seed=seed)
    n_frames = n_cycles * stream.cycle
    f0_hz, loudness_db = pitch(n_frames, seed), rng.uniform(-80, 0, n_frames).astype(np.float32)
    audio = played(stream, f0_hz, loudness_db, seed)
    args = (weights, config, response, f0_hz, loudness_db, seed)
    expected = clip_by_reference(stream, *args)
    assert audio.shape == expected.shape
    # In a clip, what looks ahead sees padding after the last frame, or holds it.
    np.testing.assert_allclose(audio, expected, atol=1e-4 * max(1, abs(expected).max()))


def test_ddsp_cnn_tiny_with_a_second_of_reverb_is_exact_to_1e_5(weights_of, rates):
    weights = weights_of(REFERENCE_DECODER.plan(SynthConfig().n_outputs))
    response = np.random.default_rng(0).normal(0, 0.01, 16_000).astype(np.float32)
    model = synth_stream_onnx(REFERENCE_DECODER, SynthConfig(), weights, response, **rates)
    stream = SynthStream(model, seed=3)
    assert stream.latency_samples == 64
    assert stream.metadata["latency_samples"] == 64
    f0_hz = (220 * 2 ** (np.sin(np.arange(1000) / 8) / 24)).astype(np.float32)
    loudness_db = (-40 + 20 * np.sin(np.arange(1000) / 50)).astype(np.float32)
    audio = played(stream, f0_hz, loudness_db, seed=0)
    args = (weights, REFERENCE_DECODER, response, f0_hz, loudness_db, 3)
    np.testing.assert_allclose(audio, clip_by_reference(stream, *args), atol=1e-5)


def test_the_stream_is_what_tensorflow_trains(make_model, small, rates):
    model = make_model()
    model.reverb.assign(np.random.default_rng(0).normal(0, 0.01, model.reverb.shape))
    response = model.impulse_response.numpy()
    weights = model.decoder.named_weights()
    stream = SynthStream(synth_stream_onnx(small.decoder, small.synth, weights, response, **rates))
    f0_hz, loudness_db = pitch(200, 0), np.full(200, -30, np.float32)
    noise = white_noise(0, 1, 200 * 64)
    inputs = decoder_inputs(f0_hz, loudness_db)[None]
    outputs = absolute_levels(model.decoder(inputs), inputs, small.synth)
    clip = model.synthesizer(outputs, f0_hz[None], noise, response)[0].numpy()
    audio = played(stream, f0_hz, loudness_db, seed=0)
    np.testing.assert_allclose(audio[64:], clip[:-64], atol=1e-4)


# --- What it refuses ---


@pytest.fixture(scope="module")
def tiny_stream(weights_of, rates):
    """A stream of a small model whose blocks hold an even number of frames."""
    config = replace(REFERENCE_DECODER, resample="downsample", stacks=1)
    weights = weights_of(config.plan(SYNTH.n_outputs))
    return synth_stream_onnx(config, SYNTH, weights, np.zeros(0, np.float32), **rates)


def frames(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("f0_hz", "loudness_db", "words"),
    [
        (frames(200, 200), frames(-20), r"f0_hz of shape \[2\], loudness_db \[1\]"),
        (frames(200, 200)[None], frames(-20, -20)[None], r"f0_hz of shape \[1, 2\]"),
        (frames(200, 200, 200), frames(-20, -20, -20), "a block of 3 frames"),
        (frames(), frames(), "a block of 0 frames"),
        (frames(200, np.nan), frames(-20, -20), "f0_hz holds values that are not finite"),
        (frames(200, 200), frames(-20, -np.inf), "loudness_db holds values that are not finite"),
    ],
)
def test_controls_that_cannot_be_played_are_one_line_and_change_nothing(
    tiny_stream, f0_hz, loudness_db, words
):
    stream = SynthStream(tiny_stream)
    before = stream.state
    with pytest.raises(StreamError, match=words) as caught:
        stream(f0_hz, loudness_db)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    for name, value in stream.state.items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("n", [1, 3])
def test_a_decoders_inputs_of_another_shape_are_one_line(weights_of, rates, n):
    weights = weights_of(REFERENCE_DECODER.plan(SYNTH.n_outputs))
    stream = DecoderStream(decoder_stream_onnx(REFERENCE_DECODER, SYNTH, weights, **rates))
    with pytest.raises(StreamError, match=rf"inputs of shape \[1, 5, {n}\]"):
        stream(np.zeros((1, 5, n), np.float32))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda state: {}, "other names: amplitudes"),
        (lambda state: state | {"more": np.zeros(1)}, "other names: more"),
        (lambda state: state | {"phase": np.zeros(1)}, r"'phase' is float64 \[1\]"),
        (lambda state: state | {"phase": np.zeros((1, 1), "f")}, "'phase' is float32"),
    ],
)
def test_a_state_of_another_model_is_one_line_and_changes_nothing(tiny_stream, spoil, words):
    stream = SynthStream(tiny_stream)
    stream(frames(200, 210), frames(-20, -30))
    before = stream.state
    with pytest.raises(StreamError, match=words):
        stream.state = spoil(stream.state)
    for name, value in stream.state.items():
        np.testing.assert_array_equal(value, before[name])


def test_another_artefact_is_refused(tiny_stream, export):
    with pytest.raises(ExportError, match="model is no decoder_stream, but synth_stream"):
        DecoderStream(tiny_stream)
    with pytest.raises(ExportError, match="model is no synth_stream, but decoder"):
        SynthStream(export(REFERENCE_DECODER, SYNTH)[0])
    with pytest.raises(ExportError, match="model is no decoder, but synth_stream"):
        Session(tiny_stream)
    with pytest.raises(ExportError, match="no synth_stream that ONNX Runtime can load"):
        SynthStream(tiny_stream[:-100])


def test_a_norm_over_the_clip_is_not_exported_as_a_stream(weights_of, rates):
    config = replace(REFERENCE_DECODER, norm="time")
    weights = weights_of(config.plan(SYNTH.n_outputs))
    with pytest.raises(ExportError, match="cannot stream"):
        synth_stream_onnx(config, SYNTH, weights, np.zeros(0, np.float32), **rates)
