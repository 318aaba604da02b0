"""What is checked of a launch before anything starts: by itself, by `--dry-run`, for a SLURM job.

Nothing here writes, and nothing starts Ray.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeps.attempt import load
from sweeps.config import RunConfig
from sweeps.errors import LedgerError
from sweeps.ledger import Ledger, SweepFacts, check_name, list_sweeps
from sweeps.loggers import check_installed
from sweeps.shipping import shipped_facts
from sweeps.stopping import stopping_rule
from sweeps.storage import Location
from sweeps.trial import Trial
from thesis.data import DatasetFacts, load_dataset
from thesis.errors import DatasetError

EVALUATOR = "sweeps.evaluate:stages"
MEASURER = "thesis.measure:measure_rtf"


@dataclass(frozen=True)
class Plan:
    """A launch that may begin.

    Attributes:
      facts: What the sweep is.
      ledger: Of the sweep, which may not be made yet.
      data: What the dataset is.
      dataset: Where it is, as an absolute path.
      known: Trials of another sweep, which inform the search.
      told: Lines about these, to be passed on.
    """

    facts: SweepFacts
    ledger: Ledger
    data: DatasetFacts
    dataset: str
    known: tuple[Trial, ...] = ()
    told: tuple[str, ...] = ()


def plan(
    name: str,
    run: RunConfig,
    *,
    dataset: str,
    trials: int,
    storage: str,
    warm_start: str | None = None,
    ship: bool = False,
    log: Sequence[str] = (),
    evaluator: str = EVALUATOR,
    measurer: str = MEASURER,
) -> Plan:
    """Returns what a launch is about to do, if it can.

    What only a cluster can tell is left to the launch: whether there is one, and whether a trial
    fits on it.

    Args:
      name: As all others, see `launch`.
      run: The resolved configuration.
      dataset: Folder of the dataset.
      trials: Number of finished trials that the sweep shall hold.
      storage: Where the ledger is kept.
      warm_start: Another sweep in the same storage.
      ship: Send the dataset to the nodes.
      log: What to log to as well.
      evaluator: What evaluates a candidate.
      measurer: What measures a model.

    Raises:
      SweepError: The name will not do, a different sweep has it, the sweep to learn from is not
        there, what evaluates or measures cannot be loaded, or it cannot be logged to what was asked
        for.
      ConfigError: The sampler needs what is not installed.
      DatasetError: There is no dataset, or it is damaged.
      LedgerError: The storage cannot be used.
    """
    from sweeps.search import Search, known_from  # Optuna takes a second

    check_name(name)
    check_installed(log)
    for function in (evaluator, measurer):
        load(function)
    location = Location.of(storage)
    _check_writable(location, name)
    data = _dataset_facts(location, name, dataset, ship=ship)
    dataset, baseline = str(Path(dataset).absolute()), run.space.baseline()
    facts = SweepFacts(
        name=name,
        gin_config=run.text,
        dataset_fingerprint=data.fingerprint,
        objectives=run.sweep.objectives,
        dataset_path=dataset,
        trials_asked=trials,
        limits=run.sweep.limits.given,
        baseline=baseline.id if baseline else "",
    )
    ledger = Ledger.planned(location, name, facts)
    Search(run.space, run.sweep)
    stopping_rule(run.sweep)
    known, told = list[Trial](), list[str]()
    if warm_start:
        other = Ledger.open(location, warm_start)
        told += [damage.message for damage in other.pass_over_damaged()]
        known, line = known_from(other, run, data.fingerprint)
        told.append(line)
    return Plan(facts, ledger, data, dataset, tuple(known), tuple(told))


def _dataset_facts(location: Location, sweep: str, dataset: str, *, ship: bool) -> DatasetFacts:
    """Returns what a dataset is, whether it is here or was shipped for the sweep."""
    try:
        return load_dataset(dataset).facts
    except DatasetError:
        if Path(dataset).exists() or not (ship or sweep in list_sweeps(location)):
            raise
        shipped = shipped_facts(location, sweep)
        if shipped is None:
            raise
        return shipped  # the clips are checked where they arrive


def _check_writable(location: Location, sweep: str) -> None:
    """Raises LedgerError for a storage that shows already that it cannot be written to."""
    folder = location.local_folder
    if folder is None:
        location.entries("")  # it answers
        return
    nearest = next(path for path in (folder / sweep, folder, *folder.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise LedgerError(
            f"cannot write to {folder}: '{nearest}' is no folder that can be written to",
            hint="give another --storage, or ask for permission on it",
        )
