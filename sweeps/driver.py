"""The driver's books: what runs next, what is on record, and when the sweep is done.

Knows nothing of Ray: `sweeps.launch` passes on to a `Driver` what Ray Tune sees.
"""

import contextlib
import shutil
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from sweeps.attempt import Shared
from sweeps.errors import LedgerError, SweepError
from sweeps.evaluate import Progress
from sweeps.progress import (
    Listener,
    Stopping,
    TrialAdvanced,
    TrialBegan,
    TrialEnded,
    TrialRetried,
    Waited,
)
from sweeps.search import Search, screen
from sweeps.trial import Attempt, Candidate, Reason, Trial
from thesis.data import DatasetFacts
from thesis.errors import UserError

MAX_DEATHS = 3
"""Workers that may die of a candidate before it is recorded as failed."""

MAX_LOSSES = 20
"""Workers of a candidate that may be lost with their nodes: a machine may well be taken away ten
times from a long trial, and a trial may take a machine down every time."""

COMPACT_EVERY = 100
"""Trials of a sweep between two mergers of its ledger's small files."""

MAX_GROWTH_BYTES = 2**30
"""Workers are replaced when one has grown by so much since its first trial: TensorFlow never frees
a compiled decoder, 10 to 25 MB a trial. A new worker takes ten seconds."""


class Driver:
    """Decides what runs next and keeps the books. Knows nothing of Ray Tune.

    Attributes:
      recorded: Trials recorded in this launch.
      exhausted: Nothing is left to try.
      failure: What ends the launch: an error that every trial would meet.
      draining: The user ends the launch when what runs is finished.
      interrupted: The user ends the launch at once.
      generation: Which generation of workers the next trial belongs to.
    """

    def __init__(
        self,
        shared: Shared,
        data: DatasetFacts,
        search: Search,
        *,
        started: Iterable[Attempt],
        finished: int,
        asked: int,
        slots: Callable[[], int],
        lost: Callable[[], SweepError | None],
        on_event: Listener,
    ) -> None:
        self.shared = shared
        self.recorded: list[Trial] = []
        self.exhausted = False
        self.failure: UserError | None = None
        self.draining = False
        self.interrupted = False
        self.generation = 0
        self._data = data
        self._search = search
        self._finished = finished
        self._asked = asked
        self._slots = slots
        self._lost = lost
        self._running: set[Candidate] = set()
        self._attempts = {attempt.candidate.id: attempt for attempt in started}
        self._again: deque[Attempt] = deque()
        self._on_event = on_event

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles all that it is given into a state that is never read.
        return (object, ())

    @property
    def stopped(self) -> bool:
        """Whether even what runs is to end."""
        return self.interrupted or self.failure is not None

    @property
    def done(self) -> bool:
        """Whether so many trials are on record as were asked for."""
        return self._finished + len(self.recorded) >= self._asked

    @property
    def complete(self) -> bool:
        """Whether no other candidate is to be started."""
        enough = self._finished + len(self.recorded) + len(self._running) >= self._asked
        return enough or self.draining or (self.exhausted and not self._again) or self.stopped

    def next_attempt(self) -> Attempt | None:
        """Returns what to evaluate next; None while there is no free slot, or when `complete`."""
        while not self.complete and len(self._running) < self._slots():
            if self._again:
                return self._begin(self._again.popleft())
            candidate = self._search.propose()
            if candidate is None:
                self.exhausted = True
                return None
            infeasible = screen(self.shared.ledger.name, self.shared.run, candidate, self._data)
            if infeasible is None:
                return self._begin(self._attempts.get(candidate.id, Attempt(candidate)))
            self._record(infeasible)
        return None

    def _begin(self, attempt: Attempt) -> Attempt:
        self._running.add(attempt.candidate)
        self._attempts[attempt.candidate.id] = attempt
        return attempt

    def began(self, candidate: Candidate) -> None:
        """A worker takes up a candidate."""
        self._on_event(TrialBegan(candidate))

    def advanced(self, candidate: Candidate, progress: Progress) -> None:
        """A trial has come further."""
        self._on_event(TrialAdvanced(candidate, progress))

    def lost(self, candidate: Candidate, cause: str, reason: Reason | None) -> None:
        """A worker died. Another one takes over at the last checkpoint, up to a limit.

        Args:
          candidate: What the worker was at.
          cause: What became of it, in a line.
          reason: What is to blame if it happens again and again; None if its node went away.
        """
        attempt = self._attempts[candidate.id]
        deaths = attempt.deaths + (reason is not None)
        losses = attempt.losses + (reason is None)
        attempt = replace(attempt, deaths=deaths, losses=losses, cause=cause)
        if deaths >= MAX_DEATHS or losses >= MAX_LOSSES:
            detail = f"{deaths} workers died of it, {losses} were lost with their node; {cause}"
            reason = reason or Reason.CRASHED
            self._record(self.shared.failed(candidate, reason, detail, attempt.began_at))
            shutil.rmtree(self.shared.workdir(candidate), ignore_errors=True)
            return
        self._running.discard(candidate)
        self._again.append(attempt)
        # The next worker tells the ledger that it is at it, and for how many times before. Until
        # then it is for a launch after this one only.
        with contextlib.suppress(LedgerError):
            self.shared.ledger.mark_started(attempt)
        self._on_event(TrialRetried(candidate))

    def ended(self, trial: Trial) -> None:
        """A worker has recorded a trial."""
        self._running.discard(trial.candidate)
        self._attempts.pop(trial.id, None)
        self.recorded.append(trial)
        if (self._finished + len(self.recorded)) % COMPACT_EVERY == 0:
            with contextlib.suppress(LedgerError):  # it was for speed only; no record is lost
                self.shared.ledger.compact()
        self._search.record(trial)
        self._on_event(TrialEnded(trial))

    def grown(self, generation: int, grown_bytes: int) -> None:
        """A worker of a generation has grown; when by too much, the next generation begins."""
        if generation == self.generation and grown_bytes > MAX_GROWTH_BYTES:
            self.generation += 1

    def failed(self, error: UserError) -> None:
        """A worker met something that every trial would meet."""
        self.failure = self.failure or error

    def drain(self) -> None:
        """The user wants no other candidate started. May be called from a signal handler."""
        self.draining = True

    def interrupt(self) -> None:
        """The user ends the launch. May be called from a signal handler."""
        self.interrupted = True

    def waited(self) -> None:
        """Some time has passed."""
        if error := self._lost():
            self.failed(error)
        ending = self.draining or self.interrupted
        self._on_event(Stopping(drains=not self.interrupted) if ending else Waited())

    def _record(self, trial: Trial) -> None:
        try:
            added = self.shared.ledger.append(trial)
            self.ended(trial if added else self.shared.ledger.get(trial.id))
        except UserError as error:
            self.failed(error)
