"""What may befall a sweep: it goes on, or ends with one clear error, and loses nothing.

Whole launches by the command line, with an evaluator of milliseconds in place of the real one.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import fs

from sweeps.cli import main
from sweeps.driver import Wishes
from sweeps.launch import launch
from sweeps.ledger import Ledger
from sweeps.progress import TrialAdvanced, TrialEnded
from sweeps.status import StatusReader
from sweeps.storage import Location
from sweeps.trial import Reason, Status
from tests.e2e.cluster import wait_until
from tests.sweeps.fakes import evaluator, make_dataset, run_of, small_cluster
from tests.sweeps.test_storage import Failing, every_third

WIDTHS = tuple(range(1, 9))
RUN = f"search_space.axes = {{'DilatedConvStack.channels': {WIDTHS}}}\n"

DRIVER = """
import functools, sys
import sweeps.launch
from sweeps.cli import main

evaluator, *arguments = sys.argv[1:]
sweeps.launch.launch = functools.partial(sweeps.launch.launch, evaluator=evaluator)
sys.exit(main(arguments))
"""


@pytest.fixture(scope="module")
def cluster(s3):
    """One cluster for all of these; its workers know the key of the S3 server."""
    import ray

    with small_cluster():
        yield ray.get_runtime_context().gcs_address


class Sweep:
    """A sweep 's' that is to try all widths, and what a user sees of it."""

    def __init__(self, folder, capsys, monkeypatch):
        self.storage = folder / "runs"
        self.dataset = make_dataset(folder / "data")
        self._run = folder / "run.gin"
        self._run.write_text(RUN)
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def arguments(self, *more):
        places = ["--data", self.dataset, "--storage", str(self.storage)]
        asked = ["--trials", str(len(WIDTHS))]
        return ["launch", str(self._run), "--name", "s", *places, *asked, *more]

    def launch(self, evaluate="quick", *more, on_event=lambda event: None, **options):
        """Exit status and lines on stderr of a launch in this process."""

        def launch_with(*arguments, on_event, **others):
            def both(event):
                on_event(event)
                hook(event)

            options_ = {**others, **options, "evaluator": evaluator(evaluate)}
            return launch(*arguments, on_event=both, **options_)

        hook = on_event
        self._capsys.readouterr()
        with self._monkeypatch.context() as patch:
            patch.setattr("sweeps.launch.launch", launch_with)
            status = main(self.arguments(*more))
        return status, self._capsys.readouterr().err.splitlines()

    def start(self, evaluate, *more, **variables):
        """A launch in a process of its own."""
        command = [sys.executable, "-W", "error", "-c", DRIVER, evaluator(evaluate)]
        return subprocess.Popen(
            [*command, *self.arguments(*more)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **variables},
        )

    def records(self):
        """Every record's bytes by trial id, as they are on the disk."""
        files = (self.storage / "s" / "trials").glob("[!_]*.parquet")
        return {file.stem: file.read_bytes() for file in files}

    def assert_whole(self, before=()):
        """Asserts that each width is on record once, with its model, and nothing is left over."""
        ledger = Ledger.open(str(self.storage), "s")
        trials = ledger.trials()
        assert sorted(trial.candidate["channels"] for trial in trials) == list(WIDTHS)
        assert [trial.status for trial in trials] == [Status.COMPLETED] * len(WIDTHS)
        assert all(ledger.has_artifacts(trial.id) for trial in trials)
        assert ledger.started() == []
        if ledger.location.local_folder:
            after = self.records()
            assert {trial_id: after[trial_id] for trial_id in before} == dict(before)
            assert left_over(self.storage) == []


def left_over(storage):
    """What writers leave behind that did not get to their end."""
    return [file.name for file in storage.rglob("_*")]


def after(trials, action):
    """A listener: does something, once, when so many trials have ended."""
    ended = []

    def listen(event):
        if isinstance(event, TrialEnded):
            ended.append(event.trial)
            if len(ended) == trials:
                action()

    return listen


def assert_one_error(lines, message, hint):
    """Asserts that what a user reads ends with this error, and that there is no other."""
    assert [line for line in lines if line.startswith("error:")] == lines[-2:-1]
    assert not any("Traceback" in line for line in lines)
    assert re.search(message, lines[-2])
    assert lines[-1].startswith(f"hint: {hint}")


