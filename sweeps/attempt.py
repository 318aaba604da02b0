"""An attempt at a candidate: evaluated, and on record before anybody is told. Free of Ray."""

import importlib.util
import platform
import shutil
import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from sweeps.code_version import code_version
from sweeps.config import RunConfig
from sweeps.errors import SweepError
from sweeps.evaluate import Measure, Progress, Task, blame_full_disk, cause_of, versions
from sweeps.keeping import fetch, keeping
from sweeps.ledger import Ledger
from sweeps.scratch import private_folder
from sweeps.shipping import dataset_here
from sweeps.trial import Attempt, Candidate, Provenance, Reason, Trial
from thesis.errors import UserError


def load(spec: str) -> Any:
    """Returns what 'module:attribute' or 'path/to/file.py:attribute' names.

    Raises:
      SweepError: There is nothing of the name, or it cannot be imported.
    """
    source, _, attribute = spec.rpartition(":")
    try:
        module = _module_of_file(source) if source.endswith(".py") else import_module(source)
        return getattr(module, attribute)
    except (Exception, SystemExit) as error:  # whatever a module may do when it is imported
        raise SweepError(
            f"cannot load '{spec}': {cause_of(error)}",
            hint="name 'module:function' or 'path/to/file.py:function'",
        ) from error


def _module_of_file(source: str) -> ModuleType:
    module_spec = importlib.util.spec_from_file_location(Path(source).stem, source)
    if module_spec is None or module_spec.loader is None:
        raise ImportError(f"cannot load {source}")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Shared:
    """What all trials of a launch have in common; it is sent to every worker once.

    Attributes:
      ledger: Where records go.
      run: The resolved configuration.
      dataset: Absolute path of the dataset.
      evaluator: See `launch`.
      measurer: See `launch`.
      cpus_per_trial: CPUs that a trial asks for.
      gpus_per_trial: GPUs that it asks for.
      work: Folder of the trials' work folders.
      code: The driver's version of this project's code.
    """

    ledger: Ledger
    run: RunConfig
    dataset: str
    evaluator: str
    measurer: str
    cpus_per_trial: float
    gpus_per_trial: float
    work: Path
    code: str = field(default_factory=code_version)

    @property
    def resources(self) -> dict[str, float]:
        """What a trial asks of its node, in Ray's words."""
        asked = {"CPU": self.cpus_per_trial, "GPU": self.gpus_per_trial}
        return {kind: number for kind, number in asked.items() if number}

    def workdir(self, candidate: Candidate) -> Path:
        """Returns where a candidate's checkpoints are kept until it is on record."""
        if self.ledger.location.local_folder is not None:
            return self.work / candidate.id
        # A folder of each machine, where somebody else may have taken its place.
        return private_folder(self.work.parent) / self.work.name / candidate.id

    def what_is_wrong_here(self) -> str:
        """Returns why trials could not run on this machine, in a line; '' if they can."""
        try:
            Ledger.open(self.ledger.location, self.ledger.name)
            dataset_here(self.ledger, self.dataset)
            load(self.evaluator)
        except UserError as error:
            return error.message
        if (code := code_version()) != self.code:
            return f"its code of this project is {code}, that of the launch {self.code}"
        return ""

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
    shared: Shared, attempt: Attempt, measure: Measure
) -> Generator[Progress, None, Trial]:
    """Evaluates a candidate; when this returns its trial, the trial is on record unless it crashed.

    What crashed (`Reason.is_crash`) the driver records, once it is clear that not all trials do.
    Until then its checkpoints stay.

    Yields:
      Where the trial is, as the evaluator tells.

    Raises:
      UserError: Something that every other trial would meet too: the dataset is missing, the
        storage is full, the evaluator cannot be loaded. Nothing is recorded.
    """
    ledger, candidate = shared.ledger, attempt.candidate
    workdir = shared.workdir(candidate)
    dataset, evaluator = dataset_here(ledger, shared.dataset), load(shared.evaluator)
    if ledger.holds(candidate.id):  # by a worker that died before it could tell
        return ledger.get(candidate.id)
    started_at = time.time()
    ledger.mark_started(replace(attempt, host=platform.node(), began_at=started_at))
    fetch(ledger, candidate.id, workdir)
    task = Task(ledger.name, candidate, shared.run.text_for(candidate), dataset)
    try:
        running = evaluator(task, workdir=workdir, measure=measure)
        trial: Trial = yield from keeping(ledger, candidate.id, workdir, running)
    except UserError:
        raise
    except Exception as error:
        blame_full_disk(error, workdir)
        reason = Reason.OUT_OF_MEMORY if isinstance(error, MemoryError) else Reason.ERROR
        trial = shared.failed(candidate, reason, cause_of(error), started_at)
    if trial.reason is not None and trial.reason.is_crash:
        ledger.check_there()  # a mount that is lost may be what it crashed of
        return ledger.get(trial.id) if ledger.holds(trial.id) else trial
    # A worker that was thought dead may end after its replacement. The model is of the record.
    made = trial.trained and (workdir / "artifacts").is_dir()
    if made and not ledger.holds(trial.id):
        ledger.put_artifacts(trial.id, workdir / "artifacts")
    if not ledger.append(trial):
        trial = ledger.get(trial.id)
    shutil.rmtree(workdir, ignore_errors=True)
    return trial
