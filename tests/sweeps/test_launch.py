import contextlib
import dataclasses
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

import sweeps.driver as driver_module
from sweeps import __version__
from sweeps.attempt import Shared, evaluate_and_record, load
from sweeps.breaker import ALIKE, MAX_DEATHS
from sweeps.driver import MAX_LOSSES, Budget, Driver, Wishes
from sweeps.errors import LedgerError, SweepError
from sweeps.evaluate import Progress, Task
from sweeps.launch import LaunchReport, launch
from sweeps.lease import leased
from sweeps.ledger import Ledger, SweepFacts
from sweeps.objectives import Limit, objective
from sweeps.progress import (
    Noted,
    SweepBegan,
    TrialAdvanced,
    TrialBegan,
    TrialDeferred,
    TrialEnded,
    TrialRetried,
    Waited,
    Warned,
)
from sweeps.scratch import scratch_folder
from sweeps.search import Search
from sweeps.status import StatusReader
from sweeps.stopping import Verdict, stopping_rule
from sweeps.storage import Location
from sweeps.trial import Attempt, Candidate, Provenance, Reason, Status
from tests.sweeps.fakes import (
    STEPS,
    evaluator,
    make_dataset,
    measure_together,
    run_of,
    trial_of,
)
from thesis.data import load_facts
from thesis.errors import DatasetError

WIDTHS = {"DilatedConvStack.channels": (1, 2, 3, 4, 5, 6, 7, 8)}


def finish(running):
    """What a generator yields, and what it returns."""
    steps = []
    while True:
        try:
            steps.append(next(running))
        except StopIteration as end:
            return steps, end.value


def records(storage, sweep="s"):
    """Every record's bytes and time, by id."""
    folder = storage / sweep / "trials"
    return {f.stem: (f.read_bytes(), f.stat().st_mtime_ns) for f in folder.glob("*.parquet")}


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "data")


@pytest.fixture
def storage(tmp_path):
    return tmp_path / "sweeps"


@pytest.fixture
def start(dataset, storage):
    def start(trials, *, run=None, name="s", evaluate="quick", **options):
        run = run or run_of(WIDTHS)
        return launch(
            name,
            run,
            dataset=dataset,
            trials=trials,
            storage=str(storage),
            evaluator=evaluator(evaluate),
            **options,
        )

    return start


# --- One trial, without Ray


@pytest.fixture
def shared(dataset, storage):
    run = run_of(WIDTHS)
    facts = SweepFacts(
        name="s",
        gin_config=run.text,
        dataset_fingerprint=load_facts(dataset).fingerprint,
        objectives=run.sweep.objectives,
    )
    return Shared(
        ledger=Ledger.create(str(storage), "s", facts),
        run=run,
        dataset=dataset,
        evaluator=evaluator("quick"),
        measurer=evaluator("measure_together"),
        cpus_per_trial=1.0,
        gpus_per_trial=0.0,
        work=storage / "s" / "work",
    )


def ledger_of(name, run, storage, trials, dataset):
    facts = SweepFacts(
        name=name,
        gin_config=run.text,
        dataset_fingerprint=load_facts(dataset).fingerprint,
        objectives=run.sweep.objectives,
    )
    ledger = Ledger.create(str(storage), name, facts)
    for trial in trials:
        ledger.append(trial)
    return ledger


def channels(number):
    return Candidate.of({"channels": number})


def test_a_trial_is_on_record_with_its_model_before_it_is_returned(shared, tmp_path):
    steps, trial = finish(evaluate_and_record(shared, Attempt(channels(8)), measure_together))
    assert steps == [Progress("train", n, STEPS, train_loss=1 / n) for n in (1, 2, 3, 4)]
    assert shared.ledger.get(trial.id) == trial
    shared.ledger.get_artifacts(trial.id, tmp_path / "copy")
    assert (tmp_path / "copy" / "decoder.onnx").read_text() == trial.id


def test_a_trial_is_marked_as_started_until_it_is_recorded(shared):
    running = evaluate_and_record(shared, Attempt(channels(8)), measure_together)
    next(running)
    (attempt,) = shared.ledger.started()
    assert attempt.candidate == channels(8)
    assert attempt.host == platform.node()
    assert time.time() - 60 < attempt.began_at <= time.time()
    finish(running)
    assert shared.ledger.started() == []


def test_a_trial_continues_from_its_checkpoint(shared):
    running = evaluate_and_record(shared, Attempt(channels(8)), measure_together)
    next(running)
    next(running)
    running.close()
    steps, trial = finish(evaluate_and_record(shared, Attempt(channels(8)), measure_together))
    assert len(steps) == STEPS - 2
    assert trial.measurement.train_loss == 2  # the step that it began at


def test_the_work_folder_is_removed_when_the_trial_is_on_record(shared):
    running = evaluate_and_record(shared, Attempt(channels(8)), measure_together)
    next(running)
    assert shared.workdir(channels(8)).is_dir()
    finish(running)
    assert list(shared.work.iterdir()) == []


def test_a_trial_on_record_is_not_evaluated_again(shared):
    recorded = trial_of("s", channels(8))
    shared.ledger.append(recorded)
    assert finish(evaluate_and_record(shared, Attempt(channels(8)), measure_together)) == (
        [],
        recorded,
    )


def test_a_worker_that_ends_after_its_replacement_changes_neither_record_nor_model(
    shared, tmp_path
):
    late = evaluate_and_record(shared, Attempt(channels(8)), measure_together)
    next(late)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "decoder.onnx").write_text("its replacement's")
    recorded = trial_of("s", channels(8), train_loss=-1.0)
    shared.ledger.put_artifacts(recorded.id, tmp_path / "model")
    shared.ledger.append(recorded)
    assert finish(late)[1] == recorded
    shared.ledger.get_artifacts(recorded.id, tmp_path / "copy")
    assert (tmp_path / "copy" / "decoder.onnx").read_text() == "its replacement's"


def test_a_trial_whose_sweep_goes_away_continues_when_it_is_back(shared, storage):
    running = evaluate_and_record(shared, Attempt(channels(8)), measure_together)
    assert [next(running).step for _ in range(2)] == [1, 2]
    (storage / "s").rename(storage / "elsewhere")  # as a mount that is lost
    with pytest.raises(LedgerError, match="is gone") as caught:
        finish(running)
    assert "continue from their checkpoints" in caught.value.hint
    with pytest.raises(LedgerError, match="is gone"):
        finish(evaluate_and_record(shared, Attempt(channels(8)), measure_together))
    assert [path.name for path in storage.iterdir()] == ["elsewhere"]
    (storage / "elsewhere").rename(storage / "s")
    steps, trial = finish(evaluate_and_record(shared, Attempt(channels(8)), measure_together))
    assert [progress.step for progress in steps] == [3, 4]
    assert shared.ledger.trials() == [trial]


def test_an_exception_is_told_with_where_it_comes_from_and_recorded_by_the_driver(shared):
    moody = dataclasses.replace(shared, evaluator=evaluator("moody"))
    _, trial = finish(evaluate_and_record(moody, Attempt(channels(1)), measure_together))
    assert trial.reason is Reason.ERROR
    assert trial.detail.startswith("ValueError: no such luck (fakes.py, line ")
    assert trial.provenance.gin_config == shared.run.text_for(channels(1))
    assert trial.provenance.versions["ddsp-sweeps"] == __version__
    assert shared.ledger.ids() == set()
    assert [attempt.candidate for attempt in shared.ledger.started()] == [channels(1)]
    driver = driver_of(shared, missing=1)
    driver.ended(trial)
    driver.close()
    assert shared.ledger.get(trial.id) == trial
    assert shared.ledger.started() == []
    assert not shared.workdir(channels(1)).exists()


