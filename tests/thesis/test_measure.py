"""The real-time factor: who is called when, what becomes of the times, what is left as it was.

The clock is a fake wherever a number is asserted: nothing here depends on the machine's speed.
"""

import itertools
import os
from dataclasses import fields, replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scipy import stats

from thesis import measure as stage
from thesis.architecture import initial_weights
from thesis.config import REFERENCE_DECODER, DilatedConvStackConfig, MeasureConfig, SynthConfig
from thesis.errors import ExportError
from thesis.export import decoder_onnx
from thesis.measure import (
    ROUNDS,
    drift,
    graph_hash,
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
    monkeypatch.setattr(stage.time, "process_time", clock)
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
    """A function: replaces sessions, so that the candidate's calls cost something else.

    It returns the list of what will be loaded.
    """

    def fake_sessions(cost_of_candidate, cost_of_reference):
        loaded = []

        class FakeSession:
            sample_rate, hop_size, synth = 16_000, 64, SynthConfig()

            def __init__(self, model):
                name = "candidate" if model == b"candidate" else "reference"
                loaded.append(name)
                cost = cost_of_candidate if name == "candidate" else cost_of_reference
                self.call = fake_session(name, cost)

            def __call__(self, inputs):
                self.call(inputs)

        monkeypatch.setattr(stage, "Session", FakeSession)
        return loaded

    return fake_sessions


def one_directional(low, seed):
    """The noise of a shared machine: never faster, often slower, sometimes much slower."""
    rng = np.random.default_rng(seed)

    def cost():
        busy = 10.0 if rng.random() < 0.05 else 1.0
        return low * (1 + busy * rng.exponential(0.1))

    return cost


# --- One round ---


def sessions_of(fake_session, *costs):
    return [(fake_session(name, cost), INPUTS) for name, cost in zip("abcd", costs, strict=False)]


def test_sessions_are_called_in_turn_twice_each_after_a_warm_up(clock, fake_session):
    sessions = sessions_of(fake_session, *[lambda: 1e-3] * 4)
    interleaved_times(sessions, MeasureConfig(seconds=0.8), deadline=0.04)
    calls = "".join(clock.calls)
    first = calls.index("aa")
    assert calls[:first] == "abcd" * (first // 4)
    assert calls[first:] == "aabbccdd" * ((len(calls) - first) // 8)


def test_the_second_of_two_calls_is_timed_on_its_own_and_warm_up_is_not(clock, fake_session):
    costs = iter([5e-6] * stage._WARM_UP_CALLS + [9.0, 1e-3, 9.0, 2e-3, 9.0, 3e-3])
    sessions = sessions_of(fake_session, lambda: next(costs), lambda: 7e-3)
    times = interleaved_times(sessions, MeasureConfig(seconds=10, max_calls=120), deadline=99.0)
    np.testing.assert_allclose(times, [[n * 1e-3, 7e-3] for n in (1, 2, 3)], atol=1e-12)


def test_what_takes_long_is_warmed_up_by_a_single_call(clock, fake_session):
    sessions = sessions_of(fake_session, lambda: 1.0, lambda: 1.0)
    times = interleaved_times(sessions, MeasureConfig(seconds=2.0, min_calls=80), deadline=0.1)
    assert times.shape == (2, 2)
    assert clock.now == 2 + 2 * 4


@pytest.mark.parametrize(
    ("config", "calls"),
    [
        (MeasureConfig(seconds=2.0, min_calls=50, max_calls=4000), 12),  # 0.1 s of 8 ms
        (MeasureConfig(seconds=0.01, min_calls=50, max_calls=4000), 2),
        (MeasureConfig(seconds=600, min_calls=50, max_calls=120), 3),
    ],
    ids=["time", "least", "most"],
)
def test_a_round_has_its_share_of_the_time_and_of_the_calls(fake_sessions, config, calls):
    fake_sessions(lambda: 1e-3, lambda: 1e-3)
    times = stage._round((b"candidate", b"reference"), (INPUTS, INPUTS), config, 0)
    assert times.shape[1:] == (2, 2)
    assert calls - stage._WARM_UP_CALLS <= len(times) <= calls


def test_both_models_are_loaded_and_called_at_the_same_place_on_average(fake_sessions, clock):
    loaded = fake_sessions(lambda: 1e-3, lambda: 1e-3)
    measure_rtf(b"candidate", 1.0, MeasureConfig(seconds=0.01, min_calls=10, max_calls=10))
    rounds = np.array(loaded[1:]).reshape(ROUNDS, 4)  # the first tells the rates
    places = {name: np.nonzero(rounds == name)[1] for name in ("candidate", "reference")}
    assert places["candidate"].mean() == places["reference"].mean() == 1.5
    assert (rounds == rounds[:, ::-1]).all()  # in each round
    assert sorted(places["candidate"]) == sorted(places["reference"])  # over all rounds
    calls = np.array(clock.calls).reshape(ROUNDS, 4 + 8)  # warm-up; one turn, two calls each
    assert (calls == np.hstack([rounds, rounds.repeat(2, axis=1)])).all()


def test_what_the_place_of_a_session_costs_is_not_in_the_ratio(fake_sessions, monkeypatch):
    monkeypatch.setattr(stage, "_WARM_UP_CALLS", 0)
    places = itertools.cycle(np.repeat([1.006e-3, 1.004e-3, 0.997e-3, 0.994e-3], 2))
    fake_sessions(lambda: next(places), lambda: next(places))
    found = measure_rtf(b"candidate", 1.0, MeasureConfig())
    assert found.rtf_ratio == pytest.approx(1.0, abs=1e-9)


def test_memory_before_a_session_is_of_any_size_up_to_a_megabyte():
    drawn = [tuple(map(len, stage._ballast())) for _ in range(3)]
    assert len(set(drawn)) == 3
    assert all(2**10 <= size <= 2**20 for sizes in drawn for size in sizes)


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
    # In each round two sessions warm up five times; then the first of two calls is not timed.
    of_a_round = [*[9.0] * 10, *(cost for ms in range(11, 111) for cost in (1.0, ms))]
    costs = iter(np.tile(of_a_round, ROUNDS) / 1000)
    fake_sessions(lambda: next(costs), lambda: 1e-3)
    found = measure_rtf(b"candidate", 4.0, MeasureConfig(seconds=600, max_calls=2000))
    expected = np.quantile(np.arange(11, 111) / 1000, [0.5, 0.95, 0.99])
    assert found.calls == 2000
    measured = [found.p50_seconds, found.p95_seconds, found.p99_seconds]
    np.testing.assert_allclose(measured, expected, rtol=0.01)


def test_intervals_of_a_model_against_itself_cover_one(fake_sessions):
    covered = 0
    for seed in range(40):
        fake_sessions(one_directional(1e-3, seed), one_directional(1e-3, 1000 + seed))
        found = measure_rtf(b"candidate", 4.0, MeasureConfig(seconds=600, max_calls=200))
        covered += found.rtf_ratio_low <= 1 <= found.rtf_ratio_high
    assert covered >= 34


def test_the_interval_of_few_rounds_is_wider(fake_sessions):
    ratios = np.array([0.99, 1.01])
    _, low, high = ratio_interval(np.tile(ratios, 10))
    _, lower, higher = ratio_interval(ratios)
    assert higher - lower > 10 * (high - low)


def test_drift_is_how_far_the_halves_of_the_rounds_are_apart():
    assert drift(np.array([1.0, 1.0, 9.0, 1.1, 1.1, 0.1])) == pytest.approx(0.1)
    assert drift(np.array([1.1, 1.1, 9.0, 1.0, 1.0, 0.1])) == pytest.approx(0.1)
    assert drift(np.ones(20)) == 0.0


def test_a_reference_that_slows_down_midway_has_drifted_and_the_ratio_has_not(fake_sessions, clock):
    # In each round four sessions warm up five times and have 50 turns of two calls.
    def cost():
        return 1e-3 if len(clock.calls) <= 4 * (5 + 50 * 2) * ROUNDS / 2 else 1.2e-3

    fake_sessions(cost, cost)
    found = measure_rtf(b"candidate", 4.0, MeasureConfig(seconds=600, max_calls=2000))
    assert found.reference_drift == pytest.approx(0.2, abs=1e-6)
    assert found.rtf_ratio == pytest.approx(1.0)


def test_the_interval_is_students_on_logarithms_and_no_narrower_than_what_rounds_share():
    ratios = np.random.default_rng(0).lognormal(0.3, 0.1, ROUNDS)
    mean, low, high = ratio_interval(ratios)
    error = np.hypot(stats.sem(np.log(ratios)), stage._SHARED_ERROR)
    expected = stats.t.interval(0.95, ROUNDS - 1, np.log(ratios).mean(), error)
    assert mean == pytest.approx(stats.gmean(ratios))
    _, least, most = ratio_interval(np.ones(ROUNDS))
    assert (least, most) == pytest.approx((1 - 8.4e-4, 1 + 8.4e-4), abs=1e-5)
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
    assert found.calls == 2 * ROUNDS  # 10 to 20, rounded up
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


# --- The graph ---


@pytest.fixture
def exported(small):
    """A function: the small decoder as ONNX with new weights, or another."""

    def exported(seed=0, sample_rate=16_000, **changes):
        decoder = replace(small.decoder, **changes)
        weights = initial_weights(decoder.plan(small.synth.n_outputs), seed=seed)
        rates = {"sample_rate": sample_rate, "hop_size": 64}
        return decoder_onnx(decoder, small.synth, weights, **rates)

    return exported


def test_graphs_are_equal_whatever_the_weights(exported):
    assert exported(seed=0) != exported(seed=1)
    assert graph_hash(exported(seed=0)) == graph_hash(exported(seed=1))


def test_graphs_that_may_differ_in_speed_are_not_equal(exported):
    models = [
        exported(),
        exported(channels=5),
        exported(kernel_size=5),
        exported(dilation_base=3),
        exported(norm="time"),
        exported(sample_rate=32_000),
    ]
    assert len({graph_hash(model) for model in models}) == len(models)


def test_constants_that_are_no_weights_belong_to_the_graph(exported):
    model = onnx.load_model_from_string(exported())
    for name, value in (("bound", np.float32(6.0)), ("axes", np.array([2]))):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    before = graph_hash(model.SerializeToString())
    for i in (-2, -1):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        constant = numpy_helper.to_array(changed.graph.initializer[i]) + 1
        changed.graph.initializer[i].raw_data = constant.tobytes()
        assert graph_hash(changed.SerializeToString()) != before


def test_the_graph_of_what_is_no_model_is_an_error():
    with pytest.raises(ExportError, match="no ONNX model"):
        graph_hash(b"no model")


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
