import dataclasses
import json
import math
import resource
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from datetime import datetime
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from sweeps.errors import SweepError
from sweeps.ledger import Ledger, SweepFacts
from sweeps.objectives import objective
from sweeps.study import export_study
from sweeps.trial import Candidate, Measurement, Provenance, Reason, Trial
from tests.sweeps.fakes import run_of
from thesis.errors import ConfigError

RUN = run_of(
    {
        "DilatedConvStack.channels": (2, 4, 8, 16),
        "DilatedConvStack.norm": ("none", "frame"),
        "train.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
    },
    "sweep.max_rtf_ratio = 1.0",
)


def trial(channels, reason=None, *, curve=None, detail="", **metrics):
    values = {"channels": channels, "norm": "frame", "learning_rate": channels / 2000}
    return Trial(
        "s",
        Candidate.of(values),
        Measurement(**metrics),
        reason,
        detail,
        Provenance(host="node-1", started_at=1e9 + channels, finished_at=1e9 + 60 + channels),
        curve=curve or {},
    )


TRIALS = [
    trial(2, val_loss=9.0, rtf_ratio=0.2, curve={100: 11.0, 200: 9.0}),
    trial(4, val_loss=8.0, rtf_ratio=0.4),
    trial(8, val_loss=8.5, rtf_ratio=0.8),
    trial(16, Reason.RTF, rtf_ratio=1.5, detail="rtf_ratio 1.5 over 1"),
    dataclasses.replace(
        trial(16, Reason.PRUNED, val_loss=12.0, curve={100: 12.0}),
        candidate=Candidate.of({"channels": 16, "norm": "none", "learning_rate": 0.002}),
    ),
    dataclasses.replace(
        trial(8, Reason.DIVERGED, val_loss=math.nan, detail="NaN at step 7"),
        candidate=Candidate.of({"channels": 8, "norm": "none"}),
    ),
]


@pytest.fixture
def ledger(tmp_path):
    facts = SweepFacts(
        name="s",
        gin_config=RUN.text,
        dataset_fingerprint="f",
        objectives=RUN.sweep.objectives,
    )
    ledger = Ledger.create(str(tmp_path / "runs"), "s", facts)
    ledger.extend(TRIALS)
    return ledger


def loaded(path):
    return optuna.load_study(study_name="s", storage=f"sqlite:///{path}")


def test_a_study_holds_every_trial_as_the_search_tells_it(ledger, tmp_path):
    assert export_study(ledger, tmp_path / "s.db") == 6
    study = loaded(tmp_path / "s.db")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        assert study.metric_names == ["val_loss", "rtf_ratio"]
    by_id = {t.user_attrs["trial_id"]: t for t in study.trials}
    first, *_, infeasible, pruned, failed = (by_id[t.id] for t in TRIALS)
    assert first.state is TrialState.COMPLETE
    assert first.values == [9.0, 0.2]
    assert first.params == {"channels": 2, "norm": "frame", "learning_rate": 0.001}
    assert first.intermediate_values == {100: 11.0, 200: 9.0}
    assert first.constraints == {"0": pytest.approx(0.2 - 1)}
    assert first.user_attrs["host"] == "node-1"
    assert first.datetime_start == datetime.fromtimestamp(1e9 + 2)
    assert first.duration.total_seconds() == 60
    assert (infeasible.state, infeasible.constraints) == (TrialState.PRUNED, {"0": 0.5})
    assert infeasible.user_attrs["detail"] == "rtf_ratio 1.5 over 1"
    assert (pruned.state, pruned.values) == (TrialState.PRUNED, None)
    assert pruned.intermediate_values == {100: 12.0}
    assert failed.state is TrialState.FAIL
    assert failed.params == {"channels": 8, "norm": "none"}
    assert "val_loss" not in failed.user_attrs


def test_a_record_of_another_space_has_no_parameters_in_a_study(ledger, tmp_path):
    odd = [{"channelz": 2}, {"channels": 77}, {"norm": 3.0}]
    ledger.extend(dataclasses.replace(TRIALS[0], candidate=Candidate.of(v)) for v in odd)
    assert export_study(ledger, tmp_path / "s.db") == 9
    params = [t.params for t in loaded(tmp_path / "s.db").trials]
    assert params.count({}) == 3


