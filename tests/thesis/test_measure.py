"""The real-time factor: who is called when, what becomes of the times, what is left as it was.

The clock is a fake wherever a number is asserted: nothing here depends on the machine's speed.
"""

import os
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import stats

from thesis import measure as stage
from thesis.config import REFERENCE_DECODER, DilatedConvStackConfig, MeasureConfig, SynthConfig
from thesis.errors import ExportError
from thesis.measure import (
    ROUNDS,
    host_fingerprint,
    interleaved_times,
    measure_rtf,
    pinned_to_one_core,
    processor,
    ratio_interval,
)

INPUTS = np.zeros((1, 2, 4), np.float32)
CORES = os.sched_getaffinity(0)
"""Of this process before anything was measured."""


class Clock:
    """A clock that only calls move, and the log of these calls."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stage.time, "perf_counter", clock)
    return clock


@pytest.fixture
def fake_session(clock):
    """A function: a session whose calls take as long as `cost` says."""

    def fake_session(name, cost):
        def call(inputs):
            clock.calls.append(name)
            clock.now += cost()

        return call

    return fake_session


@pytest.fixture
def fake_sessions(monkeypatch, fake_session):
    """A function: replaces sessions, so that the candidate's calls cost something else."""

    def fake_sessions(cost_of_candidate, cost_of_reference):
        class FakeSession:
            sample_rate, hop_size, synth = 16_000, 64, SynthConfig()

            def __init__(self, model):
                candidate = model == b"candidate"
                cost = cost_of_candidate if candidate else cost_of_reference
                self.call = fake_session("candidate" if candidate else "reference", cost)

            def __call__(self, inputs):
                self.call(inputs)

        monkeypatch.setattr(stage, "Session", FakeSession)

    return fake_sessions


def one_directional(low, seed):
    """The noise of a shared machine: never faster, often slower, sometimes much slower."""
    rng = np.random.default_rng(seed)

    def cost():
        busy = 10.0 if rng.random() < 0.05 else 1.0
        return low * (1 + busy * rng.exponential(0.1))

    return cost


# --- One round ---


def test_two_models_are_called_in_turn_and_each_goes_first_half_of_the_time(clock, fake_session):
    a, b = fake_session("a", lambda: 1e-3), fake_session("b", lambda: 1e-3)
    interleaved_times(a, b, (INPUTS, INPUTS), MeasureConfig(seconds=0.08))
    pairs = list(zip(clock.calls[::2], clock.calls[1::2], strict=True))
    assert set(pairs) == {("a", "b"), ("b", "a")}
    measured = pairs[stage._WARM_UP_CALLS :]
    assert measured == [("b", "a"), ("a", "b")] * (len(measured) // 2) + measured[-1:] * (
        len(measured) % 2
    )


def test_each_call_is_timed_on_its_own_and_warm_up_is_not(clock, fake_session):
    costs = iter([5.0] * stage._WARM_UP_CALLS + [1e-3, 2e-3, 3e-3, 4e-3, 5e-3])
    a, b = fake_session("a", lambda: next(costs)), fake_session("b", lambda: 7e-3)
    times = interleaved_times(a, b, (INPUTS, INPUTS), MeasureConfig(seconds=0.01, min_calls=50))
    np.testing.assert_allclose(times, [[n * 1e-3, 7e-3] for n in (1, 2, 3, 4, 5)], atol=1e-12)


@pytest.mark.parametrize(
    ("config", "calls"),
    [
        (MeasureConfig(seconds=2.0, min_calls=50, max_calls=4000), 100),  # 0.2 s of 2 ms
        (MeasureConfig(seconds=0.01, min_calls=50, max_calls=4000), 5),
        (MeasureConfig(seconds=600, min_calls=50, max_calls=120), 12),
    ],
    ids=["time", "least", "most"],
)
def test_a_round_has_its_share_of_the_time_and_of_the_calls(clock, fake_session, config, calls):
    a, b = fake_session("a", lambda: 1e-3), fake_session("b", lambda: 1e-3)
    assert abs(len(interleaved_times(a, b, (INPUTS, INPUTS), config)) - calls) <= 1


# --- The estimate ---


def test_the_ratio_is_that_of_the_floors_whatever_the_noise(fake_sessions):
    fake_sessions(one_directional(3e-3, seed=0), one_directional(1e-3, seed=1))
    found = measure_rtf(b"candidate", 4.0, MeasureConfig(seconds=600, max_calls=1000))
    assert found.rtf_ratio == pytest.approx(3.0, rel=0.02)
    assert found.rtf_ratio_low < found.rtf_ratio < found.rtf_ratio_high
    assert found.rtf == pytest.approx(3e-3 / 4, rel=0.05)
    assert found.reference_rtf == pytest.approx(1e-3 / 4, rel=0.05)
    assert found.calls == 1000


