import dataclasses
import json
import struct
import threading
from unittest.mock import MagicMock

import pytest

from sweeps import loggers
from sweeps.errors import DamagedError, SweepError
from sweeps.evaluate import Progress
from sweeps.ledger import Ledger, SweepFacts
from sweeps.loggers import Loggers, check_installed
from sweeps.progress import TrialAdvanced, TrialBegan, TrialEnded, TrialRetried, Waited, Warned
from sweeps.trial import Candidate, Measurement, Reason, Trial
from tests.sweeps.fakes import trial_of

NARROW = Candidate.of({"channels": 4, "norm": "none"})
WIDE = Candidate.of({"channels": 8, "norm": "frame"})
STEPS = 3


@pytest.fixture
def ledger(tmp_path):
    facts = SweepFacts(
        name="s", gin_config="", dataset_fingerprint="f", objectives=("val_loss", "rtf_ratio")
    )
    return Ledger.create(str(tmp_path / "runs"), "s", facts)


@pytest.fixture
def logs(ledger):
    """Where the files of loggers are."""
    return ledger.location.local_folder / "s" / "logs"


def a_trial(candidate):
    """The events of a trial that goes well, its worker having died once, at the last step."""
    reached = Trial("s", candidate, Measurement(val_loss=3.0), Reason.PRUNED)
    stages = [Progress("train", step, STEPS, 1 / step) for step in range(1, STEPS)]
    return [
        TrialBegan(candidate),
        TrialAdvanced(candidate, Progress("build", 0, STEPS)),
        *(TrialAdvanced(candidate, stage) for stage in stages),
        TrialAdvanced(candidate, Progress("train", STEPS, STEPS, 1 / STEPS, reached)),
        TrialRetried(candidate),
        TrialBegan(candidate),
        TrialAdvanced(candidate, Progress("train", STEPS - 1, STEPS, 0.4)),
        TrialEnded(trial_of("s", candidate)),
    ]


EVENTS = [
    *a_trial(NARROW),
    TrialBegan(WIDE),
    TrialAdvanced(WIDE, Progress("train", 1, STEPS, 1.0)),
    TrialEnded(Trial("s", WIDE, reason=Reason.DIVERGED)),
    TrialEnded(Trial("s", Candidate.of({"channels": 99}), reason=Reason.PARAMETERS)),
]


def log(ledger, name, events=EVENTS):
    """Logs some events, and returns what the listener was told."""
    told = []
    with Loggers([name], ledger, told.append) as logged:
        for event in events:
            logged(event)
    return told


def tensorboard_scalars(file):
    """The scalars of an event file, by tag and step: records between lengths and checksums."""
    from tensorboardX.proto.event_pb2 import Event

    data, found = file.read_bytes(), {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag.removeprefix("ray/tune/"), []).append(
                    (event.step, value.simple_value)
                )
    return found


def test_tensorboard_has_the_curve_and_the_result_of_each_trial(ledger, logs):
    assert log(ledger, "tensorboard") == EVENTS
    (file,) = (logs / "tensorboard" / NARROW.id).iterdir()
    found = tensorboard_scalars(file)
    assert [step for step, _ in found["train_loss"]] == [1, 2, 3, 3]
    assert found["train_loss"][0] == (1, 1.0)
    assert found["val_loss"] == [(3, 3.0), (3, 2.5)]
    assert found["rtf_ratio"] == [(3, 0.5)]
    folders = {folder.name for folder in (logs / "tensorboard").iterdir()}
    assert folders == {NARROW.id, WIDE.id}, "candidates over a limit do not begin"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's own code
def test_mlflow_has_a_run_of_each_trial(ledger, logs, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    assert log(ledger, "mlflow") == EVENTS
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{logs}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "s")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {NARROW.id, WIDE.id}
    narrow = runs[NARROW.id]
    assert narrow.data.params == {"channels": "4", "norm": "none"}
    assert narrow.data.tags["sweep"] == "s"
    assert narrow.data.metrics["val_loss"] == 2.5
    curve = client.get_metric_history(narrow.info.run_id, "train_loss")
    assert sorted((m.step, m.value) for m in curve)[:2] == [(1, 1.0), (2, 0.5)]
    assert (narrow.info.status, runs[WIDE.id].info.status) == ("FINISHED", "FAILED")


