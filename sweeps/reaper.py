"""Ends a local Ray cluster whose driver was killed. Standard library only; runs as a script.

Ray binds its server and node processes to the driver's life, but the agents that those start linger
for a minute, and workers finish their step first. This process waits for the driver in its place:
a pipe whose other end only the driver holds is closed by the kernel however the driver dies.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "SWEEPS_CLUSTER"
"""Environment variable by which the processes of a cluster are told from all others."""

_IN_ORDER = "the driver has stopped its cluster"

_WATCH_SECONDS = 3.0
"""How long after a driver's death processes are looked for. One that is being started shows no
environment for a moment."""


@contextmanager
def reaping(cluster: str) -> Iterator[None]:
    """Ends the processes of a cluster when the block ends, or this process is killed inside it.

    Those are the processes started in the block, and by them, and by those: they inherit `MARK`.

    Args:
      cluster: A name that no other cluster on this machine has.
    """
    command = [sys.executable, "-I", __file__, cluster]
    # In a session of its own: what interrupts or kills the driver's group must not end this too.
    reaper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    os.environ[MARK] = cluster
    try:
        yield
    finally:
        del os.environ[MARK]
        reaper.communicate(_IN_ORDER.encode())


def members(cluster: str) -> list[int]:
    """Returns the ids of the running processes of a cluster."""
    mark = f"{MARK}={cluster}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def main(cluster: str) -> None:
    """Waits for the end of stdin, then kills the cluster's processes, and what they still start."""
    in_order = sys.stdin.read() == _IN_ORDER
    watch_until = time.monotonic() + (0 if in_order else _WATCH_SECONDS)
    while (found := members(cluster)) or time.monotonic() < watch_until:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1])
