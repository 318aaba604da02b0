import dataclasses
import os
import shutil

import pytest

from sweeps import keeping as keeping_module
from sweeps.attempt import Shared, evaluate_and_record
from sweeps.errors import LedgerError
from sweeps.evaluate import Progress
from sweeps.keeping import fetch, keeping
from sweeps.ledger import Ledger, SweepFacts
from sweeps.storage import Location
from sweeps.trial import Attempt, Candidate
from tests.sweeps.fakes import STEPS, evaluator, make_dataset, measure_together, run_of, trial_of
from thesis.data import load_facts

CANDIDATE = Candidate.of({"channels": 8})


@pytest.fixture
def shared(s3, tmp_path):
    run = run_of({"DilatedConvStack.channels": (4, 8)})
    dataset = make_dataset(tmp_path / "data")
    facts = SweepFacts(
        name="s",
        gin_config=run.text,
        dataset_fingerprint=load_facts(dataset).fingerprint,
        objectives=run.sweep.objectives,
    )
    return Shared(
        ledger=Ledger.create(s3(tmp_path.name), "s", facts),
        run=run,
        dataset=dataset,
        evaluator=evaluator("quick"),
        measurer=evaluator("measure_together"),
        cpus_per_trial=1.0,
        gpus_per_trial=0.0,
        work=tmp_path / "first",
    )


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(keeping_module, "KEEP_SECONDS", 0.0)


def another_machine(shared, tmp_path, name="second"):
    return dataclasses.replace(shared, work=tmp_path / name)


def begin(shared, steps):
    """A trial that is at some step, and its generator."""
    running = evaluate_and_record(shared, Attempt(CANDIDATE), measure_together)
    return [next(running).step for _ in range(steps)], running


def test_a_trial_goes_on_where_its_lost_machine_was(shared, tmp_path):
    steps, _lost = begin(shared, 2)
    assert steps == [1, 2]
    steps, running = begin(another_machine(shared, tmp_path), STEPS - 2)
    assert steps == [3, 4]
    with pytest.raises(StopIteration) as end:
        next(running)
    assert end.value.value.measurement.train_loss == 2  # the step that it began at


def test_nothing_is_kept_of_a_trial_on_record(shared):
    running = evaluate_and_record(shared, Attempt(CANDIDATE), measure_together)
    next(running)
    assert shared.ledger.work_version(CANDIDATE.id) is not None
    for _ in running:
        pass
    assert shared.ledger.ids() == {CANDIDATE.id}
    assert shared.ledger.location.entries("s/work", recursive=True) == []


def test_what_a_worker_kept_after_its_trial_was_recorded_is_removed_by_compaction(shared):
    begin(shared, 1)
    shared.ledger.append(trial_of("s", CANDIDATE))
    folder = shared.workdir(CANDIDATE)
    shared.ledger.put_work(CANDIDATE.id, folder)
    other = Candidate.of({"channels": 4})
    shared.ledger.put_work(other.id, folder)
    shared.ledger.compact()
    assert shared.ledger.work_version(CANDIDATE.id) is None
    assert shared.ledger.work_version(other.id) is not None


def test_the_machine_that_went_on_is_believed(shared, tmp_path):
    _, running = begin(shared, 1)
    running.close()
    _, running = begin(another_machine(shared, tmp_path), 2)
    running.close()
    steps, _ = begin(shared, 1)  # here again, where step 1 is
    assert steps == [4]


def test_what_is_here_is_believed_where_no_other_machine_went_on(shared):
    _, running = begin(shared, 1)
    running.close()
    (shared.workdir(CANDIDATE) / "step").write_text("3")  # not kept yet
    steps, _ = begin(shared, 1)
    assert steps == [4]


def test_a_trial_at_a_rung_is_kept_at_once(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(keeping_module, "KEEP_SECONDS", 3600.0)
    shared = dataclasses.replace(shared, evaluator=evaluator("halfway"))
    begin(shared, STEPS // 2)
    steps, _ = begin(another_machine(shared, tmp_path), 1)
    assert steps == [STEPS // 2 + 1]
    steps, _ = begin(another_machine(shared, tmp_path, "third"), 1)
    assert steps == [STEPS // 2 + 1]


def puts(shared, monkeypatch, changes, seconds_apart):
    """How often a work folder is put, if it changes so between reports."""
    now = [0.0]
    monkeypatch.setattr(keeping_module, "KEEP_SECONDS", 60.0)
    monkeypatch.setattr(keeping_module.time, "monotonic", lambda: now[0])
    put, count = Ledger.put_work, []
    monkeypatch.setattr(Ledger, "put_work", lambda *a: count.append(a) or put(*a))
    folder = shared.workdir(CANDIDATE)
    folder.mkdir(parents=True)
    (folder / "step").write_text("-1")

    def train():
        for step, changed in enumerate(changes):
            now[0] += seconds_apart
            if changed:
                (folder / "step").write_text(str(step))
            yield Progress("train", step, len(changes))

    kept = keeping(shared.ledger, CANDIDATE.id, folder, train())
    assert [progress.step for progress in kept] == [*range(len(changes))]
    return len(count)


def test_a_folder_is_put_once_in_a_while(shared, monkeypatch):
    assert puts(shared, monkeypatch, [True] * 12, seconds_apart=20.0) == 4


def test_a_folder_that_did_not_change_is_not_put_again(shared, monkeypatch):
    assert puts(shared, monkeypatch, [True, False, False], seconds_apart=100.0) == 1


def test_storage_that_fails_does_not_end_a_trial(shared, monkeypatch):
    def fail(*_):
        raise LedgerError("away")

    monkeypatch.setattr(Ledger, "put_work", fail)
    for _ in evaluate_and_record(shared, Attempt(CANDIDATE), measure_together):
        pass
    assert shared.ledger.ids() == {CANDIDATE.id}


def test_a_trial_beside_its_records_is_not_copied(shared, tmp_path):
    ledger = Ledger.create(tmp_path / "store", "s", shared.ledger.facts)
    folder = tmp_path / "store" / "s" / "work" / CANDIDATE.id
    beside = dataclasses.replace(shared, ledger=ledger, work=folder.parent)
    _, running = begin(beside, 2)
    fetch(ledger, CANDIDATE.id, folder)
    assert [path.name for path in folder.iterdir()] == ["step"]
    running.close()
    shutil.rmtree(folder)


def test_damage_to_what_was_kept_costs_no_more_than_that(shared, tmp_path):
    begin(shared, 2)
    marker = f"s/work/{CANDIDATE.id}/complete.json"
    shared.ledger.location.put(marker, b'{"folder": "../../x"}', replace=True)
    steps, running = begin(another_machine(shared, tmp_path), 1)
    assert steps == [1]
    assert len([*running]) == STEPS - 1
    assert shared.ledger.ids() == {CANDIDATE.id}


def test_a_pipe_in_a_work_folder_is_not_waited_for(tmp_path):
    location = Location.of(tmp_path / "runs")
    facts = SweepFacts(name="s", gin_config="", dataset_fingerprint="f", objectives=("val_loss",))
    folder = tmp_path / "work"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "history.json").write_text("{}")
    for name in ("pipe", "checkpoints/checkpoint"):
        os.mkfifo(folder / name)
    fetch(Ledger.create(location, "s", facts), CANDIDATE.id, folder)
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    assert left == ["checkpoints", "history.json"]
