"""What ends, and removes, whatever a driver leaves that was killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.reaper import lock_of, users_of
from tests.e2e.cluster import wait_until

DRIVER = """
import os, subprocess, sys, time
from pathlib import Path
from sweeps.reaper import reaping

folder = Path(sys.argv[1])
with reaping(folder):
    with (folder / "worker.log").open("w") as log:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=log)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("ends", ["killed", "in order"])
def test_nothing_is_left_of_a_launch_however_its_driver_ends(tmp_path: Path, ends: str) -> None:
    scratch = tmp_path / "scratch"
    folder = scratch / "r1"
    folder.mkdir(parents=True)
    lock_of(folder).touch()
    command = [sys.executable, "-c", DRIVER, folder, ends]
    subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
    wait_until(lambda: not scratch.exists(), 15)
    assert not users_of(folder)


def test_checkpoints_and_other_launches_stay_when_a_driver_is_killed(tmp_path: Path) -> None:
    folder, other = tmp_path / "r1", tmp_path / "r2"
    for path in (folder, other, tmp_path / "work"):
        path.mkdir()
    lock_of(other).touch()
    command = [sys.executable, "-c", DRIVER, folder, "killed"]
    subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
    wait_until(lambda: not folder.exists(), 15)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r2", "r2.lock", "work"]


GIVES_UP = """
import os, sys, threading, time
from pathlib import Path
from sweeps.reaper import reaping

folder, begun = Path(sys.argv[1]), threading.Event()

def give_up():
    begun.wait()
    reap()
    gone.set()
    time.sleep(0.5)
    os._exit(7)

gone = threading.Event()
with reaping(folder) as reap:
    threading.Thread(target=give_up).start()
    begun.set()
    gone.wait()  # as Ray does for a part that is stopped
print("went on")
"""


def test_a_launch_that_is_given_up_does_not_go_on(tmp_path: Path) -> None:
    (tmp_path / "r1").mkdir()
    command = [sys.executable, "-c", GIVES_UP, tmp_path / "r1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
