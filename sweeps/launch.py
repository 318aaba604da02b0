"""Runs a sweep on this machine or on a cluster: the one importer of Ray.

The driver (`launch`) proposes candidates and starts workers. A worker evaluates one candidate after
another and writes each record to the ledger itself, before it tells the driver: whatever dies next,
the result is kept. Ray's own records of the run go to a scratch folder and are never read. All that
a continued launch needs is the ledger and the checkpoints in the trials' work folders.
"""

import contextlib
import fcntl
import hashlib
import importlib
import importlib.util
import logging
import math
import os
import platform
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TextIO, cast

import ray
from ray import tune
from ray._private import ray_constants
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial as RayTrial
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps import __version__
from sweeps.config import RunConfig
from sweeps.errors import LedgerError, SweepError
from sweeps.evaluate import Measure, Progress, Task, versions
from sweeps.ledger import Ledger, SweepFacts
from sweeps.meter import Meter
from sweeps.progress import (
    Listener,
    Stopping,
    SweepBegan,
    TrialAdvanced,
    TrialBegan,
    TrialEnded,
    TrialRetried,
    Waited,
    Warned,
    silent,
)
from sweeps.reaper import reaping
from sweeps.search import Search, screen
from sweeps.trial import PROJECT, Candidate, Provenance, Reason, Status, Trial
from thesis.config import MeasureConfig
from thesis.data import DatasetFacts, load_facts
from thesis.errors import UserError
from thesis.measure import RtfMeasurement

RETRIES = 2
"""How often a candidate whose worker died is given to another one."""

COMPACT_EVERY = 100
"""Trials of a sweep between two mergers of its ledger's small files."""

MAX_GROWTH_BYTES = 2**30
"""Workers are replaced when one has grown by so much since its first trial: TensorFlow never frees
a compiled decoder, 10 to 25 MB a trial. A new worker takes ten seconds."""

_OBJECT_STORE_BYTES = 128 * 2**20
"""Ray's shared memory on this machine. What is sent are small records and models of some KB."""

_NAMESPACE = "ddsp-sweeps"
"""Where measuring actors are known by name, to all sweeps of a cluster."""

_METER_ATTEMPTS = 5
"""How often a measurement is tried when the worker that owns the measuring actor goes away."""


@dataclass(frozen=True)
class LaunchReport:
    """What a launch did.

    Attributes:
      sweep: Name of the sweep.
      uri: Where its ledger is.
      asked: Number of finished trials that the sweep was to hold.
      finished: Number that it holds now.
      recorded: The trials that this launch recorded, first one first.
      exhausted: Every candidate of the space has been tried.
      interrupted: The user stopped it. The same launch again continues.
    """

    sweep: str
    uri: str
    asked: int
    finished: int
    recorded: tuple[Trial, ...] = ()
    exhausted: bool = False
    interrupted: bool = False

    def summary(self) -> str:
        """Returns the report in a line."""
        if not self.recorded and self.finished >= self.asked:
            return f"'{self.sweep}' has {self.finished} finished trials already: nothing to do"
        counts = Counter(trial.status for trial in self.recorded)
        new = ", ".join(f"{counts[status]} {status.value}" for status in Status if counts[status])
        line = f"'{self.sweep}' has {self.finished} of {self.asked} trials; new: {new or 'none'}"
        if self.exhausted:
            line += "; every candidate of the space has been tried"
        return f"{line}; interrupted, launch again to continue" if self.interrupted else line


