"""The folder of a launch on this machine: what nobody needs after it, and nobody else may touch.

It is in a place where everybody may write, under a name that everybody can work out. So it is used
only if it is ours alone.
"""

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sweeps.ledger import Ledger
from sweeps.reaper import lock_of, remove

_PREFIX = "sweeps-"


@contextmanager
def scratch_folder(ledger: Ledger) -> Iterator[Path]:
    """Makes a folder of this sweep for what nobody needs afterwards. One launch at a time uses it.

    It is under /tmp wherever TMPDIR points to a long path: Ray keeps Unix sockets in it, whose
    paths may have 107 characters. What launches of any sweep have left that were killed is removed.
    """
    digest = hashlib.sha256(f"{os.getuid()} {ledger.uri}".encode()).hexdigest()[:10]
    _remove_leftovers()
    with ExitStack() as stack:
        while True:
            folder = private_folder(_root() / f"{_PREFIX}{digest}")
            with contextlib.suppress(FileNotFoundError):  # who tidies up has removed it as empty
                stack.enter_context(_alive(launch_folder(folder)))
                break
        yield folder


def launch_folder(scratch: Path) -> Path:
    """Returns where this launch keeps what only it needs: Ray's sessions, and Tune's own records.

    No launch before used it: what ends a killed driver's cluster may still be about, and would
    take the processes of this one for that one's.
    """
    return scratch / f"r{os.getpid()}"


def work_folder(ledger: Ledger, scratch: Path) -> Path:
    """Returns where trials keep their checkpoints: beside the records, if that is a file system.

    On an object store it is a folder of each machine, and `sweeps.keeping` keeps it there.
    """
    location = ledger.location
    return Path(location.at(f"{ledger.name}/work")) if location.local_folder else scratch / "work"


def private_folder(folder: Path) -> Path:
    """Returns a folder that nobody else can look into: the given one, or one beside it.

    The given one is made if it is not there. If somebody else has made it, or made a link of its
    name, or could have written to it, another is made, under a name that cannot be foreseen.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if _is_ours(folder):
        folder.chmod(0o700)
        return folder
    if folder not in _instead or not _is_ours(_instead[folder]):
        _instead[folder] = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder.parent))
    return _instead[folder]


_instead: dict[Path, Path] = {}
"""What this process uses in place of folders that are not ours."""


def _is_ours(folder: Path) -> bool:
    """Returns whether this is a folder of ours, no link to one, that nobody else may write to."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return ours and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@contextmanager
def _alive(folder: Path) -> Iterator[None]:
    """Makes a folder for a while, and shows that it is in use for as long as this process lives."""
    with lock_of(folder).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # which the kernel lets go, however the process ends
        folder.mkdir(exist_ok=True)
        try:
            yield
        finally:
            remove(folder)


def _root() -> Path:
    temporary = tempfile.gettempdir()
    return Path(temporary if len(temporary) <= 12 else "/tmp")


def _remove_leftovers() -> None:
    """Removes what is left of our launches that were killed; checkpoints stay for the next one."""
    for scratch in filter(_is_ours, _root().glob(f"{_PREFIX}*")):
        for folder in scratch.glob("r[0-9]*[0-9]"):
            if not _is_in_use(folder):
                remove(folder)
        with contextlib.suppress(OSError):
            scratch.rmdir()


def _is_in_use(folder: Path) -> bool:
    try:
        with lock_of(folder).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False  # no launch has been without its lock since there were locks
    except OSError:
        return True
    return False
