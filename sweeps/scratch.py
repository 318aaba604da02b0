"""The folder of a launch on this machine, which also keeps a second launch here out."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from sweeps.errors import SweepError
from sweeps.ledger import Ledger


@contextmanager
def scratch_folder(ledger: Ledger) -> Iterator[Path]:
    """Makes a folder of this sweep for what nobody needs afterwards, and locks it.

    It is under /tmp wherever TMPDIR points to a long path: Ray keeps Unix sockets in it, whose
    paths may have 107 characters.

    Raises:
      SweepError: Another process launches this sweep on this machine.
    """
    digest = hashlib.sha256(f"{os.getuid()} {ledger.uri}".encode()).hexdigest()[:10]
    temporary = tempfile.gettempdir()
    root = Path(temporary if len(temporary) <= 12 else "/tmp")
    folder = root / f"sweeps-{digest}"
    lock = _lock(folder / "lock", ledger.name)
    try:
        _remove(*folder.glob("r[0-9]*"), folder / "tune")
        yield folder
    finally:
        _remove(ray_folder(folder), folder / "tune")
        (folder / "lock").unlink()
        with contextlib.suppress(OSError):  # checkpoints are in it
            folder.rmdir()
        lock.close()


def _lock(file: Path, sweep: str) -> TextIO:
    """Opens a file that nobody else has open; the kernel frees it however this process ends."""
    while True:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        lock = file.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise SweepError(
                f"sweep '{sweep}' is being launched already, on this machine",
                hint=f"'sweeps status {sweep}' shows how far it is",
            ) from None
        if os.fstat(lock.fileno()).st_nlink:
            return lock
        lock.close()  # another launch has ended, and removed it, since it was opened


def ray_folder(scratch: Path) -> Path:
    """Returns where Ray keeps this launch's sessions.

    No launch before used it: what ends a killed driver's cluster may still be about, and would
    take the processes of this one for that one's.
    """
    return scratch / f"r{os.getpid()}"


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def work_folder(ledger: Ledger, scratch: Path) -> Path:
    """Returns where trials keep their checkpoints: beside the records, if that is a file system.

    On an object store it is a folder of each machine, and a trial whose machine is lost starts
    again from its beginning.
    """
    local = ledger.location.local_folder
    return local / ledger.name / "work" if local else scratch / "work"