def test_a_trial_that_crashes_after_its_replacement_has_ended_changes_nothing(shared):
    moody = dataclasses.replace(shared, evaluator=evaluator("moody"))
    late = evaluate_and_record(moody, Attempt(channels(1)), measure_together)
    next(late)
    recorded = trial_of("s", channels(1))
    shared.ledger.append(recorded)
    assert finish(late)[1] == recorded
    assert shared.ledger.trials() == [recorded]


@pytest.mark.parametrize("name", ["no.such:thing", "sweeps.evaluate:nothing", "nowhere.py:quick"])
def test_an_evaluator_that_cannot_be_loaded_is_what_every_trial_would_meet(shared, name):
    lost = dataclasses.replace(shared, evaluator=name)
    with pytest.raises(SweepError, match=f"cannot load '{name}'") as caught:
        finish(evaluate_and_record(lost, Attempt(channels(8)), measure_together))
    assert caught.value.hint
    assert shared.ledger.ids() == set()


def test_what_every_trial_would_meet_is_raised_and_leaves_no_record(shared):
    lost = dataclasses.replace(shared, evaluator=evaluator("without_data"))
    with pytest.raises(DatasetError, match="no dataset on this node"):
        finish(evaluate_and_record(lost, Attempt(channels(8)), measure_together))
    assert shared.ledger.ids() == set()
    assert [attempt.candidate for attempt in shared.ledger.started()] == [channels(8)]


# --- The driver's books, without Ray


def driver_of(
    shared,
    *,
    missing,
    slots=2,
    run=None,
    lost=lambda: None,
    on_event=lambda event: None,
    finished=(),
    keep_going=False,
    **budget,
):
    run, started = run or shared.run, shared.ledger.started()
    return Driver(
        dataclasses.replace(shared, run=run),
        load_facts(shared.dataset),
        Search(
            run.space,
            run.sweep,
            started=[a.candidate for a in started if not a.waits_at],
            deferred=[a.candidate for a in started if a.waits_at],
        ),
        stopping_rule(run.sweep),
        started=started,
        finished=len(finished),
        steps_spent=sum(trial.provenance.train_steps for trial in finished),
        budget=Budget(missing + len(finished), **budget),
        slots=lambda: slots,
        lost=lost,
        wishes=Wishes(),
        on_event=on_event,
        keep_going=keep_going,
    )


def test_no_more_candidates_are_given_out_than_there_are_slots(shared):
    driver = driver_of(shared, missing=5)
    first, second = driver.next_attempt(), driver.next_attempt()
    assert driver.next_attempt() is None
    assert not driver.complete
    driver.ended(trial_of("s", first.candidate))
    assert driver.next_attempt() not in (None, first, second)


def test_no_more_candidates_are_given_out_than_trials_are_missing(shared):
    driver = driver_of(shared, missing=3, slots=100)
    assert len({driver.next_attempt() for _ in range(3)}) == 3
    assert driver.complete
    assert driver.next_attempt() is None


def test_infeasible_candidates_are_recorded_at_once_and_count(shared):
    run = run_of(WIDTHS, "sweep.max_parameters = 1")
    events = []
    driver = driver_of(shared, missing=3, run=run, on_event=events.append)
    assert driver.next_attempt() is None
    assert driver.complete
    assert [t.reason for t in shared.ledger.trials()] == [Reason.PARAMETERS] * 3
    assert [type(event) for event in events] == [TrialEnded] * 3


def test_many_records_are_merged_on_the_way(shared, storage, monkeypatch):
    monkeypatch.setattr("sweeps.driver.COMPACT_EVERY", 2)
    driver = driver_of(shared, missing=5)
    for _ in range(3):
        trial = trial_of("s", driver.next_attempt().candidate)
        shared.ledger.append(trial)
        driver.ended(trial)
    assert len(records(storage)) == 1  # the other two are in one file
    assert len(shared.ledger.ids()) == 3


def test_a_damaged_record_does_not_end_a_launch_that_merges(shared, storage, monkeypatch):
    monkeypatch.setattr("sweeps.driver.COMPACT_EVERY", 1)
    events = []
    driver = driver_of(shared, missing=5, on_event=events.append)
    for number in range(3):
        trial = trial_of("s", driver.next_attempt().candidate)
        shared.ledger.append(trial)
        if number == 0:
            damaged = storage / "s" / "trials" / f"{trial.id}.parquet"
            damaged.write_bytes(b"PAR1" * 30)
        driver.ended(trial)
    assert driver.failure is None
    assert damaged.read_bytes() == b"PAR1" * 30
    assert any(str(damaged) in event.message for event in events if isinstance(event, Warned))
    assert len(shared.ledger.ids()) == 3


def test_links_in_a_work_folder_are_removed_and_not_written_through(shared, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    for name in ("decoder.onnx", "step"):
        (precious / name).write_text("1")
    for number, planted in enumerate(("folder", "nothing", "inside"), start=1):
        candidate = channels(number)
        workdir = shared.workdir(candidate)
        if planted != "inside":
            workdir.parent.mkdir(parents=True, exist_ok=True)
            workdir.symlink_to(precious if planted == "folder" else tmp_path / "nothing")
        else:
            workdir.mkdir(parents=True)
            (workdir / "artifacts").symlink_to(precious)
            (workdir / "step").symlink_to(precious / "step")
        _, trial = finish(evaluate_and_record(shared, Attempt(candidate), measure_together))
        assert trial.status is Status.COMPLETED
        assert trial.metric("train_loss") == 0  # not from a step that others wrote
        assert not workdir.exists()
    assert sorted(path.read_text() for path in precious.iterdir()) == ["1", "1"]


def test_a_folder_of_work_that_is_a_link_ends_a_launch_before_it_begins(start, shared, tmp_path):
    (tmp_path / "elsewhere" / channels(1).id).mkdir(parents=True)
    shared.ledger.append(trial_of("s", channels(1)))  # whose left work would be removed
    shared.work.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="is a link"):
        start(2)
    assert (tmp_path / "elsewhere" / channels(1).id).exists()


def test_a_candidate_whose_workers_die_is_tried_again_and_then_given_up(shared):
    driver = driver_of(shared, missing=1)
    for deaths in range(MAX_DEATHS):
        attempt = driver.next_attempt()
        assert attempt.deaths == deaths
        driver.lost(attempt.candidate, "killed", Reason.CRASHED)
    assert driver.complete
    driver.close()
    (trial,) = driver.recorded
    assert trial.reason is Reason.CRASHED
    assert trial.detail == "3 workers died of it, 0 were lost with their node; killed"
    assert shared.ledger.get(trial.id) == trial
    assert shared.ledger.started() == []


def test_a_worker_killed_for_its_memory_is_out_of_memory(shared):
    driver = driver_of(shared, missing=1)
    for _ in range(MAX_DEATHS):
        driver.lost(driver.next_attempt().candidate, "killed", Reason.OUT_OF_MEMORY)
    driver.close()
    assert [t.reason for t in driver.recorded] == [Reason.OUT_OF_MEMORY]