def launch(
    name: str,
    run: RunConfig,
    *,
    dataset: str,
    trials: int,
    storage: str,
    address: str | None = None,
    cpus_per_trial: float = 1,
    max_concurrent: int | None = None,
    on_event: Listener = silent,
    evaluator: str = "sweeps.evaluate:stages",
    measurer: str = "thesis.measure:measure_rtf",
) -> LaunchReport:
    """Starts a sweep, or continues the one of this name, until it holds so many finished trials.

    Finished are trials on record: completed, failed, infeasible and pruned ones. Exactly the
    missing number is run. May be interrupted, or killed, at any time: the same call continues.

    Args:
      name: Name of the sweep.
      run: The resolved configuration.
      dataset: Folder of the dataset; every node must see it under this path.
      trials: Number of finished trials that the sweep shall hold.
      storage: Where the ledger is kept: a folder, or a URI such as s3://bucket/folder. Every node
        must reach it.
      address: Of a running Ray cluster; None starts one on this machine and stops it at the end.
      cpus_per_trial: CPUs that a trial claims; its thread pools are sized to match.
      max_concurrent: Trials at a time at the most; None runs as many as the CPUs allow.
      on_event: Is told what happens, in this thread.
      evaluator: What evaluates a candidate, as `sweeps.evaluate.stages` does: 'module:function' or
        'path/to/file.py:function'.
      measurer: What measures a model, as `thesis.measure.measure_rtf` does.

    Raises:
      SweepError: A different sweep has this name, it is being launched already, or no node has
        enough CPUs for a trial.
      DatasetError: There is no dataset.
      LedgerError: The storage cannot be used.
    """
    data = load_facts(dataset)
    dataset = str(Path(dataset).absolute())
    facts = SweepFacts(
        name=name,
        gin_config=run.text,
        dataset_fingerprint=data.fingerprint,
        objectives=run.sweep.objectives,
        dataset_path=dataset,
        trials_asked=trials,
    )
    ledger = Ledger.create(storage, name, facts)
    finished = ledger.trials()
    on_event(SweepBegan(name, run.sweep.objectives, tuple(finished), trials))
    if len(finished) >= trials:
        return LaunchReport(name, ledger.uri, trials, len(finished))
    if others := _of_other_releases(finished):
        on_event(Warned(others))
    with _scratch(ledger) as scratch:
        finished = ledger.trials()
        shared = _Shared(
            ledger=ledger,
            run=run,
            dataset=dataset,
            evaluator=evaluator,
            measurer=measurer,
            cpus_per_trial=cpus_per_trial,
            work=_work_folder(ledger, scratch),
        )
        driver = _Driver(
            shared,
            data,
            Search(run.space, run.sweep, finished=finished, started=ledger.started()),
            finished=len(finished),
            asked=trials,
            slots=_Slots(cpus_per_trial, max_concurrent),
            on_event=on_event,
        )
        interrupted = _run(driver, address, cpus_per_trial, scratch)
    return LaunchReport(
        name,
        ledger.uri,
        trials,
        len(finished) + len(driver.recorded),
        tuple(driver.recorded),
        exhausted=driver.exhausted,
        interrupted=interrupted,
    )


def _of_other_releases(finished: Iterable[Trial]) -> str:
    """Returns what to say of trials that releases with another minor version recorded, if any."""
    recorded = [trial.provenance.versions.get(PROJECT, "unknown") for trial in finished]
    here = __version__.split(".")[:2]
    others = [version for version in recorded if version.split(".")[:2] != here]
    if not others:
        return ""
    return (
        f"{len(others)} finished trials were recorded by other versions "
        f"({', '.join(sorted(set(others)))}), this is {__version__}: losses may not compare, "
        "see CHANGELOG.md"
    )


def load(spec: str) -> Any:
    """Returns what 'module:attribute' or 'path/to/file.py:attribute' names."""
    source, _, attribute = spec.rpartition(":")
    if not source.endswith(".py"):
        return getattr(importlib.import_module(source), attribute)
    module_spec = importlib.util.spec_from_file_location(Path(source).stem, source)
    if module_spec is None or module_spec.loader is None:
        raise ImportError(f"cannot load {source}")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return getattr(module, attribute)


# --- In the workers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared:
    """What all trials of a launch have in common; it is sent to every worker once.

    Attributes:
      ledger: Where records go.
      run: The resolved configuration.
      dataset: Absolute path of the dataset.
      evaluator: See `launch`.
      measurer: See `launch`.
      cpus_per_trial: CPUs that a trial asks for.
      work: Folder of the trials' work folders.
    """

    ledger: Ledger
    run: RunConfig
    dataset: str
    evaluator: str
    measurer: str
    cpus_per_trial: float
    work: Path

    def workdir(self, candidate: Candidate) -> Path:
        """Returns where a candidate's checkpoints are kept until it is on record."""
        return self.work / candidate.id

    def failed(self, candidate: Candidate, reason: Reason, detail: str, started_at: float) -> Trial:
        """Returns the record of a trial that the evaluator could not make one of."""
        provenance = Provenance(
            host=platform.node(),
            versions=versions(),
            gin_config=self.run.text_for(candidate),
            dataset_fingerprint=self.ledger.facts.dataset_fingerprint,
            started_at=started_at,
            finished_at=time.time(),
        )
        return Trial(
            self.ledger.name, candidate, reason=reason, detail=detail, provenance=provenance
        )


