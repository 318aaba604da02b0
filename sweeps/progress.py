"""What is shown while a sweep runs: a live display on a terminal, plain lines anywhere else.

A launch tells what happens as `Event`s; `SweepProgress` shows them, all on stderr.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.evaluate import Progress as Stage
from sweeps.objectives import MISSED_PITCH
from sweeps.printable import printable
from sweeps.standing import Outcomes, Standing, percent
from sweeps.trial import Candidate, Trial

HEARTBEAT_SECONDS = 30.0
"""Longest silence of the plain display; also its shortest gap between two heartbeats."""

REFRESH_SECONDS = 0.25
"""Shortest time between two pictures of the live display."""

SHOWN = 8
"""So many running trials are shown, those that have run for longest; the others are counted."""

_ID_DIGITS = 6


@dataclass(frozen=True)
class SweepBegan:
    """A launch has read what its sweep holds.

    Attributes:
      sweep: Name of the sweep.
      asked: Number of finished trials that the sweep shall hold.
      standing: What its records add up to now. Who goes on from there does so with a copy.
    """

    sweep: str
    asked: int
    standing: Standing


@dataclass(frozen=True)
class Warned:
    """A launch goes on, but its user should know something: one line."""

    message: str


@dataclass(frozen=True)
class Noted:
    """Something that the user of a launch may like to know: one line."""

    message: str


@dataclass(frozen=True)
class TrialBegan:
    """A worker has taken up a candidate."""

    candidate: Candidate


@dataclass(frozen=True)
class TrialAdvanced:
    """A running trial has come further."""

    candidate: Candidate
    stage: Stage


@dataclass(frozen=True)
class TrialRetried:
    """A worker died; its candidate goes to another one."""

    candidate: Candidate


@dataclass(frozen=True)
class TrialDeferred:
    """A trial waits at a rung while there is better to do; it begins again later, or ends there."""

    candidate: Candidate


@dataclass(frozen=True)
class TrialEnded:
    """A trial is on record, completed or not."""

    trial: Trial


@dataclass(frozen=True)
class Waited:
    """Some time has passed. Comes a few times a second, whatever else happens."""


@dataclass(frozen=True)
class Stopping:
    """As `Waited`, after the user has interrupted the launch and before it has ended.

    Attributes:
      drains: What runs is finished first.
    """

    drains: bool = False


Event = (
    SweepBegan
    | Noted
    | Warned
    | TrialBegan
    | TrialAdvanced
    | TrialRetried
    | TrialDeferred
    | TrialEnded
    | Waited
    | Stopping
)

Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Shows nothing: the listener of a launch that nobody watches."""


_STOPPING = "stopping; what is not finished is kept for the next launch"
_DRAINING = "finishing what runs, no more is started; interrupt again to stop now"


@dataclass(frozen=True)
class _Running:
    """A running trial: when it began, by the display's clock, and where it is.

    Before its first stage, `state` says what is waited for.
    """

    since: float
    state: str = "starting"
    stage: Stage | None = None

    def __str__(self) -> str:
        if self.stage is None:
            return self.state
        train = f" {self.stage.step}/{self.stage.steps}" if self.stage.stage == "train" else ""
        loss = self.stage.train_loss
        return f"{self.stage.stage}{train}" + (f" · loss {loss:.4g}" if loss is not None else "")


class _Tally:
    """What the events add up to; both displays read it. An event costs the same in any sweep."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._standing = Standing(())
        self._running: dict[Candidate, _Running] = {}
        self._deferred: set[Candidate] = set()
        self._stopping = ""
        self.sweep = ""
        self.asked = 0

    def add(self, event: Event) -> None:
        match event:
            case SweepBegan():
                self.sweep, self.asked = event.sweep, event.asked
                self._standing = copy.deepcopy(event.standing)
            case TrialBegan(candidate):
                axes = _axes(candidate)
                self._deferred.discard(candidate)
                self._running[candidate] = _Running(self._clock(), f"starting · {axes}")
            case TrialRetried(candidate):
                self._running[candidate] = _Running(self._clock(), "worker died, trying again")
            case TrialAdvanced(candidate, stage):
                before = self._running.get(candidate, _Running(self._clock()))
                self._running[candidate] = replace(before, stage=stage)
            case TrialDeferred(candidate):
                self._running.pop(candidate, None)
                self._deferred.add(candidate)
            case TrialEnded(trial):
                self._running.pop(trial.candidate, None)
                self._deferred.discard(trial.candidate)
                self._standing.add(Outcomes.of([trial], self._standing.objectives))
            case Stopping(drains):
                self._stopping = _DRAINING if drains else _STOPPING

    @property
    def finished(self) -> int:
        return self._standing.finished

    @property
    def done(self) -> str:
        return f"{self.finished}/{self.asked}"

    def standing(self) -> str:
        """Returns the state of the search: '2 running · front 4 · best val_loss 10.71 · ..'."""
        if self._stopping:
            return self._stopping
        now = self._clock()
        seconds = [now - running.since for running in self._running.values()]
        return self._standing.summary(self.asked, seconds, deferred=len(self._deferred))

    def longest_running(self) -> list[tuple[Candidate, _Running]]:
        """Returns the trials to be shown."""
        return list(islice(self._running.items(), SHOWN))

    def others_running(self) -> int:
        """Returns how many are not shown."""
        return max(0, len(self._running) - SHOWN)

    def outcome(self, trial: Trial) -> str:
        """Returns a finished trial in a line."""
        if trial.reason is not None:
            result = f"{trial.status.value}: {trial.detail or trial.reason.value}"
        else:
            measured = [
                f"{o.metric}={value:.4g}"
                for o in self._standing.objectives
                if (value := o.of(trial)) is not None
            ]
            missed = trial.metric(MISSED_PITCH)
            measured += [] if missed is None else [f"f0_missed={percent(missed)}"]
            result = f"{trial.status.value}  {'  '.join(measured)}"
        return f"{_name(trial.candidate)}  {result}  ({_axes(trial.candidate)})"


class SweepProgress:
    """Shows a sweep's events on stderr. Use as a context manager and as `launch`'s `on_event`.

    with SweepProgress() as show:
        launch("cello", run, ..., on_event=show)
    """

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Shows on a console, stderr by default, with a clock in seconds."""
        console = console or Console(stderr=True)
        tally = _Tally(clock)
        display = _LiveDisplay if console.is_terminal else _PlainDisplay
        self._tally = tally
        self._display = display(console, tally, clock)

    def __call__(self, event: Event) -> None:
        """Shows an event."""
        self._tally.add(event)
        self._display.show(event)

    def __enter__(self) -> "SweepProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._display.close()


