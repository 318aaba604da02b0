import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sweeps import pareto
from sweeps.errors import MetricError, TrialError
from sweeps.objectives import Goal, Limit, Objective, objective
from sweeps.pareto import (
    Exclusion,
    GrowingFront,
    ReferencePoint,
    hypervolume,
    knee,
    non_dominated,
    pareto_front,
)
from sweeps.trial import Candidate, Measurement, Provenance, Reason, Status, Trial

LOSS, COST = objective("val_loss"), objective("rtf_ratio")


def trial(number, reason=None, host="h", **metrics):
    return Trial(
        "s",
        Candidate.of({"number": number}),
        Measurement(**metrics),
        reason,
        provenance=Provenance(host_fingerprint=host),
    )


def trials_at(*points):
    return [trial(i, val_loss=loss, rtf_ratio=cost) for i, (loss, cost) in enumerate(points)]


def numbers(front):
    return [member.candidate["number"] for member in front.members]


def naive_non_dominated(points):
    """The definition, word by word."""

    def beats(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(
            x < y for x, y in zip(a, b, strict=True)
        )

    valid = [not any(math.isnan(x) for x in point) for point in points]
    return [
        ok
        and not any(good and beats(other, point) for other, good in zip(points, valid, strict=True))
        for point, ok in zip(points, valid, strict=True)
    ]


few_values = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 1.0, 2.0, 3.0, math.inf, math.nan])
any_points = st.integers(1, 4).flatmap(
    lambda k: hnp.arrays(
        np.float64,
        st.tuples(st.integers(0, 30), st.just(k)),
        elements=few_values | st.floats(allow_subnormal=False),
    )
)
finite = st.floats(-1e6, 1e6)


@given(any_points)
def test_non_dominated_agrees_with_the_definition(points):
    assert non_dominated(points).tolist() == naive_non_dominated(points.tolist())


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_non_dominated_agrees_with_the_definition_on_many_points(k):
    points = np.random.default_rng(k).integers(0, 40, (400, k)).astype(float)
    assert non_dominated(points).tolist() == naive_non_dominated(points.tolist())


@pytest.mark.parametrize("sample", [1, 3, 10, 39])
@pytest.mark.parametrize("k", [1, 2])
def test_points_are_only_left_out_early_where_they_are_beaten(monkeypatch, k, sample):
    monkeypatch.setattr(pareto, "_SAMPLE", sample)
    rng = np.random.default_rng(sample)
    points = np.vstack([rng.integers(0, 40, (390, k)), rng.choice([np.inf, -np.inf], (10, k))])
    assert non_dominated(points).tolist() == naive_non_dominated(points.tolist())


@given(any_points)
def test_adding_a_dominated_point_changes_no_front(points):
    points = points[np.isfinite(points).all(axis=1)]
    if len(points):
        worse = np.vstack([points, np.full_like(points[0], math.inf)])
        assert non_dominated(worse).tolist() == [*non_dominated(points).tolist(), False]


def test_members_are_those_that_no_trial_beats():
    front = pareto_front(trials_at((1, 4), (2, 2), (4, 1), (3, 3), (2, 5)), [LOSS, COST])
    assert set(numbers(front)) == {0, 1, 2}
    assert (front.finished, front.dominated, front.excluded) == (5, 2, ())


def test_members_are_sorted_by_cost_best_first():
    front = pareto_front(trials_at((1, 4), (4, 1), (2, 2)), [LOSS, COST])
    assert numbers(front) == [1, 2, 0]
    fast_first = pareto_front(
        [trial(0, val_loss=1, rtf=0.5), trial(1, val_loss=2, rtf=0.1)],
        [LOSS, objective("x_real_time")],
    )
    assert numbers(fast_first) == [1, 0]


def test_equal_trials_are_all_members():
    front = pareto_front(trials_at((1, 1), (1, 1), (2, 2)), [LOSS, COST])
    assert set(numbers(front)) == {0, 1}


def test_higher_is_better_where_the_objective_says_so():
    trials = [trial(0, val_loss=1, rtf=0.1), trial(1, val_loss=1, rtf=0.2)]
    assert numbers(pareto_front(trials, [LOSS, objective("x_real_time")])) == [0]
    backwards = Objective("rtf", Goal.MAX)
    assert numbers(pareto_front(trials, [LOSS, backwards])) == [1]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_trial_without_a_finite_value_never_enters(value):
    trials = [trial(0, val_loss=value, rtf_ratio=0.1), trial(1, val_loss=1, rtf_ratio=1)]
    front = pareto_front(trials, [LOSS, COST])
    assert numbers(front) == [1]
    said = {None: "no val_loss"}.get(
        value, f"val_loss is {'NaN' if value != value else 'infinite'}"
    )
    assert front.excluded == (Exclusion(Status.COMPLETED, said, 1),)