def test_quantiles_are_those_of_the_candidates_calls(fake_sessions):
    costs = iter(np.tile(np.arange(1, 106), ROUNDS) / 1000)
    fake_sessions(lambda: next(costs), lambda: 1e-3)
    found = measure_rtf(b"candidate", 4.0, MeasureConfig(seconds=600, max_calls=1000))
    # The first five calls of a round warm up, so 6 ms to 105 ms are left.
    expected = np.quantile(np.arange(6, 106) / 1000, [0.5, 0.95, 0.99])
    measured = [found.p50_seconds, found.p95_seconds, found.p99_seconds]
    np.testing.assert_allclose(measured, expected, rtol=0.01)


def test_intervals_of_a_model_against_itself_cover_one(fake_sessions):
    covered = 0
    for seed in range(40):
        fake_sessions(one_directional(1e-3, seed), one_directional(1e-3, 1000 + seed))
        found = measure_rtf(b"candidate", 4.0, MeasureConfig(seconds=600, max_calls=200))
        covered += found.rtf_ratio_low <= 1 <= found.rtf_ratio_high
    assert covered >= 34


def test_the_interval_is_students_on_logarithms():
    ratios = np.random.default_rng(0).lognormal(0.3, 0.1, ROUNDS)
    mean, low, high = ratio_interval(ratios)
    expected = stats.t.interval(0.95, ROUNDS - 1, np.log(ratios).mean(), stats.sem(np.log(ratios)))
    assert mean == pytest.approx(stats.gmean(ratios))
    np.testing.assert_allclose([low, high], np.exp(expected), rtol=1e-4)


def test_the_interval_of_the_inverse_is_the_inverse():
    ratios = np.random.default_rng(0).lognormal(0.3, 0.1, ROUNDS)
    mean, low, high = ratio_interval(ratios)
    np.testing.assert_allclose(ratio_interval(1 / ratios), [1 / mean, 1 / high, 1 / low])


# --- For real ---


def test_a_measurement_is_whole_and_in_order(export, small):
    model, _ = export(small.decoder, small.synth)
    found = measure_rtf(model, 0.5, small.measure)
    assert all(getattr(found, f.name) not in (None, "") for f in fields(found))
    assert 0 < found.rtf_ratio_low <= found.rtf_ratio <= found.rtf_ratio_high
    assert found.rtf > 0
    assert found.reference_rtf > 0
    assert 0 < found.p50_seconds <= found.p95_seconds <= found.p99_seconds
    assert small.measure.min_calls <= found.calls <= small.measure.max_calls
    assert found.host_fingerprint == host_fingerprint()


def test_a_network_a_hundred_times_larger_is_slower(export, small):
    huge, _ = export(DilatedConvStackConfig(channels=128), SynthConfig())
    assert measure_rtf(huge, 1.0, small.measure).rtf_ratio > 2


def test_a_clip_of_any_length_is_measured(export, small):
    model, _ = export(REFERENCE_DECODER, small.synth)
    for seconds in (0.001, 0.0133):
        assert measure_rtf(model, seconds, small.measure).rtf > 0


def test_a_model_that_cannot_be_loaded_is_an_error(small):
    with pytest.raises(ExportError):
        measure_rtf(b"no model", 1.0, small.measure)


# --- The machine ---


def test_measuring_is_pinned_to_one_core_which_is_let_go_afterwards(fake_sessions, small):
    seen = set()

    def cost():
        seen.add(frozenset(os.sched_getaffinity(0)))
        return 1e-3

    fake_sessions(cost, cost)
    measure_rtf(b"candidate", 1.0, small.measure)
    assert [len(cores) for cores in seen] == [1]
    assert os.sched_getaffinity(0) == CORES


def test_a_core_is_let_go_after_an_error_too(fake_sessions, small):
    def interrupted():
        assert len(os.sched_getaffinity(0)) == 1
        raise KeyboardInterrupt

    fake_sessions(interrupted, interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_rtf(b"candidate", 1.0, small.measure)
    assert os.sched_getaffinity(0) == CORES


def test_systems_without_affinity_measure_without_it(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity")
    with pinned_to_one_core():
        pass


def test_the_machine_has_a_name_and_a_fingerprint(monkeypatch):
    assert processor()
    fingerprint = host_fingerprint.__wrapped__()
    assert len(fingerprint) == 12
    assert int(fingerprint, 16) >= 0
    monkeypatch.setattr(stage.platform, "node", lambda: "another")
    assert host_fingerprint.__wrapped__() != fingerprint


def test_where_there_is_no_cpuinfo_the_platform_names_the_processor(monkeypatch):
    def unreadable(_):
        raise OSError

    monkeypatch.setattr(stage.Path, "read_text", unreadable)
    assert processor.__wrapped__()


def test_the_reference_decodes_every_frame_of_the_dataset(export, small, monkeypatch):
    frames = set()

    class Recorded(stage.Session):
        def __call__(self, inputs):
            frames.add((self.hop_size, inputs.shape[2]))
            return super().__call__(inputs)

    monkeypatch.setattr(stage, "Session", Recorded)
    model, _ = export(small.decoder, replace(small.synth, hop_multiple=2))
    measure_rtf(model, 0.501, small.measure)
    assert frames == {(64, 126), (32, 251)}  # 8,016 samples; the last frame is not whole
