import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.config import Limits
from sweeps.objectives import objective
from sweeps.pareto import ReferencePoint, pareto_front
from sweeps.standing import RECENT, Outcomes, Standing, limited_objectives
from sweeps.trial import Candidate, Measurement, Provenance, Reason, Status, Trial

OBJECTIVES = (objective("val_loss"), objective("rtf_ratio"))


def trial(number, reason=None, *, host="h", started_at=0.0, finished_at=None, **metrics):
    return Trial(
        "s",
        Candidate.of({"number": number}),
        Measurement(**metrics),
        reason,
        provenance=Provenance(
            host_fingerprint=host,
            started_at=started_at,
            finished_at=float(number) if finished_at is None else finished_at,
        ),
    )


def standing_of(*trials, objectives=OBJECTIVES, baseline=None, at_a_time=1):
    standing = Standing(objectives, baseline=baseline and baseline.id)
    for first in range(0, len(trials), at_a_time):
        standing.add(Outcomes.of(trials[first : first + at_a_time], objectives))
    return standing


values = st.none() | st.sampled_from([math.nan, math.inf, 0.0, 1.0, 2.0, 3.0])
histories = st.lists(st.tuples(st.none() | st.sampled_from(Reason), values, values), max_size=12)


@given(histories, st.integers(1, 12))
def test_a_standing_is_what_all_trials_say_together(history, at_a_time):
    trials = [
        trial(i, reason, val_loss=loss, rtf_ratio=cost)
        for i, (reason, loss, cost) in enumerate(history)
    ]
    standing = standing_of(*trials, at_a_time=at_a_time)
    front = pareto_front(trials, OBJECTIVES)
    assert standing.finished == len(trials)
    assert {s: standing.counts[s] for s in Status} == {
        s: sum(t.status is s for t in trials) for s in Status
    }
    assert standing.front_size == len(front.members)
    losses = [t.measurement.val_loss for t in front.members]
    assert standing.best == min(losses, default=None)
    if standing.reference is None:
        assert standing.hypervolume is None
    else:
        points = [(t.measurement.val_loss, t.measurement.rtf_ratio) for t in front.members]
        assert standing.hypervolume == standing.reference.hypervolume(points)


def test_the_reference_is_set_by_the_baseline_and_stays():
    baseline = trial(2, val_loss=6.0, rtf_ratio=1.0)
    before = trial(1, val_loss=1.0, rtf_ratio=0.1)
    after = trial(3, val_loss=3.0, rtf_ratio=0.5)
    standing = standing_of(before, baseline=baseline)
    assert (standing.reference, standing.hypervolume) == (None, None)
    expected = ReferencePoint(OBJECTIVES, (12.0, 10.0))
    for late in (baseline, after):
        standing.add(Outcomes.of([late], OBJECTIVES))
        assert standing.reference == expected
    assert standing.hypervolume == expected.hypervolume([(1.0, 0.1)])


def test_the_baseline_is_found_among_many():
    trials = [trial(i, val_loss=float(i), rtf_ratio=1.0) for i in range(1, 9)]
    reference = standing_of(*trials, baseline=trials[5], at_a_time=8).reference
    assert reference == ReferencePoint(OBJECTIVES, (12.0, 10.0))


@pytest.mark.parametrize("at_a_time", [1, 4])
def test_without_a_baseline_the_first_trial_to_complete_sets_the_reference(at_a_time):
    failed = trial(4, Reason.DIVERGED, finished_at=1.0)
    second = trial(3, val_loss=5.0, rtf_ratio=5.0, finished_at=3.0)
    first = trial(2, val_loss=6.0, rtf_ratio=1.0, finished_at=2.0)
    third = trial(1, val_loss=4.0, rtf_ratio=4.0, finished_at=4.0)
    trials = (failed, second, first, third)
    for baseline in (None, failed):
        standing = standing_of(*trials, baseline=baseline, at_a_time=at_a_time)
        assert standing.reference == ReferencePoint(OBJECTIVES, (12.0, 10.0))


def test_the_best_loss_is_one_within_the_limit():
    objectives = limited_objectives(("val_loss", "rtf_ratio"), Limits(rtf_ratio=1.0).given)
    assert [o.limit for o in objectives] == [None, 1.0]
    dear = trial(1, val_loss=2.0, rtf_ratio=1.5)
    standing = standing_of(dear, objectives=objectives)
    assert standing.best is None
    standing.add(Outcomes.of([trial(2, val_loss=3.0, rtf_ratio=0.5)], objectives))
    assert standing.best == 3.0
    assert "best val_loss 3 at rtf_ratio <= 1" in standing.summary(9, ())


