import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sweeps import pareto
from sweeps.errors import MetricError, TrialError
from sweeps.objectives import Goal, Limit, Objective, objective, sings
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


MISSED = Limit("f0_missed_share", high=0.1)


def test_a_limit_on_missed_pitch_leaves_out_what_misses_it_and_what_is_not_known_to():
    trials = [
        trial(0, val_loss=1, rtf_ratio=2, f0_missed_share=0.1, loudness_error_db=1),
        trial(1, val_loss=0, rtf_ratio=0, f0_missed_share=1.0, loudness_error_db=1),
        trial(2, val_loss=0, rtf_ratio=1),  # of a release that did not measure it
        trial(3, Reason.MISSED_PITCH, val_loss=0, rtf_ratio=0, f0_missed_share=0.9),
    ]
    front = pareto_front(trials, [LOSS, COST], [MISSED])
    assert numbers(front) == [0]
    assert front.excluded_line() == (
        "2 completed (1 no f0_missed_share, 1 f0_missed_share over 0.1) · "
        "1 infeasible (share of missed pitch over the limit)"
    )
    assert numbers(pareto_front(trials[2:], [LOSS, COST])) == [2]


def test_where_there_is_no_pitch_a_limit_on_it_excludes_nothing():
    """Drums: no frame is voiced, so none is missed, though all the rest was measured."""
    drums = [
        trial(0, val_loss=1, rtf_ratio=2, loudness_error_db=1),
        trial(1, val_loss=2, rtf_ratio=1, loudness_error_db=2),
    ]
    front = pareto_front(drums, [LOSS, COST], [MISSED])
    assert numbers(front) == [1, 0]
    assert front.excluded == ()
    # It cannot be an objective, though: there is nothing to compare.
    asked = pareto_front(drums, [LOSS, objective("f0_missed_share", limit=0.1)], [MISSED])
    assert asked.excluded_line() == "2 completed (no f0_missed_share)"


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


# --- The knee


def front_at(*points):
    return pareto_front(trials_at(*points), [LOSS, COST])


def knee_at(*points):
    """Number of the point that is the knee of their front."""
    return knee(front_at(*points)).candidate["number"]


def test_knee_is_the_member_with_the_best_of_both():
    assert knee_at((10, 1), (2, 2), (0, 16)) == 1


def test_knee_counts_costs_by_their_ratio():
    # By difference 8 of 1..100 is nearly free, and trial 1 the knee; by ratio it is half the way.
    assert knee_at((1.0, 1.0), (0.44, 8.0), (0.62, 2.0), (0.0, 100.0)) == 2


@pytest.mark.parametrize(
    ("shape", "points", "expected"),
    [
        ("convex", [(100, 1), (30, 2), (12, 4), (6, 8), (0, 16)], 1),
        ("concave", [(100, 1), (97, 2), (88, 4), (65, 8), (0, 16)], 3),
        ("concave and symmetric", [(4, 1), (3.9, 2.0**1.5), (3, 8), (1.5, 2**3.9), (0, 16)], 2),
        ("linear", [(4, 1), (3, 2), (2, 4), (1, 8), (0, 16)], 2),
        # What is beside the bend costs more than it brings, although it is better balanced.
        ("bent off the middle", [(100, 1), (30, 1.2), (26, 2), (0, 16)], 1),
        ("two members: the better model", [(10, 1), (5, 4)], 1),
        ("one member", [(10, 1)], 0),
        ("a step", [(10, 1), (9.999, 2), (0.001, 4), (0, 16)], 2),
        ("an outlier at the cheap end", [(1e6, 0.001), (9, 1), (8, 2), (7, 4)], 1),
        ("an outlier at the dear end", [(10, 1), (6, 2), (5, 4), (0, 1e6)], 2),
        ("no scale of ratios", [(10, -1), (2, 0), (0, 16)], 1),
    ],
)
def test_knee_of_fronts_of_all_shapes(shape, points, expected):
    assert knee_at(*points) == expected, shape


def test_knee_where_higher_is_better():
    speed = objective("x_real_time")
    points = [(10, 1.0), (4, 2.0), (3, 8.0), (1, 20.0)]
    trials = [trial(i, val_loss=loss, rtf=cost) for i, (loss, cost) in enumerate(points)]
    assert knee(pareto_front(trials, [LOSS, speed])).candidate["number"] == knee_at(*points) == 1


def test_knee_of_equal_members_is_one_of_them_and_always_the_same():
    points = [(10, 1), (2, 2), (2, 2), (0, 16)]
    front = front_at(*points)
    assert knee(front) is min((front.members[1], front.members[2]), key=lambda t: t.id)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0, 9, 9), (9, 0, 9), (9, 9, 0), (3, 3, 3)], 3),
        # Each is the worst in something: of those the one that is near the best in the others.
        ([(0, 0.1, 9), (9, 0, 0.5), (2, 9, 0)], 0),
    ],
)
def test_knee_of_three_objectives(points, expected):
    names = ("val_loss", "f0_error_cents", "loudness_error_db")
    trials = [trial(i, **dict(zip(names, point, strict=True))) for i, point in enumerate(points)]
    front = pareto_front(trials, [objective(name) for name in names])
    assert len(front.members) == len(points)
    assert knee(front).candidate["number"] == expected