def evaluate_and_record(
    shared: _Shared, candidate: Candidate, measure: Measure
) -> Generator[Progress, None, Trial]:
    """Evaluates a candidate; when this returns its trial, the trial is on record.

    Yields:
      Where the trial is, as the evaluator tells.

    Raises:
      UserError: Something that every other trial would meet too: the dataset is missing, the
        storage is full. Nothing is recorded.
    """
    ledger, workdir = shared.ledger, shared.workdir(candidate)
    if candidate.id in ledger.ids():  # by a worker that died before it could tell
        return ledger.get(candidate.id)
    ledger.mark_started(candidate)
    workdir.mkdir(parents=True, exist_ok=True)
    task = Task(ledger.name, candidate, shared.run.text_for(candidate), shared.dataset)
    started_at = time.time()
    try:
        trial: Trial = yield from load(shared.evaluator)(task, workdir=workdir, measure=measure)
    except UserError:
        raise
    except Exception as error:
        trial = shared.failed(candidate, Reason.ERROR, _in_a_line(error), started_at)
    if trial.status is Status.COMPLETED and (workdir / "artifacts").is_dir():
        ledger.put_artifacts(trial.id, workdir / "artifacts")
    if not ledger.append(trial):
        trial = ledger.get(trial.id)
    shutil.rmtree(workdir, ignore_errors=True)
    return trial


def _in_a_line(error: BaseException) -> str:
    """Returns an exception with the place that raised it: 'ValueError: no (train.py, line 7)'."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    place = ""
    if traceback is not None:
        file = Path(traceback.tb_frame.f_code.co_filename).name
        place = f" ({file}, line {traceback.tb_lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


class _Worker(tune.Trainable):
    """Evaluates candidates one after another, in a process that imports TensorFlow once."""

    shared: ClassVar[_Shared]

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        # Tune lets a worker go on with another trial only where both ask for the same. So trials
        # of the next generation ask for the same in other words, and get new workers. (Where
        # there is one bundle only, either strategy means nothing else.)
        strategy = ("PACK", "SPREAD")[config["generation"] % 2]
        return PlacementGroupFactory([{"CPU": cls.shared.cpus_per_trial}], strategy=strategy)

    def setup(self, config: dict[str, Any]) -> None:
        # Thread pools are sized when libraries are loaded, which is later, in the evaluator.
        threads = str(math.ceil(self.shared.cpus_per_trial))
        os.environ.update(OMP_NUM_THREADS=threads, SWEEPS_THREADS=threads)
        self._meter = _MeterOfThisNode(self.shared.measurer)
        self._first_bytes: int | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        try:
            return {"progress": next(self._stages)}
        except StopIteration as end:
            return {"done": True, "trial": end.value, "grown_bytes": self._grown_bytes()}
        except UserError as error:
            return {"done": True, "error": error}

    def cleanup(self) -> None:
        self._stages.close()

    def _grown_bytes(self) -> int:
        """Returns how much more memory this process takes than after its first trial."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        now = pages * os.sysconf("SC_PAGESIZE")
        if self._first_bytes is None:
            self._first_bytes = now
        return now - self._first_bytes

    def _begin(self, config: Mapping[str, Any]) -> None:
        candidate = Candidate.from_json(config["candidate"])
        self._stages = evaluate_and_record(self.shared, candidate, self._meter)


class _MeterActor:
    """Measures on its node, one model at a time, with a `Meter` for each measurer."""

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}

    def measure(
        self, measurer: str, model: bytes, audio_seconds: float, config: MeasureConfig
    ) -> RtfMeasurement:
        """Measures a model; see `Meter`."""
        if measurer not in self._meters:
            self._meters[measurer] = Meter(load(measurer))
        return self._meters[measurer](model, audio_seconds, config)