class _PlainDisplay:
    """A line for each finished trial, and a heartbeat when nothing finishes for long."""

    def __init__(self, console: Console, tally: _Tally, clock: Callable[[], float]) -> None:
        self._console = console
        self._tally = tally
        self._clock = clock
        self._last = clock()

    def show(self, event: Event) -> None:
        match event:
            case SweepBegan():
                self._print(f"{event.sweep}: {self._tally.done} trials finished")
            case Noted(message):
                self._print(message)
            case Warned(message):
                self._print(f"warning: {message}")
            case TrialEnded(trial):
                self._print(f"[{self._tally.done}] {self._tally.outcome(trial)}")
            case TrialRetried(candidate):
                self._print(f"{_name(candidate)}  worker died, trying again")
            case _ if self._clock() - self._last >= HEARTBEAT_SECONDS:
                self._print(f"[{self._tally.done}] {self._tally.standing()} · {self._running()}")

    def close(self) -> None:
        pass

    def _running(self) -> str:
        parts = [f"{_name(c)} {running}" for c, running in self._tally.longest_running()]
        if others := self._tally.others_running():
            parts.append(f"{others} more")
        return ", ".join(parts) or "none running"

    def _print(self, line: str) -> None:
        self._last = self._clock()
        _print(self._console, line)


class _LiveDisplay:
    """A bar for the sweep, with where it stands, and one for each of some running trials.

    Drawn when an event comes, which is several times a second, so that no thread has to.
    """

    def __init__(self, console: Console, tally: _Tally, clock: Callable[[], float]) -> None:
        self._tally = tally
        self._clock = clock
        self._live = Live(
            console=console, get_renderable=self._picture, auto_refresh=False, transient=True
        )
        self._last = clock()

    def show(self, event: Event) -> None:
        match event:
            case SweepBegan():
                self._live.start()
            case Noted(message):
                _print(self._live.console, message)
            case Warned(message):
                _print(self._live.console, f"warning: {message}")  # it stays above the bars
        if self._clock() - self._last >= REFRESH_SECONDS:
            self._last = self._clock()
            self._live.refresh()

    def close(self) -> None:
        self._live.stop()

    def _picture(self) -> Table:
        tally = self._tally
        grid = Table.grid(padding=(0, 1))
        standing = Text(f"{tally.done} · {tally.standing()}")
        grid.add_row(Text(tally.sweep, no_wrap=True), _bar(tally.finished, tally.asked), standing)
        for candidate, running in tally.longest_running():
            bar = _bar(running.stage.step, running.stage.steps) if running.stage else _bar(0, 0)
            note = Text(printable(str(running)), no_wrap=True, overflow="ellipsis")
            grid.add_row(Text(f"  {_name(candidate)}", no_wrap=True), bar, note)
        if others := tally.others_running():
            grid.add_row(Text(f"  and {others} more", no_wrap=True), "", "")
        return grid


def _bar(done: int, of: int) -> ProgressBar:
    return ProgressBar(total=of or None, completed=done, width=24)


def _print(console: Console, line: str) -> None:
    console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _name(candidate: Candidate) -> str:
    return candidate.id[:_ID_DIGITS]


def _axes(candidate: Candidate) -> str:
    """Returns a candidate's values in short: 'block=plain channels=8 learning_rate=0.003'."""
    return " ".join(
        f"{axis}={value:.3g}" if isinstance(value, float) else f"{axis}={value}"
        for axis, value in candidate.values
    )
