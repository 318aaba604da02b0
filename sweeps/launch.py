"""Runs a sweep on this machine or on a cluster.

The driver (`launch`) proposes candidates and starts workers. A worker evaluates one candidate after
another and writes each record to the ledger itself, before it tells the driver: whatever dies next,
the result is kept. Ray's own records of the run go to a scratch folder and are never read. All that
a continued launch needs is the ledger and the checkpoints in the trials' work folders.

Only this module and its helpers (`sweeps.cluster`, `sweeps.connection`, `sweeps.loggers`,
`sweeps.remote`, `sweeps.worker`) import Ray.
"""

import contextlib
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray._private import worker
from ray._raylet import setproctitle  # type: ignore[attr-defined]  # compiled
from ray.air._internal import usage
from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.execution import tune_controller
from ray.tune.experiment import Trial as RayTrial
from ray.tune.search import Searcher, SearchGenerator

from sweeps import __version__
from sweeps.attempt import Shared
from sweeps.cluster import Slots, alive_nodes, changed, check_fits, check_nodes, cluster
from sweeps.config import RunConfig
from sweeps.credentials import has_credentials, without_credentials
from sweeps.driver import Budget, Driver, Wishes
from sweeps.errors import LedgerError, SweepError
from sweeps.last_words import last_words
from sweeps.lease import leased
from sweeps.ledger import Ledger
from sweeps.loggers import Loggers
from sweeps.objectives import objective
from sweeps.plan import EVALUATOR, MEASURER, plan
from sweeps.progress import Listener, Noted, SweepBegan, Warned, silent
from sweeps.remote import launch_there
from sweeps.resources import CLIENT, check_resources, cpus_here, resolved
from sweeps.scratch import launch_folder, scratch_folder, work_folder
from sweeps.search import HISTORY, Search
from sweeps.shipping import dataset_here, ship_dataset
from sweeps.standing import Standing, limited_objectives
from sweeps.stopping import stopping_rule
from sweeps.trial import PROJECT, Attempt, Candidate, Reason, Status, Trial
from sweeps.trial_ids import TrialIds
from sweeps.watch import Watch
from sweeps.worker import Worker


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
      used_up: The budget of time or training steps that ended it, in words.
      counts: What became of all finished trials of the sweep: their number by status.
    """

    sweep: str
    uri: str
    asked: int
    finished: int
    recorded: tuple[Trial, ...] = ()
    exhausted: bool = False
    interrupted: bool = False
    used_up: str = ""
    counts: Mapping[Status, int] = field(default_factory=dict)

    def check(self) -> None:
        """Raises SweepError for a sweep of which trials have failed, and none has completed."""
        failed = self.counts.get(Status.FAILED, 0)
        if self.counts.get(Status.COMPLETED, 0) or not failed:
            return
        last = next((t for t in reversed(self.recorded) if t.status is Status.FAILED), None)
        why = f", the last one for '{last.detail or last.reason}'" if last else ""
        raise SweepError(
            f"no trial of '{self.sweep}' has completed, {failed} failed{why}",
            hint=f"mend the cause; 'sweeps retry {self.sweep} --failed' has the next launch try "
            "them again",
        )

    def summary(self) -> str:
        """Returns the report in a line."""
        if not self.recorded and self.finished >= self.asked:
            return f"'{self.sweep}' has {self.finished} finished trials already: nothing to do"
        counts = Counter(trial.status for trial in self.recorded)
        new = ", ".join(f"{counts[status]} {status.value}" for status in Status if counts[status])
        line = f"'{self.sweep}' has {self.finished} of {self.asked} trials; new: {new or 'none'}"
        if self.exhausted:
            line += "; every candidate of the space has been tried"
        if self.used_up:
            line += f"; the budget of {self.used_up} is used up"
        return f"{line}; interrupted, launch again to continue" if self.interrupted else line


def launch(
    name: str,
    run: RunConfig,
    *,
    dataset: str,
    trials: int,
    storage: str,
    seconds: float | None = None,
    train_steps: int | None = None,
    warm_start: str | None = None,
    address: str | None = None,
    ship: bool = False,
    cpus_per_trial: float = 1,
    gpus_per_trial: float = 0,
    max_concurrent: int | None = None,
    keep_going: bool = False,
    log: Sequence[str] = (),
    on_event: Listener = silent,
    wishes: Wishes | None = None,
    evaluator: str = EVALUATOR,
    measurer: str = MEASURER,
) -> LaunchReport:
    """Starts a sweep, or continues the one of this name, until it holds so many finished trials.

    Finished are trials on record: completed, failed, infeasible and pruned ones. Exactly the
    missing number is run. May be interrupted, or killed, at any time: the same call continues.

    A first launch that fails before anything has begun leaves no sweep behind. Where all trials
    crash alike (`sweeps.breaker`), the launch ends with that, and none is on record.

    Args:
      name: Name of the sweep.
      run: The resolved configuration.
      dataset: Folder of the dataset; unless it is shipped, all nodes must see it under this path.
      trials: Number of finished trials that the sweep shall hold.
      storage: Where the ledger is kept: a folder, or a URI such as s3://bucket/folder. Every node
        must reach it.
      seconds: Time of this launch, see `Budget`.
      train_steps: Training steps of the sweep, see `Budget`.
      warm_start: Another sweep in the same storage, whose trials inform sampler and stopping rule.
      address: Of a running Ray cluster; None starts one on this machine and stops it at the end.
        With ray://host:port the driver, too, runs there.
      ship: Send code and dataset to the nodes: this project's packages by Ray's runtime
        environment, the dataset through the storage. Otherwise nodes have both.
      cpus_per_trial: CPUs that a trial claims, from 0.01; its thread pools are sized to match.
      gpus_per_trial: GPUs that it claims: 0, a share of one, or whole ones.
      max_concurrent: Trials at a time at the most; None runs as many as the CPUs allow.
      keep_going: Do not end where all trials crash alike: it is the candidates' own fault.
      log: What to log to as well: 'wandb', 'mlflow', 'tensorboard'; see `sweeps.loggers`.
      on_event: Is told what happens, in this thread.
      wishes: How another thread drains or stops the launch; signals do it in the main thread.
      evaluator: What evaluates a candidate, as `sweeps.evaluate.stages` does: 'module:function' or
        'path/to/file.py:function'.
      measurer: What measures a model, as `thesis.measure.measure_rtf` does.

    Raises:
      SweepError: A different sweep has this name, it is being launched already, what a trial asks
        for makes no sense or no node has it, a node lacks what trials need, the cluster is gone, it
        cannot be logged to what was asked for, or all trials crash alike.
      DatasetError: There is no dataset, or it is damaged.
      LedgerError: The storage cannot be used, or records went missing.
    """
    wishes, address = wishes or Wishes(), resolved(address)
    _hide_credentials()
    check_resources(
        cpus_per_trial,
        gpus_per_trial,
        max_concurrent,
        address,
        cpus=cpus_here() if address is None and not ray.is_initialized() else None,
    )
    if address and address.startswith(CLIENT):
        return _launch_there(
            address,
            ship,
            wishes,
            on_event,
            name=name,
            run=run,
            dataset=dataset,
            trials=trials,
            storage=storage,
            seconds=seconds,
            train_steps=train_steps,
            warm_start=warm_start,
            cpus_per_trial=cpus_per_trial,
            gpus_per_trial=gpus_per_trial,
            max_concurrent=max_concurrent,
            keep_going=keep_going,
            log=log,
            evaluator=evaluator,
            measurer=measurer,
        )
    planned = plan(
        name,
        run,
        dataset=dataset,
        trials=trials,
        storage=storage,
        warm_start=warm_start,
        ship=ship,
        log=log,
        evaluator=evaluator,
        measurer=measurer,
    )
    is_new = not planned.ledger.is_made
    ledger = Ledger.create(storage, name, planned.facts)
    for damage in ledger.pass_over_damaged():
        on_event(Warned(f"{damage.message}; no trial counts for it until you {damage.hint}"))
    standing = _standing(ledger, run)
    on_event(SweepBegan(name, trials, standing))
    if standing.finished >= trials:
        return LaunchReport(name, ledger.uri, trials, standing.finished, counts=standing.counts)
    if others := _of_other_releases(ledger):
        on_event(Warned(others))
    for line in planned.told:
        on_event(Noted(line))
    watch = Watch()
    with (
        _claimed(ledger, is_new, waiting=lambda line: on_event(Warned(line))) as lost,
        scratch_folder(ledger) as scratch,
    ):
        loggers = Loggers(log, ledger, on_event)
        # The ids of all records are small. The records need not be.
        on_record = ledger.ids()
        started = ledger.started(tell=lambda line: on_event(Warned(line)))
        objectives = [objective(metric) for metric in run.sweep.objectives]
        history = ledger.history(objectives, HISTORY)
        started, history, foreign = _of_space(run, started, history)
        if foreign:
            on_event(
                Warned(
                    f"{foreign} trials of '{name}' have values that its space does not have: the "
                    "search passes over them"
                )
            )
        shared = Shared(
            ledger=ledger,
            run=run,
            dataset=planned.dataset,
            evaluator=evaluator,
            measurer=measurer,
            cpus_per_trial=cpus_per_trial,
            gpus_per_trial=gpus_per_trial,
            work=work_folder(ledger, scratch),
        )
        _remove_leftovers(shared.work, on_record)
        rule = stopping_rule(run.sweep)
        for trial in [*planned.known, *history]:
            rule.learn(trial)
        driver = Driver(
            shared,
            planned.data,
            Search(
                run.space,
                run.sweep,
                finished=history,
                on_record=TrialIds(on_record.numbers, ledger.taken().numbers),
                started=[attempt.candidate for attempt in started if not attempt.waits_at],
                deferred=[attempt.candidate for attempt in started if attempt.waits_at],
                known=planned.known,
            ),
            rule,
            started=started,
            finished=len(on_record),
            steps_spent=_steps_spent(ledger),
            budget=Budget(trials, seconds, train_steps),
            slots=Slots(cpus_per_trial, gpus_per_trial, max_concurrent).count,
            lost=lambda: lost() or watch.error(),
            wishes=wishes,
            on_event=loggers,
            keep_going=keep_going,
        )
        _run(driver, address, ship, scratch, loggers, watch)
    # A worker that was stopped may have recorded a trial that the driver has not heard of.
    held = len(ledger.ids())
    if gone := max(0, len(on_record) + len(driver.recorded) - held):
        raise LedgerError(
            f"{gone} records of {ledger.uri} are gone: somebody removed them",
            hint="restore them, or launch again: what they held is run again",
        )
    return LaunchReport(
        name,
        ledger.uri,
        trials,
        held,
        tuple(driver.recorded),
        exhausted=driver.exhausted,
        interrupted=driver.interrupted and held < trials,
        used_up="" if held >= trials else driver.used_up,
        counts=standing.counts + Counter(trial.status for trial in driver.recorded),
    )


def _hide_credentials() -> None:
    """Has the list of processes, and Ray's dashboard, show this command without its credentials."""
    command = " ".join(sys.argv)
    if has_credentials(command):
        setproctitle(without_credentials(command))


