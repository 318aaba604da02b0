"""What is shown while a sweep runs: a live display on a terminal, plain lines anywhere else.

A launch tells what happens as `Event`s; `SweepProgress` shows them, all on stderr.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from sweeps.errors import MetricError
from sweeps.evaluate import Progress as Stage
from sweeps.objectives import Goal, Objective, objective
from sweeps.pareto import pareto_front
from sweeps.trial import Candidate, Status, Trial

HEARTBEAT_SECONDS = 30.0
"""Longest silence of the plain display; also its shortest gap between two heartbeats."""

_ID_DIGITS = 6


@dataclass(frozen=True)
class SweepBegan:
    """A launch has read what its sweep holds.

    Attributes:
      sweep: Name of the sweep.
      objectives: Names of its objectives.
      finished: Trials on record.
      asked: Number of finished trials that the sweep shall hold.
    """

    sweep: str
    objectives: tuple[str, ...]
    finished: tuple[Trial, ...]
    asked: int


@dataclass(frozen=True)
class Warned:
    """A launch goes on, but its user should know something: one line."""

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
    SweepBegan | Warned | TrialBegan | TrialAdvanced | TrialRetried | TrialEnded | Waited | Stopping
)

Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Shows nothing: the listener of a launch that nobody watches."""


_STOPPING = "stopping; what is not finished is kept for the next launch"
_DRAINING = "finishing what runs, no more is started; interrupt again to stop now"


class _Tally:
    """What the events add up to; both displays read it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._here = 0
        self._objectives: tuple[Objective, ...] = ()
        self._front = 0
        self.trials: list[Trial] = []
        self.asked = 0
        self.running: dict[Candidate, Stage | None] = {}
        self.stopping = ""

    def add(self, event: Event) -> None:
        match event:
            case SweepBegan():
                self._objectives = tuple(map(objective, event.objectives))
                self.trials = list(event.finished)
                self.asked = event.asked
                self._front = _front_size(self.trials, self._objectives)
            case TrialBegan(candidate) | TrialRetried(candidate):
                self.running[candidate] = None
            case TrialAdvanced(candidate, stage):
                self.running[candidate] = stage
            case TrialEnded(trial):
                self.running.pop(trial.candidate, None)
                self.trials.append(trial)
                self._here += 1
                self._front = _front_size(self.trials, self._objectives)
            case Stopping(drains):
                self.stopping = _DRAINING if drains else _STOPPING

    @property
    def done(self) -> str:
        return f"{len(self.trials)}/{self.asked}"

    def seconds_left(self) -> float | None:
        """Returns the time until the sweep is complete at its pace so far; None at the start."""
        if not self._here:
            return None
        pace = (self._clock() - self._began) / self._here
        return pace * max(0, self.asked - len(self.trials))

    def standing(self) -> str:
        """Returns the state of the search: 'front 4 · best val_loss 10.71 · 2 failed'."""
        if self.stopping:
            return self.stopping
        parts = [f"front {self._front}"] if self._front else []
        parts += [f"best {best}" for best in _best(self.trials, self._objectives[:1])]
        for status in (Status.FAILED, Status.INFEASIBLE, Status.PRUNED):
            if count := sum(trial.status is status for trial in self.trials):
                parts.append(f"{count} {status.value}")
        left = self.seconds_left()
        return " · ".join([*parts, f"{_duration(left)} left"] if left is not None else parts)

    def outcome(self, trial: Trial) -> str:
        """Returns a finished trial in a line."""
        if trial.reason is not None:
            result = f"{trial.status.value}: {trial.detail or trial.reason.value}"
        else:
            result = f"{trial.status.value}  " + "  ".join(
                f"{o.metric}={value:.4g}"
                for o in self._objectives
                if (value := o.of(trial)) is not None
            )
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
        self._tally = tally
        self._display = (
            _LiveDisplay(console, tally)
            if console.is_terminal
            else _PlainDisplay(console, tally, clock)
        )

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
            case Warned(message):
                self._print(f"warning: {message}")
            case TrialEnded(trial):
                self._print(f"[{self._tally.done}] {self._tally.outcome(trial)}")
            case TrialRetried(candidate):
                self._print(f"{_name(candidate)}  worker died, trying again")
            case _ if self._clock() - self._last >= HEARTBEAT_SECONDS:
                running = ", ".join(
                    f"{_name(candidate)} {_stage(stage)}"
                    for candidate, stage in self._tally.running.items()
                )
                standing = self._tally.standing()
                self._print(f"[{self._tally.done}] running: {running or 'none'} · {standing}")

    def close(self) -> None:
        pass

    def _print(self, line: str) -> None:
        self._last = self._clock()
        _print(self._console, line)


class _LiveDisplay:
    """A bar for the sweep, with where it stands, and one for each running trial."""

    def __init__(self, console: Console, tally: _Tally) -> None:
        self._tally = tally
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
        )
        self._sweep: TaskID | None = None
        self._trials: dict[Candidate, TaskID] = {}

    def show(self, event: Event) -> None:
        match event:
            case SweepBegan():
                self._sweep = self._progress.add_task(event.sweep, total=event.asked, note="")
                self._progress.start()
            case Warned(message):
                _print(self._progress.console, f"warning: {message}")  # it stays above the bars
            case TrialBegan(candidate):
                self._begin(candidate)
            case TrialAdvanced(candidate, stage):
                self._progress.update(
                    self._begin(candidate),
                    total=stage.steps or None,
                    completed=stage.step,
                    note=_stage(stage),
                )
            case TrialRetried(candidate):
                note = "worker died, trying again"
                self._progress.update(self._begin(candidate), total=None, note=note)
            case TrialEnded(trial):
                if (task := self._trials.pop(trial.candidate, None)) is not None:
                    self._progress.remove_task(task)
        if self._sweep is not None:
            note = f"{self._tally.done} · {self._tally.standing()}"
            self._progress.update(self._sweep, completed=len(self._tally.trials), note=note)

    def close(self) -> None:
        self._progress.stop()

    def _begin(self, candidate: Candidate) -> TaskID:
        if candidate not in self._trials:
            self._trials[candidate] = self._progress.add_task(
                f"  {_name(candidate)}", total=None, note=f"starting · {_axes(candidate)}"
            )
        return self._trials[candidate]


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _front_size(trials: Sequence[Trial], objectives: Sequence[Objective]) -> int:
    try:
        return len(pareto_front(trials, objectives).members)
    except MetricError:  # costs of several hosts, which do not compare
        return 0


def _best(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[str]:
    """Returns the best value of each objective, as far as there is one: 'val_loss 10.71'."""
    best = []
    for o in objectives:
        values = [v for t in trials if t.reason is None and (v := o.of(t)) is not None]
        if values:
            value = min(values) if o.goal is Goal.MIN else max(values)
            best.append(f"{o.metric} {value:.4g}")
    return best


def _name(candidate: Candidate) -> str:
    return candidate.id[:_ID_DIGITS]


def _axes(candidate: Candidate) -> str:
    """Returns a candidate's values in short: 'block=plain channels=8 learning_rate=0.003'."""
    return " ".join(
        f"{axis}={value:.3g}" if isinstance(value, float) else f"{axis}={value}"
        for axis, value in candidate.values
    )


def _stage(stage: Stage | None) -> str:
    if stage is None:
        return "starting"
    steps = f" {stage.step}/{stage.steps}" if stage.stage == "train" else ""
    loss = f" · loss {stage.train_loss:.4g}" if stage.train_loss is not None else ""
    return f"{stage.stage}{steps}{loss}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 90 else f"{round(seconds)} s"
