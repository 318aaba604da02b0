"""Writes a sweep as an Optuna study, for optuna-dashboard and for whoever knows Optuna.

The search does not use it: its own study is in memory, and is rebuilt from the ledger.
"""

import datetime as dt
import math
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, create_trial
from sqlalchemy.exc import SQLAlchemyError

from sweeps.config import RunConfig, parse_run
from sweeps.errors import SweepError
from sweeps.export import appearing
from sweeps.ledger import Ledger
from sweeps.objectives import objective
from sweeps.search import constraints_of, directions_of, distribution_of, outcome_of
from sweeps.trial import METRICS, Trial
from thesis.errors import first_line


def export_study(ledger: Ledger, path: Path, *, replace: bool = False) -> int:
    """Writes the finished trials of a sweep as an Optuna study in a new SQLite file.

    The study has the sweep's name, its objectives as metric names and its axes as parameters; those
    without an effect on a trial are left out there, and all of a trial whose values the sweep's
    space does not have. A trial has the state that the search tells
    Optuna, the excess over each limit as constraints, its learning curve as intermediate values,
    and what else is on record as user attributes. The file is there whole or not at all.

    Args:
      ledger: The sweep.
      path: File to write.
      replace: Write it in place of a file that is there.

    Returns:
      The number of trials.

    Raises:
      SweepError: There is such a file, which is not to be replaced, or none can be written there.
      ConfigError: The sweep's configuration is of a release with other bindings.
      LedgerError: A record cannot be read.
    """
    run = parse_run(ledger.facts.gin_config)
    trials = ledger.trials()
    for mark in {"?", "%"} & set(str(path.absolute())):  # which mean something in a URL
        raise SweepError(
            f"'{path.absolute()}' has a '{mark}'", hint="give a file whose path has none"
        )
    with appearing(path, replace=replace) as temporary:
        try:
            _write(temporary, ledger, run, trials)
        except (
            StorageInternalError,
            SQLAlchemyError,
        ) as error:  # Optuna passes some on as they are
            raise OSError(first_line(error.__cause__ or error)) from error
    return len(trials)


def _write(path: Path, ledger: Ledger, run: RunConfig, trials: list[Trial]) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path.touch(exist_ok=False)  # SQLite's own errors name neither the file nor the reason
    storage = RDBStorage(f"sqlite:///{path.absolute()}")
    try:
        objectives = [objective(name) for name in run.sweep.objectives]
        study = optuna.create_study(
            study_name=ledger.name, storage=storage, directions=directions_of(objectives)
        )
        with warnings.catch_warnings():
            # It may change with a release of Optuna, which requirements.lock pins.
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([o.metric for o in objectives])
        study.set_user_attr("dataset_fingerprint", ledger.facts.dataset_fingerprint)
        for trial in trials:
            study.add_trial(_frozen(trial, run))
    finally:
        storage.engine.dispose()


def _frozen(trial: Trial, run: RunConfig) -> FrozenTrial:
    distributions = {axis.name: distribution_of(axis) for axis in run.space.axes}
    params = dict(trial.candidate.values) if run.space.holds(trial.candidate) else {}
    objectives = [objective(name) for name in run.sweep.objectives]
    state, values = outcome_of(trial, objectives)
    excess = constraints_of(trial, run.sweep.limits)
    frozen = create_trial(
        state=state,
        values=values,
        params=params,
        distributions={name: distributions[name] for name in params},
        user_attrs=_attributes(trial),
        # As Optuna 4 kept them, in a list: the dashboard knows no other form, Optuna 5 knows both.
        system_attrs={"constraints": [*excess.values()]} if excess else {},
        intermediate_values=dict(trial.curve),
    )
    finished_at = trial.provenance.finished_at
    frozen.datetime_start = _time(trial.provenance.started_at or finished_at)
    frozen.datetime_complete = _time(finished_at)
    return frozen


def _attributes(trial: Trial) -> dict[str, Any]:
    p = trial.provenance
    attributes: dict[str, Any] = {
        "trial_id": trial.id,
        "status": trial.status.value,
        "reason": trial.reason and trial.reason.value,
        "detail": trial.detail,
        "host": p.host,
        "train_steps": p.train_steps,
        "train_seconds": p.train_seconds,
        **{name: trial.metric(name) for name in METRICS},
    }
    return {
        name: value
        for name, value in attributes.items()
        if value not in (None, "") and not (isinstance(value, float) and not math.isfinite(value))
    }


def _time(seconds: float) -> dt.datetime:
    # Optuna's times are local ones and say not where.
    return dt.datetime.fromtimestamp(seconds)