def _of_space(
    run: RunConfig, started: Sequence[Attempt], history: Sequence[Trial]
) -> tuple[list[Attempt], list[Trial], int]:
    """Returns what the search may be told of, and how many others there are: somebody put them."""
    ours = [attempt for attempt in started if run.space.holds(attempt.candidate)]
    known = [trial for trial in history if run.space.holds(trial.candidate)]
    return ours, known, len(started) - len(ours) + len(history) - len(known)


@contextmanager
def _claimed(
    ledger: Ledger, is_new: bool, *, waiting: Callable[[str], None]
) -> Iterator[Callable[[], SweepError | None]]:
    """Holds the lease on a sweep, and yields what `leased` does.

    If the block raises before anything has begun, a sweep that is new is gone again: it would only
    keep its name from being used.
    """
    location, name = ledger.location, ledger.name
    try:
        with leased(location, name, waiting=waiting) as lost:
            # Another first launch may have made it, and have failed meanwhile.
            Ledger.create(location, name, ledger.facts)
            try:
                yield lost
            except Exception:
                if is_new and lost() is None:
                    _remove_if_nothing_has_begun(ledger)
                raise
    finally:
        if location.local_folder is not None:
            with contextlib.suppress(OSError):  # it holds something
                (location.local_folder / name).rmdir()