@pytest.fixture
def sweep(tmp_path, capsys, monkeypatch):
    return Sweep(tmp_path, capsys, monkeypatch)


def test_a_sweep_on_s3_is_interrupted_continued_and_queried(cluster, sweep, s3, capsys, tmp_path):
    sweep.storage = s3("e2e")
    wishes = Wishes()

    def stop_when_one_is_in_the_middle(event):
        nonlocal ended
        ended += isinstance(event, TrialEnded)
        if isinstance(event, TrialAdvanced) and ended >= 2 and event.stage.step == 2:
            wishes.stop()

    ended = 0
    status, lines = sweep.launch("slow", on_event=stop_when_one_is_in_the_middle, wishes=wishes)
    assert status == 130
    assert lines[-2].endswith("interrupted, launch again to continue")
    before = Ledger.open(sweep.storage, "s").trials()
    assert 2 <= len(before) < len(WIDTHS)

    status, _ = sweep.launch()
    assert status == 0
    sweep.assert_whole()
    ledger = Ledger.open(sweep.storage, "s")
    trials = ledger.trials()
    assert [trial for trial in trials if trial in before] == before
    # Checkpoints are kept on the machine.
    assert any(trial.measurement.train_loss > 0 for trial in trials if trial not in before)

    assert main(["front", "s", "--storage", sweep.storage, "--json"]) == 0
    front = json.loads(capsys.readouterr().out)["front"]
    assert {member["id"] for member in front} == {trial.id for trial in trials}
    for trial in trials:
        ledger.get_artifacts(trial.id, tmp_path / trial.id)
        assert (tmp_path / trial.id / "decoder.onnx").read_text() == trial.id


def test_a_sweep_of_which_all_trials_failed_says_so_and_tries_them_again_when_told(cluster, sweep):
    for _ in range(2):  # the second time there is nothing to do
        status, lines = sweep.launch("diverging")
        assert status == 1
        assert_one_error(
            lines, "no trial of 's' has completed, 8 failed", "mend the cause; 'sweeps"
        )
    assert main(["retry", "s", "--failed", "--storage", str(sweep.storage)]) == 0
    status, _ = sweep.launch()
    assert status == 0
    sweep.assert_whole()


def test_trials_that_all_fail_alike_end_the_launch_with_their_cause(cluster, sweep):
    status, lines = sweep.launch("broken")
    assert status == 1
    assert_one_error(lines, "all trials fail alike, [34] so far: RuntimeError: .*fakes.py", "mend")
    assert sweep.records() == {}


def test_one_of_two_drivers_is_refused_and_a_dead_one_is_replaced_at_once(cluster, sweep):
    drivers = []

    def start():
        drivers.append(sweep.start("slow", "--address", cluster))
        return drivers[-1]

    def drives(driver):
        with contextlib.suppress(OSError, ValueError):  # no lease, or one that is being replaced
            return json.loads((sweep.storage / "s" / "lease.json").read_text())["pid"] == driver.pid

    try:
        killed = start()
        wait_until(lambda: sweep.records(), 120)
        killed.kill()
        killed.wait()
        before = sweep.records()
        assert drives(killed)

        first = start()
        wait_until(lambda: drives(first), 120)
        second = start()
        said = second.communicate(timeout=120)[0].splitlines()
        assert second.returncode == 1
        message = f"sweep 's' is being launched already, by process {first.pid} of"
        assert_one_error(said, message, "'sweeps status s'")

        said = first.communicate(timeout=120)[0]
        assert first.returncode == 0, said
        assert "looking if that launch is alive" not in said
        sweep.assert_whole(before)
        assert not (sweep.storage / "s" / "lease.json").exists()
    finally:
        for driver in drivers:
            driver.kill()
            driver.communicate()


@pytest.fixture
def small_disk(sweep):
    """The sweep's storage is a disk of its own, of 4 MB."""
    sweep.storage.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(sweep.storage)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk takes root")
    yield sweep.storage
    subprocess.run(["umount", "--lazy", str(sweep.storage)], check=True)


