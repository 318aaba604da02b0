import json
import os
import subprocess
import sys
import threading
import time

import pytest

from sweeps import lease
from sweeps.errors import LedgerError, SweepError
from sweeps.lease import leased
from sweeps.storage import Location


@pytest.fixture
def location(tmp_path):
    (tmp_path / "s").mkdir()
    return Location.of(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Leases that expire in a second."""
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.1)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1.0)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.05)


def file(location):
    return location.local_folder / "s" / "lease.json"


def left_by(location, **fields):
    """A lease as a launch that is no more has left it."""
    with leased(location, "s"):
        held = json.loads(file(location).read_text())
    file(location).write_text(json.dumps({**held, **fields}))


def refusal(location):
    with pytest.raises(SweepError) as caught, leased(location, "s"):
        pass
    return caught.value


def test_one_launch_at_a_time_holds_the_lease(location):
    with leased(location, "s"):
        error = refusal(location)
        assert "is being launched already" in error.message
        assert str(os.getpid()) in error.message
    with leased(location, "s"):
        pass
    assert not file(location).exists()


def test_what_a_dead_process_of_this_machine_left_is_taken_at_once(location, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1000.0)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, check=True, text=True)  # fmt: skip
    left_by(location, pid=int(dead.stdout))
    with leased(location, "s") as lost:
        assert lost() is None


def test_another_process_under_an_old_number_is_not_the_holder(location, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1000.0)
    left_by(location, pid=os.getpid(), started="1")
    with leased(location, "s"):
        pass


def test_a_holder_on_another_machine_is_refused_as_long_as_it_renews(location):
    left_by(location, machine="far", host="away")
    ended = threading.Event()

    def renew():
        count = 0
        while not ended.wait(0.1):
            count += 1
            held = json.loads(file(location).read_text())
            location.put("s/lease.json", json.dumps({**held, "renewals": count}).encode(),
                         replace=True)  # fmt: skip

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        assert refusal(location).message.endswith("of away")
    finally:
        ended.set()
        thread.join()


def test_a_holder_on_another_machine_that_does_not_renew_is_replaced(location):
    left_by(location, machine="far", host="away")
    said, began = [], time.monotonic()
    with leased(location, "s", waiting=said.append) as lost:
        assert time.monotonic() - began >= 1.0
        assert "away" in said[0]
        time.sleep(0.3)
        assert lost() is None


def test_a_lease_outlives_its_expiry_while_it_is_held(location, monkeypatch):
    with leased(location, "s") as lost:
        time.sleep(1.5)
        assert lost() is None
        monkeypatch.setattr(lease, "_machine", lambda: "far")  # which cannot see our process
        assert "is being launched already" in refusal(location).message


def test_a_clock_that_is_set_back_changes_nothing(location, monkeypatch):
    now = time.time()
    with leased(location, "s") as lost:
        monkeypatch.setattr(time, "time", lambda: now - 1e6)
        time.sleep(0.3)
        assert lost() is None
        assert refusal(location).hint


def test_who_was_silent_for_too_long_learns_that_the_lease_is_gone(location):
    with leased(location, "s") as lost:
        held = json.loads(file(location).read_text())
        usurped = json.dumps({**held, "holder": "other", "host": "away"})
        file(location).write_text(usurped)
        time.sleep(0.3)
        assert "taken over by a launch on away" in lost().message
    assert file(location).read_text() == usurped  # is not given back by who does not hold it


def test_of_many_that_see_a_lease_expire_one_takes_it(location):
    left_by(location, machine="far")
    held, refused = [], []
    barrier, done = threading.Barrier(4), threading.Event()

    def launch():
        barrier.wait()
        try:
            with leased(location, "s") as lost:
                held.append(lost)
                done.wait(10)
        except SweepError as error:
            refused.append(error)

    threads = [threading.Thread(target=launch) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while len(held) + len(refused) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    alive = [lost for lost in held if lost() is None]
    done.set()
    for thread in threads:
        thread.join()
    assert len(alive) == 1
    assert len(refused) + len(held) == 4
    assert len(held) == 1


def test_a_file_that_is_no_lease_is_an_error_that_says_what_to_do(location):
    file(location).write_text("{")
    with (
        pytest.raises(LedgerError, match=r"lease\.json cannot be read") as caught,
        leased(location, "s"),
    ):
        pass
    assert "delete it" in caught.value.hint