def _remove_if_nothing_has_begun(ledger: Ledger) -> None:
    """Removes a sweep that holds no more than what a launch lays out before its first trial."""
    location, name = ledger.location, ledger.name
    with contextlib.suppress(LedgerError):  # what the launch has failed of is more worth telling
        held = {info.base_name for info in location.entries(name)} - {"lease.json", "sweep.json"}
        if held <= {"dataset", "logs"}:
            for folder in held:
                location.delete_folder(f"{name}/{folder}")
            location.delete(f"{name}/sweep.json")


def _launch_there(
    address: str, ship: bool, wishes: Wishes, on_event: Listener, **arguments: Any
) -> LaunchReport:
    """Has `launch` called on a cluster, through its client server."""
    watch = Watch()
    planned = plan(**{name: arguments[name] for name in _PLANNED}, ship=ship) if ship else None
    with (
        _responding(signal.SIGINT, wishes.drain, wishes.stop),
        _responding(signal.SIGTERM, wishes.stop),
        cluster(address, Path(), watch, ship=ship),
    ):
        if planned:  # from here: the driver will not have it either
            planned.ledger.location.make_folder(planned.ledger.name)
            ship_dataset(planned.ledger, planned.dataset)
        return launch_there(
            launch, on_event=on_event, wishes=wishes, watch=watch, ship=ship, **arguments
        )