class _MeterOfThisNode:
    """Measures through the one `_MeterActor` of the node, whoever made it.

    The actor is found by name and tied to its node by affinity: that needs no resource which the
    cluster's owner would have had to declare.
    """

    def __init__(self, measurer: str) -> None:
        self._measurer = measurer
        self._actor: Any = None

    def __call__(self, model: bytes, audio_seconds: float, config: MeasureConfig) -> RtfMeasurement:
        for _ in range(_METER_ATTEMPTS - 1):
            try:
                return self._measure(model, audio_seconds, config)
            except RayActorError:
                # It went with the worker that had made it.
                self._actor = None
        return self._measure(model, audio_seconds, config)

    def _measure(self, model: bytes, audio_seconds: float, config: MeasureConfig) -> RtfMeasurement:
        self._actor = self._actor or self._find()
        call = self._actor.measure.remote(self._measurer, model, audio_seconds, config)
        return cast(RtfMeasurement, ray.get(call))

    def _find(self) -> Any:
        node = ray.get_runtime_context().get_node_id()
        return (
            ray.remote(_MeterActor)
            .options(
                name=f"meter-{node}",
                namespace=_NAMESPACE,
                get_if_exists=True,
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote()
        )


# --- In the driver ------------------------------------------------------------------------------


class _Slots:
    """How many trials may run at a time. Nodes may come and go."""

    _FRESH_SECONDS = 5.0

    def __init__(self, cpus_per_trial: float, most: int | None) -> None:
        self._cpus = cpus_per_trial
        self._most = most
        self._count = 0
        self._counted_at = -math.inf

    def count(self) -> int:
        """Returns the trials that fit on the nodes that are alive, within the user's limit."""
        if time.monotonic() - self._counted_at > self._FRESH_SECONDS:
            self._count = sum(int(cpus / self._cpus) for cpus in _cpus_of_nodes())
            self._counted_at = time.monotonic()
        return self._count if self._most is None else min(self._count, self._most)


def _cpus_of_nodes() -> list[float]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]]


class _Driver:
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
        shared: _Shared,
        data: DatasetFacts,
        search: Search,
        *,
        finished: int,
        asked: int,
        slots: _Slots,
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
        while not self.complete and len(self._running) < self._slots.count():
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

    def crashed(self, candidate: Candidate, error: Exception | None) -> None:
        """Workers died of a candidate until it was given up."""
        memory = isinstance(error, OutOfMemoryError) or "OOM" in str(error)
        reason = Reason.OUT_OF_MEMORY if memory else Reason.CRASHED
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


class _Proposals(Searcher):
    """Ray Tune's view of the search."""

    def __init__(self, driver: _Driver) -> None:
        super().__init__()
        self._driver = driver

    def suggest(self, trial_id: str) -> Any:
        candidate = self._driver.next_candidate()
        if candidate is not None:
            return {"candidate": candidate.to_json(), "generation": self._driver.generation}
        return Searcher.FINISHED if self._driver.complete else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Does nothing: `_Watcher` is told more."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the search is rebuilt from the ledger."""