def test_knee_of_one_objective_is_the_best():
    assert knee(pareto_front(trials_at((3, 1), (1, 2), (2, 3)), [LOSS])).candidate["number"] == 1


def test_knee_of_an_empty_front_is_refused():
    with pytest.raises(TrialError, match="empty"):
        knee(pareto_front([], [LOSS, COST]))


def silent_at(number, loss, cost, missed=1.0):
    return trial(number, val_loss=loss, rtf_ratio=cost, f0_missed_share=missed)


def test_knee_sings_where_a_member_does():
    # The silent ones would set the scale, which makes the cheapest of the others the knee.
    trials = [silent_at(8, 90, 0.01), silent_at(9, 3.5, 1.5), *trials_at((10, 1), (3, 2), (0, 16))]
    front = pareto_front(trials, [LOSS, COST])
    assert len(front.members) == 5
    assert knee(front).candidate["number"] == 1
    assert knee(front, most_missed=1.0).candidate["number"] == 0


def test_knee_of_silent_members_is_as_if_all_of_them_sang():
    points = [(10, 1), (2, 2), (0, 16)]
    silent = [silent_at(i, *point) for i, point in enumerate(points)]
    assert knee(pareto_front(silent, [LOSS, COST])).candidate["number"] == knee_at(*points)


# Whole losses, and costs that are powers of two: factors of two change no digit of either.
some_points = st.lists(st.tuples(st.integers(0, 12), st.integers(-6, 6)), min_size=1, max_size=12)


def in_units(points, *, loss=1.0, cost=1.0):
    return [(loss * x, cost * 2.0**y) for x, y in points]


def is_end(front, member):
    """Whether a member is the worst of a front in something."""
    return any(
        max(o.sign * o.of(t) for t in front.members) == o.sign * o.of(member)
        for o in front.objectives
    )


@given(some_points)
def test_knee_is_a_member_and_no_end_if_there_is_another(points):
    front = front_at(*in_units(points))
    chosen = knee(front)
    assert chosen in front.members
    assert not is_end(front, chosen) or all(is_end(front, t) for t in front.members)


@given(some_points, st.integers(-8, 8), st.integers(-8, 8), st.randoms(use_true_random=False))
def test_knee_depends_neither_on_units_nor_on_the_order_of_trials(points, loss, cost, random):
    front = front_at(*in_units(points))
    scaled = trials_at(*in_units(points, loss=2.0**loss, cost=2.0**cost))
    random.shuffle(scaled)
    assert knee(pareto_front(scaled, [LOSS, COST])).id == knee(front).id


@given(some_points, st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_knee_does_not_depend_on_what_is_beaten(points, further):
    front = front_at(*in_units(points))
    beaten = [(x + further[0] + 1, y + further[1]) for x, y in points]
    assert knee(front_at(*in_units([*points, *beaten]))).id == knee(front).id


@given(some_points, st.data())
def test_knee_does_not_depend_on_members_between_the_ends_that_it_is_preferred_to(points, data):
    """Independence of irrelevant alternatives, one of Nash's axioms."""
    front = front_at(*in_units(points))
    chosen = knee(front)
    others = [t for t in front.members if t is not chosen and not is_end(front, t)]
    if not others:
        return
    left_out = data.draw(st.sampled_from(others))
    left = [t for t in front.members if t is not left_out]
    assert knee(pareto_front(left, [LOSS, COST])).id == chosen.id


@given(some_points, st.lists(st.booleans(), min_size=12, max_size=12))
def test_knee_never_is_silent_if_a_member_sings(points, silent):
    trials = [
        trial(i, val_loss=loss, rtf_ratio=cost, f0_missed_share=0.9 if silent[i] else 0.1)
        for i, (loss, cost) in enumerate(in_units(points))
    ]
    front = pareto_front(trials, [LOSS, COST])
    singing = [t for t in front.members if sings(t)]
    assert sings(knee(front)) == bool(singing)
    if singing:
        assert knee(front) == knee(pareto_front(singing, [LOSS, COST]))


@given(st.integers(3, 9), st.floats(0.3, 4.0))
def test_knee_of_a_symmetric_front_is_in_its_middle(size, bend):
    """Convex, linear or concave: the superellipse x**bend + y**bend = 1, and its mirror image."""
    angles = np.linspace(0, math.pi / 2, size)
    x, y = np.cos(angles) ** (2 / bend), np.sin(angles) ** (2 / bend)
    names = ("val_loss", "loudness_error_db")
    points = np.stack([x, y], axis=1)
    trials = [trial(i, **dict(zip(names, point, strict=True))) for i, point in enumerate(points)]
    front = pareto_front(trials, [objective(name) for name in names])
    assert knee(front).candidate["number"] in {(size - 1) // 2, size // 2}


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
