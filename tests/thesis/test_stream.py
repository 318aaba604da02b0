"""Models block by block: the whole clip's equals, whatever the blocks."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from thesis.config import REFERENCE_DECODER, DecoderConfig, SynthConfig
from thesis.export import decoder_stream_onnx
from thesis.stream import DecoderStream

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
