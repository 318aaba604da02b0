"""Where a sweep stands: what its records add up to, kept up to date record by record.

A launch adds each trial as it ends; another machine adds what it reads from the ledger. Both ask
the same `Standing`, which looks at a record once: nothing here takes longer in a large sweep.
"""

import math
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.objectives import MISSED_PITCH, Goal, Objective, metric, objective
from sweeps.pareto import (
    REASONS,
    Floats,
    GrowingFront,
    Ints,
    Mask,
    Records,
    ReferencePoint,
    columns_needed,
    competitors,
    within,
)
from sweeps.trial import Status, Trial

RECENT = 100
"""So many of the last trials tell how long a trial takes."""


@dataclass(frozen=True)
class Outcomes:
    """What a standing needs to know of some finished trials, column by column.

    Attributes:
      ids: The trials' ids.
      records: Reasons, hosts, and `columns_of` the objectives.
      hosts: What `records.hosts` counts in: host fingerprints.
      started_at: float [trials], Unix time; 0 where it is not known.
      finished_at: float [trials], Unix time.
    """

    ids: Sequence[str]
    records: Records
    hosts: Sequence[str]
    started_at: Floats
    finished_at: Floats

    @classmethod
    def of(cls, trials: Sequence[Trial], objectives: Sequence[Objective]) -> "Outcomes":
        """Returns these trials as columns."""
        provenances = [trial.provenance for trial in trials]
        return cls(
            ids=[trial.id for trial in trials],
            records=Records.of(trials, columns_of(objectives)),
            hosts=list(dict.fromkeys(p.host_fingerprint for p in provenances)),
            started_at=np.array([p.started_at for p in provenances], np.float64),
            finished_at=np.array([p.finished_at for p in provenances], np.float64),
        )


def columns_of(objectives: Sequence[Objective]) -> tuple[str, ...]:
    """Returns the columns of the ledger that a standing is made of."""
    return tuple(dict.fromkeys((*columns_needed(objectives, ()), MISSED_PITCH)))


def limited_objectives(
    metrics: Sequence[str], limits: Mapping[str, float | None]
) -> tuple[Objective, ...]:
    """Returns a sweep's objectives, each with the limit beyond which candidates are infeasible."""
    return tuple(objective(name, limit=limits.get(name)) for name in metrics)


