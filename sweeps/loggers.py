"""Passes what a launch does on to Weights & Biases, MLflow or TensorBoard, by Ray's own callbacks.

The callbacks expect trials of Ray Tune that report flat numbers. Ours report objects, and one
candidate may be several trials to Tune, since workers die. So the callbacks are not given to Tune:
each is told the events of the launch, translated, in a thread of its own. What a logger does, or a
server far away does not do, cannot hold up the sweep: the first exception ends that logger with a
warning. The ledger has all that it would have had.
"""

import importlib.util
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sweeps.credentials import without_credentials
from sweeps.errors import DamagedError, SweepError
from sweeps.evaluate import Progress
from sweeps.ledger import Ledger
from sweeps.progress import Event, Listener, TrialAdvanced, TrialBegan, TrialEnded, Warned
from sweeps.trial import METRICS, AxisValue, Candidate, Measurement, Status

_MOST_WAITING = 1000
"""Events that may wait for a logger; where there are more, news of running trials is left out."""

_PATIENCE_SECONDS = 120.0
"""How long the end of a launch waits for loggers that have something left to send."""

_RELEASE_SECONDS = 10.0
"""How long a logger takes at the most to be let go."""


@dataclass(eq=False)
class _LoggedTrial:
    """As much of a Tune trial as Ray's callbacks look at; one for each candidate.

    Attributes:
      trial_id: Names the run, also among those of other sweeps.
      name: The trial's id; what is shown.
      config: The candidate's values by axis.
      experiment_dir_name: Name of the sweep.
      local_path: Folder for the logger's files.
      step: Training steps that the last result was of. Loggers do not take earlier ones.
    """

    trial_id: str
    name: str
    config: dict[str, AxisValue]
    experiment_dir_name: str
    local_path: str
    step: int = 0

    @property
    def evaluated_params(self) -> dict[str, AxisValue]:
        return self.config

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Kind:
    """A kind of logger.

    Attributes:
      package: What must be installed, other than Ray.
      make: Makes Ray's callback, given the sweep's name and the folder for files.
      trial_folder: Where a trial's files go in that folder, by its id.
      hint: What a user may do when it cannot be set up.
      release: Has a call to the callback, in another thread, return or raise.
    """

    package: str
    make: Callable[[str, Path], Any]
    trial_folder: Callable[[Path, str], Path]
    hint: str
    release: Callable[[Any], None] = lambda callback: None


def _wandb(sweep: str, folder: Path) -> Any:
    from ray.air.integrations.wandb import WandbLoggerCallback

    # Ray's core would print an error for each trial: if the logging process died, it could not be
    # started again. It is right.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # That process is one of Ray's, which on a cluster has the environment of the cluster.
    variables = {"mode": "WANDB_MODE", "entity": "WANDB_ENTITY", "dir": "WANDB_DIR"}
    options: Any = {
        key: os.environ[name] for key, name in variables.items() if os.environ.get(name)
    }
    project = os.environ.get("WANDB_PROJECT_NAME") or os.environ.get("WANDB_PROJECT")
    return WandbLoggerCallback(
        project=project or "ddsp-sweeps",
        group=os.environ.get("WANDB_RUN_GROUP") or sweep,
        resume="allow",
        **options,
    )


def _release_wandb(callback: Any) -> None:
    import ray

    queues, actors = callback._trial_queues, callback._trial_logging_actors
    for trial_queue in list(queues.values()):
        trial_queue.shutdown(force=True)
    for actor in list(actors.values()):
        ray.kill(actor)
    for kept in (queues, actors, callback._trial_logging_futures):
        kept.clear()  # or they are told to end when the callback is deleted


def _mlflow(sweep: str, folder: Path) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # It would print where each run is on standard output, with the user and password of the server.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # not that it makes a database
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute()}/mlflow.db"
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or sweep
    return MLflowLoggerCallback(tracking_uri=uri, experiment_name=name, tags={"sweep": sweep})


def _tensorboard(sweep: str, folder: Path) -> Any:
    from ray.tune.logger import TBXLoggerCallback

    return TBXLoggerCallback()  # type: ignore[no-untyped-call]