def failing(trial, detail="ValueError: no such luck", reason=Reason.ERROR):
    return dataclasses.replace(trial, reason=reason, detail=detail)


def fail(driver, *attempts, **how):
    for attempt in attempts:
        driver.ended(failing(trial_of("s", attempt.candidate), **how))


def test_trials_that_all_fail_alike_end_the_launch_and_are_not_on_record(shared):
    events = []
    driver = driver_of(shared, missing=8, on_event=events.append)
    for number in range(ALIKE):
        assert driver.failure is None
        attempt = driver.next_attempt()
        shared.ledger.mark_started(attempt)
        fail(driver, attempt, detail=f"RuntimeError: no\nlibrary\nat {number:#x}")
    assert driver.stopped
    driver.close()
    assert driver.failure.message == (
        f"all trials fail alike, {ALIKE} so far: RuntimeError: no library at 0x2"
    )
    assert "launch again" in driver.failure.hint
    assert "--keep-going" in driver.failure.hint
    assert shared.ledger.ids() == set()
    tried = {event.trial.candidate for event in events}
    again = driver_of(shared, missing=8, slots=8)
    begun_next = [again.next_attempt().candidate for _ in range(ALIKE)]
    assert begun_next[0] in tried  # the baseline is always first
    assert set(begun_next) == tried


def test_workers_that_all_die_end_the_launch_and_none_is_held_against_a_candidate(shared):
    driver = driver_of(shared, missing=8)
    died = set()
    while not driver.stopped:
        attempt = driver.next_attempt()
        died.add(attempt.candidate)
        driver.lost(attempt.candidate, f"worker {len(died)} has died", Reason.CRASHED)
    assert driver.failure.message.startswith("workers die of all trials, 2 so far: worker ")
    assert len(died) == 2  # one was given up
    assert shared.ledger.ids() == set()
    assert {a.candidate: a.deaths for a in shared.ledger.started()} == dict.fromkeys(died, 0)


def test_memory_that_no_trial_has_enough_of_ends_the_launch(shared):
    driver = driver_of(shared, missing=8, slots=4)
    killed = 0
    while not driver.stopped:
        attempts = []
        while attempt := driver.next_attempt():
            attempts.append(attempt)
        for attempt in attempts:
            driver.lost(attempt.candidate, "running low on memory", Reason.OUT_OF_MEMORY)
            killed += 1
        assert killed < 8 * MAX_DEATHS
    assert driver.failure.message.startswith("all trials run out of memory")
    assert shared.ledger.ids() == set()


def test_nothing_is_begun_while_all_fail_alike_and_what_runs_may_speak_against_it(shared):
    driver = driver_of(shared, missing=8, slots=4)
    *bad, good = [driver.next_attempt() for _ in range(4)]
    fail(driver, *bad)
    assert driver.next_attempt() is None
    assert not driver.stopped
    assert not driver.advanced(good.candidate, Progress("train", 2, 10))
    fresh = driver.next_attempt()
    assert fresh is not None
    assert shared.ledger.ids() == set()
    driver.ended(trial_of("s", good.candidate))
    assert shared.ledger.ids() == {attempt.candidate.id for attempt in bad}
    fail(driver, fresh)
    assert fresh.candidate.id in shared.ledger.ids()
    assert [trial.status for trial in driver.recorded].count(Status.FAILED) == 4


def test_a_baseline_that_fails_does_not_end_a_sweep_whose_others_work(shared):
    driver = driver_of(shared, missing=8, slots=1)
    baseline = driver.next_attempt()
    for _ in range(MAX_DEATHS):
        driver.lost(baseline.candidate, "died", Reason.CRASHED)
        again = driver.next_attempt()
    assert again.candidate != baseline.candidate
    driver.ended(trial_of("s", again.candidate))
    assert not driver.stopped
    assert [trial.candidate for trial in driver.recorded] == [
        again.candidate,
        baseline.candidate,
    ]
    assert shared.ledger.get(baseline.candidate.id).reason is Reason.CRASHED


def test_a_launch_that_keeps_going_records_what_crashes(shared):
    driver = driver_of(shared, missing=8, slots=1, keep_going=True)
    for number in range(1, 9):
        fail(driver, driver.next_attempt())
        assert len(shared.ledger.ids()) == number
    assert driver.complete
    assert driver.failure is None


def test_losses_that_become_nan_are_no_crash(shared):
    driver = driver_of(shared, missing=8, slots=1)
    for _ in range(8):
        attempt = driver.next_attempt()
        trial = failing(trial_of("s", attempt.candidate), "step 7", Reason.DIVERGED)
        shared.ledger.append(trial)
        driver.ended(trial)
    assert driver.failure is None
    assert len(shared.ledger.ids()) == 8


def test_too_few_failures_to_tell_are_on_record_at_the_end(shared):
    driver = driver_of(shared, missing=2)
    fail(driver, driver.next_attempt(), driver.next_attempt())
    assert driver.complete
    assert driver.failure is None
    assert driver.next_attempt() is None
    driver.close()
    assert len(shared.ledger.ids()) == len(driver.recorded) == 2


def test_trials_that_all_fail_where_the_last_one_that_runs_is_put_off_end_the_launch(shared):
    driver = deferring(shared, {3: 0.1}, slots=4, missing=8)
    *bad, last = [driver.next_attempt() for _ in range(4)]
    assert last.candidate == channels(3)
    for attempt in bad:
        driver.advanced(attempt.candidate, Progress("export", 10, 10))
    fail(driver, *bad)
    assert driver.advanced(last.candidate, reached_by(last.candidate, 4))
    driver.waited()
    assert driver.stopped
    assert {a.candidate for a in shared.ledger.started() if a.waits_at} == {channels(3)}


def test_candidates_that_ran_when_memory_ran_out_are_not_tried_again_together(shared):
    driver = driver_of(shared, missing=4, slots=3)
    killed = [driver.next_attempt().candidate for _ in range(3)]
    for candidate in killed:
        driver.lost(candidate, "killed", Reason.OUT_OF_MEMORY)
    first, fresh = driver.next_attempt(), driver.next_attempt()
    assert first.candidate == killed[0]
    assert fresh.candidate not in killed
    assert driver.next_attempt() is None  # the other two are the missing ones
    driver.ended(trial_of("s", first.candidate))
    assert driver.next_attempt().candidate == killed[1]
    assert driver.next_attempt() is None


def test_a_node_that_goes_away_is_not_the_candidate_s_fault(shared):
    driver = driver_of(shared, missing=1)
    for losses in range(MAX_LOSSES):
        assert driver.recorded == []
        attempt = driver.next_attempt()
        assert (attempt.deaths, attempt.losses) == (0, losses)
        driver.lost(attempt.candidate, "its node has died", None)
    # ... unless it takes every node with it.
    driver.close()
    assert [t.reason for t in driver.recorded] == [Reason.CRASHED]


def test_deaths_are_counted_across_launches(shared):
    driver = driver_of(shared, missing=1)
    first = driver.next_attempt().candidate
    driver.lost(first, "killed", Reason.CRASHED)
    next_launch = driver_of(shared, missing=1)
    attempt = next_launch.next_attempt()
    assert (attempt.candidate, attempt.deaths, attempt.cause) == (first, 1, "killed")


