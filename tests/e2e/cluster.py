"""A Ray cluster of several nodes on one machine, whose processes can be killed one by one.

`ray start` refuses several nodes on the loopback, and else opens its servers to the network. So a
node is this file, run as a script: `python cluster.py head|node PORT FOLDER`.
"""

import contextlib
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1 only, as Ray has it on laptops
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    # What is gone is noticed within seconds, not after a minute.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "8",
}
"""Of every process that is part of the cluster, or connects to it."""


def processes_of(session: int) -> dict[int, str]:
    """The running processes of a session by id, as they call themselves."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, _, _, its = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if state != "Z" and int(its) == session:
                found[int(process.name)] = (process / "cmdline").read_text().strip("\0")
    return found


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


class Node:
    """The processes of one node: a session of their own."""

    def __init__(self, kind: str, port: int, folder: Path, **variables: str) -> None:
        self._log = folder / "nodes.log"
        with self._log.open("a") as log:
            self._start = subprocess.Popen(
                [sys.executable, __file__, kind, str(port), str(folder)],
                stdin=subprocess.PIPE,  # which ends the node when the test is gone
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **ENVIRONMENT, **variables, "TEST_NODE": kind},
                text=True,
            )

    def processes(self, name: str = "") -> list[int]:
        """The node's processes whose command line holds a name."""
        return [pid for pid, line in processes_of(self._start.pid).items() if name in line]

    def wait(self) -> None:
        """Waits until the node is part of its cluster."""
        assert self._start.stdout is not None
        if self._start.stdout.readline() != "up\n":
            self.stop()
            raise RuntimeError(f"a node did not start: {self._log.read_text()[-2000:]}")

    def keep(self) -> None:
        """Has the node's other processes live when one of them dies."""
        os.kill(self._start.pid, signal.SIGSTOP)

    def stop(self) -> None:
        """Kills all of it."""
        while found := self.processes():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._start.communicate()


class Cluster:
    """A head and other nodes with one CPU each; nodes may be added and stopped at any time."""

    def __init__(self, folder: Path, port: int, *, others: int, **variables: str) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._port = folder, port
        self.address = f"127.0.0.1:{port}"
        self._client_server: subprocess.Popen[bytes] | None = None
        self._variables = variables
        self.head, self.others = Node("head", port, folder, **variables), list[Node]()
        try:
            self.head.wait()
            for _ in range(others):
                self.join()
        except RuntimeError:
            self.stop()
            raise

    def join(self) -> None:
        """Adds a node. (Two that start at the same time take each other's ports.)"""
        self.others.append(Node("node", self._port, self._folder, **self._variables))
        self.others[-1].wait()

    def serve_clients(self) -> str:
        """Starts a server for Ray clients, and returns its address.

        It is one process. That of a head forks one for each client, from a process with threads,
        and now and then such a child hangs (hence `sweeps.cluster` tries several times).
        """
        port = self._port + 1
        self._client_server = subprocess.Popen(
            [sys.executable, "-m", "ray.util.client.server", "--mode=legacy", "--host=127.0.0.1",
             f"--port={port}", f"--address={self.address}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        wait_until(lambda: _listens(port))
        return f"ray://127.0.0.1:{port}"

    @property
    def nodes(self) -> list[Node]:
        return [self.head, *self.others]

    def stop(self) -> None:
        if self._client_server is not None:
            self._client_server.kill()
            self._client_server.wait()
        for node in self.nodes:
            node.stop()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


def _head(port: int, folder: str) -> dict[str, object]:
    return {"temp_dir": folder, "gcs_server_port": port}


def main(kind: str, port: int, folder: str) -> None:
    """Runs a node until stdin is closed or it dies."""
    from ray._private.node import Node as RayNode
    from ray._private.parameter import RayParams

    params = RayParams(
        num_cpus=1,
        object_store_memory=80 * 2**20,
        node_ip_address="127.0.0.1",
        include_dashboard=False,
        **_head(port, folder) if kind == "head" else {},
    )
    if kind == "node":
        params.gcs_address = f"127.0.0.1:{port}"
    node = RayNode(params, head=kind == "head", shutdown_at_exit=True, spawn_reaper=True)
    print("up", flush=True)
    while not node.dead_processes():
        readable, _, _ = select.select([sys.stdin], [], [], 0.2)
        if readable and not sys.stdin.read():
            break
    node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
