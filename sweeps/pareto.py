"""Pareto fronts: which trials are not beaten in everything, and why the others are not there.

Pure functions. A front is computed from columns (`Records`), so that a million records take
as little as a thousand; `pareto_front` is the same for a list of trials.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

import numpy as np
import numpy.typing as npt

from sweeps.errors import MetricError, TrialError
from sweeps.objectives import MOST_MISSED, Limit, Metric, Objective, metric, sings
from sweeps.trial import Reason, Status, Trial

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Exclusion:
    """So many trials that could not enter a front, and why.

    Attributes:
      status: What became of them. COMPLETED ones lack an objective or break a limit.
      why: The reason: 'out of memory', 'rtf_ratio over 2', 'val_loss is NaN'.
      count: How many trials.
      limited: The metric that is beyond a limit; '' where that is not the reason.
    """

    status: Status
    why: str
    count: int
    limited: str = field(default="", compare=False)


@dataclass(frozen=True)
class ParetoFront:
    """The non-dominated trials under some objectives, and an account of all the others.

    Attributes:
      objectives: What the trials compete in.
      members: Completed trials that no other one beats: as good in every objective and better in
        one. Equal trials are all members. The second objective, usually the cost, sorts them, best
        first; equal costs are sorted by the other objectives, then by id.
      finished: Number of records that were looked at, failures included.
      excluded: The trials that could not compete, by status and reason.
    """

    objectives: tuple[Objective, ...]
    members: tuple[Trial, ...]
    finished: int
    excluded: tuple[Exclusion, ...]

    @property
    def dominated(self) -> int:
        """Number of trials that competed and were beaten."""
        return self.finished - len(self.members) - sum(e.count for e in self.excluded)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of the machines that the members were measured on, in order."""
        found = {(t.provenance.host, t.provenance.host_fingerprint) for t in self.members}
        return tuple(name for name, _ in sorted(found))

    def excluded_line(self) -> str:
        """Returns the account in one line: '3 failed (2 out of memory, 1 worker died) · 1 ...'."""
        groups = []
        for status in Status:
            causes = [e for e in self.excluded if e.status is status]
            if not causes:
                continue
            why = ", ".join(f"{e.count} {e.why}" for e in causes)
            if len(causes) == 1:
                why = causes[0].why
            groups.append(f"{sum(e.count for e in causes)} {status.value} ({why})")
        return " · ".join(groups)


@dataclass(frozen=True)
class Column:
    """One column of the ledger.

    Attributes:
      values: float64 [records]; NaN where absent.
      present: bool [records]; False where the trial did not reach the metric.
    """

    values: Floats
    present: Mask