_KINDS: Mapping[str, _Kind] = {
    "wandb": _Kind(
        package="wandb",
        make=_wandb,
        trial_folder=lambda folder, trial_id: folder,  # it makes one a run
        hint="'wandb login', or WANDB_MODE=offline to send it later",
        release=_release_wandb,
    ),
    "mlflow": _Kind(
        package="mlflow",
        make=_mlflow,
        trial_folder=lambda folder, trial_id: folder,
        hint="see that the server of MLFLOW_TRACKING_URI answers",
    ),
    "tensorboard": _Kind(
        package="tensorboardX",
        make=_tensorboard,
        trial_folder=lambda folder, trial_id: folder / "tensorboard" / trial_id,
        hint="launch without --log tensorboard",
    ),
}

NAMES = tuple(_KINDS)
"""What a launch can be logged to."""


class Loggers:
    """A launch's listener that passes everything on to another one, and to loggers.

    Use as a context manager while the cluster is up: what loggers have not sent is waited for at
    its end, for two minutes.
    """

    def __init__(self, names: Sequence[str], ledger: Ledger, listener: Listener) -> None:
        """Sets the loggers up, in this thread: who cannot log learns it before anything runs.

        Args:
          names: Of the loggers, see `NAMES`.
          ledger: The sweep; on a local storage the loggers' files are kept beside its records.
          listener: Is told every event first, and of loggers that failed.

        Raises:
          SweepError: See `check_installed`; or a logger cannot log, for want of an account, say.
          DamagedError: See `_folder`.
        """
        check_installed(names)
        folder = _folder(ledger)
        self._listener = listener
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._loggers = [
            _Logger(name, _callback(name, ledger.name, folder), ledger.name, folder, self._warn)
            for name in dict.fromkeys(names)
        ]

    def __call__(self, event: Event) -> None:
        """Passes an event on."""
        self._listener(event)
        for logger in self._loggers:
            logger.tell(event)
        self._pass_warnings_on()

    def __enter__(self) -> "Loggers":
        for logger in self._loggers:
            logger.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for logger in self._loggers:
            logger.end()
        until = time.monotonic() + _PATIENCE_SECONDS
        try:
            for logger in self._loggers:
                logger.join(max(0.0, until - time.monotonic()))
        finally:  # the user may interrupt that
            for logger in self._loggers:
                if logger.is_alive():
                    logger.abandon()
                    self._warn(f"{logger.name} has not taken everything; the ledger has it")
            self._pass_warnings_on()

    def _warn(self, message: str) -> None:
        self._warnings.put(message)

    def _pass_warnings_on(self) -> None:
        """Tells the listener, in the thread that it is told everything in."""
        while not self._warnings.empty():
            self._listener(Warned(self._warnings.get()))


def _folder(ledger: Ledger) -> Path:
    """Returns where loggers keep files: beside the records, where a stranger may have put some.

    Raises:
      DamagedError: A logger would write elsewhere, or send a key to a server of that file's choice.
    """
    if ledger.location.local_folder is None:
        return Path("logs") / ledger.name
    folder = Path(ledger.location.at(f"{ledger.name}/logs"))
    inside = os.path.realpath(folder)
    for here, folders, files in os.walk(folder):
        for path in (Path(here, name) for name in (*folders, *files)):
            # W&B makes links itself, to its latest run.
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
                raise DamagedError(f"{path} is a link that leads out of {folder}", hint=_REMOVE)
            if path.name == "settings" and path.parent.name in ("wandb", ".wandb"):
                raise DamagedError(f"{path} may name another server to log to", hint=_REMOVE)
    return folder


_REMOVE = "remove it: no launch has made it"


def check_installed(names: Sequence[str]) -> None:
    """Checks that so much can be logged to, before anything is begun.

    Raises:
      SweepError: There is no such logger, or its package is not installed.
    """
    for name in names:
        if name not in _KINDS:
            hint = f"there are {', '.join(NAMES)}"
            raise SweepError(f"nothing named '{name}' to log to", hint=hint)
        if importlib.util.find_spec(_KINDS[name].package) is None:
            raise SweepError(
                f"logging to {name} needs the package '{_KINDS[name].package}'",
                hint=f'pip install "ddsp-sweeps[{name}]"',
            )