def test_a_full_disk_is_one_error_and_loses_nothing(cluster, sweep, small_disk):
    filler = small_disk / "filler"

    def fill():
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    status, lines = sweep.launch("slow", on_event=after(2, fill))
    assert status == 1, lines
    assert_one_error(lines, "cannot write .*: No space left on device", "free some space")
    before = sweep.records()
    assert len(before) >= 2
    trials = Ledger.open(sweep.storage, "s").trials()
    assert {trial.id for trial in trials} == set(before)
    assert {trial.status for trial in trials} == {Status.COMPLETED}
    assert left_over(small_disk) == []

    filler.unlink()
    assert sweep.launch()[0] == 0
    sweep.assert_whole(before)


def test_a_sweep_whose_folder_goes_away_ends_and_can_be_brought_back(cluster, sweep, tmp_path):
    folder, away = sweep.storage / "s", tmp_path / "away"
    status, lines = sweep.launch("slow", on_event=after(2, lambda: folder.rename(away)))
    assert status == 1, lines
    assert_one_error(lines, "s is gone: it holds no sweep.json", "mount or restore it")
    assert not folder.exists()

    away.rename(folder)
    before = sweep.records()
    assert sweep.launch()[0] == 0
    sweep.assert_whole(before)


def test_records_that_were_removed_are_missed_and_their_trials_run_again(cluster, sweep, tmp_path):
    trials = sweep.storage / "s" / "trials"
    away = tmp_path / "away"
    status, lines = sweep.launch("slow", on_event=after(2, lambda: trials.rename(away)))
    assert status == 1, "\n".join(lines)
    assert_one_error(lines, "[23] records of .* are gone", "restore them, or launch again")
    before = sweep.records()
    assert len(before) in (5, 6)

    assert sweep.launch()[0] == 0
    sweep.assert_whole(before)


def test_storage_that_fails_every_third_write_is_no_matter(cluster, sweep):
    sweep.storage.mkdir()
    handler = Failing(sweep.storage, every_third("write"))
    report = launch(
        "s",
        run_of({"DilatedConvStack.channels": WIDTHS}),
        dataset=sweep.dataset,
        trials=len(WIDTHS),
        storage=Location(fs.PyFileSystem(handler), "", "failing:"),
        evaluator=evaluator("quick"),
    )
    assert report.summary() == "'s' has 8 of 8 trials; new: 8 completed"
    sweep.assert_whole()


def test_clocks_that_are_set_back_are_no_matter(cluster, sweep, monkeypatch, capsys):
    now, left = time.time, []

    def look(event):
        set_back(event)
        left.append(StatusReader(sweep.storage, "s").read())

    set_back = after(2, lambda: monkeypatch.setattr(time, "time", lambda: now() - 3600))
    for trials in (4, len(WIDTHS)):
        status, lines = sweep.launch("clock_set_back", "--trials", str(trials), on_event=look)
        assert status == 0
        assert len(Ledger.open(sweep.storage, "s").ids()) == trials
        wrong = re.compile(r"(?<!\w)-\d|Traceback")
        assert [line for line in lines if wrong.search(line)] == []
    sweep.assert_whole()
    assert all(status.seconds_left is None or status.seconds_left >= 0 for status in left)
    assert all(
        trial.provenance.finished_at < trial.provenance.started_at
        for trial in Ledger.open(sweep.storage, "s").trials()
    )
    for command in ("status", "front"):
        assert main([command, "s", "--storage", str(sweep.storage)]) == 0
    assert not re.search(r"(?<!\w)-\d", capsys.readouterr().out)


def test_a_trial_that_takes_all_memory_fails_alone(sweep):
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
    total, available = kilobytes["MemTotal"], kilobytes["MemAvailable"]
    if available < 8 * 2**20:
        pytest.skip("a trial that takes too much memory needs 8 GB to take")
    share = (total - available + 2 * 2**20) / total  # 2 GB more than now
    driver = sweep.start(
        "greedy", RAY_memory_usage_threshold=f"{share:.4f}", RAY_memory_monitor_refresh_ms="100"
    )
    said, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, said
    trials = Ledger.open(sweep.storage, "s").trials()
    by_width = {trial.candidate["channels"]: trial for trial in trials}
    assert [by_width[n].reason for n in WIDTHS] == [None] * 4 + [Reason.OUT_OF_MEMORY] + [None] * 3
    assert by_width[5].detail.startswith("3 workers died of it, 0 were lost with their node; ")
    assert "low on memory" in by_width[5].detail
