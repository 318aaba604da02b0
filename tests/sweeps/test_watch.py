import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from sweeps import watch as watch_module
from sweeps.watch import ClientServer, Look, OtherCluster, OwnCluster, Watch
from tests.e2e.cluster import wait_until


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(watch_module, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watch_module, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(watch_module, "GRACE_SECONDS", 0.1)
    monkeypatch.delenv(watch_module.RECONNECT_VARIABLE, raising=False)


class Found(Look):
    """Finds what it is told to."""

    gone = ""
    closed = False

    def __call__(self):
        return self.gone

    def close(self):
        self.closed = True


@pytest.fixture
def begin():
    watches = []

    def begin(look, give_up=None):
        watches.append(Watch())
        watches[-1].begin(look, give_up)
        return watches[-1]

    yield begin
    for watch in watches:
        watch.end()


# --- What ends a launch


def test_a_cluster_that_is_there_is_no_error(begin):
    look = Found()
    watch = begin(look)
    assert watch.look() is watch.error() is None
    watch.end()
    assert look.closed


def test_what_is_gone_is_an_error_and_stays_one(begin):
    look = Found()
    watch = begin(look)
    look.gone = "the head is gone"
    wait_until(watch.error, 5)
    look.gone = ""
    assert watch.look().message == "the head is gone"
    assert watch.error().hint.startswith("launch again to continue")


def test_a_launch_that_does_not_end_without_its_cluster_is_ended(begin):
    look, ended = Found(), []
    begin(look, ended.append)
    look.gone = "the head is gone"
    wait_until(lambda: ended, 5)
    assert [error.message for error in ended] == ["the head is gone"]


def test_a_launch_that_ends_in_order_is_not_ended(begin, monkeypatch):
    monkeypatch.setattr(watch_module, "GRACE_SECONDS", 0.3)
    look, ended = Found(), []
    watch = begin(look, ended.append)
    look.gone = "the head is gone"
    wait_until(watch.error, 5)
    watch.end()
    time.sleep(0.4)
    assert ended == []


def test_a_cluster_that_goes_when_it_is_let_go_of_is_no_matter(begin):
    look, ended = Found(), []
    watch = begin(look, ended.append)
    watch.close()
    look.gone = "the head is gone"
    assert watch.look() is None
    watch.end()
    time.sleep(0.2)
    assert ended == []


def test_a_launch_that_cannot_let_go_of_its_cluster_is_ended(begin, monkeypatch):
    monkeypatch.setattr(watch_module, "DISCONNECT_SECONDS", 0.05)
    ended = []
    begin(Found(), ended.append).close()
    wait_until(lambda: ended, 5)
    assert ended[0].message == "the Ray cluster could not be let go of"


def test_a_launch_that_does_not_answer_is_gone(begin, monkeypatch):
    monkeypatch.setattr(watch_module, "SILENCE_SECONDS", 0.05)
    watch = begin(Found())
    with watch.asking():
        pass
    time.sleep(0.1)
    assert watch.look() is None
    with watch.asking():
        wait_until(watch.error, 5)
    assert watch.error().message == "the launch on the Ray cluster does not answer"


# --- A cluster of this process


@pytest.fixture
def part(tmp_path):
    """Starts a child with a name."""
    children = []

    def start(name):
        shutil.copy(shutil.which("sleep"), tmp_path / name)
        children.append(subprocess.Popen([tmp_path / name, "60"]))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    ("name", "what"), [("raylet", "node that this launch is on"), ("gcs_server", "head")]
)
@pytest.mark.parametrize("reaped", [True, False])
def test_a_part_of_an_own_cluster_that_dies_is_missed(part, name, what, reaped):
    look = OwnCluster()
    assert look() == ""
    child = part(name)
    part("sleep").kill()
    wait_until(lambda: look() == "" and look._seen, 5)
    child.kill()
    if reaped:
        child.wait()
    wait_until(look, 5)
    assert what in look()


def test_a_part_of_an_own_cluster_may_be_stopped_for_a_while(part, monkeypatch):
    monkeypatch.setattr(watch_module, "HEAD_SECONDS", 60)
    look = OwnCluster()
    child = part("gcs_server")
    wait_until(lambda: look() == "" and look._seen, 5)
    child.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    assert look() == ""
    monkeypatch.setattr(watch_module, "HEAD_SECONDS", 0.1)
    wait_until(look, 5)
    assert "head" in look()


def test_a_part_that_died_before_anybody_looked_is_missed(part):
    part("raylet").kill()
    look = OwnCluster()
    wait_until(look, 5)


def test_another_s_part_is_no_matter(part):
    look = OwnCluster()
    script = 'cp "$(command -v sleep)" "$0" && "$0" 0.1; sleep 60'
    with subprocess.Popen(["sh", "-c", script, part("sleep").args[0].with_name("raylet")]) as other:
        for _ in range(20):
            assert look() == ""
            time.sleep(0.02)
        other.kill()


# --- A cluster of somebody else


class Server:
    """Listens, and closes all when it dies."""

    def __init__(self, server):
        self._server, self._accepted = server, []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        while True:
            try:
                self._accepted.append(self._server.accept()[0])
            except OSError:
                return

    def die(self):
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for each in [self._server, *self._accepted]:
            each.close()


@pytest.fixture
def servers(tmp_path):
    """A node's socket and a head's address, and the two servers."""
    path = str(tmp_path / "raylet")
    node = socket.socket(socket.AF_UNIX)
    node.bind(path)
    node.listen()
    head = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{head.getsockname()[1]}"
    both = [Server(node), Server(head)]
    yield path, address, *both
    for server in both:
        try:
            server.die()
        except OSError:  # it has
            continue


def test_a_node_that_dies_is_missed_at_once(servers):
    path, address, node, _ = servers
    look = OtherCluster()
    look.connected(path, address)
    assert [look(), look()] == ["", ""]
    node.die()
    assert look() == "the Ray node that this launch is on is gone"
    look.close()


def test_a_head_may_be_away_for_some_time(servers):
    path, address, _, head = servers
    look = OtherCluster()
    look.connected(path, address)
    assert look() == ""
    head.die()
    assert look() == ""
    time.sleep(0.11)
    assert look() == "the head of the Ray cluster is gone"
    look.close()


def test_ray_s_own_patience_with_a_head_is_ours(servers, monkeypatch):
    monkeypatch.setenv(watch_module.RECONNECT_VARIABLE, "60")
    path, address, _, head = servers
    look = OtherCluster()
    look.connected(path, address)
    head.die()
    time.sleep(0.11)
    assert look() == ""
    look.close()


def test_a_cluster_that_never_lets_one_connect_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(watch_module, "CONNECT_SECONDS", 0.05)
    look = OtherCluster()
    assert look() == ""
    time.sleep(0.06)
    assert look() == "the Ray cluster does not let this launch connect"


def test_a_client_server_that_dies_is_missed(servers):
    _, address, _, server = servers
    look = ClientServer(address)
    assert look() == ""
    server.die()
    time.sleep(0.11)
    assert look() == "the client server of the Ray cluster is gone"
