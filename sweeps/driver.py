"""The driver's books: what runs next, what is on record, and when the sweep is done.

Knows nothing of Ray: `sweeps.launch` passes on to a `Driver` what Ray Tune sees.
"""

import contextlib
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from sweeps.attempt import Shared
from sweeps.breaker import MAX_DEATHS, Breaker, Fault
from sweeps.config import RunConfig
from sweeps.errors import LedgerError, SweepError
from sweeps.evaluate import Progress
from sweeps.progress import (
    Listener,
    Stopping,
    TrialAdvanced,
    TrialBegan,
    TrialDeferred,
    TrialEnded,
    TrialRetried,
    Waited,
    Warned,
)
from sweeps.search import Search, screen
from sweeps.stopping import StoppingRule, Verdict, Waiting, most_promising
from sweeps.trial import Attempt, Candidate, Reason, Status, Trial
from thesis.data import DatasetFacts
from thesis.errors import UserError

MAX_LOSSES = 20
"""Workers of a candidate that may be lost with their nodes: a machine may well be taken away ten
times from a long trial, and a trial may take a machine down every time."""

COMPACT_EVERY = 100
"""Trials of a sweep between two mergers of its ledger's small files."""

MAX_GROWTH_BYTES = 2**30
"""Workers are replaced when one has grown by so much since its first trial: TensorFlow never frees
a compiled decoder, 10 to 25 MB a trial. A new worker takes ten seconds."""


MOST_WAITING = 2
"""Trials that may wait, for each one on record, while new ones are begun: a sampler learns from
what has finished."""

MOST_REPORTS = 50
"""Reports of all running trials that the driver wants in a second. One takes it a millisecond, for
which the trial waits, and more the more trials there are: Ray looks at all that run."""


@dataclass(frozen=True)
class Budget:
    """What a launch may use up; it ends with the first of these.

    Attributes:
      trials: Finished trials that the sweep shall hold, those of earlier launches included.
      seconds: Time of this launch. What runs then is stopped, and goes on from its checkpoint with
        the next one. None is no limit.
      train_steps: Training steps of all the sweep's records, partial ones included. No trial is
        begun that might not end within it. None is no limit.
    """

    trials: int
    seconds: float | None = None
    train_steps: int | None = None


@dataclass
class Wishes:
    """What the user wants of a running launch; may be changed from any thread.

    Attributes:
      draining: Finish what runs, start nothing.
      stopping: Stop what runs, too.
    """

    draining: bool = False
    stopping: bool = False

    def drain(self) -> None:
        """No other candidate is to be started."""
        self.draining = True

    def stop(self) -> None:
        """The launch is to end at once."""
        self.stopping = True


