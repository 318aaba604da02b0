"""Datasets that reach the nodes of a cluster through the storage, where they share no path."""

import contextlib
import os
import platform
import shutil
import tempfile
from pathlib import Path

from sweeps.ledger import Ledger
from sweeps.storage import Location
from thesis.data import (
    CLIPS_FILE,
    FACTS_FILE,
    DatasetFacts,
    is_fingerprint,
    load_dataset,
    load_facts,
)
from thesis.errors import DatasetError


def ship_dataset(ledger: Ledger, folder: str) -> None:
    """Puts a sweep's dataset beside its records, once; `dataset_here` finds it there.

    Raises:
      LedgerError: It cannot be written.
    """
    location, shipped = ledger.location, _shipped(ledger.name)
    there = shipped_facts(location, ledger.name)
    if there and there.fingerprint == ledger.facts.dataset_fingerprint:
        return
    if location.entries(shipped):  # of a launch that came to nothing
        location.delete_folder(shipped)
    with tempfile.TemporaryDirectory() as temporary:  # the dataset, not what else is beside it
        for name in (FACTS_FILE, CLIPS_FILE):
            Path(temporary, name).symlink_to(Path(folder, name).absolute())
        location.copy_in(Path(temporary), shipped)
    location.put(f"{shipped}/complete", b"")


def shipped_facts(location: Location, sweep: str) -> DatasetFacts | None:
    """Returns what was shipped for a sweep, made or not; None for nothing, or nothing whole.

    Raises:
      LedgerError: The storage cannot be read.
    """
    shipped = _shipped(sweep)
    if not location.exists(f"{shipped}/complete"):
        return None
    try:
        return DatasetFacts.from_json(location.read(f"{shipped}/{FACTS_FILE}"))
    except (FileNotFoundError, DatasetError):
        return None


def dataset_here(ledger: Ledger, folder: str) -> str:
    """Returns where this machine has a sweep's dataset; fetches it, once, where it was shipped.

    Its clips are checked against the sweep's fingerprint, once in a process (`load_dataset`).

    Args:
      ledger: The sweep's; it knows the dataset's fingerprint.
      folder: Where the dataset is if this machine shares it with the driver.

    Raises:
      DatasetError: It is neither there nor shipped, or it is damaged.
      LedgerError: It cannot be fetched.
    """
    fingerprint = ledger.facts.dataset_fingerprint
    if _is(folder, fingerprint):
        return str(load_dataset(folder).path)
    if not is_fingerprint(fingerprint):  # before it becomes a folder's name
        raise DatasetError(
            f"{fingerprint!r} is no fingerprint of a dataset", hint="restore the sweep's sweep.json"
        )
    here = _cache() / fingerprint
    if not _is_whole(here, fingerprint):
        there = shipped_facts(ledger.location, ledger.name)
        if there is None or there.fingerprint != fingerprint:
            raise DatasetError(
                f"the dataset {folder} is not on {platform.node()}, or is another one there",
                hint="keep it on a path that all nodes share, or launch with --ship",
            )
        try:
            _fetch(ledger, here)
        except OSError as error:
            raise DatasetError(
                f"cannot keep the dataset in {here.parent}: {error.strerror}", hint=_CACHE_HINT
            ) from error
    return str(here)


def _fetch(ledger: Ledger, here: Path) -> None:
    fingerprint = ledger.facts.dataset_fingerprint
    here.parent.mkdir(parents=True, exist_ok=True)
    # Others of this machine may be at it: whole folders appear, and the first one stays.
    with tempfile.TemporaryDirectory(dir=here.parent) as temporary:
        whole = Path(temporary, "dataset")
        whole.mkdir()
        for name in (FACTS_FILE, CLIPS_FILE):  # whatever else a stranger may have put there
            _download(ledger.location, f"{_shipped(ledger.name)}/{name}", whole / name)
        if not _is_whole(whole, fingerprint):
            raise DatasetError(
                f"the dataset that was shipped with '{ledger.name}' is damaged",
                hint=f"delete {ledger.location.show(_shipped(ledger.name))} and launch with --ship",
            )
        if not _is_whole(here, fingerprint):
            shutil.rmtree(here, ignore_errors=True)
        try:
            whole.rename(here)
        except OSError:
            if not _is_whole(here, fingerprint):
                raise


def _download(location: Location, name: str, file: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # what is missing is missed by who looks
        location.parse(name, lambda opened: opened.download(str(file)))


def _is(folder: str, fingerprint: str) -> bool:
    """Returns whether a folder claims to be a dataset."""
    try:
        return load_facts(folder).fingerprint == fingerprint
    except DatasetError:
        return False


def _is_whole(folder: Path, fingerprint: str) -> bool:
    """Returns whether a folder is a dataset, down to its last bit."""
    try:
        return load_dataset(folder).facts.fingerprint == fingerprint
    except DatasetError:
        return False


def _shipped(sweep: str) -> str:
    return f"{sweep}/dataset"


_CACHE_HINT = "set XDG_CACHE_HOME to a folder of yours, with room for the dataset"


def _cache() -> Path:
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise DatasetError(f"no folder for datasets: {error}", hint=_CACHE_HINT) from error
    return Path(home, "ddsp-sweeps", "datasets")