def test_a_launch_that_drains_starts_nothing_new_and_tries_nothing_again(shared):
    driver = driver_of(shared, missing=5)
    attempt = driver.next_attempt()
    driver.wishes.drain()
    assert driver.next_attempt() is None
    assert driver.complete
    assert not driver.stopped
    driver.lost(attempt.candidate, "killed", Reason.CRASHED)
    assert driver.next_attempt() is None


def test_no_trial_is_begun_that_might_not_end_within_the_budget_of_steps(shared):
    run = run_of(WIDTHS, "train.steps = 10")
    before = replace_steps(trial_of("s", channels(1)), 15)
    driver = driver_of(shared, missing=9, run=run, slots=9, finished=[before], train_steps=40)
    first, second = driver.next_attempt(), driver.next_attempt()
    assert second is not None
    assert driver.next_attempt() is None  # 15 + 2 * 10 are spoken for
    assert not driver.complete  # one of them may yet be stopped
    driver.ended(replace_steps(trial_of("s", first.candidate), 4))
    third = driver.next_attempt()
    assert third is not None
    for attempt in (second, third):
        driver.ended(replace_steps(trial_of("s", attempt.candidate), 10))
    assert driver.next_attempt() is None
    assert driver.complete
    assert driver.used_up == "40 training steps"


def replace_steps(trial, steps):
    return dataclasses.replace(trial, provenance=Provenance(train_steps=steps))


def test_the_longest_trial_counts_where_their_length_is_searched(shared):
    run = run_of({"train.steps": {"low": 5, "high": 50}})
    assert driver_of(shared, missing=2, run=run, train_steps=49).next_attempt() is None
    assert driver_of(shared, missing=2, run=run, train_steps=50).next_attempt() is not None


def test_what_runs_when_the_time_is_over_is_stopped(shared):
    driver = driver_of(shared, missing=5, seconds=3600.0)
    driver.next_attempt()
    driver.waited()
    assert not driver.stopped
    driver = driver_of(shared, missing=5, seconds=0.0)
    driver.next_attempt()
    driver.waited()
    assert driver.stopped
    assert driver.used_up == "0 s"


