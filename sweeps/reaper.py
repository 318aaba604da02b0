"""Says that a driver was killed, and ends what it leaves. Standard library; runs as a script.

A driver may go without a word: Ray ends it in its C++ parts when the head of its cluster, or its
own node, is gone. And though Ray binds server and node processes to the driver's life, the agents
that those start linger for a minute, and workers finish their step first. This process waits for
the driver in its place: a pipe whose other end only the driver holds is closed by the kernel
however the driver dies. It also removes the folder of the launch, which the driver cannot do then.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_ORDER = "the driver has stopped its cluster"

_WATCH_SECONDS = 3.0
"""How long after a driver's death processes are looked for. One may be in the making."""


@contextmanager
def reaping(folder: Path | None) -> Iterator[Callable[[], None]]:
    """Ends what uses a launch's folder when the block ends, or when this process is killed inside.

    The folder is removed, see `remove`.

    Args:
      folder: Where a cluster that ends with the launch keeps its sessions, and nobody else
        anything; None where the launch has no folder on this machine.

    Yields:
      What ends them at once, when called by another thread, which then ends this process: the block
      does not end any more.
    """
    command = [sys.executable, "-I", __file__, *([str(folder)] if folder else [])]
    # In a session of its own: what interrupts or kills the driver's group must not end this too.
    reaper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    turn = threading.Lock()  # nobody gives it back: there is one turn

    def reap() -> None:
        if turn.acquire(blocking=False):
            reaper.communicate(_IN_ORDER.encode())

    try:
        yield reap
    finally:
        turn.acquire()  # what waited for the cluster may go on when that has gone: it waits here
        reaper.communicate(_IN_ORDER.encode())


def lock_of(folder: Path) -> Path:
    """Returns the file beside a launch's folder that is locked while the launch lives."""
    return folder.with_suffix(".lock")


def remove(folder: Path) -> None:
    """Removes a launch's folder, its lock, and the folder around them if that is empty then."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        lock_of(folder).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another launch, or checkpoints, are in it
        folder.parent.rmdir()


def users_of(folder: Path, *, but: Collection[int] = ()) -> list[int]:
    """Returns the ids of the processes that have a file open in a folder.

    All processes of a cluster do, and their children: their output goes to its logs. Nothing else
    tells them as surely: Ray's titles overwrite command line and environment.
    """
    inside = f"{folder}/"
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            files = (str(file.readlink()) for file in (process / "fd").iterdir())
            if int(process.name) not in but and any(file.startswith(inside) for file in files):
                found.append(int(process.name))
    return found


_LAST_WORDS = """\
error: the launch has gone: it was killed, or the node or the head of its Ray cluster was
hint: launch again to continue; what was finished is on record"""


def main(folder: Path | None) -> None:
    """Waits for the end of stdin, then ends what uses a folder, and what is still started there."""
    driver = os.getppid()
    in_order = sys.stdin.read() == _IN_ORDER
    if not in_order:
        with contextlib.suppress(OSError):  # nobody listens any more
            print(_LAST_WORDS, file=sys.stderr, flush=True)
    if folder is None:
        return
    watch_until = time.monotonic() + (0 if in_order else _WATCH_SECONDS)
    while (found := users_of(folder, but=[driver])) or time.monotonic() < watch_until:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    remove(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