class Standing:
    """Where a sweep stands.

    Attributes:
      objectives: What is searched for.
      finished: Number of trials on record.
      counts: The same by status.
      best: Best value of the first objective, among completed trials that have all objectives and
        are within their limits; None without one.
      best_missed: Share of the pitch that this trial misses; None where it is not known.
    """

    def __init__(self, objectives: Sequence[Objective], *, baseline: str | None = None) -> None:
        """Begins with no trial.

        Args:
          objectives: What is searched for, with their limits.
          baseline: Id of the trial that sets the scale of the hypervolume; None where the space
            does not hold the baseline.
        """
        self.objectives = tuple(objectives)
        self.finished = 0
        self.counts: Counter[Status] = Counter()
        self.best: float | None = None
        self.best_missed: float | None = None
        self._baseline_to_come = baseline
        self._signs = np.array([o.sign for o in self.objectives], np.float64)
        self._front = GrowingFront(len(self.objectives))
        self._hosts: set[str] = set()
        self._host_bound = any(metric(o.metric).host_bound for o in self.objectives)
        self._first: tuple[float, str, tuple[float, ...]] | None = None
        self._volume: float | None = None
        self._volume_is_stale = True
        self._seconds: deque[float] = deque(maxlen=RECENT)

    def add(self, outcomes: Outcomes) -> None:
        """Takes in trials that were not taken in before."""
        records = outcomes.records
        self.finished += len(outcomes.ids)
        for index, count in enumerate(np.bincount(records.reasons).tolist()):
            reason = REASONS[index]
            self.counts[Status.COMPLETED if reason is None else reason.status] += count
        competes, _ = competitors(records, [o.metric for o in self.objectives])
        rows = np.flatnonzero(competes)
        values = np.stack([records.values(metric(o.metric))[rows] for o in self.objectives], axis=1)
        self._hosts.update(outcomes.hosts[host] for host in np.unique(records.hosts[rows]))
        self._volume_is_stale |= self._front.add(self._signs * values)
        self._note_first(outcomes, rows, values)
        self._note_best(records, competes)
        self._note_seconds(outcomes)

    @property
    def front_size(self) -> int | None:
        """Number of non-dominated trials; None where costs of several hosts do not compare."""
        return None if self._host_bound and len(self._hosts) > 1 else len(self._front.points)

    @property
    def reference(self) -> ReferencePoint | None:
        """The worst values that count in the hypervolume; None while they are not known.

        They are set by the baseline, or, where it is not in the space or did not complete, by the
        trial that completed first. So they stay as they are while the sweep goes on, and sweeps
        over one dataset that have the baseline in common compare.
        """
        if self._baseline_to_come is not None or self._first is None:
            return None
        return ReferencePoint.beyond(self.objectives, self._first[2])

    @property
    def hypervolume(self) -> float | None:
        """Volume that the front beats, up to `reference`; None without one of the two."""
        if self._volume_is_stale:
            self._volume_is_stale = False
            self._volume = None
            if self.front_size and (reference := self.reference):
                self._volume = reference.hypervolume(self._signs * self._front.points)
        return self._volume

    def seconds_left(self, asked: int, running: Collection[float]) -> float | None:
        """Returns the time until so many trials are finished; None where nothing tells.

        What is left to do is as many trials as are missing, each as long as the last ones took on
        average, less the time that running ones have behind them; as many trials share it as run
        now. So it neither counts the time between two launches, nor waits for the first round to
        end.

        Args:
          asked: Number of finished trials that the sweep shall hold.
          running: Seconds since the start of each running trial.
        """
        if self.finished >= asked:
            return 0.0
        if not self._seconds or not running:
            return None
        a_trial = sum(self._seconds) / len(self._seconds)
        left = [max(0.0, a_trial - seconds) for seconds in running]
        waiting = max(0, asked - self.finished - len(running))
        return max((sum(left) + waiting * a_trial) / len(running), *left)

    def summary(self, asked: int, running: Collection[float], *, deferred: int = 0) -> str:
        """Returns it in a line: '2 running · front 4 · hypervolume 0.81 · best val_loss 6.1 · ..'.

        Args:
          asked: Number of finished trials that the sweep shall hold.
          running: Seconds since the start of each running trial.
          deferred: Number of trials that wait at a rung.
        """
        parts = [f"{len(running)} running"] if running else []
        if deferred:
            parts.append(f"{deferred} deferred")
        if self.front_size:
            parts.append(f"front {self.front_size}")
        if self.hypervolume is not None:
            parts.append(f"hypervolume {self.hypervolume:.4g}")
        if self.best is not None:
            limits = "".join(
                f" at {o.metric} {'<=' if o.goal is Goal.MIN else '>='} {o.limit:g}"
                for o in self.objectives
                if o.limit is not None
            )
            missed = "" if self.best_missed is None else f" (f0_missed {percent(self.best_missed)})"
            parts.append(f"best {self.objectives[0].metric} {self.best:.4g}{missed}{limits}")
        shown = (Status.FAILED, Status.INFEASIBLE, Status.PRUNED)
        parts += [f"{self.counts[s]} {s.value}" for s in shown if self.counts[s]]
        if left := self.seconds_left(asked, running):
            parts.append(f"{duration(left)} left")
        return " · ".join(parts)

    def _note_first(self, outcomes: Outcomes, rows: Ints, values: Floats) -> None:
        """Remembers the trial that the reference point goes by."""
        finished_at = outcomes.finished_at[rows]
        if self._baseline_to_come in outcomes.ids:
            baseline = outcomes.ids.index(self._baseline_to_come)
            finished_at[rows == baseline] = -math.inf  # before all others, whenever it came
            self._baseline_to_come = None
            self._volume_is_stale = True
        if not len(rows):
            return
        earliest = float(finished_at.min())
        first = min(
            (earliest, outcomes.ids[int(rows[i])], tuple(values[i].tolist()))
            for i in np.flatnonzero(finished_at == earliest)
        )
        if self._first is None or first < self._first:
            self._first = first
            self._volume_is_stale = True

    def _note_best(self, records: Records, competes: Mask) -> None:
        for limit in (limit for o in self.objectives for limit in o.limits):
            competes = competes & within(records, limit)
        first = self.objectives[0]
        rows = np.flatnonzero(competes)
        if not rows.size:
            return
        values = records.values(metric(first.metric))[rows]
        best = int(np.argmin(first.sign * values))
        if self.best is None or first.sign * values[best] < first.sign * self.best:
            self.best = float(values[best])
            missed = float(records.columns[MISSED_PITCH].values[rows[best]])
            self.best_missed = None if math.isnan(missed) else missed

    def _note_seconds(self, outcomes: Outcomes) -> None:
        known = np.flatnonzero(outcomes.started_at > 0)
        last = known[np.argsort(outcomes.finished_at[known], kind="stable")][-RECENT:]
        seconds = outcomes.finished_at[last] - outcomes.started_at[last]
        # Clocks may be set back.
        self._seconds.extend(np.maximum(seconds, 0.0).tolist())


def percent(share: float) -> str:
    """Returns a share with three digits that count: '100%', '10.5%'."""
    return f"{100 * share:.3g}%"


def duration(seconds: float) -> str:
    """Returns a time for people: '45 s', '12 min', '3 h 05 min'."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 90 else f"{math.ceil(seconds)} s"
