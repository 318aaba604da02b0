"""Datasets that reach the nodes of a cluster through the storage, where they share no path."""

import os
import platform
import shutil
import tempfile
from pathlib import Path

from sweeps.ledger import Ledger
from thesis.data import FACTS_FILE, load_facts
from thesis.errors import DatasetError


def ship_dataset(ledger: Ledger, folder: str) -> None:
    """Puts a sweep's dataset beside its records, once; `dataset_here` finds it there.

    Raises:
      LedgerError: It cannot be written.
    """
    location, shipped = ledger.location, _shipped(ledger)
    if location.exists(f"{shipped}/complete"):
        return
    location.copy_in(Path(folder), shipped)
    location.put(f"{shipped}/complete", b"")


def dataset_here(ledger: Ledger, folder: str) -> str:
    """Returns where this machine has a sweep's dataset; fetches it, once, where it was shipped.

    Args:
      ledger: The sweep's; it knows the dataset's fingerprint.
      folder: Where the dataset is if this machine shares it with the driver.

    Raises:
      DatasetError: It is neither there nor shipped.
      LedgerError: It cannot be fetched.
    """
    fingerprint = ledger.facts.dataset_fingerprint
    if _is(folder, fingerprint):
        return folder
    here = _cache() / fingerprint
    if not (here / FACTS_FILE).exists():
        if not ledger.location.exists(f"{_shipped(ledger)}/complete"):
            raise DatasetError(
                f"the dataset {folder} is not on {platform.node()}, or is another one there",
                hint="keep it on a path that all nodes share, or launch with --ship",
            )
        _fetch(ledger, here)
    return str(here)


def _fetch(ledger: Ledger, here: Path) -> None:
    here.parent.mkdir(parents=True, exist_ok=True)
    # Others of this machine may be at it: whole folders appear, and the first one stays.
    with tempfile.TemporaryDirectory(dir=here.parent) as temporary:
        whole = Path(temporary, "dataset")
        ledger.location.copy_out(_shipped(ledger), whole)
        try:
            whole.rename(here)
        except OSError:
            if not (here / FACTS_FILE).exists():
                raise
            shutil.rmtree(whole)


def _is(folder: str, fingerprint: str) -> bool:
    try:
        return load_facts(folder).fingerprint == fingerprint
    except DatasetError:
        return False


def _shipped(ledger: Ledger) -> str:
    return f"{ledger.name}/dataset"


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "ddsp-sweeps", "datasets")