def test_a_trial_that_is_stopped_is_on_record_with_what_it_reached(shared):
    run = run_of(WIDTHS, "sweep.stopping = 'asha'", "sweep.reduction_factor = 2")
    driver = driver_of(shared, missing=5, run=run)
    ends = []
    for number in (8, 4):
        attempt = Attempt(channels(number))
        running = load(evaluator("halfway"))(
            task_of(shared, attempt), workdir=shared.workdir(attempt.candidate), measure=None
        )
        shared.workdir(attempt.candidate).mkdir(parents=True)
        for progress in running:
            if driver.advanced(attempt.candidate, progress):
                ends.append((number, progress.step))
                break
    assert ends == [(4, STEPS // 2)]
    (record,) = shared.ledger.trials()
    assert record.status is Status.PRUNED
    assert record.curve == {STEPS // 2: 5.0}
    assert record.provenance.train_steps == STEPS // 2
    assert "rank 2 of 2" in record.detail
    assert not shared.workdir(record.candidate).exists()


class Gains:
    """A rule that has trials wait, and stops them, as it is told to by number of channels."""

    def __init__(self, gains):
        self.gains = gains
        self.stops = {}

    def learn(self, trial):
        pass

    def verdict(self, reached, steps):
        number = reached.candidate["channels"]
        waits, gain = number in self.gains, self.gains.get(number, 0.0)
        return Verdict(self.stops.get(number, ""), waits, gain)


def reached_by(candidate, step):
    trial = replace_steps(trial_of("s", candidate), step)
    reached = dataclasses.replace(trial, reason=Reason.PRUNED, curve={step: 9.0})
    return Progress("train", step, 10, reached=reached)


def deferring(shared, gains, *, missing=4, on_record=5, **options):
    """A driver over 8, 1, 2, 3, .. channels in this order."""
    run = run_of(WIDTHS, "sweep.sampler = 'grid'", "train.steps = 10")
    finished = [trial_of("s", channels(100 + number)) for number in range(on_record)]
    driver = driver_of(shared, missing=missing, run=run, finished=finished, **options)
    driver._rule = Gains(gains)
    return driver


def begun(driver):
    attempt = driver.next_attempt()
    return attempt and attempt.candidate["channels"]


def test_trials_that_wait_go_on_when_nothing_new_is_left_the_most_promising_first(shared):
    events = []
    driver = deferring(shared, {8: 0.1, 1: 0.3}, on_event=events.append)
    assert [begun(driver), begun(driver), begun(driver)] == [8, 1, None]
    for number in (8, 1):
        shared.workdir(channels(number)).mkdir(parents=True)
        assert driver.advanced(channels(number), reached_by(channels(number), 4))
    assert [e.candidate for e in events if isinstance(e, TrialDeferred)] == [
        channels(8),
        channels(1),
    ]
    assert shared.ledger.ids() == set()
    assert {(a.waits_at, a.gain) for a in shared.ledger.started()} == {(4, 0.1), (4, 0.3)}
    assert [begun(driver), begun(driver)] == [2, 3]
    assert not driver.complete
    driver.ended(trial_of("s", channels(2)))
    assert begun(driver) == 1
    assert not driver.complete
    driver.ended(trial_of("s", channels(3)))
    assert begun(driver) == 8
    assert driver.complete
    assert shared.workdir(channels(8)).is_dir()


def test_a_trial_goes_on_where_nothing_better_is_left_to_do(shared):
    driver = deferring(shared, {1: 0.3}, missing=2)
    assert [begun(driver), begun(driver)] == [8, 1]
    assert not driver.advanced(channels(1), reached_by(channels(1), 4))


def test_a_trial_that_goes_on_waits_again_where_a_better_one_does(shared):
    driver = deferring(shared, {8: 0.1, 1: 0.3}, slots=1, missing=3)
    for number in (8, 1):
        assert begun(driver) == number
        driver.advanced(channels(number), reached_by(channels(number), 4))
    assert begun(driver) == 2
    driver.ended(trial_of("s", channels(2)))
    assert begun(driver) == 1
    driver._rule.gains = {8: 0.1, 1: 0.05}
    assert driver.advanced(channels(1), reached_by(channels(1), 6))
    assert begun(driver) == 8
    assert not driver.advanced(channels(8), reached_by(channels(8), 6))
    driver.ended(trial_of("s", channels(8)))
    assert begun(driver) == 1
    assert not driver.advanced(channels(1), reached_by(channels(1), 8))


def test_those_that_wait_go_on_when_there_are_twice_as_many_as_on_record(shared):
    gains = {8: 0.1, 1: 0.3, 2: 0.2}
    driver = deferring(shared, gains, slots=1, missing=8, on_record=1)
    for number in (8, 1):
        assert begun(driver) == number
        assert driver.advanced(channels(number), reached_by(channels(number), 4))
    assert begun(driver) == 1  # two wait
    assert driver.advanced(channels(1), reached_by(channels(1), 6))  # one waits
    assert begun(driver) == 1
    driver.ended(trial_of("s", channels(1)))
    assert begun(driver) == 2


def test_what_waits_is_stopped_when_what_has_finished_meanwhile_rules_it_out(shared):
    driver = deferring(shared, {8: 0.1, 1: 0.3}, slots=1, missing=3)
    for number in (8, 1):
        assert begun(driver) == number
        shared.workdir(channels(number)).mkdir(parents=True)
        driver.advanced(channels(number), reached_by(channels(number), 4))
    assert begun(driver) == 2
    driver._rule.stops = {1: "cannot get there"}
    driver.ended(trial_of("s", channels(2)))
    assert begun(driver) == 8
    (record,) = shared.ledger.trials()
    assert (record.candidate, record.detail) == (channels(1), "cannot get there")
    assert not shared.workdir(channels(1)).exists()
    assert shared.workdir(channels(8)).is_dir()


def test_another_launch_goes_on_with_what_waits_last_of_all(shared):
    driver = deferring(shared, {8: 0.1, 1: 0.3}, slots=2)
    for number in (8, 1):
        assert begun(driver) == number
        driver.advanced(channels(number), reached_by(channels(number), 4))
    assert begun(driver) == 2  # and it is killed
    shared.ledger.mark_started(Attempt(channels(2)))
    again = deferring(shared, {}, slots=1)
    for number in (2, 3, 1, 8):  # first what ran
        assert not again.complete
        assert begun(again) == number
        shared.ledger.append(trial_of("s", channels(number)))
        again.ended(trial_of("s", channels(number)))
    assert again.complete


def test_what_waits_needs_only_the_steps_that_it_has_left(shared):
    driver = deferring(shared, {8: 0.3}, slots=1, train_steps=20)
    assert begun(driver) == 8
    driver.advanced(channels(8), reached_by(channels(8), 4))
    assert begun(driver) == 1  # 4 + 10
    driver.ended(replace_steps(trial_of("s", channels(1)), 10))
    assert begun(driver) == 8  # 20 = 10 + 10; a new one would need 24
    driver.ended(replace_steps(trial_of("s", channels(8)), 10))
    assert begun(driver) is None
    assert driver.used_up == "20 training steps"


def test_a_budget_of_steps_ends_with_trials_that_wait_and_keeps_them(shared):
    driver = deferring(shared, {8: 0.3}, slots=1, train_steps=19)
    assert begun(driver) == 8
    driver.advanced(channels(8), reached_by(channels(8), 4))
    assert begun(driver) == 1
    driver.ended(replace_steps(trial_of("s", channels(1)), 10))
    assert begun(driver) is None
    assert driver.used_up == "19 training steps"
    assert [attempt.waits_at for attempt in shared.ledger.started()] == [4]


def test_a_launch_that_drains_finishes_what_runs(shared):
    driver = deferring(shared, {8: 0.3})
    assert begun(driver) == 8
    driver.wishes.drain()
    assert not driver.advanced(channels(8), reached_by(channels(8), 4))


def test_a_launch_that_drains_leaves_what_waits(shared):
    driver = deferring(shared, {8: 0.3}, slots=1)
    assert begun(driver) == 8
    driver.advanced(channels(8), reached_by(channels(8), 4))
    driver.wishes.drain()
    assert driver.complete
    assert begun(driver) is None


def task_of(shared, attempt):
    return Task("s", attempt.candidate, shared.run.text_for(attempt.candidate), shared.dataset)


def test_a_launch_whose_lease_is_gone_stops(shared):
    driver = driver_of(shared, missing=5, lost=lambda: SweepError("taken over"))
    assert not driver.stopped
    driver.waited()
    assert driver.stopped
    assert driver.failure.message == "taken over"


def test_a_report_says_what_there_is_to_know():
    report = LaunchReport("s", "/s", 4, 4)
    assert report.summary() == "'s' has 4 finished trials already: nothing to do"
    some = LaunchReport("s", "/s", 9, 5, (trial_of("s", channels(8)),), interrupted=True)
    assert some.summary() == (
        "'s' has 5 of 9 trials; new: 1 completed; interrupted, launch again to continue"
    )


def test_a_report_of_trials_of_which_none_has_completed_is_an_error():
    some = [failing(trial_of("s", channels(n)), f"died of {n}") for n in (1, 2)]
    failed = LaunchReport("s", "/s", 9, 5, tuple(some), counts={Status.FAILED: 3})
    with pytest.raises(SweepError) as caught:
        failed.check()
    assert caught.value.message == (
        "no trial of 's' has completed, 3 failed, the last one for 'died of 2'"
    )
    assert "sweeps retry s --failed" in caught.value.hint
    with pytest.raises(SweepError, match=r"no trial of 's' has completed, 3 failed$"):
        LaunchReport("s", "/s", 5, 5, counts={Status.FAILED: 3, Status.INFEASIBLE: 2}).check()
    LaunchReport("s", "/s", 5, 5, counts={Status.FAILED: 3, Status.COMPLETED: 1}).check()
    LaunchReport("s", "/s", 5, 5, counts={Status.INFEASIBLE: 5}).check()
    LaunchReport("s", "/s", 5, 0).check()


@pytest.mark.parametrize(
    "asked",
    [
        {"cpus_per_trial": 0},
        {"gpus_per_trial": math.nan},
        {"max_concurrent": 0},
        {"address": "nowhere"},
        {"cpus_per_trial": -1, "address": "ray://127.0.0.1:1"},
    ],
    ids=str,
)
def test_a_launch_that_makes_no_sense_begins_nothing(start, storage, asked):
    with pytest.raises(SweepError) as caught:
        start(1, **asked)
    assert caught.value.hint
    assert not storage.exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"run": run_of({"DilatedConvStack.channels": (1, 2, 3)})},
        {"run": run_of(WIDTHS, "sweep.objectives = ('val_loss', 'rtf')")},
        {"run": run_of(WIDTHS, "sweep.objectives = ('val_loss', 'x_real_time')")},
    ],
    ids=["axes", "objectives", "directions"],
)
def test_a_sweep_that_was_changed_is_refused(shared, start, changed):
    with pytest.raises(SweepError) as caught:
        start(2, **changed)
    assert caught.value.hint


# --- Sweeps


def recorded_by(version, number):
    trial = trial_of("s", channels(number))
    versions = {"ddsp-sweeps": version} if version else {}
    return dataclasses.replace(
        trial, provenance=dataclasses.replace(trial.provenance, versions=versions)
    )


def test_trials_of_another_minor_version_are_a_warning_and_no_hindrance(cluster, start, shared):
    major, minor, _ = __version__.split(".")
    patched = f"{major}.{minor}.99"
    for number, version in enumerate((patched, f"{major}.{int(minor) + 1}.0", None), start=1):
        shared.ledger.append(recorded_by(version, number))
    events = []
    assert start(4, on_event=events.append).finished == 4
    (warned,) = (event for event in events if isinstance(event, Warned))
    assert warned.message.startswith("2 finished trials were recorded by other versions (0.")
    assert "unknown" in warned.message
    assert patched not in warned.message
    assert f"this is {__version__}" in warned.message
    assert "\n" not in warned.message