class _Watcher(tune.Callback):
    """Passes on to the driver what Ray Tune sees."""

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver

    def on_trial_start(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        self._driver.began(_candidate(trial))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[RayTrial],
        trial: RayTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        if "progress" in result:
            self._driver.advanced(_candidate(trial), result["progress"])
        elif "trial" in result:
            self._driver.ended(result["trial"])
            self._driver.grown(trial.config["generation"], result["grown_bytes"])
        else:
            self._driver.failed(result["error"])

    def on_trial_recover(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        self._driver.retried(_candidate(trial))

    def on_trial_error(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        self._driver.crashed(_candidate(trial), trial.get_pickled_error())

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        self._driver.waited()


class _Stopper(tune.Stopper):
    """Ends the run when the driver says so."""

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._driver.stopped


def _candidate(trial: RayTrial) -> Candidate:
    return Candidate.from_json(trial.config["candidate"])


def _run(driver: _Driver, address: str | None, cpus_per_trial: float, scratch: Path) -> bool:
    """Runs the missing trials. Returns whether the user interrupted it.

    Raises:
      SweepError: There is no such cluster, or a trial fits on none of its nodes.
      UserError: What every trial would meet.
    """
    try:
        with _first(signal.SIGINT, driver.interrupt), _cluster(address, scratch):
            _check_fits(cpus_per_trial)
            # Cluster managers end a job with SIGTERM. Ray has set a handler of its own by now.
            with _first(signal.SIGTERM, driver.interrupt):
                _tune(driver, scratch)
    except KeyboardInterrupt:
        driver.interrupt()
    if driver.failure is not None:
        raise driver.failure
    return driver.interrupted


@contextmanager
def _first(number: signal.Signals, stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` at the first signal of a kind; the second one does what it did before.

    Does nothing in another thread than the main one, where signals cannot be handled, and where
    the shell has the signal ignored, as it does with interrupts for jobs in the background.
    """
    before = signal.getsignal(number)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or before is signal.SIG_IGN:
        yield
        return

    def handle(_: int, frame: object) -> None:
        signal.signal(number, before)
        stop()

    signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, before)


def _check_fits(cpus_per_trial: float) -> None:
    most = max(_cpus_of_nodes(), default=0.0)
    if cpus_per_trial > most:
        raise SweepError(
            f"a trial asks for {cpus_per_trial:g} CPUs, the largest node has {most:g}",
            hint="lower the CPUs of a trial",
        )


def _tune(driver: _Driver, scratch: Path) -> None:
    tune.run(
        type("_Worker", (_Worker,), {"shared": driver.shared}),
        name="tune",
        storage_path=str(scratch),
        search_alg=_Proposals(driver),
        num_samples=-1,
        reuse_actors=True,
        max_failures=RETRIES,
        raise_on_failed_trial=False,
        stop=_Stopper(driver),
        callbacks=[_Watcher(driver)],
        trial_dirname_creator=lambda trial: trial.trial_id,
        verbose=0,
    )


# --- The cluster and its folders ----------------------------------------------------------------

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Nothing of Tune's own state is worth saving.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    # The driver itself holds back what no slot is free for.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
}


@contextmanager
def _cluster(address: str | None, scratch: Path) -> Iterator[None]:
    """Connects to a Ray cluster, or starts one here; leaves the one that the caller is in."""
    with ExitStack() as stack:
        stack.enter_context(_environment(_QUIET))
        stack.enter_context(_quiet_logs())
        if not ray.is_initialized():
            if address is None:
                stack.enter_context(reaping(_ray_folder(scratch)))
            stack.callback(ray.shutdown)
            if address is None:
                _start_here(scratch)
            else:
                _connect(address)
        yield


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for two minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        raise SweepError(
            f"no Ray cluster at '{address}'",
            hint="give host:port of its head, or 'auto' on one of its machines; "
            "if it asks for a token, set RAY_AUTH_MODE=token",
        ) from error


def _start_here(scratch: Path) -> None:
    """Starts a cluster on this machine, which listens to this machine only."""
    with _loopback_only():
        ray.init(
            address="local",  # whatever RAY_ADDRESS says
            num_cpus=len(os.sched_getaffinity(0)),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(_ray_folder(scratch)),
        )


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Has Ray use 127.0.0.1; asked for it by argument, it takes an outward address all the same."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet_logs() -> Iterator[None]:
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _scratch(ledger: Ledger) -> Iterator[Path]:
    """Makes a folder of this sweep for what nobody needs afterwards, and locks it.

    It is under /tmp wherever TMPDIR points to a long path: Ray keeps Unix sockets in it, whose
    paths may have 107 characters.

    Raises:
      SweepError: Another process launches this sweep on this machine.
    """
    digest = hashlib.sha256(f"{os.getuid()} {ledger.uri}".encode()).hexdigest()[:10]
    temporary = tempfile.gettempdir()
    root = Path(temporary if len(temporary) <= 12 else "/tmp")
    folder = root / f"sweeps-{digest}"
    lock = _lock(folder / "lock", ledger.name)
    try:
        _remove(*folder.glob("r[0-9]*"), folder / "tune")
        yield folder
    finally:
        _remove(_ray_folder(folder), folder / "tune")
        (folder / "lock").unlink()
        with contextlib.suppress(OSError):  # checkpoints are in it
            folder.rmdir()
        lock.close()


def _lock(file: Path, sweep: str) -> TextIO:
    """Opens a file that nobody else has open; the kernel frees it however this process ends."""
    while True:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        lock = file.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise SweepError(
                f"sweep '{sweep}' is being launched already, on this machine",
                hint=f"'sweeps status {sweep}' shows how far it is",
            ) from None
        if os.fstat(lock.fileno()).st_nlink:
            return lock
        lock.close()  # another launch has ended, and removed it, since it was opened


def _ray_folder(scratch: Path) -> Path:
    """Returns where Ray keeps this launch's sessions.

    No launch before used it: what ends a killed driver's cluster may still be about, and would
    take the processes of this one for that one's.
    """
    return scratch / f"r{os.getpid()}"


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _work_folder(ledger: Ledger, scratch: Path) -> Path:
    """Returns where trials keep their checkpoints: beside the records, if that is a file system.

    On an object store it is a folder of each machine, and a trial whose machine is lost starts
    again from its beginning.
    """
    local = ledger.location.local_folder
    return local / ledger.name / "work" if local else scratch / "work"