class Driver:
    """Decides what runs next and keeps the books. Knows nothing of Ray Tune.

    Attributes:
      on_event: Is told what happens.
      recorded: Trials recorded in this launch.
      exhausted: Nothing is left to try.
      failure: What ends the launch: an error that every trial would meet.
      wishes: What the user wants.
      used_up: The budget, other than that of trials, that ends the launch: '3600 s', or ''.
      generation: Which generation of workers the next trial belongs to.
    """

    def __init__(
        self,
        shared: Shared,
        data: DatasetFacts,
        search: Search,
        rule: StoppingRule,
        *,
        started: Iterable[Attempt],
        finished: int,
        steps_spent: int,
        budget: Budget,
        slots: Callable[[], int],
        lost: Callable[[], SweepError | None],
        wishes: Wishes,
        on_event: Listener,
        keep_going: bool = False,
    ) -> None:
        self.shared = shared
        self.recorded: list[Trial] = []
        self.exhausted = False
        self.failure: UserError | None = None
        self.generation = 0
        self._data = data
        self._search = search
        self._rule = rule
        self._finished = finished
        self._budget = budget
        self._began_at = time.monotonic()
        self._steps_spent = steps_spent
        self._steps_of_a_trial = most_train_steps(shared.run)
        self.used_up = ""
        self._slots = slots
        self._lost = lost
        self.wishes = wishes
        self._running: set[Candidate] = set()
        self._attempts = {attempt.candidate.id: attempt for attempt in started}
        self._deferred = {
            attempt.candidate: Waiting(attempt.waits_at, Verdict(waits=True, gain=attempt.gain))
            for attempt in self._attempts.values()
            if attempt.waits_at
        }
        self._again: deque[Attempt] = deque()
        self._breaker = Breaker()
        if keep_going:  # whoever says so knows it for a fault of the candidates
            self._breaker.worked()
        self._crashed: list[Trial] = []
        self._suspects: set[Candidate] = set()
        self.on_event = on_event

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles all that it is given into a state that is never read.
        return (object, ())

    @property
    def report_seconds(self) -> float:
        """Shortest time between two reports of a trial, rungs aside; 0 for few workers."""
        return float(self._slots() // MOST_REPORTS)

    @property
    def stopped(self) -> bool:
        """Whether even what runs is to end."""
        return self.wishes.stopping or self.failure is not None or bool(self.used_up)

    @property
    def interrupted(self) -> bool:
        """Whether the user ends the launch."""
        return self.wishes.draining or self.wishes.stopping

    @property
    def _on_record(self) -> int:
        return self._finished + len(self.recorded)

    @property
    def _ended(self) -> int:
        """Trials on record, and those that will be there unless all trials crash alike."""
        return self._on_record + len(self._crashed)

    @property
    def complete(self) -> bool:
        """Whether no other candidate is to be started."""
        enough = self._ended + len(self._running) >= self._budget.trials
        nothing_left = self.exhausted and not self._again and not self._deferred
        return enough or nothing_left or self.wishes.draining or self.stopped

    @property
    def _wants_new_ones(self) -> bool:
        """Whether trials are missing that nobody has begun, and not too many wait."""
        begun = len(self._running) + len(self._again) + len(self._deferred)
        missing = not self.exhausted and self._ended + begun < self._budget.trials
        return missing and len(self._deferred) < max(1, MOST_WAITING * self._on_record)

    def _has_steps_for_another(self, done: int = 0) -> bool:
        """Whether one more trial can be trained to its end, if all that run are.

        Args:
          done: Steps that it has behind it, if it waits.
        """
        total = self._budget.train_steps
        waiting = sum(one.step for one in self._deferred.values()) - done
        needed = self._steps_of_a_trial * (len(self._running) + 1)
        return total is None or self._steps_spent + waiting + needed <= total

    def next_attempt(self) -> Attempt | None:
        """Returns what to evaluate next; None while there is no free slot, or when `complete`.

        What a worker died of comes first, then what is new, then what waits. While all trials crash
        alike nothing is begun: what still runs may show that some do not.
        """
        while not self.complete and len(self._running) < self._slots() and not self._breaker.fault:
            has_steps = self._has_steps_for_another()
            if has_steps and (again := self._next_again()):
                return self._begin(again)
            if has_steps and self._wants_new_ones:
                attempt = self._propose()
            elif best := self._best_deferred():
                attempt = self._resume(best)
            else:
                if not has_steps and not self._running:  # one that runs may yet be stopped early
                    self.used_up = f"{self._budget.train_steps:,} training steps"
                return None
            if attempt:
                return self._begin(attempt)
        return None

    def _propose(self) -> Attempt | None:
        """Returns a new candidate's attempt; None for one on record at once, or if none is left."""
        candidate = self._search.propose()
        if candidate is None:
            self.exhausted = True
            return None
        infeasible = screen(self.shared.ledger.name, self.shared.run, candidate, self._data)
        if infeasible is None:
            return self._attempts.get(candidate.id, Attempt(candidate))
        self._record(infeasible)
        return None

    def _has_better_than(self, gain: float) -> bool:
        """Whether a trial of which so much is expected would keep a worker from better ones."""
        if self.wishes.draining:
            return False
        if self._wants_new_ones:
            return True
        best = most_promising(self._deferred, self._rule)
        return best is not None and self._deferred[best].verdict.gain > gain

    def _best_deferred(self) -> Candidate | None:
        """Returns which of those that wait is to go on; None while there are no steps for it."""
        best = most_promising(self._deferred, self._rule)
        if best is None or not self._has_steps_for_another(self._deferred[best].step):
            return None
        return best

    def _resume(self, candidate: Candidate) -> Attempt | None:
        """Returns the attempt of one that waits; None if it was ruled out meanwhile."""
        waiting = self._deferred.pop(candidate)
        if waiting.reached and waiting.verdict.stop:
            self._stop(waiting.reached, waiting.verdict.stop)
            return None
        return replace(self._attempts[candidate.id], waits_at=0, gain=0.0)

    def _next_again(self) -> Attempt | None:
        """Returns what is to be tried again and may run now.

        Of a node that runs out of memory Ray kills several workers, and cannot tell which one took
        it. Where they are not tried again together, no candidate is killed twice by one other.
        """
        waits = not self._suspects.isdisjoint(self._running)
        for attempt in self._again:
            if not (waits and attempt.candidate in self._suspects):
                self._again.remove(attempt)
                return attempt
        return None

    def _begin(self, attempt: Attempt) -> Attempt:
        self._running.add(attempt.candidate)
        self._attempts[attempt.candidate.id] = attempt
        return attempt

    def began(self, candidate: Candidate) -> None:
        """A worker takes up a candidate."""
        self.on_event(TrialBegan(candidate))

    def advanced(self, candidate: Candidate, progress: Progress) -> bool:
        """A trial has come further. Returns whether it ends here: on record, or to go on later."""
        self._breaker.reached(candidate, progress.step / max(1, progress.steps))
        reached = progress.reached
        verdict = self._rule.verdict(reached, progress.steps) if reached else Verdict()
        if reached and verdict.stop:
            self._stop(reached, verdict.stop)
            return True
        if reached and verdict.waits and self._has_better_than(verdict.gain):
            self._defer(reached, progress.steps, verdict)
            return True
        self.on_event(TrialAdvanced(candidate, progress))
        return False

    def _stop(self, reached: Trial, why: str) -> None:
        self._record(replace(reached, detail=why))
        self._settle()

    def _defer(self, reached: Trial, steps: int, verdict: Verdict) -> None:
        """Has a trial wait, with its checkpoint, until nothing new is left to try."""
        candidate, step = reached.candidate, max(reached.curve)
        self._running.discard(candidate)
        self._deferred[candidate] = Waiting(step, verdict, steps, reached)
        attempt = replace(self._attempts[candidate.id], waits_at=step, gain=verdict.gain)
        self._attempts[candidate.id] = attempt
        # For who watches, and for a launch after this one. This one knows.
        with contextlib.suppress(LedgerError):
            self.shared.ledger.mark_started(attempt)
        self.on_event(TrialDeferred(candidate))

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
        self._running.discard(candidate)
        if deaths >= MAX_DEATHS or losses >= MAX_LOSSES:
            detail = f"{deaths} workers died of it, {losses} were lost with their node; {cause}"
            reason = reason or Reason.CRASHED
            self._breaker.gave_up(candidate, cause, reason)
            self._keep(self.shared.failed(candidate, reason, detail, attempt.began_at))
            return
        if reason is not None:
            self._breaker.died(candidate, cause, reason)
        self._again.append(attempt)
        if reason is Reason.OUT_OF_MEMORY:
            self._suspects.add(candidate)
        # The next worker tells the ledger that it is at it, and for how many times before. Until
        # then it is for a launch after this one only.
        with contextlib.suppress(LedgerError):
            self.shared.ledger.mark_started(attempt)
        self.on_event(TrialRetried(candidate))
        self._settle()

    def ended(self, trial: Trial) -> None:
        """A worker has come to the end of a trial, and has recorded it unless it crashed."""
        self._running.discard(trial.candidate)
        if trial.reason is not None and trial.reason.is_crash:
            self._breaker.failed(trial.candidate, trial.detail, trial.reason)
            self._keep(trial)
        else:
            self._book(trial)
            self.on_event(TrialEnded(trial))
            self._settle()

    def _keep(self, trial: Trial) -> None:
        """Keeps a trial that crashed until it is clear that not all trials do."""
        self._crashed.append(trial)
        self.on_event(TrialEnded(trial))
        self._settle()

    def _settle(self) -> None:
        """Records what crashed when something works; ends the launch when all trials crash."""
        if self._breaker.works:
            self._record_crashed()
        elif not (self._running or self.failure) and (fault := self._breaker.fault):
            self._forgive()
            self.failed(_all_crash(fault))

    def _record_crashed(self) -> None:
        crashed, self._crashed = self._crashed, []
        for trial in crashed:
            self._append(trial)

    def _forgive(self) -> None:
        """Has the next launch try again what crashed in this one, as if nothing had happened."""
        attempts = [self._attempts[trial.id] for trial in self._crashed]
        for attempt in [*attempts, *self._again]:
            with contextlib.suppress(LedgerError):
                self.shared.ledger.mark_started(replace(attempt, deaths=0, losses=0, cause=""))

    def close(self) -> None:
        """Records what crashed, at the end of a launch that nothing speaks against."""
        if self.failure is None:
            self._record_crashed()

    def _book(self, trial: Trial) -> None:
        """Takes a trial that is on record into account."""
        self._running.discard(trial.candidate)
        self._attempts.pop(trial.id, None)
        if trial.trained or trial.status is Status.PRUNED:
            self._breaker.worked()
        self.recorded.append(trial)
        self._steps_spent += trial.provenance.train_steps
        if self._on_record % COMPACT_EVERY == 0:
            with contextlib.suppress(LedgerError):  # it was for speed only; no record is lost
                self.shared.ledger.compact(tell=lambda line: self.on_event(Warned(line)))
        self._search.record(trial)
        self._rule.learn(trial)

    def grown(self, generation: int, grown_bytes: int) -> None:
        """A worker of a generation has grown; when by too much, the next generation begins."""
        if generation == self.generation and grown_bytes > MAX_GROWTH_BYTES:
            self.generation += 1

    def failed(self, error: UserError) -> None:
        """A worker met something that every trial would meet."""
        self.failure = self.failure or error

    def waited(self) -> None:
        """Some time has passed."""
        if error := self._lost():
            self.failed(error)
        seconds = self._budget.seconds
        if seconds is not None and time.monotonic() - self._began_at >= seconds:
            self.used_up = self.used_up or f"{seconds:,.0f} s"
        self._settle()  # the last one that ran may wait now
        self.on_event(Stopping(drains=not self.wishes.stopping) if self.interrupted else Waited())

    def _record(self, trial: Trial) -> None:
        """Records a trial that ends here, and tells of it."""
        if recorded := self._append(trial):
            self.on_event(TrialEnded(recorded))

    def _append(self, trial: Trial) -> Trial | None:
        """Puts a trial on record; returns what is there now, None where that has failed."""
        try:
            added = self.shared.ledger.append(trial)
            recorded = trial if added else self.shared.ledger.get(trial.id)
        except UserError as error:
            self.failed(error)
            return None
        shutil.rmtree(self.shared.workdir(trial.candidate), ignore_errors=True)
        self._book(recorded)
        return recorded


def _all_crash(fault: Fault) -> SweepError:
    """Returns what to tell of trials that all crash alike."""
    happens, mend = {
        Reason.OUT_OF_MEMORY: (
            "all trials run out of memory",
            "run fewer at a time (--max-concurrent), or find more memory",
        ),
        Reason.CRASHED: (
            "workers die of all trials",
            "mend what kills them, a library or the system",
        ),
    }.get(fault.reason, ("all trials fail alike", "mend the cause"))
    cause = " ".join(fault.cause.split())[:_MOST_SAID]
    return SweepError(
        f"{happens}, {fault.candidates} so far: {cause}",
        hint=f"{mend}, and launch again: none of them is on record, all are tried again; or with "
        "--keep-going, if it is their own fault",
    )


_MOST_SAID = 300
"""Characters of a cause that an error shows."""


def most_train_steps(run: RunConfig) -> int:
    """Returns the training steps of the longest trial that a run may have."""
    searched = [axis.domain.largest for axis in run.space.axes if axis.binding == "train.steps"]
    return int(searched[0]) if searched else run.model.train.steps