_PLANNED = (
    "name", "run", "dataset", "trials", "storage", "warm_start", "log", "evaluator", "measurer",
)  # fmt: skip
"""Arguments of `launch` that `plan` looks at."""


def _standing(ledger: Ledger, run: RunConfig) -> Standing:
    baseline = run.space.baseline()
    objectives = limited_objectives(run.sweep.objectives, run.sweep.limits.given)
    standing = Standing(objectives, baseline=baseline.id if baseline else None)
    for outcomes in ledger.outcomes(objectives):
        standing.add(outcomes)
    return standing


def _remove_leftovers(work: Path, on_record: Collection[str]) -> None:
    """Removes work folders of trials that were recorded by somebody who was killed thereafter."""
    for folder in work.glob("*"):
        if folder.name in on_record:
            shutil.rmtree(folder, ignore_errors=True)


def _steps_spent(ledger: Ledger) -> int:
    batches = ledger.scan(("train_steps",))
    return int(sum(np.nansum(batch.column("train_steps").values) for batch in batches))


def _of_other_releases(ledger: Ledger) -> str:
    """Returns what to say of trials that releases with another minor version recorded, if any."""
    here = __version__.split(".")[:2]
    others: Counter[str] = Counter()
    for batch in ledger.scan(("versions",)):
        found = Counter(versions.get(PROJECT, "unknown") for versions in batch.versions())
        others.update({v: count for v, count in found.items() if v.split(".")[:2] != here})
    if not others:
        return ""
    return (
        f"{others.total()} finished trials were recorded by other versions "
        f"({', '.join(sorted(others))}), this is {__version__}: losses may not compare, "
        "see CHANGELOG.md"
    )


class _Search(SearchGenerator):
    """Ray Tune's view of the search."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(_Proposals(driver))
        self._driver = driver

    def is_finished(self) -> bool:
        # For Tune's own, once finished is finished for good, even if the last trial's worker dies.
        return self._driver.complete


class _Proposals(Searcher):
    """What runs next, in Ray Tune's words."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def suggest(self, trial_id: str) -> Any:
        attempt = self._driver.next_attempt()
        if attempt is None:
            return None
        return {
            "attempt": attempt.to_json(),
            "generation": self._driver.generation,
            "report_seconds": self._driver.report_seconds,
        }

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Does nothing: `_Watcher` is told more."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the search is rebuilt from the ledger."""


