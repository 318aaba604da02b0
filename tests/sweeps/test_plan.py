import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.errors import LedgerError, SweepError
from sweeps.ledger import Ledger
from sweeps.plan import plan
from sweeps.shipping import ship_dataset
from sweeps.trial import Candidate
from tests.sweeps.fakes import evaluator, make_dataset, run_of, trial_of
from thesis.data import load_facts
from thesis.errors import ConfigError, DatasetError

RUN = run_of({"DilatedConvStack.channels": (1, 2, 3, 4)})
CANDIDATE = Candidate.of({"channels": 2})


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "data")
    return tmp_path


def planned(name="s", run=RUN, **options):
    return plan(name, run, **{"dataset": "data", "trials": 4, "storage": "runs", **options})


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_plan_says_what_the_sweep_would_be_and_writes_nothing(here):
    before = files(here)
    found = planned()
    assert found.dataset == found.facts.dataset_path == str(here / "data")
    assert found.data == load_facts("data")
    assert found.facts.dataset_fingerprint == found.data.fingerprint
    assert (found.facts.gin_config, found.facts.trials_asked) == (RUN.text, 4)
    assert not found.ledger.is_made
    assert found.ledger.ids() == set()
    assert files(here) == before


def test_a_plan_to_continue_has_what_is_on_record(here):
    first = planned()
    ledger = Ledger.create("runs", "s", first.facts)
    trial = trial_of("s", CANDIDATE)
    ledger.append(trial)
    before = files(here)
    again = planned(trials=8)
    assert again.ledger.is_made
    assert again.ledger.ids() == {trial.id}
    assert files(here) == before
    with pytest.raises(SweepError, match="exists and differs"):
        planned(run=run_of({"DilatedConvStack.channels": (1, 2)}))
    make_dataset(here / "other", seed=1)
    with pytest.raises(SweepError, match="dataset_fingerprint is"):
        planned(dataset="other")


def test_what_another_sweep_knows_is_part_of_the_plan():
    other = Ledger.create("runs", "other", planned("other").facts)
    other.append(trial_of("other", CANDIDATE))
    found = planned(warm_start="other")
    assert [trial.sweep for trial in found.known] == ["other"]
    assert found.told == ("warm start: 1 trials of 'other' are known",)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "a b"}, SweepError, "cannot be the name of a sweep"),
        ({"dataset": "nowhere"}, DatasetError, "no dataset at"),
        ({"warm_start": "other"}, SweepError, "no sweep named 'other'"),
        ({"log": ["paper"]}, SweepError, "nothing named 'paper' to log to"),
        ({"evaluator": "no.such:thing"}, SweepError, "cannot load 'no.such:thing'"),
        ({"measurer": evaluator("nothing")}, SweepError, "cannot load .*fakes.py:nothing'"),
        ({"evaluator": "__init__.py:x"}, SweepError, "cannot load '__init__.py:x'"),
        ({"storage": "data/dataset.json"}, LedgerError, "no folder that can be written to"),
        ({"storage": "data/dataset.json/runs"}, LedgerError, "no folder that can be written to"),
        ({"storage": "nothing://at/all"}, LedgerError, "cannot use storage"),
    ],
)
def test_what_is_wrong_is_an_error_before_anything_is_written(here, options, error, message):
    before = files(here)
    with pytest.raises(error, match=message) as caught:
        planned(**options)
    assert caught.value.hint
    assert files(here) == before


def test_an_evaluator_that_exits_when_it_is_imported_is_an_error(here):
    (here / "leaving.py").write_text("raise SystemExit(0)")
    with pytest.raises(SweepError, match=r"cannot load 'leaving\.py:x': SystemExit: 0"):
        planned(evaluator="leaving.py:x")


def test_a_sampler_that_is_not_installed_is_an_error(monkeypatch):
    monkeypatch.setattr("sweeps.search.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs PyTorch"):
        planned(run=run_of({"DilatedConvStack.channels": (1, 2)}, "sweep.sampler = 'gp'"))


def test_a_storage_that_cannot_be_written_to_is_an_error(here, monkeypatch):
    (here / "runs").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != here / "runs")
    with pytest.raises(LedgerError, match=r"'.*/runs' is no folder that can be written to"):
        planned()


def test_a_dataset_that_was_shipped_need_not_be_here(here):
    first = planned()
    ledger = Ledger.create("runs", "s", first.facts)
    ship_dataset(ledger, "data")
    shutil.rmtree("data")
    assert planned().data == first.data
    Path("runs/s/sweep.json").unlink()
    assert planned(ship=True).data == first.data  # by who launches from afar
    with pytest.raises(DatasetError, match="no dataset at"):
        planned()


def test_a_damaged_dataset_is_no_reason_to_take_the_one_that_was_shipped():
    ledger = Ledger.create("runs", "s", planned().facts)
    ship_dataset(ledger, "data")
    os.truncate("data/clips.arrow", 100)
    with pytest.raises(DatasetError, match="cut short"):
        planned(ship=True)


def test_a_plan_loads_neither_ray_nor_tensorflow():
    code = (
        "import sys; from tests.sweeps.fakes import run_of; from sweeps.plan import plan;"
        "run = run_of({'DilatedConvStack.channels': (1, 2)});"
        "plan('s', run, dataset='data', trials=1, storage='runs');"
        "sys.exit(', '.join({'ray', 'tensorflow'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