def test_failed_trial_never_enters_however_good_its_numbers():
    front = pareto_front(
        [trial(0, Reason.PRUNED, val_loss=0.1, rtf_ratio=0.1), *trials_at((1, 1))], [LOSS, COST]
    )
    assert numbers(front) == [0]
    assert front.members[0].reason is None


def test_trials_over_a_limit_are_excluded_before_they_beat_anybody():
    trials = trials_at((1, 3), (2, 2), (3, 1))
    front = pareto_front(trials, [LOSS, objective("rtf_ratio", limit=2)])
    assert numbers(front) == [2, 1]
    assert front.excluded == (Exclusion(Status.COMPLETED, "rtf_ratio over 2", 1),)
    low = pareto_front(trials, [LOSS, COST], [Limit("val_loss", low=1.5)])
    assert numbers(low) == [2, 1]


def test_limit_may_be_on_a_metric_that_is_no_objective():
    trials = [
        trial(0, val_loss=1, rtf_ratio=1, parameters=9000),
        trial(1, val_loss=2, rtf_ratio=2, parameters=2446),
        trial(2, val_loss=0, rtf_ratio=0),
    ]
    front = pareto_front(trials, [LOSS, COST], [Limit("parameters", high=5000)])
    assert numbers(front) == [1]
    assert {(e.why, e.count) for e in front.excluded} == {
        ("no parameters", 1),
        ("parameters over 5000", 1),
    }


def test_every_trial_is_accounted_for():
    trials = [
        *trials_at((1, 2), (2, 1), (3, 3)),
        trial(10, Reason.DIVERGED),
        trial(11, Reason.DIVERGED),
        trial(12, Reason.OUT_OF_MEMORY),
        trial(13, Reason.PRUNED),
        trial(14, val_loss=1),
    ]
    front = pareto_front(trials, [LOSS, COST])
    assert front.finished == len(trials)
    assert (len(front.members), front.dominated) == (2, 1)
    assert sum(e.count for e in front.excluded) == 5
    assert front.excluded_line() == (
        "1 completed (no rtf_ratio) · 1 pruned (stopped early) · "
        "3 failed (2 loss became NaN or exploded, 1 out of memory)"
    )


def test_front_of_no_trials_is_empty():
    front = pareto_front([], [LOSS, COST])
    assert (front.members, front.finished, front.excluded_line()) == ((), 0, "")


def test_front_of_one_objective_is_its_best_trials():
    assert set(numbers(pareto_front(trials_at((2, 1), (1, 2), (1, 3)), [LOSS]))) == {1, 2}


def test_front_without_objectives_is_refused():
    with pytest.raises(MetricError, match="needs an objective"):
        pareto_front([], [])


@pytest.mark.parametrize("name", ["rtf", "x_real_time", "p99_seconds"])
def test_front_never_mixes_hosts_on_raw_timings(name):
    column = "p99_seconds" if name == "p99_seconds" else "rtf"
    trials = [trial(i, host=f"h{i}", val_loss=1, **{column: 1.0}) for i in range(3)]
    with pytest.raises(MetricError, match=f"'{name}' compares within one host.* from 3") as caught:
        pareto_front(trials, [LOSS, objective(name)])
    assert "rtf_ratio" in caught.value.hint
    with pytest.raises(MetricError):
        pareto_front(trials, [LOSS], [Limit(name, high=9)])


def test_front_mixes_hosts_on_the_ratio():
    trials = [trial(i, host=f"h{i}", val_loss=1, rtf_ratio=1, rtf=1) for i in range(2)]
    assert len(pareto_front(trials, [LOSS, COST]).members) == 2


def test_hosts_of_trials_that_do_not_compete_do_not_matter():
    trials = [trial(0, val_loss=1, rtf=1), trial(1, Reason.CRASHED, host="other", rtf=1)]
    assert numbers(pareto_front(trials, [LOSS, objective("rtf")])) == [0]


def test_knee_is_the_member_with_the_best_of_both():
    front = pareto_front(trials_at((10, 1), (2, 2), (0, 16)), [LOSS, COST])
    assert knee(front).candidate["number"] == 1


def test_knee_counts_costs_by_their_ratio():
    # By difference 8 of 1..100 is nearly free, and trial 1 the knee; by ratio it is half the way.
    points = ((1.0, 1.0), (0.40, 8.0), (0.62, 2.0), (0.0, 100.0))
    front = pareto_front(trials_at(*points), [LOSS, COST])
    assert knee(front).candidate["number"] == 2


def test_knee_does_not_depend_on_units():
    points = [(10, 1), (4, 2), (3, 8), (1, 20)]
    front = pareto_front(trials_at(*points), [LOSS, COST])
    scaled = pareto_front(trials_at(*((x * 7 + 3, y * 1000) for x, y in points)), [LOSS, COST])
    assert numbers(front) == numbers(scaled)
    assert knee(front).id == knee(scaled).id


def test_knee_of_one_member_is_that_member():
    front = pareto_front(trials_at((1, 1)), [LOSS, COST])
    assert knee(front) is front.members[0]