def _callback(name: str, sweep: str, folder: Path) -> Any:
    """Returns a callback of Ray's that is ready to log.

    Raises:
      SweepError: It is not, for want of an account, of a server, of space.
    """
    kind = _KINDS[name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        callback = kind.make(sweep, folder)
        callback.setup()
    except Exception as error:
        raise SweepError(f"cannot log to {name}: {_in_a_line(error)}", hint=kind.hint) from error
    return callback


class _Logger(threading.Thread):
    """Tells one callback of Ray's what happens, one event after another."""

    def __init__(
        self, name: str, callback: Any, sweep: str, folder: Path, warn: Callable[[str], None]
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._callback = callback
        self._sweep = sweep
        self._folder = folder
        self._warn = warn
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._trials: dict[str, _LoggedTrial] = {}
        self._ended = threading.Event()

    def tell(self, event: Event) -> None:
        """Has an event logged; returns at once."""
        late = self._events.qsize() > _MOST_WAITING and isinstance(event, TrialAdvanced)
        if not (late or self._ended.is_set()):
            self._events.put(event)

    def end(self) -> None:
        """Has the thread end when it has logged what it was told."""
        self._events.put(None)

    def abandon(self) -> None:
        """Ends the thread, whatever is left to log.

        Ray ends this process where a thread of it is in a call to Ray while the cluster is left.
        """
        self._ended.set()
        _KINDS[self.name].release(self._callback)
        self.join(_RELEASE_SECONDS)

    def run(self) -> None:
        try:
            while (event := self._events.get()) is not None:
                self._log(event)
            for trial in self._trials.values():
                self._call("log_trial_end", trial, failed=True)
            self._call("on_experiment_end", trials=[])
        except Exception as error:
            if self._ended.is_set():
                return
            self._ended.set()
            self._warn(f"no more is logged to {self.name}: {_in_a_line(error)}")

    def _log(self, event: Event) -> None:
        match event:
            case TrialBegan(candidate):
                self._trial(candidate)
            case TrialAdvanced(candidate, progress):
                self._result(self._trial(candidate), progress.step, _numbers(progress))
            # Candidates over a limit do not begin, and are not logged.
            case TrialEnded(trial) if trial.id in self._trials:
                logged = self._trials.pop(trial.id)
                self._result(logged, trial.provenance.train_steps, _measured(trial.measurement))
                self._call("log_trial_end", logged, failed=trial.status is Status.FAILED)

    def _trial(self, candidate: Candidate) -> _LoggedTrial:
        if candidate.id not in self._trials:
            folder = _KINDS[self.name].trial_folder(self._folder, candidate.id)
            trial = _LoggedTrial(
                trial_id=f"{self._sweep}-{candidate.id}",
                name=candidate.id,
                config=dict(candidate.values),
                experiment_dir_name=self._sweep,
                local_path=str(folder.absolute()),
            )
            self._call("log_trial_start", trial)
            self._trials[candidate.id] = trial
        return self._trials[candidate.id]

    def _result(self, trial: _LoggedTrial, step: int, numbers: Mapping[str, float]) -> None:
        if numbers:
            trial.step = max(step, trial.step)
            result = {"training_iteration": trial.step, **numbers}
            self._call("log_trial_result", trial.step, trial, result)

    def _call(self, name: str, *args: Any, **options: Any) -> None:
        if self._ended.is_set():
            raise RuntimeError("the launch has ended")
        getattr(self._callback, name)(*args, **options)


def _numbers(progress: Progress) -> dict[str, float]:
    """Returns what is known of a running trial: its loss, and what it measured at a rung."""
    loss = {"train_loss": progress.train_loss} if progress.train_loss is not None else {}
    return loss | (_measured(progress.reached.measurement) if progress.reached else {})


def _measured(measurement: Measurement) -> dict[str, float]:
    values = {name: getattr(measurement, name) for name in METRICS}
    return {k: v for k, v in values.items() if v is not None and math.isfinite(v)}


def _in_a_line(error: Exception) -> str:
    said = without_credentials(" ".join(str(error).split()))
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