def test_the_best_loss_comes_with_the_pitch_that_its_trial_misses():
    trials = [
        trial(1, val_loss=3.0, rtf_ratio=1.0, f0_missed_share=0.02),
        trial(2, val_loss=2.0, rtf_ratio=1.0, f0_missed_share=1.0),
        trial(3, Reason.MISSED_PITCH, val_loss=1.0, rtf_ratio=1.0, f0_missed_share=0.9),
        trial(4, val_loss=2.5, rtf_ratio=1.0, f0_missed_share=0.1),
    ]
    for at_a_time in (1, 4):
        standing = standing_of(*trials, at_a_time=at_a_time)
        assert (standing.best, standing.best_missed) == (2.0, 1.0)
        assert "best val_loss 2 (f0_missed 100%) · 1 infeasible" in standing.summary(9, ())
        # A record of a release that did not measure it.
        standing.add(Outcomes.of([trial(5, val_loss=1.5, rtf_ratio=1.0)], OBJECTIVES))
        assert (standing.best, standing.best_missed) == (1.5, None)
        assert "best val_loss 1.5 · 1 infeasible" in standing.summary(9, ())


def test_an_objective_to_be_raised_has_its_highest_value_as_best():
    objectives = (objective("x_real_time"), objective("val_loss"))
    trials = [trial(i, val_loss=1.0, rtf=1 / speed) for i, speed in enumerate((100.0, 400.0, 50.0))]
    assert standing_of(*trials, objectives=objectives).best == pytest.approx(400.0)


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_raw_costs_of_several_hosts_have_no_front(at_a_time):
    raw = (objective("val_loss"), objective("rtf"))
    trials = [trial(i, host=host, val_loss=2.0, rtf=1.0) for i, host in enumerate("ab")]
    standing = standing_of(*trials, objectives=raw, at_a_time=at_a_time)
    assert (standing.front_size, standing.hypervolume) == (None, None)
    assert standing.summary(3, ()) == "best val_loss 2"
    failed = trial(1, Reason.CRASHED, host="b")
    assert standing_of(trials[0], failed, objectives=raw, at_a_time=at_a_time).front_size == 1


def lasting(*seconds):
    return [trial(i, started_at=100.0, finished_at=100.0 + s) for i, s in enumerate(seconds)]


def test_the_time_left_is_the_work_left_shared_by_those_that_run():
    standing = standing_of(*lasting(50.0, 70.0))
    # Eight are missing: two that have 40 and 60 s to go, and six of 60 s.
    assert standing.seconds_left(10, [20.0, 0.0]) == pytest.approx((40 + 60 + 6 * 60) / 2)
    assert standing.seconds_left(10, [20.0]) == pytest.approx(40 + 7 * 60)


def test_the_time_left_is_that_of_the_last_trial_when_all_are_running():
    standing = standing_of(*lasting(60.0))
    assert standing.seconds_left(4, [50.0, 50.0, 5.0]) == pytest.approx(55.0)
    assert standing.seconds_left(4, [90.0, 90.0, 90.0]) == 0.0


def test_nothing_tells_the_time_left_without_a_trial_that_ended_or_one_that_runs():
    assert standing_of().seconds_left(4, [5.0]) is None
    assert standing_of(*lasting(60.0)).seconds_left(4, []) is None
    assert standing_of(trial(1)).seconds_left(4, [5.0]) is None  # it is not known when it began
    assert standing_of(*lasting(60.0)).seconds_left(1, []) == 0.0


@pytest.mark.parametrize("at_a_time", [1, 1000])
def test_the_time_left_goes_by_the_last_trials(at_a_time):
    slow = [trial(i, started_at=1.0, finished_at=2000.0 + i) for i in range(9)]
    fast = [trial(100 + i, started_at=9000.0, finished_at=9010.0) for i in range(RECENT)]
    standing = standing_of(*slow, *fast, at_a_time=at_a_time)
    assert standing.seconds_left(110, [0.0]) == pytest.approx(10.0)


def test_candidates_that_are_not_trained_take_no_time():
    screened = [dataclasses.replace(t, reason=Reason.PARAMETERS) for t in lasting(0.0, 0.0, 0.0)]
    standing = standing_of(*lasting(40.0), *screened)
    assert standing.seconds_left(14, [0.0, 0.0]) == pytest.approx(10 * 10.0 / 2)


def test_a_clock_that_was_set_back_does_no_harm():
    assert standing_of(*lasting(-1e6, 60.0)).seconds_left(3, [0.0]) == pytest.approx(30.0)


def test_a_standing_is_told_in_a_line():
    trials = [
        trial(1, val_loss=6.0, rtf_ratio=1.0, started_at=1.0, finished_at=7201.0),
        trial(2, val_loss=5.0, rtf_ratio=2.0, finished_at=8000.0),
        trial(3, Reason.DIVERGED),
        trial(4, Reason.PRUNED),
        trial(5, Reason.RTF),
    ]
    volume = 0.5 * math.log10(10) + (7 / 12 - 0.5) * math.log10(5)
    assert standing_of(*trials).summary(7, [0.0]) == (
        f"1 running · front 2 · hypervolume {volume:.4g} · best val_loss 5 · 1 failed · "
        "1 infeasible · 1 pruned · 4 h 00 min left"
    )