@dataclass(frozen=True)
class Records:
    """What a front needs to know of every trial, column by column.

    Attributes:
      reasons: int [records]; index into `REASONS`, so 0 for a completed trial.
      hosts: int [records]; equal numbers for equal host fingerprints.
      columns: The metrics' columns by name.
    """

    reasons: Ints
    hosts: Ints
    columns: Mapping[str, Column]

    @classmethod
    def of(cls, trials: Sequence[Trial], columns: Iterable[str]) -> "Records":
        """Returns the named columns of these trials."""
        hosts = [trial.provenance.host_fingerprint for trial in trials]
        number = {host: i for i, host in enumerate(dict.fromkeys(hosts))}
        return cls(
            reasons=np.array([REASONS.index(trial.reason) for trial in trials], np.intp),
            hosts=np.array([number[host] for host in hosts], np.intp),
            columns={name: _column(trials, name) for name in columns},
        )

    def values(self, named: Metric) -> Floats:
        """Returns a metric's values, derived ones included; NaN where absent."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(named.convert(self.columns[named.column].values), np.float64)


REASONS: tuple[Reason | None, ...] = (None, *Reason)
"""What `Records.reasons` counts in."""


def _column(trials: Sequence[Trial], name: str) -> Column:
    values = [trial.metric(name) for trial in trials]
    return Column(
        values=np.array([math.nan if value is None else value for value in values], np.float64),
        present=np.array([value is not None for value in values], np.bool_),
    )


def columns_needed(objectives: Sequence[Objective], limits: Sequence[Limit]) -> tuple[str, ...]:
    """Returns the columns of the ledger that decide a front."""
    names = [o.metric for o in objectives] + [limit.metric for limit in limits]
    columns = [metric(name).column for name in names]
    columns += [metric(limit.metric).measured_with for limit in limits]
    return tuple(filter(None, dict.fromkeys(columns)))


def pareto_front(
    trials: Sequence[Trial], objectives: Sequence[Objective], limits: Sequence[Limit] = ()
) -> ParetoFront:
    """Returns the Pareto front of some trials.

    Only completed trials with a finite value in every objective compete. Limits, the objectives'
    own among them, are applied before trials are compared. What has no value is beyond a limit,
    unless there was nothing to be measured (`Metric.measured_with`).

    Raises:
      MetricError: There is no objective; or one is bound to its host and the trials come from
        several.
    """
    records = Records.of(trials, columns_needed(objectives, limits))
    rows, excluded = front_rows(records, objectives, limits)
    return assemble([trials[row] for row in rows], objectives, len(trials), excluded)


def assemble(
    members: Iterable[Trial],
    objectives: Sequence[Objective],
    finished: int,
    excluded: Sequence[Exclusion],
) -> ParetoFront:
    """Returns the front with these members, in the order that reads best."""
    keys = [*objectives[1:2], *objectives[:1], *objectives[2:]]

    def rank(trial: Trial) -> tuple[float | str, ...]:
        # Whoever became a member has a value in every objective.
        return (*(o.sign * cast(float, o.of(trial)) for o in keys), trial.id)

    return ParetoFront(
        tuple(objectives), tuple(sorted(members, key=rank)), finished, tuple(excluded)
    )


def front_rows(
    records: Records,
    objectives: Sequence[Objective],
    limits: Sequence[Limit] = (),
    infeasible_over: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Ints, list[Exclusion]]:
    """Returns the row numbers of the front's members, and an account of who could not compete.

    Args:
      records: The trials.
      objectives: What they compete in.
      limits: What is asked of the front.
      infeasible_over: The sweep's own limits, by metric: they are named in the account.

    Raises:
      MetricError: As in `pareto_front`.
    """
    if not objectives:
        raise MetricError("a front needs an objective", hint="for example val_loss, rtf_ratio")
    limits = [*(limit for o in objectives for limit in o.limits), *limits]
    names = [o.metric for o in objectives] + [limit.metric for limit in limits]
    competes, excluded = competitors(
        records, [o.metric for o in objectives], limits, infeasible_over
    )
    for name in names:
        _refuse_several_hosts(metric(name), records.hosts[competes])
    for limit in limits:
        out = competes & ~within(records, limit)
        _exclude(excluded, out, limit.excess(), limited=limit.metric)
        competes &= ~out

    return _best(records, objectives, competes), excluded


def non_dominated_rows(records: Records, objectives: Sequence[Objective]) -> Ints:
    """Returns the row numbers of what no other trial beats, whatever the limits and the hosts."""
    competes, _ = competitors(records, [o.metric for o in objectives])
    return _best(records, objectives, competes)


def _best(records: Records, objectives: Sequence[Objective], competes: Mask) -> Ints:
    rows = np.flatnonzero(competes)
    points = [o.sign * records.values(metric(o.metric))[rows] for o in objectives]
    return rows[non_dominated(np.stack(points, axis=1))]


def competitors(
    records: Records,
    metrics: Iterable[str],
    limits: Iterable[Limit] = (),
    infeasible_over: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Mask, list[Exclusion]]:
    """Returns which trials are completed and have a finite value in every metric.

    Those that are limited only need none where there was nothing to be measured.

    Returns:
      bool [records], and an account of those that do not.
    """
    competes = records.reasons == 0
    excluded = _unfinished(records.reasons, infeasible_over)
    needed = dict.fromkeys(metrics)
    for name in needed | dict.fromkeys(limit.metric for limit in limits):
        known = metric(name)
        values, present = records.values(known), records.columns[known.column].present
        excused = np.zeros_like(present)
        if known.measured_with and name not in needed:
            excused = ~present & records.columns[known.measured_with].present
        for lacks, why in (
            (~present, f"no {name}"),
            (np.isnan(values), f"{name} is NaN"),
            (np.isinf(values), f"{name} is infinite"),
        ):
            out = competes & lacks & ~excused
            _exclude(excluded, out, why)
            competes &= ~out
    return competes, excluded


def within(records: Records, limit: Limit) -> Mask:
    """Returns which trials are not beyond a limit: bool [records]. NaN is not."""
    values = records.values(metric(limit.metric))
    return ~((values < limit.low) | (values > limit.high))


def _exclude(excluded: list[Exclusion], out: Mask, why: str, limited: str = "") -> None:
    if out.any():
        excluded.append(Exclusion(Status.COMPLETED, why, int(out.sum()), limited))


def _unfinished(reasons: Ints, infeasible_over: Mapping[str, float]) -> list[Exclusion]:
    """Counts the trials that failed, were pruned or are infeasible."""

    def why(reason: Reason) -> str:
        limit = infeasible_over.get(reason.limited)
        if not reason.limited or limit is None:
            return reason.value.partition(";")[0]
        return Limit(reason.limited, high=limit).excess()

    counts = Counter(dict(enumerate(np.bincount(reasons, minlength=1).tolist())))
    del counts[0]
    return [
        Exclusion(reason.status, why(reason), count, reason.limited)
        for index, count in counts.most_common()
        if count and (reason := REASONS[index]) is not None
    ]


def _refuse_several_hosts(named: Metric, hosts: Ints) -> None:
    if named.host_bound and hosts.size and (hosts != hosts[0]).any():
        raise MetricError(
            f"'{named.name}' compares within one host only, and these trials come from "
            f"{len(np.unique(hosts))}",
            hint="use rtf_ratio, which is measured against the same reference on every host",
        )


def non_dominated(points: npt.ArrayLike) -> Mask:
    """Returns which points are beaten by no other one.

    A point beats another one that it is nowhere worse than and somewhere better than. Equal points
    do not beat each other. Takes n log n for one or two objectives; for more, also n times the
    size of the front.

    Args:
      points: float [points, objectives], to be minimised. Infinities are ordinary values.

    Returns:
      bool [points]. False for a point with a NaN, which takes no part.
    """
    points = np.asarray(points, np.float64)
    mask = np.zeros(len(points), np.bool_)
    valid = np.flatnonzero(~np.isnan(points).any(axis=1))
    if points.shape[1] > 2:
        mask[valid[_peel(points[valid])]] = True
        return mask
    if len(valid) > 10 * _SAMPLE:
        valid = valid[_above_no_step(points[valid])]
    mask[valid[_sweep_line(points[valid])]] = True
    return mask


_SAMPLE = 2_000


def _above_no_step(points: Floats) -> Mask:
    """Returns which of many points a sample's front does not beat: faster than to sort them all."""
    sample = points[:: len(points) // _SAMPLE]
    steps = sample[_sweep_line(sample)]  # from left to right, which is downwards
    step = np.searchsorted(steps[:, 0], points[:, 0], side="left") - 1
    return np.asarray((step < 0) | (points[:, -1] < steps[step, -1]))


def _sweep_line(points: Floats) -> Ints:
    """Walks points of one or two objectives from left to right, with the lowest so far in mind."""
    if not len(points):
        return np.empty(0, np.intp)
    x, y = points[:, 0], points[:, -1]
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    first_of_column = np.concatenate([[True], x[1:] != x[:-1]])
    # A point is in when it is the lowest of its column, and lower than all columns to its left.
    column = np.cumsum(first_of_column) - 1
    lowest = y[first_of_column]
    record = np.concatenate([[True], lowest[1:] < np.minimum.accumulate(lowest)[:-1]])
    inside: Ints = order[record[column] & (y == lowest[column])]
    return inside


def _peel(points: Floats) -> Ints:
    """Takes the first point in lexicographic order, drops all that it beats, and repeats.

    Whatever beats a point comes before it in that order, so the first one left is never beaten.
    """
    left = np.lexsort(points.T[::-1])
    members = []
    while left.size:
        best = points[left[0]]
        rest = points[left]
        equal = (rest == best).all(axis=1)
        members.append(left[equal])
        left = left[~(rest >= best).all(axis=1)]
    return np.concatenate([np.empty(0, np.intp), *members])


def knee(front: ParetoFront, *, most_missed: float = MOST_MISSED) -> Trial:
    """Returns the member that is the best compromise of all objectives.

    That is the member that alone beats the largest volume, up to the worst corner of the front:
    the product, over the objectives, of how far it is from the front's worst value. Compromise
    programming away from the nadir (Ehrgott & Tenfelde-Podehl 2003, "Computation of ideal and
    nadir values and implications for their use in MCDM methods"), with the product that J. Nash
    asks for (1950, "The bargaining problem"). On a convex front it is where the front bends. A
    concave front has no bend, and a straight line between its ends (I. Das 1999, "On
    characterizing the 'knee' of the Pareto curve") or a weighted sum (Branke et al. 2004, "Finding
    knees in multi-objective optimization") finds an end of it: the best in one thing, at any price
    in the others. The volume of what is worst in something is zero, so an end is returned only
    where there is nothing else.

    Axes are scaled to 0..1 over the front; costs by their logarithm where all are positive, since
    twice as fast means the same at any speed. Ties, those of a front of two ends among them, go to
    the larger sum in place of the product, then to the better first objective.

    Members that do not sing (`sweeps.objectives.sings`) neither count nor set the scale, unless
    there are no others.

    Args:
      front: Of any number of objectives.
      most_missed: Largest share of missed pitch at which a model sings.

    Raises:
      TrialError: The front is empty.
    """
    if not front.members:
        raise TrialError("the front is empty", hint="'sweeps status' shows what became of trials")
    members = [t for t in front.members if sings(t, most_missed)] or front.members
    better = np.stack([1.0 - _axis(members, o) for o in front.objectives], axis=1)
    scores = np.stack([better.prod(axis=1), better.sum(axis=1), better[:, 0]], axis=1)
    # What differs by rounding only is equal: a front in other units has the same knee.
    ranks: list[list[float]] = np.round(scores, 9).tolist()
    return members[ranks.index(max(ranks))]


def _axis(members: Sequence[Trial], objective: Objective) -> Floats:
    """Returns an objective's values scaled to 0, the best of the members, .. 1, the worst."""
    values = np.array([objective.of(trial) for trial in members], np.float64)
    if metric(objective.metric).spans_decades and (values > 0).all():
        values = np.log(values)
    values = objective.sign * values
    span = np.ptp(values)
    return (values - values.min()) / span if span else np.zeros_like(values)


class GrowingFront:
    """The front of points that come one after another, or some at a time.

    A point costs a comparison with each member of the front, however many points came before it.

    Attributes:
      points: float [members, objectives], to be minimised.
    """

    def __init__(self, objectives: int) -> None:
        """Begins a front in so many objectives, without a point."""
        self.points: Floats = np.empty((0, objectives))

    def add(self, points: npt.ArrayLike) -> bool:
        """Takes in points: float [points, objectives]. Returns whether the front has changed."""
        points = np.asarray(points, np.float64).reshape(-1, self.points.shape[1])
        new = points[non_dominated(points)]
        new = new[~_beaten(new, self.points)]
        if len(new):
            self.points = np.concatenate([self.points[~_beaten(self.points, new)], new])
        return bool(len(new))


def _beaten(points: Floats, others: Floats) -> Mask:
    """Returns which points are beaten by one of some others."""
    a, b = others[np.newaxis], points[:, np.newaxis]
    beats = np.all(a <= b, axis=2) & np.any(a < b, axis=2)
    return np.asarray(np.any(beats, axis=1), np.bool_)


def hypervolume(points: npt.ArrayLike, reference: Sequence[float]) -> float:
    """Returns the volume that some points beat, up to a reference point (Zitzler & Thiele 1998).

    Exact for any number of objectives. Two take n log n; each one more takes a factor of n, since
    the volume is cut into slices along the last objective (While et al. 2006, "A faster algorithm
    for calculating hypervolume", calls it HSO). A front of three objectives and five hundred
    members takes a fifth of a second.

    Args:
      points: float [points, objectives], to be minimised. Points not better than the reference in
        all objectives, and those with a NaN, add nothing.
      reference: The worst values that count. Fronts compare under the same reference only.
    """
    points = np.asarray(points, np.float64).reshape(-1, len(reference))
    points = points[(points < reference).all(axis=1)]
    points = np.unique(points[non_dominated(points)], axis=0)
    if len(reference) == 1:
        return float(reference[0] - points[0, 0]) if len(points) else 0.0
    if len(reference) > 2:
        points = points[np.argsort(points[:, -1], kind="stable")]
        depths = np.diff(points[:, -1], append=reference[-1])
        return float(
            sum(
                depth * hypervolume(points[: i + 1, :-1], reference[:-1])
                for i, depth in enumerate(depths)
                if depth
            )
        )
    # From left to right each point adds the strip below the lowest one so far.
    heights = np.concatenate([[reference[1]], points[:-1, 1]]) - points[:, 1]
    return float(np.sum((reference[0] - points[:, 0]) * heights))


@dataclass(frozen=True)
class ReferencePoint:
    """The worst values that count in a sweep's hypervolume, and the scales that it is taken in.

    A metric that spans decades, as costs do, counts in decades below its worst value; any other in
    shares of its worst value. So a hypervolume has no unit, and halving a cost is worth the same at
    any cost.

    Attributes:
      objectives: What the trials compete in.
      worst: A positive value for each objective.
    """

    objectives: tuple[Objective, ...]
    worst: tuple[float, ...]

    @classmethod
    def beyond(
        cls, objectives: Sequence[Objective], values: Sequence[float]
    ) -> "ReferencePoint | None":
        """Returns the point with ten times the cost of a trial and twice any other value of its.

        Where higher is better they are a tenth and a half. A front is thus credited with all that
        is of use, the trial itself included, and a few models without any use cannot rule it.

        Returns:
          None where a value is not positive, or not finite: there is no such point.
        """
        if not all(0 < value < math.inf for value in values):
            return None
        factors = (10.0 if metric(o.metric).spans_decades else 2.0 for o in objectives)
        worst = (
            value * factor**o.sign
            for o, value, factor in zip(objectives, values, factors, strict=True)
        )
        return cls(tuple(objectives), tuple(worst))

    def hypervolume(self, values: npt.ArrayLike) -> float:
        """Returns the volume that some trials beat.

        Args:
          values: float [trials, objectives], in the objectives' own directions. Trials with a value
            that is not finite, or on a logarithmic scale not positive, add nothing.
        """
        shares = np.asarray(values, np.float64).reshape(-1, len(self.worst)) / self.worst
        with np.errstate(divide="ignore", invalid="ignore"):
            columns = [
                o.sign * (np.log10(share) if metric(o.metric).spans_decades else share - 1.0)
                for o, share in zip(self.objectives, shares.T, strict=True)
            ]
        points = np.stack(columns, axis=1)
        points = points[np.isfinite(points).all(axis=1)]
        return hypervolume(points, (0.0,) * len(self.worst))
