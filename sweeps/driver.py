"""The driver's books: what runs next, what is on record, and when the sweep is done.

Knows nothing of Ray: `sweeps.launch` passes on to a `Driver` what Ray Tune sees.
"""

import contextlib
import shutil
from collections.abc import Callable
from typing import Any

from sweeps.attempt import Shared
from sweeps.errors import LedgerError
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
from sweeps.trial import Candidate, Reason, Trial
from thesis.data import DatasetFacts
from thesis.errors import UserError

RETRIES = 2
"""How often a candidate whose worker died is given to another one."""

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
      interrupted: The user ends the launch.
      generation: Which generation of workers the next trial belongs to.
    """

    def __init__(
        self,
        shared: Shared,
        data: DatasetFacts,
        search: Search,
        *,
        finished: int,
        asked: int,
        slots: Callable[[], int],
        on_event: Listener,
    ) -> None:
        self.shared = shared
        self.recorded: list[Trial] = []
        self.exhausted = False
        self.failure: UserError | None = None
        self.interrupted = False
        self.generation = 0
        self._data = data
        self._search = search
        self._finished = finished
        self._asked = asked
        self._slots = slots
        self._running: set[Candidate] = set()
        self._on_event = on_event

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles all that it is given into a state that is never read.
        return (object, ())

    @property
    def stopped(self) -> bool:
        """Whether even what runs is to end."""
        return self.interrupted or self.failure is not None

    @property
    def complete(self) -> bool:
        """Whether no other candidate is to be started."""
        enough = self._finished + len(self.recorded) + len(self._running) >= self._asked
        return enough or self.exhausted or self.stopped

    def next_candidate(self) -> Candidate | None:
        """Returns what to evaluate next; None while there is no free slot, or when `complete`."""
        while not self.complete and len(self._running) < self._slots():
            candidate = self._search.propose()
            if candidate is None:
                self.exhausted = True
                return None
            infeasible = screen(self.shared.ledger.name, self.shared.run, candidate, self._data)
            if infeasible is None:
                self._running.add(candidate)
                return candidate
            self._record(infeasible)
        return None

    def began(self, candidate: Candidate) -> None:
        """A worker takes up a candidate."""
        self._on_event(TrialBegan(candidate))

    def advanced(self, candidate: Candidate, progress: Progress) -> None:
        """A trial has come further."""
        self._on_event(TrialAdvanced(candidate, progress))

    def retried(self, candidate: Candidate) -> None:
        """A worker died, and another one will take over."""
        self._on_event(TrialRetried(candidate))

    def ended(self, trial: Trial) -> None:
        """A worker has recorded a trial."""
        self._running.discard(trial.candidate)
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

    def interrupt(self) -> None:
        """The user ends the launch. May be called from a signal handler."""
        self.interrupted = True

    def crashed(self, candidate: Candidate, reason: Reason) -> None:
        """Workers died of a candidate until it was given up."""
        detail = f"{RETRIES + 1} workers died of it"
        self._record(self.shared.failed(candidate, reason, detail, started_at=0.0))
        shutil.rmtree(self.shared.workdir(candidate), ignore_errors=True)

    def waited(self) -> None:
        """Some time has passed."""
        self._on_event(Stopping() if self.interrupted else Waited())

    def _record(self, trial: Trial) -> None:
        try:
            added = self.shared.ledger.append(trial)
            self.ended(trial if added else self.shared.ledger.get(trial.id))
        except UserError as error:
            self.failed(error)
