"""What each node of a plan remembers on a stream, and how late it is."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from thesis.architecture import INPUTS
from thesis.config import DecoderConfig, DilatedConvStackConfig, RnnFcConfig, SynthConfig
from thesis.errors import ExportError
from thesis.streaming import latency_frames, noise_delay, schedule, synthesis_delay


def streamable(config):
    return getattr(config, "norm", "none") != "time"


@given(config=st.from_type(DecoderConfig))
def test_a_causal_decoder_is_not_late_and_no_other_is_late_by_less_than_it_looks_ahead(config):
    assume(streamable(config))
    delay = schedule(config.plan(3)).delay
    assert delay >= config.lookahead_frames
    assert (delay == 0) == (config.lookahead_frames == 0)


@given(config=st.from_type(DilatedConvStackConfig))
def test_without_resampling_the_delay_is_the_look_ahead(config):
    assume(streamable(config) and config.resample == "none")
    scheduled = schedule(config.plan(3))
    assert scheduled.delay == config.lookahead_frames
    assert scheduled.cycle == 1


def test_a_causal_convolution_remembers_what_its_kernel_reaches_back_to():
    config = DilatedConvStackConfig(kernel_size=3, dilation_base=3, layers_per_stack=3, stacks=1)
    past = {
        step.node.name: [s.past for s in step.sources] for step in schedule(config.plan(3)).steps
    }
    assert [past[name] for name in ("input", "block_0", "block_1", "block_2")] == [
        [2],
        [2],
        [6],
        [18],
    ]
    assert past["block_0/sum"] == [0, 0]
    assert past["output"] == [0]


def test_where_branches_meet_the_early_one_waits():
    config = DilatedConvStackConfig(
        causal=False, kernel_size=3, dilation_base=3, layers_per_stack=2, stacks=1,
        conditioning="shift",
    )  # fmt: skip
    steps = {step.node.name: step for step in schedule(config.plan(3)).steps}
    assert [steps[name].delay for name in ("input", "block_0", "block_1")] == [1, 2, 5]
    early, late = steps["block_1/sum"].sources
    assert (early.past, early.ahead, late.past, late.ahead) == (3, 3, 0, 0)
    (conditions,) = (s for s in steps["block_1/film"].sources if s.name == INPUTS)
    assert (conditions.past, conditions.ahead) == (5, 5)


def test_a_block_holds_whole_frames_of_the_slowest_node():
    config = DilatedConvStackConfig(stacks=3, resample="downsample", resample_stride=4)
    assert schedule(config.plan(3)).cycle == 64
    assert schedule(RnnFcConfig(4, 4, 1).plan(3)).cycle == 1


def test_a_norm_over_the_whole_clip_cannot_stream():
    with pytest.raises(ExportError, match="'input' cannot stream") as caught:
        schedule(DilatedConvStackConfig(norm="time").plan(3))
    assert "'frame'" in caught.value.hint


@pytest.mark.parametrize(
    ("bands", "hop_size", "frames"),
    [(3, 64, 1), (65, 64, 1), (67, 64, 1), (68, 64, 2), (257, 64, 4), (257, 512, 1)],
)
def test_audio_is_late_by_a_frame_or_by_the_noise_filters_delay(bands, hop_size, frames):
    synth = SynthConfig(n_noise_bands=bands)
    assert synthesis_delay(synth, hop_size) == frames
    assert frames * hop_size >= noise_delay(synth) == bands - 3
    plan = DilatedConvStackConfig(causal=False, layers_per_stack=1, stacks=1).plan(synth.n_outputs)
    assert latency_frames(plan, synth, hop_size) == frames + 2