def wandb_records(file):
    """The records of a run that W&B wrote offline: a log of LevelDB's, in blocks of 32 kB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def test_wandb_writes_a_run_of_each_trial_without_an_account(cluster, ledger, logs, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "decoders")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    events = a_trial(NARROW)
    assert log(ledger, "wandb", events) == events
    (file,) = logs.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(file))
    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.project, run.run_group, run.display_name) == ("decoders", "s", NARROW.id)
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config.items() >= {"channels": 4, "norm": "none"}.items()
    steps = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    assert [(step["_step"], step["train_loss"]) for step in steps[:2]] == [(1, 1.0), (2, 0.5)]
    assert steps[-1].items() >= {"_step": 3, "val_loss": 2.5, "rtf_ratio": 0.5}.items()


def test_wandb_is_let_go_before_the_cluster_is_left(cluster, ledger, monkeypatch):
    # Ray would end the process that has a thread in a call to Ray by then.
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(loggers, "_PATIENCE_SECONDS", 0.1)
    told = log(ledger, "wandb", a_trial(NARROW))
    assert told[-1] == Warned("wandb has not taken everything; the ledger has it")
    assert "wandb" not in {thread.name for thread in threading.enumerate()}


def test_wandb_without_an_account_is_an_error_before_anything_runs(ledger, tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(SweepError, match="cannot log to wandb: ") as caught:
        Loggers(["wandb"], ledger, print)
    assert "WANDB_MODE=offline" in caught.value.hint
    assert "\n" not in caught.value.message


def test_a_logger_that_is_not_installed_is_an_error_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SweepError, match="logging to mlflow needs the package 'mlflow'") as caught:
        check_installed(["mlflow"])
    assert caught.value.hint == 'pip install "ddsp-sweeps[mlflow]"'


def test_an_unknown_logger_is_an_error_that_names_the_others():
    with pytest.raises(SweepError, match="nothing named 'csv' to log to") as caught:
        check_installed(["csv"])
    assert caught.value.hint == "there are wandb, mlflow, tensorboard"


class Fake:
    """A callback that remembers what it is told, and does what a test wants."""

    def __init__(self, on_result=lambda: None):
        self.told = []
        self.on_result = on_result

    def setup(self):
        pass

    def log_trial_start(self, trial):
        self.told.append(("start", str(trial)))

    def log_trial_result(self, iteration, trial, result):
        self.told.append(("result", str(trial), result["training_iteration"]))
        self.on_result()

    def log_trial_end(self, trial, failed=False):
        self.told.append(("end", str(trial), failed))

    def on_experiment_end(self, trials):
        self.told.append(("over",))


@pytest.mark.parametrize("name", ["logs", "logs/mlflow.db", "logs/tensorboard"])
def test_a_logger_writes_over_no_link_of_a_stranger_s_sweep(ledger, logs, tmp_path, name):
    link, elsewhere = logs.parent / name, tmp_path / "elsewhere"
    link.parent.mkdir(exist_ok=True)
    elsewhere.mkdir()
    link.symlink_to(elsewhere)
    with pytest.raises(DamagedError, match="link"):
        Loggers(["tensorboard"], ledger, lambda event: None)
    assert list(elsewhere.iterdir()) == []


def test_a_logger_may_have_made_links_of_its_own(ledger, logs):
    (logs / "wandb" / "run-1").mkdir(parents=True)
    (logs / "wandb" / "latest-run").symlink_to("run-1")
    Loggers([], ledger, lambda event: None)


def test_mlflow_prints_no_address_of_a_server_which_may_hold_a_password(
    monkeypatch, tmp_path, capsys
):
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.tracking._tracking_service.client import TrackingServiceClient

    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hush@127.0.0.1:9")
    monkeypatch.setattr(RestStore, "get_run", MagicMock())
    loggers._mlflow("s", tmp_path)
    TrackingServiceClient("http://user:hush@127.0.0.1:9")._log_url("run")
    shown = capsys.readouterr()
    assert "hush" not in shown.out + shown.err


@pytest.mark.parametrize("folder", ["wandb", ".wandb"])
def test_a_stranger_s_settings_do_not_say_which_server_is_sent_a_key(ledger, logs, folder):
    (logs / folder).mkdir(parents=True)
    (logs / folder / "settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    with pytest.raises(DamagedError, match="another server"):
        Loggers(["wandb"], ledger, lambda event: None)


@pytest.fixture
def fake(monkeypatch):
    def make(on_result=lambda: None):
        callback = Fake(on_result)
        kind = loggers._KINDS["tensorboard"]
        kinds = {"tensorboard": dataclasses.replace(kind, make=lambda sweep, folder: callback)}
        monkeypatch.setattr(loggers, "_KINDS", kinds)
        return callback

    return make


def test_a_logger_that_raises_is_a_warning_and_no_more(ledger, fake):
    def full():
        raise OSError(28, "No space left\non device")

    callback = fake(full)
    told = log(ledger, "tensorboard")
    assert [event for event in told if not isinstance(event, Warned)] == EVENTS
    (warning,) = (event for event in told if isinstance(event, Warned))
    assert warning.message.startswith("no more is logged to tensorboard: OSError: ")
    assert "\n" not in warning.message
    assert len(callback.told) == 2


def test_a_logger_that_hangs_holds_nothing_up(ledger, fake, monkeypatch):
    monkeypatch.setattr(loggers, "_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(loggers, "_RELEASE_SECONDS", 0.1)
    released = threading.Event()
    callback = fake(released.wait)
    told = log(ledger, "tensorboard")
    released.set()
    assert told == [*EVENTS, Warned("tensorboard has not taken everything; the ledger has it")]
    assert len(callback.told) == 2


def test_a_logger_that_lags_misses_news_of_running_trials_and_no_result(ledger, fake, monkeypatch):
    monkeypatch.setattr(loggers, "_MOST_WAITING", 5)
    released = threading.Event()
    callback = fake(released.wait)
    with Loggers(["tensorboard"], ledger, lambda event: None) as logged:
        logged(TrialBegan(NARROW))
        for _ in range(1000):
            logged(TrialAdvanced(NARROW, Progress("train", 1, STEPS, 1.0)))
        logged(TrialEnded(trial_of("s", NARROW)))
        released.set()
    assert len(callback.told) < 20
    last = [("result", NARROW.id, 1), ("end", NARROW.id, False), ("over",)]
    assert callback.told[-3:] == last


def test_what_is_not_finished_is_ended_with_the_launch(ledger, fake):
    callback = fake()
    log(ledger, "tensorboard", [TrialBegan(NARROW), Waited()])
    assert callback.told == [("start", NARROW.id), ("end", NARROW.id, True), ("over",)]


def test_steps_never_go_back(ledger, fake):
    callback = fake()
    log(ledger, "tensorboard", a_trial(NARROW))
    steps = [event[2] for event in callback.told if event[0] == "result"]
    assert steps == sorted(steps)
