"""Where a sweep stands, as any machine sees it that reaches the storage: from the ledger only."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeps.lease import LeaseWatch
from sweeps.ledger import Ledger, SweepFacts, Tail, list_sweeps
from sweeps.objectives import MISSED_PITCH
from sweeps.standing import Standing, limited_objectives
from sweeps.storage import Location
from sweeps.trial import Attempt, Status
from thesis.errors import UserError


@dataclass(frozen=True)
class SweepStatus:
    """Where a sweep stands.

    Attributes:
      sweep: Its name.
      asked: Number of finished trials that it shall hold.
      standing: What its records add up to; goes on being kept up to date by the reader.
      started: Attempts at candidates that are not finished, the longest one first. They run if a
        launch does, but for those that wait at a rung; else the next launch continues them.
      launched_on: Host of the launch that is alive; '' where there is none. One that was killed
        on another machine is noticed after `sweeps.lease.EXPIRY_SECONDS` of watching.
      damaged: What is wrong with each started mark that cannot be read, in a line.
      at: Unix time of this status.
    """

    sweep: str
    asked: int
    standing: Standing
    started: tuple[Attempt, ...]
    launched_on: str
    damaged: tuple[str, ...]
    at: float

    @property
    def complete(self) -> bool:
        """Whether the sweep holds all trials that were asked for."""
        return self.standing.finished >= self.asked

    @property
    def running(self) -> tuple[Attempt, ...]:
        """The attempts that somebody works on."""
        return tuple(a for a in self.started if not a.waits_at) if self.launched_on else ()

    @property
    def deferred(self) -> int:
        """Number of attempts that wait at a rung while there is better to do."""
        return sum(attempt.waits_at > 0 for attempt in self.started)

    @property
    def seconds_left(self) -> float | None:
        """Time until the sweep is complete; None where nothing tells."""
        return self.standing.seconds_left(self.asked, self._seconds())

    def summary(self) -> str:
        """Returns it in a line, without the number of trials."""
        standing = self.standing.summary(self.asked, self._seconds(), deferred=self.deferred)
        parts = [standing]
        if not self.complete and not self.launched_on:
            parts.append("no launch is running")
        elif not self.complete and not self.running:
            parts.append("no trial is running")
        if self.damaged:
            parts.append(f"{len(self.damaged)} started marks are damaged")
        return " · ".join(filter(None, parts))

    def to_record(self) -> dict[str, Any]:
        """Returns it for programs, with stable keys; best is that of the first objective.

        `best_f0_missed_share` is what the trial misses that has the best value of it.
        """
        standing, reference = self.standing, self.standing.reference
        metrics = [o.metric for o in standing.objectives]
        return {
            "sweep": self.sweep,
            "finished": standing.finished,
            "asked": self.asked,
            **{status.value: standing.counts[status] for status in Status},
            "in_flight": len(self.started),
            "deferred": self.deferred,
            "front": standing.front_size,
            "hypervolume": standing.hypervolume,
            "hypervolume_reference": reference and dict(zip(metrics, reference.worst, strict=True)),
            f"best_{metrics[0]}": standing.best,
            f"best_{MISSED_PITCH}": standing.best_missed,
            "seconds_left": self.seconds_left,
            "launched_on": self.launched_on or None,
            "running": [
                asdict(attempt) | {"candidate": dict(attempt.candidate.values)}
                for attempt in self.running
            ],
            "damaged": [*self.damaged],
            "at": self.at,
        }

    def _seconds(self) -> list[float]:
        # Of another host's clock.
        return [max(0.0, self.at - attempt.began_at) for attempt in self.running]


def limits_and_baseline(facts: SweepFacts) -> tuple[Mapping[str, float], str | None]:
    """Returns the limits of a sweep by metric, and the id of its baseline, None where it has none.

    Nothing is read for it but the facts, unless they are those of an older release, which did not
    write them down; then it is the configuration, if this release can.
    """
    if facts.limits is not None:
        return facts.limits, facts.baseline or None
    from sweeps.config import parse_run

    try:
        run = parse_run(facts.gin_config)
    except UserError:  # of a release with other bindings
        return {}, None
    baseline = run.space.baseline()
    return run.sweep.limits.given, baseline.id if baseline else None


class StatusReader:
    """Reads where a sweep stands, again and again; what was read once is not read again."""

    def __init__(self, storage: str | Path | Location, sweep: str) -> None:
        """Looks for a sweep.

        Raises:
          SweepError: There is none of this name.
          LedgerError: The storage cannot be read.
        """
        self._ledger = Ledger.open(storage, sweep)
        facts = self._ledger.facts
        limits, self._baseline = limits_and_baseline(facts)
        self._objectives = limited_objectives(facts.objectives, limits)
        self._begin()
        self._lease = LeaseWatch(self._ledger.location, sweep)

    def _begin(self) -> None:
        self._standing = Standing(self._objectives, baseline=self._baseline)
        self._tail = Tail(self._ledger, self._objectives)

    def read(self) -> SweepStatus:
        """Returns where the sweep stands now.

        Raises:
          LedgerError: The storage cannot be read.
        """
        # What a launch asks for may have changed.
        self._ledger = Ledger.open(self._ledger.location, self._ledger.name)
        started = self._tail.read(self._standing.add)
        if self._tail.outdated:
            self._begin()
            started = self._tail.read(self._standing.add)
        return SweepStatus(
            sweep=self._ledger.name,
            asked=self._ledger.facts.trials_asked,
            standing=self._standing,
            started=tuple(sorted(started, key=lambda attempt: attempt.began_at)),
            launched_on=self._lease.host(),
            damaged=self._tail.damaged,
            at=time.time(),
        )


def read_all(storage: str | Path | Location) -> tuple[list[SweepStatus], list[UserError]]:
    """Returns where all sweeps of a storage stand, and why some of them cannot be read.

    Raises:
      LedgerError: The storage cannot be read.
    """
    statuses, errors = list[SweepStatus](), list[UserError]()
    for name in list_sweeps(storage):
        try:
            statuses.append(StatusReader(storage, name).read())
        except UserError as error:
            errors.append(error)
    return statuses, errors


def watch(
    reader: StatusReader, seconds: float, *, pause: Callable[[float], None] = time.sleep
) -> Iterator[SweepStatus]:
    """Yields where a sweep stands every so many seconds, until it holds what was asked for."""
    while True:
        status = reader.read()
        yield status
        if status.complete:
            return
        pause(seconds)
