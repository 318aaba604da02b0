"""A driver that is killed loses nothing: real processes, and an evaluator that takes a second.

What is launched is `command`; all else holds for any evaluator and any command line.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps.ledger import Ledger
from sweeps.trial import Status
from tests.sweeps.fakes import evaluator, make_dataset

TRIALS = 8

DRIVER = """
import sys
from sweeps.launch import launch
from sweeps.progress import SweepProgress
from tests.sweeps.fakes import run_of

dataset, storage, evaluator, trials = sys.argv[1:]
run = run_of({"DilatedConvStack.channels": tuple(range(1, 41))})
with SweepProgress() as show:
    report = launch("killed", run, dataset=dataset, trials=int(trials), storage=storage,
                    evaluator=evaluator, on_event=show)
print(report.summary())
sys.exit(130 if report.interrupted else 0)
"""


def command(dataset: str, storage: Path) -> list[str]:
    """Starts the sweep 'killed', and continues it."""
    arguments = [dataset, str(storage), evaluator("slow"), str(TRIALS)]
    return [sys.executable, "-W", "error", "-c", DRIVER, *arguments]


class Sweep:
    """What a sweep's folder holds, as other processes see it."""

    def __init__(self, folder):
        self.folder = folder

    def records(self):
        """Every record's bytes and time of writing, by trial id."""
        files = (self.folder / "trials").glob("[!_]*.parquet")
        return {f.stem: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}

    def started(self):
        return {f.stem for f in (self.folder / "started").glob("[!_]*.json")}

    def in_training(self):
        """Candidates that have a checkpoint and no record."""
        saved = {f.parent.name for f in (self.folder / "work").glob("*/step")}
        return saved - set(self.records())  # in this order: one may be recorded meanwhile


def processes(driver):
    """Running processes of a driver's session, which is all that it starts: id -> command."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if state != "Z" and int(session) == driver.pid:
                found[int(process.name)] = (process / "cmdline").read_text().strip("\0")
    return found


def reachable_from_outside(pids):
    """Addresses, as /proc shows them, on which processes listen to more than this machine."""
    sockets = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            links = [file.readlink().name for file in Path(f"/proc/{pid}/fd").iterdir()]
            sockets |= {link[len("socket:[") : -1] for link in links if link.startswith("socket:")}
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, address, _, state, *rest = line.split()
            loopback = address.split(":")[0].endswith("0100007F")
            if state == "0A" and rest[5] in sockets and not loopback:
                listening.append(address)
    return listening


def interruptible():
    """Undoes what a shell does to jobs in the background: they ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def launched(tmp_path):
    """Starts the same launch again and again."""
    dataset, storage, drivers = make_dataset(tmp_path / "data"), tmp_path / "sweeps", []

    def launched():
        drivers.append(
            subprocess.Popen(
                command(dataset, storage),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                preexec_fn=interruptible,
            )
        )
        return drivers[-1]

    yield launched
    for driver in drivers:
        driver.kill()
        driver.communicate()


@pytest.mark.timeout(180)
def test_a_killed_and_an_interrupted_sweep_continue_where_they_were(launched, tmp_path):
    sweep = Sweep(tmp_path / "sweeps" / "killed")

    killed = launched()
    wait_until(lambda: len(sweep.records()) >= 2 and sweep.in_training())
    killed.send_signal(signal.SIGKILL)
    output, _ = killed.communicate(timeout=60)  # when the last process has closed it
    assert "error: the launch has gone" in output
    assert processes(killed) == {}
    at_kill, in_flight = sweep.records(), sweep.started()
    assert 2 <= len(at_kill) < TRIALS
    assert in_flight - set(at_kill)

    interrupted = launched()
    wait_until(lambda: len(sweep.records()) > len(at_kill) and sweep.in_training())
    assert reachable_from_outside(processes(interrupted)) == []
    os.killpg(interrupted.pid, signal.SIGINT)  # as Ctrl-C does: the whole group
    output, _ = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    assert output.endswith("interrupted, launch again to continue\n")
    assert "Traceback" not in output
    assert processes(interrupted) == {}
    at_interrupt = sweep.records()
    assert in_flight <= set(at_interrupt) | sweep.started()

    last = launched()
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0
    assert f"'killed' has {TRIALS} of {TRIALS} trials" in output
    assert processes(last) == {}

    at_end = sweep.records()
    assert len(at_end) == TRIALS
    assert in_flight <= set(at_end)
    for earlier in (at_kill, at_interrupt):
        assert {trial_id: at_end[trial_id] for trial_id in earlier} == earlier
    assert sweep.started() == sweep.in_training() == set()

    ledger = Ledger.open(tmp_path / "sweeps", "killed")
    trials = ledger.trials()
    assert [t.status for t in trials] == [Status.COMPLETED] * TRIALS
    assert all(ledger.has_artifacts(t.id) for t in trials)
    resumed = {t.id for t in trials if t.measurement.train_loss > 0}  # the step it began at
    assert resumed & in_flight

    output, _ = launched().communicate(timeout=60)
    assert output.endswith(f"'killed' has {TRIALS} finished trials already: nothing to do\n")
    assert sweep.records() == at_end