def test_a_launch_goes_on_without_what_is_damaged_and_says_so(cluster, start, shared, storage):
    for number in (1, 2):
        shared.ledger.append(trial_of("s", channels(number)))
    shared.ledger.mark_started(Attempt(channels(3)))
    shared.ledger.mark_started(Attempt(Candidate.of({"of another": 1})))
    record = storage / "s" / "trials" / f"{channels(1).id}.parquet"
    mark = storage / "s" / "started" / f"{channels(3).id}.json"
    record.write_bytes(record.read_bytes()[:-50])
    mark.write_bytes(b"[]")
    shutil.copy(record.with_stem(channels(2).id), record.with_stem("0123456789ab"))
    kept, events = record.read_bytes(), []
    report = start(4, on_event=events.append)
    assert (report.finished, len(report.recorded)) == (4, 3)  # neither damage nor copy counts
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert [message for message in warned if str(record) in message]
    assert [message for message in warned if str(mark) in message]
    assert [message for message in warned if "values that its space does not have" in message]
    assert not any("\n" in message for message in warned)
    assert channels(1) not in [trial.candidate for trial in report.recorded]
    assert record.read_bytes() == kept
    record.unlink()
    record.with_stem("0123456789ab").unlink()
    assert len(Ledger.open(storage, "s").trials()) == 4
    assert start(5).finished == 5


def test_a_launch_that_meets_a_damaged_merged_file_begins_nothing(start, shared, storage):
    shared.ledger.extend([trial_of("s", channels(number)) for number in (1, 2)])
    (merged,) = (storage / "s" / "trials" / "merged-1").iterdir()
    merged.write_bytes(merged.read_bytes()[:-50])
    with pytest.raises(LedgerError, match="is not a readable record") as caught:
        start(4)
    assert "restore" in caught.value.hint
    assert not (storage / "s" / "lease.json").exists()


def test_trials_of_this_minor_version_are_no_reason_to_warn(cluster, start, shared):
    shared.ledger.append(recorded_by(__version__, 1))
    events = []
    start(2, on_event=events.append)
    assert not any(isinstance(event, Warned) for event in events)


def test_a_sweep_runs_the_number_asked_for_and_no_more(cluster, start, storage):
    report = start(3)
    assert report.summary() == "'s' has 3 of 3 trials; new: 3 completed"
    before = records(storage)
    assert set(before) == {t.id for t in report.recorded}

    again = start(3)
    assert again.summary() == "'s' has 3 finished trials already: nothing to do"
    assert records(storage) == before

    more = start(5)
    after = records(storage)
    assert len(more.recorded) == 2
    assert len(after) == 5
    assert {trial_id: after[trial_id] for trial_id in before} == before


def scratch_files():
    """What launches of this machine keep in their scratch folders at the moment."""
    folders = Path(tempfile.gettempdir()).glob("sweeps-*")
    return [file for folder in folders for file in folder.rglob("*") if file.is_file()]


def test_a_sweep_runs_on_an_object_store(cluster, s3, dataset, tmp_path):
    # The cluster was started without the key, so it is in the URI.
    storage = s3(tmp_path.name).replace("s3://", "s3://key:secretsecret@")
    told, written = [], []

    def look(event):
        told.append(str(event))
        for file in scratch_files():
            with contextlib.suppress(OSError):  # gone by now
                written.append(file.read_bytes())

    report = launch(
        "s",
        run_of(WIDTHS),
        dataset=dataset,
        trials=2,
        storage=storage,
        evaluator=evaluator("quick"),
        on_event=look,
    )
    assert len(written) > 10
    assert not any(b"secretsecret" in data for data in written)
    assert not any("secretsecret" in line for line in told)
    assert report.summary() == "'s' has 2 of 2 trials; new: 2 completed"
    ledger = Ledger.open(storage, "s")
    assert ledger.ids() == {trial.id for trial in report.recorded}
    assert all(ledger.has_artifacts(trial_id) for trial_id in ledger.ids())
    left = [info.path for info in ledger.location.entries("s", recursive=True) if info.is_file]
    assert {path.split("/")[3] for path in left} == {"sweep.json", "trials", "models"}
    assert "secret" not in report.uri


def test_a_key_on_the_command_line_is_hidden_from_the_machine_s_other_users():
    code = """
        from pathlib import Path
        from sweeps.launch import _hide_credentials
        _hide_credentials()
        print(Path("/proc/self/cmdline").read_text())
    """
    line = ["launch", "--storage", "s3://AKIA:hush@bucket/x", "--name", "s"]
    command = [sys.executable, "-c", textwrap.dedent(code), *line]
    shown = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert "launch --storage s3://bucket/x --name s" in shown
    assert "hush" not in shown


def test_what_a_killed_driver_has_left_of_a_recorded_trial_is_removed(cluster, start, shared):
    recorded = trial_of("s", channels(1))
    shared.ledger.append(recorded)
    shared.workdir(recorded.candidate).mkdir(parents=True)
    start(2)
    assert list(shared.work.iterdir()) == []


def test_events_tell_the_story_of_every_trial(cluster, start):
    events = []
    report = start(6, on_event=events.append)
    began = events[0]
    assert (type(began), began.sweep, began.asked) == (SweepBegan, "s", 6)
    assert began.standing.objectives == (objective("val_loss"), objective("rtf_ratio"))
    assert any(isinstance(event, Waited) for event in events)
    for trial in report.recorded:
        mine = [e for e in events if getattr(e, "candidate", None) == trial.candidate]
        assert [type(e) for e in mine] == [TrialBegan, *[TrialAdvanced] * STEPS]
        assert TrialEnded(trial) in events
    # Workers are used again: TensorFlow is imported once in each.
    assert len({t.measurement.p50_seconds for t in report.recorded}) <= 2


def test_a_launch_is_logged_trial_by_trial(cluster, start, storage):
    events = []
    report = start(3, log=["tensorboard"], on_event=events.append)
    assert report.finished == 3
    assert not any(isinstance(event, Warned) for event in events)
    logged = {file.parent.name for file in storage.glob("s/logs/tensorboard/*/events.*")}
    assert logged == {trial.id for trial in report.recorded}


def test_a_launch_that_cannot_be_logged_as_asked_begins_nothing(start, storage):
    with pytest.raises(SweepError, match="nothing named 'csv' to log to"):
        start(3, log=["csv"])
    assert not storage.exists()


def test_workers_are_replaced_before_they_have_grown_too_large(cluster, start, monkeypatch):
    monkeypatch.setattr("sweeps.driver.MAX_GROWTH_BYTES", 32 * 2**20)
    report = start(6, evaluate="hungry", max_concurrent=1)
    processes = [trial.measurement.p50_seconds for trial in report.recorded]
    assert processes[0::2] == processes[1::2]
    assert len(set(processes)) == 3


