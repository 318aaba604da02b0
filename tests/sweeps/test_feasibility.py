"""What a candidate costs before it is trained, and which limit it breaks first."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.config import Limits
from sweeps.feasibility import broken_limit, closed_form_metrics
from sweeps.trial import Measurement, Reason, Status
from thesis.config import (
    REFERENCE_DECODER,
    DecoderConfig,
    MeasureConfig,
    ModelConfig,
    RnnFcConfig,
    SynthConfig,
    TrainConfig,
)

TINY = ModelConfig(REFERENCE_DECODER, SynthConfig(), TrainConfig(), MeasureConfig())


def test_ddsp_cnn_tiny_costs_what_the_thesis_says():
    assert closed_form_metrics(TINY, sample_rate=16_000, hop_size=64) == {
        "parameters": 2_446,
        "parameters_with_reverb": 18_446,
        "macs_per_frame": 3 * 2 * 8 + 6 * 3 * 8 * 8 + 8 * 126,
        "macs_per_second": 250 * (3 * 2 * 8 + 6 * 3 * 8 * 8 + 8 * 126),
        "receptive_field_frames": 55,
        "receptive_field_seconds": 0.22,
    }


def test_a_frame_of_several_hops_lasts_as_long():
    config = replace(TINY, synth=SynthConfig(hop_multiple=4))
    metrics = closed_form_metrics(config, sample_rate=16_000, hop_size=64)
    assert metrics["receptive_field_frames"] == 55
    assert metrics["receptive_field_seconds"] == 4 * 0.22
    assert metrics["macs_per_second"] == metrics["macs_per_frame"] * 250 / 4


@given(
    decoder=st.from_type(DecoderConfig),
    sample_rate=st.sampled_from([8000, 16_000, 44_100]),
    hop_size=st.sampled_from([32, 64, 100]),
)
def test_every_closed_form_is_a_column_and_seconds_are_frames(decoder, sample_rate, hop_size):
    config = replace(TINY, decoder=decoder)
    metrics = closed_form_metrics(config, sample_rate=sample_rate, hop_size=hop_size)
    measurement = Measurement(**metrics)
    if decoder.receptive_field_frames is None:
        assert measurement.receptive_field_frames is None
        assert measurement.receptive_field_seconds is None
    else:
        frames = measurement.receptive_field_seconds * sample_rate / hop_size
        assert frames == pytest.approx(measurement.receptive_field_frames)
    taps = measurement.parameters_with_reverb - measurement.parameters
    assert taps == sample_rate


@pytest.mark.parametrize(
    "decoder", [replace(REFERENCE_DECODER, norm="time"), RnnFcConfig(8, 8, 1)], ids=["time", "rnn"]
)
def test_a_receptive_field_without_a_bound_breaks_every_limit_on_it(decoder):
    config = replace(TINY, decoder=decoder)
    measurement = Measurement(**closed_form_metrics(config, sample_rate=16_000, hop_size=64))
    assert broken_limit(measurement, Limits(parameters=3000)) is None
    assert broken_limit(measurement, Limits(receptive_field_seconds=1e9, parameters=1)) == (
        Reason.RECEPTIVE_FIELD,
        "receptive_field_seconds has no bound; the limit 1e+09 s",
    )


MEASURED = Measurement(
    receptive_field_seconds=1.0, parameters=2446, rtf_ratio=1.5, f0_missed_share=0.95
)


@pytest.mark.parametrize(
    ("limits", "reason", "words"),
    [
        (Limits(0.5), Reason.RECEPTIVE_FIELD, "receptive_field_seconds is 1 s, the limit 0.5 s"),
        (Limits(None, 2000), Reason.PARAMETERS, "parameters is 2,446, the limit 2,000"),
        (Limits(rtf_ratio=1.2), Reason.RTF, "rtf_ratio is 1.5 x reference, the limit 1.2 x"),
        (
            Limits(f0_missed_share=0.3),
            Reason.MISSED_PITCH,
            "f0_missed_share is 0.95, the limit 0.3",
        ),
        (Limits(0.5, 2000, 1.2), Reason.RECEPTIVE_FIELD, "receptive_field_seconds"),
    ],
)
def test_a_broken_limit_is_a_reason_and_says_by_how_much(limits, reason, words):
    broken = broken_limit(MEASURED, limits)
    assert broken is not None
    assert broken[0] is reason
    assert broken[0].status is Status.INFEASIBLE
    assert words in broken[1]


@pytest.mark.parametrize(
    ("measurement", "limits"),
    [
        (MEASURED, Limits()),
        (MEASURED, Limits(1.0, 2446, 1.5, 0.95)),
        (Measurement(loudness_error_db=1.0), Limits(f0_missed_share=0.3)),
        (Measurement(), Limits(0.1, 1, 0.1)),
        (Measurement(parameters=0), Limits(parameters=0)),
    ],
    ids=["no-limit", "on-the-limit", "no-pitch-to-miss", "not-measured-yet", "zero"],
)
def test_nothing_is_broken(measurement, limits):
    assert broken_limit(measurement, limits) is None


def test_a_limit_of_zero_is_a_limit():
    assert broken_limit(Measurement(parameters=1), Limits(parameters=0)) is not None
