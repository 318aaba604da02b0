"""The folder of a launch on this machine: what nobody needs after it."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeps.ledger import Ledger


@contextmanager
def scratch_folder(ledger: Ledger) -> Iterator[Path]:
    """Makes a folder of this sweep for what nobody needs afterwards. One launch at a time uses it.

    It is under /tmp wherever TMPDIR points to a long path: Ray keeps Unix sockets in it, whose
    paths may have 107 characters.
    """
    digest = hashlib.sha256(f"{os.getuid()} {ledger.uri}".encode()).hexdigest()[:10]
    temporary = tempfile.gettempdir()
    root = Path(temporary if len(temporary) <= 12 else "/tmp")
    folder = root / f"sweeps-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    _remove(*folder.glob("r[0-9]*"), folder / "tune")
    try:
        yield folder
    finally:
        _remove(ray_folder(folder), folder / "tune")
        with contextlib.suppress(OSError):  # checkpoints are in it
            folder.rmdir()


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

    On an object store it is a folder of each machine, and `sweeps.keeping` keeps it there.
    """
    location = ledger.location
    return Path(location.at(f"{ledger.name}/work")) if location.local_folder else scratch / "work"
