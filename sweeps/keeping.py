"""Checkpoints of running trials in an object store, for when the machine that trains is lost.

Where records are on a file system, trials train in a folder beside them: nothing is copied.
"""

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

from sweeps.errors import DamagedError, LedgerError
from sweeps.evaluate import Progress
from sweeps.ledger import Ledger

KEEP_SECONDS = 60.0
"""A trial's work folder is put into the object store this often at the most, so a lost machine
costs at most so much training, and what is between two checkpoints."""

_VERSION_FILE = "kept"

T = TypeVar("T")


def keeping(
    ledger: Ledger, trial_id: str, folder: Path, running: Generator[Progress, None, T]
) -> Generator[Progress, None, T]:
    """Passes on what a running trial yields, and keeps its work folder in the object store.

    `Ledger.append` removes it from there. Storage that fails costs a trial nothing but that. At a
    rung it is kept whatever the time: another machine may go on from there.
    """
    if ledger.location.local_folder is not None:
        return (yield from running)
    last, kept = time.monotonic(), None
    with contextlib.closing(running):
        while True:
            try:
                progress = next(running)
            except StopIteration as end:
                result: T = end.value
                return result
            due = progress.reached is not None or time.monotonic() - last >= KEEP_SECONDS
            if due and kept != (found := _state(folder)):
                with contextlib.suppress(LedgerError):
                    version = ledger.put_work(trial_id, folder)
                    (folder / _VERSION_FILE).write_text(version)
                    kept = found
                last = time.monotonic()
            yield progress


def fetch(ledger: Ledger, trial_id: str, folder: Path) -> None:
    """Makes a trial's work folder, and brings what another machine has kept since it was here.

    Raises:
      LedgerError: It cannot be made or fetched.
    """
    _remove_what_is_no_file(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if ledger.location.local_folder is not None:
        return
    mark = folder / _VERSION_FILE
    try:
        version = ledger.work_version(trial_id)
    except DamagedError:
        return  # it begins anew, or with what is here
    if version is None or (mark.exists() and mark.read_bytes() == version.encode()):
        return
    shutil.rmtree(folder)
    ledger.get_work(trial_id, folder)
    mark.write_text(version)


def _remove_what_is_no_file(folder: Path) -> None:
    """Removes links, pipes and sockets from a work folder, which may have been a stranger's.

    A trial would write over what a link leads to, or store it, and wait for a pipe for ever.
    """
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        folder.unlink()
    for here, folders, files in os.walk(folder):
        for path in (Path(here, name) for name in (*folders, *files)):
            if not stat.S_ISREG(mode := path.lstat().st_mode) and not stat.S_ISDIR(mode):
                path.unlink()


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Returns what tells whether a folder's files were changed; no clock has to run forward."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != _VERSION_FILE]
    return {path: ((stat := path.stat()).st_mtime_ns, stat.st_size) for path in files}