def test_knee_of_an_empty_front_is_refused():
    with pytest.raises(TrialError, match="empty"):
        knee(pareto_front([], [LOSS, COST]))


def test_knee_of_three_objectives_is_refused():
    with pytest.raises(MetricError, match="two objectives, not 3"):
        knee(pareto_front([], [LOSS, COST, objective("parameters")]))


cells = st.integers(1, 4).flatmap(
    lambda k: hnp.arrays(
        np.int64, st.tuples(st.integers(0, 8), st.just(k)), elements=st.integers(-2, 5)
    )
)


@given(cells)
def test_hypervolume_is_the_number_of_unit_cells_beaten(points):
    dimensions = points.shape[1]
    corners = np.stack(np.meshgrid(*[np.arange(-2, 4)] * dimensions), axis=-1)
    beaten = (corners[..., np.newaxis, :] >= points).all(axis=-1).any(axis=-1)
    assert hypervolume(points, (4,) * dimensions) == beaten.sum()


@pytest.mark.parametrize("dimensions", [2, 3, 5])
def test_hypervolume_agrees_with_darts_thrown(dimensions):
    rng = np.random.default_rng(dimensions)
    points = rng.uniform(0, 1.2, (30, dimensions))
    darts = rng.uniform(0, 1, (100_000, dimensions))
    share = np.any([(darts >= point).all(axis=1) for point in points], axis=0).mean()
    assert hypervolume(points, (1.0,) * dimensions) == pytest.approx(share, abs=0.008)


@given(hnp.arrays(np.float64, (5, 3), elements=finite), st.tuples(finite, finite, finite))
def test_hypervolume_never_falls_when_a_point_is_added(points, point):
    before = hypervolume(points, (1e6,) * 3)
    assert hypervolume([*points, point], (1e6,) * 3) >= before * (1 - 1e-9)


def test_hypervolume_passes_over_nan():
    assert hypervolume([(1, 1), (math.nan, 0)], (2, 3)) == 2


@given(any_points, st.integers(1, 5))
def test_a_front_that_grows_is_that_of_all_points(points, at_a_time):
    front = GrowingFront(points.shape[1])
    seen = 0
    for chunk in np.split(points, range(at_a_time, len(points), at_a_time)):
        before = sorted(front.points.tolist())
        changed = front.add(chunk)
        seen += len(chunk)
        now = sorted(front.points.tolist())
        assert now == sorted(points[:seen][naive_non_dominated(points[:seen].tolist())].tolist())
        assert changed == (now != before)


def test_a_reference_is_ten_times_the_cost_and_twice_the_loss():
    assert ReferencePoint.beyond([LOSS, COST], (6.0, 1.5)).worst == (12.0, 15.0)
    assert ReferencePoint.beyond([objective("x_real_time")], (500.0,)).worst == (50.0,)


@pytest.mark.parametrize("useless", [0.0, -1.0, math.nan, math.inf])
def test_there_is_no_reference_beyond_a_value_that_has_no_scale(useless):
    assert ReferencePoint.beyond([LOSS, COST], (useless, 1.0)) is None


def test_a_hypervolume_counts_shares_of_a_loss_and_decades_of_a_cost():
    reference = ReferencePoint((LOSS, COST), (12.0, 10.0))
    assert reference.hypervolume([(6.0, 1.0)]) == pytest.approx(0.5 * 1)
    # To the better loss belongs half a decade, to the lower cost one decade more.
    front = [(3.0, 10**0.5), (6.0, 0.1)]
    assert reference.hypervolume(front) == pytest.approx(0.75 * 0.5 + 0.5 * 1.5)


def test_halving_a_cost_is_worth_the_same_at_any_cost():
    reference = ReferencePoint((LOSS, COST), (12.0, 10.0))
    volumes = [reference.hypervolume([(6.0, cost)]) for cost in (4.0, 2.0, 0.02, 0.01)]
    assert volumes[1] - volumes[0] == pytest.approx(volumes[3] - volumes[2])


def test_a_metric_to_be_raised_counts_as_its_inverse_to_be_lowered():
    up = ReferencePoint((LOSS, objective("x_real_time")), (12.0, 100.0))
    down = ReferencePoint((LOSS, objective("rtf")), (12.0, 0.01))
    points = np.array([(3.0, 200.0), (5.0, 4000.0), (20.0, 1e6), (1.0, 1.0)])
    inverse = points ** np.array([1, -1])
    assert up.hypervolume(points) == pytest.approx(down.hypervolume(inverse))
    assert up.hypervolume(points) > 0


def test_what_has_no_place_on_a_scale_adds_no_volume():
    reference = ReferencePoint((LOSS, COST), (12.0, 10.0))
    assert reference.hypervolume([(6.0, 0.0), (math.nan, 1.0), (-math.inf, 1.0)]) == 0
    assert reference.hypervolume([]) == 0