def test_a_worker_goes_on_with_another_candidate_when_one_is_stopped(cluster, start, storage):
    # One at a time, the best one first: no other can reach it.
    run = run_of(
        {"DilatedConvStack.channels": (8, 6, 4, 2)},
        "sweep.sampler = 'grid'",
        "sweep.stopping = 'asha'",
        "sweep.reduction_factor = 2",
        "train.steps = 4",
    )
    events = []
    report = start(
        4, run=run, evaluate="halfway", max_concurrent=1, train_steps=12, on_event=events.append
    )
    assert report.summary() == (
        "'s' has 4 of 4 trials; new: 1 completed, 3 pruned"  # 4 + 3 * 2 of the 12 steps
    )
    for trial in report.recorded[1:]:
        assert (trial.reason, trial.provenance.train_steps) == (Reason.PRUNED, STEPS // 2)
        assert list(trial.curve) == [STEPS // 2]
        assert not (storage / "s" / "work" / trial.id).exists()
    advanced = [e for e in events if isinstance(e, TrialAdvanced)]
    assert [e.candidate["channels"] for e in advanced] == [8, 8, 8, 8, 6, 4, 2]
    assert len({t.measurement.p50_seconds for t in report.recorded}) == 1  # one process
    assert Ledger.open(str(storage), "s").started() == []


WAITING = run_of(
    {"DilatedConvStack.channels": (8, 7, 6, 2, 3)},
    "sweep.sampler = 'grid'",
    "sweep.stopping = 'defer'",
    "sweep.confidence = 0.9",
    "train.steps = 4",
)
"""Of its five trials that of two channels is put off."""


def test_a_trial_that_waits_goes_on_from_its_rung_in_the_same_process(cluster, start, storage):
    events = []
    report = start(5, run=WAITING, evaluate="halfway", max_concurrent=1, on_event=events.append)
    assert [t.candidate["channels"] for t in report.recorded] == [8, 7, 6, 3, 2]
    assert [t.status for t in report.recorded] == [Status.COMPLETED] * 5
    of_it = [e for e in events if getattr(e, "candidate", None) == channels(2)]
    assert [type(e) for e in of_it] == [
        TrialBegan, TrialAdvanced, TrialDeferred, TrialBegan, TrialAdvanced, TrialAdvanced
    ]  # fmt: skip
    assert [e.stage.step for e in of_it if isinstance(e, TrialAdvanced)] == [1, 3, 4]
    assert len({t.measurement.p50_seconds for t in report.recorded}) == 1
    assert not any((storage / "s" / "work").iterdir())


def test_a_trial_that_waits_is_kept_in_an_object_store(cluster, s3, dataset, tmp_path):
    storage, events = s3(tmp_path.name).replace("s3://", "s3://key:secret@"), []
    report = launch(
        "s",
        WAITING,
        dataset=dataset,
        trials=5,
        storage=storage,
        evaluator=evaluator("halfway"),
        max_concurrent=1,
        on_event=events.append,
    )
    assert [t.candidate["channels"] for t in report.recorded] == [8, 7, 6, 3, 2]
    steps = [
        e.stage.step
        for e in events
        if getattr(e, "candidate", None) == channels(2) and isinstance(e, TrialAdvanced)
    ]
    assert steps == [1, 3, 4]
    ledger = Ledger.open(storage, "s")
    assert ledger.location.entries("s/work", recursive=True) == []
    with scratch_folder(ledger) as scratch:
        assert not any(scratch.glob("work/*"))


def test_many_trials_at_a_time_report_their_rungs_and_little_else(cluster, start, monkeypatch):
    monkeypatch.setattr(driver_module, "MOST_REPORTS", 0.02)  # of each of two, in 100 s
    events = []
    report = start(3, evaluate="halfway", on_event=events.append)
    advanced = [e for e in events if isinstance(e, TrialAdvanced)]
    assert len(advanced) == len(report.recorded) == 3
    assert all(e.stage.reached is not None for e in advanced)


def test_a_continued_launch_stops_by_what_the_one_before_has_learnt(cluster, start):
    axes = {"DilatedConvStack.channels": (8, 6, 4, 2)}
    rule = ("sweep.sampler = 'grid'", "sweep.stopping = 'asha'", "sweep.reduction_factor = 2")
    start(1, run=run_of(axes, *rule), evaluate="halfway", max_concurrent=1)
    (trial,) = start(2, run=run_of(axes, *rule), evaluate="halfway", max_concurrent=1).recorded
    assert trial.reason is Reason.PRUNED


def test_a_budget_that_is_used_up_ends_the_launch_and_is_named(cluster, start):
    run = run_of(WIDTHS, "train.steps = 4")
    report = start(5, run=run, evaluate="halfway", train_steps=11)
    assert report.summary() == (
        "'s' has 2 of 5 trials; new: 2 completed; the budget of 11 training steps is used up"
    )
    report = start(5, run=run, evaluate="slow", seconds=0.5)
    assert "the budget of 0 s is used up" in report.summary()
    assert not report.interrupted


def test_a_warm_start_says_so_and_counts_no_trial_of_the_other_sweep(
    cluster, start, storage, dataset
):
    run = run_of({"DilatedConvStack.channels": (8, 6)})
    ledger_of("other", run, storage, [trial_of("other", channels(n)) for n in (8, 6)], dataset)
    events = []
    report = start(2, run=run_of(WIDTHS), warm_start="other", on_event=events.append)
    assert (report.finished, len(report.recorded)) == (2, 2)
    (told,) = [event.message for event in events if isinstance(event, Noted)]
    assert told == "warm start: 2 trials of 'other' are known"


def test_no_more_run_at_a_time_than_is_allowed(cluster, start):
    running, most = set(), 0

    def watch(event):
        nonlocal most
        match event:
            case TrialBegan(candidate):
                running.add(candidate)
            case TrialEnded(trial):
                running.discard(trial.candidate)
        most = max(most, len(running))

    start(3, max_concurrent=1, on_event=watch)
    assert most == 1


def test_whatever_becomes_of_a_trial_it_is_a_record(cluster, start):
    events = []
    report = start(8, evaluate="moody", on_event=events.append)
    by_width = {t.candidate["channels"]: t for t in report.recorded}
    assert [by_width[n].reason for n in range(1, 9)] == [
        Reason.ERROR,  # raised
        Reason.CRASHED,  # killed every worker
        None,  # killed one worker, then went well
        None,  # NaN: no place on a front, but nothing that went wrong here
        Reason.DIVERGED,
        None,
        None,
        None,
    ]
    assert by_width[2].detail.startswith(
        "3 workers died of it, 0 were lost with their node; The actor is dead because its worker "
    )
    assert by_width[3].measurement.val_loss == 10 / 3
    retries = Counter(e.candidate["channels"] for e in events if isinstance(e, TrialRetried))
    assert retries == {2: 2, 3: 1}
    assert report.finished == 8


def test_a_worker_that_dies_of_the_last_trial_is_replaced_too(cluster, start):
    # One at a time, and the one that kills a worker when no other is left to begin.
    run = run_of({"DilatedConvStack.channels": (6, 3)}, "sweep.sampler = 'grid'")
    report = start(2, run=run, evaluate="moody", max_concurrent=1)
    assert [t.status for t in report.recorded] == [Status.COMPLETED] * 2


def test_an_exhausted_space_ends_the_sweep_with_fewer_trials(cluster, start):
    report = start(20)
    assert report.finished == 8
    assert report.exhausted
    assert report.summary().endswith("every candidate of the space has been tried")
    assert start(20).recorded == ()


def test_infeasible_trials_count_and_are_not_trained(cluster, start):
    events = []
    run = run_of(WIDTHS, "sweep.max_parameters = 1000")
    report = start(8, run=run, on_event=events.append)
    trained = {e.candidate["channels"] for e in events if isinstance(e, TrialBegan)}
    infeasible = [t for t in report.recorded if t.status is Status.INFEASIBLE]
    assert report.finished == 8
    assert {t.candidate["channels"] for t in infeasible} == set(range(1, 9)) - trained
    assert all(t.measurement.parameters > 1000 for t in infeasible)
    assert trained


def test_trials_that_miss_the_pitch_are_on_record_with_their_models_and_on_no_front(
    cluster, start, storage, tmp_path
):
    run = run_of(WIDTHS, "sweep.max_f0_missed_share = 0.3", "sweep.sampler = 'grid'")
    first = start(4, run=run, evaluate="silent")
    second = start(8, run=run, evaluate="silent")  # continues it
    assert second.finished == 8
    ledger = Ledger.open(str(storage), "s")
    for trial in [*first.recorded, *second.recorded]:
        assert ledger.get(trial.id) == trial
        missed = trial.measurement.f0_missed_share
        assert trial.status is (Status.INFEASIBLE if missed > 0.3 else Status.COMPLETED)
        assert trial.measurement.val_loss is not None
        said = f"f0_missed_share is {missed:.3g}, the limit 0.3" if missed > 0.3 else ""
        assert trial.detail == said
        ledger.get_artifacts(trial.id, tmp_path / trial.id)
        assert (tmp_path / trial.id / "decoder.onnx").read_text() == trial.id
    front = ledger.front([objective("val_loss"), objective("rtf_ratio")])
    assert [t.candidate["channels"] for t in front.members] == [4, 5, 6, 7, 8]
    assert front.excluded_line() == "3 infeasible (f0_missed_share over 0.3)"
    stricter = [Limit("f0_missed_share", high=0.15)]
    front = ledger.front(front.objectives, stricter)
    assert [t.candidate["channels"] for t in front.members] == [7, 8]
    assert front.excluded_line() == (
        "3 completed (f0_missed_share over 0.15) · 3 infeasible (f0_missed_share over 0.3)"
    )
    status = StatusReader(str(storage), "s").read()
    assert status.standing.counts[Status.INFEASIBLE] == 3
    assert status.standing.front_size == 5


def test_a_trial_that_misses_the_pitch_shows_that_the_launch_works(shared):
    """So that what crashed before is recorded, and no longer held."""
    driver = driver_of(shared, missing=8)
    crash, silent = (driver.next_attempt().candidate for _ in range(2))
    driver.ended(shared.failed(crash, Reason.ERROR, "no luck", 0.0))
    assert shared.ledger.trials() == []
    shared.ledger.append(
        trial := dataclasses.replace(trial_of("s", silent), reason=Reason.MISSED_PITCH)
    )
    driver.ended(trial)
    assert {t.reason for t in shared.ledger.trials()} == {Reason.ERROR, Reason.MISSED_PITCH}


def test_what_every_trial_would_meet_ends_the_launch_and_can_be_mended(cluster, start):
    with pytest.raises(DatasetError, match="no dataset on this node") as caught:
        start(4, evaluate="without_data")
    assert caught.value.hint == "copy it"
    assert start(4).finished == 4


def test_one_model_is_measured_at_a_time_and_only_once(cluster, start):
    report = start(2, evaluate="measuring", measurer=evaluator("measure_together"))
    assert [t.measurement.rtf for t in report.recorded] == [1, 1]
    assert len({t.measurement.p50_seconds for t in report.recorded}) == 1


@pytest.fixture
def interruptible():
    """Undoes what a shell does to jobs in the background: they ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1)]
)
def test_an_interrupt_leaves_everything_to_continue(
    cluster, start, storage, interruptible, number, times
):
    sent, ended = [], []

    def interrupt(event):
        match event:
            case TrialAdvanced(candidate, stage) if records(storage) and not sent:
                if stage.step == 1:
                    sent.append(candidate)
                    for _ in range(times):
                        os.kill(os.getpid(), number)
            case TrialEnded(trial) if sent:
                ended.append(trial.candidate)

    report = start(5, evaluate="slow", on_event=interrupt)
    assert report.interrupted
    assert 1 <= report.finished < 5
    drained = number == signal.SIGINT and times == 1
    assert (sent[0] in ended) == drained
    before = records(storage)
    again = start(5)
    assert again.finished == 5
    after = records(storage)
    assert len(after) == 5
    assert {trial_id: after[trial_id] for trial_id in before} == before


def test_a_trial_that_fits_on_no_node_is_refused_and_no_sweep_is_made(cluster, start, storage):
    with pytest.raises(SweepError, match="asks for 64 CPUs, the largest node has 2"):
        start(1, cpus_per_trial=64)
    assert list(storage.iterdir()) == []


def test_a_first_launch_that_fails_late_leaves_nothing_of_what_it_laid_out(
    cluster, start, storage, monkeypatch
):
    seen = []

    def refuse(see):
        seen.extend(path.name for path in (storage / "s").iterdir())
        assert see() == ""
        raise SweepError("a node lacks something")

    monkeypatch.setattr("sweeps.launch.check_nodes", refuse)
    with pytest.raises(SweepError, match="a node lacks something"):
        start(1, ship=True, log=["tensorboard"])
    assert sorted(seen) == ["dataset", "lease.json", "logs", "sweep.json"]
    assert list(storage.iterdir()) == []


@pytest.mark.parametrize("left", ["a record", "a mark", "checkpoints", "nothing"])
def test_a_launch_that_fails_leaves_what_is_there_as_it_was(cluster, start, shared, storage, left):
    match left:
        case "a record":
            shared.ledger.append(trial_of("s", channels(1)))
        case "a mark":
            shared.ledger.mark_started(Attempt(channels(1)))
        case "checkpoints":
            shared.workdir(channels(1)).mkdir(parents=True)
    if left != "nothing":  # whoever lost it may restore it
        (storage / "s" / "sweep.json").unlink()
    before = set(storage.rglob("*"))
    with pytest.raises(SweepError, match="asks for 64 CPUs"):
        start(8, cpus_per_trial=64)
    assert set(storage.rglob("*")) == before | {storage / "s" / "sweep.json"}


def test_a_sweep_that_is_removed_before_its_lease_is_free_is_made_again(
    cluster, start, storage, monkeypatch
):
    @contextlib.contextmanager
    def after_another_first_launch_that_failed(location, sweep, **_):
        location.delete(f"{sweep}/sweep.json")
        with leased(location, sweep) as lost:
            yield lost

    monkeypatch.setattr("sweeps.launch.leased", after_another_first_launch_that_failed)
    assert start(1).finished == 1


def test_a_launch_that_is_refused_the_lease_does_not_remove_the_sweep(cluster, start, storage):
    storage.mkdir()
    (storage / "s").mkdir()
    with leased(Location.of(storage), "s"), pytest.raises(SweepError, match="launched already"):
        start(1)
    assert (storage / "s" / "sweep.json").exists()


def test_a_node_says_what_is_wrong_there(shared):
    assert shared.what_is_wrong_here() == ""
    lost = dataclasses.replace(shared, evaluator="no.such:thing")
    assert lost.what_is_wrong_here().startswith("cannot load 'no.such:thing'")
    other = dataclasses.replace(shared, code="0.1.0+0123456789ab")
    assert other.what_is_wrong_here().endswith(f"that of the launch {other.code}")
    clips = Path(shared.dataset, "clips.arrow")
    clips.write_bytes(clips.read_bytes()[::-1])
    assert "altered, cut short" in shared.what_is_wrong_here()


def test_when_all_workers_die_the_launch_ends_and_the_next_one_tries_the_candidates_again(
    cluster, start
):
    events = []
    with pytest.raises(
        SweepError, match=r"2 so far: Segmentation fault \(fakes\.py, line"
    ) as caught:
        start(8, evaluate="crashing", on_event=events.append)
    assert "tried again" in caught.value.hint
    tried = {event.candidate for event in events if isinstance(event, TrialBegan)}
    report = start(2)
    assert {trial.candidate for trial in report.recorded} == tried
    assert [trial.status for trial in report.recorded] == [Status.COMPLETED] * 2