def test_the_configuration_that_a_study_is_made_of_is_data(ledger, tmp_path):
    ledger.facts = dataclasses.replace(ledger.facts, gin_config=f"{RUN.text}\ninclude 'x.gin'")
    with pytest.raises(ConfigError, match="includes a file"):
        export_study(ledger, tmp_path / "s.db")
    assert not (tmp_path / "s.db").exists()


def test_the_best_trials_of_a_study_are_the_front(ledger, tmp_path):
    export_study(ledger, tmp_path / "s.db")
    best = {t.user_attrs["trial_id"] for t in loaded(tmp_path / "s.db").best_trials}
    front = ledger.front([*map(objective, RUN.sweep.objectives)])
    assert best == {member.id for member in front.members}
    assert len(best) == 2


def test_a_study_replaces_a_file_only_when_asked_to(ledger, tmp_path):
    path = tmp_path / "s.db"
    path.write_text("mine")
    with pytest.raises(SweepError, match="exists") as caught:
        export_study(ledger, path)
    assert "--force" in caught.value.hint
    assert path.read_text() == "mine"
    assert export_study(ledger, path, replace=True) == 6
    assert len(loaded(path).trials) == 6
    assert {file.name for file in tmp_path.iterdir()} == {"s.db", "runs"}


def test_a_study_that_fails_half_way_leaves_nothing(ledger, tmp_path, monkeypatch):
    add = optuna.Study.add_trial

    def fail(study, trial):
        if len(study.trials) == 3:
            raise OSError(28, "No space left on device")
        add(study, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", fail)
    with pytest.raises(SweepError, match=r"cannot write .*No space left"):
        export_study(ledger, tmp_path / "s.db")
    assert {file.name for file in tmp_path.iterdir()} == {"runs"}


@pytest.mark.parametrize("size", [1, 10_000, 100_000])
def test_a_study_that_a_disk_has_no_room_for_is_an_error(ledger, tmp_path, size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(SweepError, match="cannot write"):
            export_study(ledger, tmp_path / "study.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("*study.db*"))


def test_a_study_in_a_folder_that_is_not_there_is_an_error(ledger, tmp_path):
    with pytest.raises(SweepError, match=r"cannot write .*No such file") as caught:
        export_study(ledger, tmp_path / "none" / "s.db")
    assert "folder" in caught.value.hint


@pytest.fixture
def dashboard(ledger, tmp_path):
    """A function: what the dashboard's server answers on a path, as JSON."""
    export_study(ledger, tmp_path / "s.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("optuna-dashboard")
    arguments = [f"sqlite:///{tmp_path / 's.db'}", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        [command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def get(path):
        for _ in range(600):
            assert server.poll() is None
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
                    return json.load(answer)
            except OSError:  # it is starting
                time.sleep(0.1)
        raise TimeoutError

    yield get
    server.terminate()
    server.wait()


def test_optuna_dashboard_opens_it(dashboard):
    (study,) = dashboard("/api/studies")["study_summaries"]
    assert study["study_name"] == "s"
    detail = dashboard(f"/api/studies/{study['study_id']}?after=0")
    assert detail["objective_names"] == ["val_loss", "rtf_ratio"]
    assert detail["directions"] == ["minimize", "minimize"]
    states = [trial["state"] for trial in detail["trials"]]
    assert sorted(states) == ["Complete"] * 3 + ["Fail"] + ["Pruned"] * 2
    assert [trial["values"] for trial in detail["best_trials"]] == [[9.0, 0.2], [8.0, 0.4]]
    assert {p["name"] for p in detail["union_search_space"]} == {
        "channels",
        "norm",
        "learning_rate",
    }
    assert detail["has_intermediate_values"]
    (over,) = (
        t for t in detail["trials"] if {"key": "trial_id", "value": TRIALS[3].id} in t["user_attrs"]
    )
    assert over["constraints"] == [0.5]