class _Watcher(tune.Callback):
    """Passes on to the driver what Ray Tune sees.

    Attributes:
      errors: What trials ended with, by Tune's ids, until the driver is told.
    """

    def __init__(self, driver: Driver, watch: Watch) -> None:
        self._driver = driver
        self._watch = watch
        self.errors: dict[str, Exception] = {}

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
        if "trial" in result:
            self._driver.ended(result["trial"])
            self._driver.grown(trial.config["generation"], result["grown_bytes"])
        elif "error" in result:
            self._driver.failed(result["error"])

    def on_trial_error(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        cause, reason = _loss(self.errors.pop(trial.trial_id))
        # Without its node a worker ends, too, and is not the candidate's fault.
        self._driver.lost(_candidate(trial), cause, None if self._watch.look() else reason)

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        self._driver.waited()


class _Stopper(tune.Stopper):
    """Ends trials, and the run, when the driver says so."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if "progress" not in result:
            return False
        candidate = Attempt.from_json(result["config"]["attempt"]).candidate
        return self._driver.advanced(candidate, result["progress"])

    def stop_all(self) -> bool:
        return self._driver.stopped


def _candidate(trial: RayTrial) -> Candidate:
    return Attempt.from_json(trial.config["attempt"]).candidate


def _loss(error: Exception) -> tuple[str, Reason | None]:
    """Returns how a worker died, in a line, and what is to blame; None where its node died."""
    said = str(error).strip()
    *above, last = said.split("\n")
    # What Ray's memory monitor has killed comes with pages of advice below the line that tells.
    told = [line for line in above if "running low on memory" in line]
    cause = (told or [last])[0].partition(" Some common causes")[0].strip()
    if told or "OOM" in cause:
        return cause, Reason.OUT_OF_MEMORY
    node = worker._global_node
    cause = (last_words(Path(node.get_logs_dir_path()), said) if node else "") or cause
    return cause, None if "its node has died" in said else Reason.CRASHED


def _run(
    driver: Driver,
    address: str | None,
    ship: bool,
    scratch: Path,
    loggers: Loggers,
    watch: Watch,
) -> None:
    """Runs the missing trials.

    Raises:
      SweepError: There is no such cluster, a trial fits on none of its nodes, or a node lacks
        what trials need.
      UserError: What every trial would meet.
    """
    shared, wishes = driver.shared, driver.wishes
    sigint, sigterm = signal.SIGINT, signal.SIGTERM
    try:
        with (
            _responding(sigint, wishes.drain, wishes.stop),
            cluster(address, launch_folder(scratch), watch, ship=ship) as dashboard,
            loggers,
        ):
            if dashboard:
                driver.on_event(Noted(f"dashboard: http://{dashboard}"))
            check_fits(shared.cpus_per_trial, shared.gpus_per_trial)
            if ship:
                ship_dataset(shared.ledger, shared.dataset)
            dataset_here(shared.ledger, shared.dataset)
            check_nodes(shared.what_is_wrong_here)
            if address:
                whence = "sent along" if ship else "what the nodes have"
                driver.on_event(
                    Noted(f"cluster of {len(alive_nodes())} nodes; code and data are {whence}")
                )
            # Cluster managers end a job with SIGTERM.
            with _responding(sigterm, wishes.stop):
                _tune(driver, launch_folder(scratch), watch)
    except KeyboardInterrupt:
        wishes.stop()
    driver.close()
    if driver.failure is not None:
        raise driver.failure


@contextmanager
def _responding(number: signal.Signals, *responses: Callable[[], None]) -> Iterator[None]:
    """Answers each signal of a kind with the next response; what comes then does as it did before.

    Does nothing in another thread than the main one, where signals cannot be handled, and where
    the shell has the signal ignored, as it does with interrupts for jobs in the background.
    """
    before = signal.getsignal(number)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or before is signal.SIG_IGN:
        yield
        return
    left = list(responses)

    def handle(_: int, frame: object) -> None:
        left.pop(0)()
        if not left:
            signal.signal(number, before)

    signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, before)


class _ActorManager(RayActorManager):
    """Tune's, for which some ways to lose a worker are unexpected, and end everything."""

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        super()._actor_start_failed(tracked_actor, _as_death(exception))

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        super()._actor_task_failed(tracked_actor_task, _as_death(exception))


def _as_death(error: Exception) -> Exception:
    """Returns what became of a worker as an error that Tune knows what to do about.

    What Ray's memory monitor has killed comes with an error that is not an actor's.
    """
    unknown = isinstance(error, RayError) and not isinstance(error, RayTaskError | RayActorError)
    return RayActorError(error_msg=str(error)) if unknown else error


def _tune(driver: Driver, folder: Path, watch: Watch) -> None:
    watcher = _Watcher(driver, watch)

    def remember(trial: RayTrial, exc: Exception) -> None:
        trial.run_metadata.num_failures += 1
        watcher.errors[trial.trial_id] = exc

    with (
        changed(tune_controller, RayActorManager=_ActorManager),
        # Tune would write the error into a file, pickled, for whoever wants to know it.
        changed(RayTrial, handle_error=remember),
        # It loads every logger that there is, to count which are in use. W&B makes folders in /tmp.
        changed(usage, tag_callbacks=lambda _: False),
    ):
        tune.run(
            type("Worker", (Worker,), {"shared": driver.shared}),
            name="tune",
            storage_path=str(folder),
            search_alg=_Search(driver),
            num_samples=-1,
            reuse_actors=True,
            max_failures=0,  # a candidate whose worker died is given to another one by the driver
            raise_on_failed_trial=False,
            stop=_Stopper(driver),
            callbacks=[watcher],
            trial_dirname_creator=lambda trial: trial.trial_id,
            verbose=0,
        )
