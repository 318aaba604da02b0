"""Fuzz target: every JSON file of a sweep holds the input, and is read as each verb reads it."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sweeps.lease import LeaseWatch
from sweeps.ledger import Ledger, SweepFacts, Tail, list_sweeps
from sweeps.objectives import objective
from sweeps.status import StatusReader
from sweeps.tables import json_line, status_line, status_picture
from sweeps.trial import Attempt, Candidate
from thesis.errors import UserError

CANDIDATE = Candidate.of({"channels": 8, "rate": 0.5, "norm": "none", "causal": True})
MEMORY = Path("/dev/shm")  # files are flushed, which takes disks a while
OBJECTIVES = [objective("val_loss"), objective("rtf_ratio")]
FACTS = SweepFacts(
    name="s",
    gin_config="",
    dataset_fingerprint="f" * 64,
    objectives=("val_loss", "rtf_ratio"),
    trials_asked=8,
    dataset_path="/data",
    created_at=1e9,
)

SEEDS: list[bytes] = [
    FACTS.to_json().encode(),
    Attempt(CANDIDATE, "host", 1e9, 1, 2, "killed", 100, 0.5).to_json().encode(),
    CANDIDATE.to_json().encode(),
    b'{"holder": "a", "host": "h", "machine": "m", "pid": 1, "started": "1", "renewals": 3}',
    b'{"folder": "0123456789abcdef0123456789abcdef"}',
    b"[]",
    b'"\\ud800"',
    b'{"a": 1e999, "b": -0.0, "c": NaN, "d": [[{}]], "e": null}',
]


@functools.cache
def _sweep() -> tuple[Ledger, Path]:
    storage = tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None)
    atexit.register(shutil.rmtree, storage)
    ledger = Ledger.create(storage, "s", FACTS)
    ledger.location.make_folder("s/started")
    ledger.location.make_folder(f"s/models/{CANDIDATE.id}")
    return ledger, Path(storage, "s")


@contextmanager
def refused_in_a_line() -> Iterator[None]:
    """Lets a `UserError` pass that is a line and a hint."""
    try:
        yield
    except UserError as error:
        for line in (error.message, error.hint):
            if not (line.isprintable() and 0 < len(line) < 1000):
                raise AssertionError(f"no line: {line!r}") from error


def check(data: bytes) -> None:
    """Reads the input in place of each file; raises what no verb turns into a line and a hint."""
    ledger, folder = _sweep()
    (folder / "lease.json").write_bytes(data)
    with refused_in_a_line():
        LeaseWatch(ledger.location, "s").host()
    (folder / "lease.json").unlink()

    marker = folder / "models" / CANDIDATE.id / "complete.json"
    marker.write_bytes(data)
    with refused_in_a_line():
        ledger.get_artifacts(CANDIDATE.id, folder / "never")
    with refused_in_a_line():
        ledger.has_artifacts(CANDIDATE.id)

    names = [CANDIDATE.id]
    with suppress(ValueError):  # the mark of whatever candidate it is
        names.append(Attempt.from_json(data).candidate.id)
    for name in names:
        mark = folder / "started" / f"{name}.json"
        mark.write_bytes(data)
        ledger.started()
        Tail(ledger, OBJECTIVES).read(lambda _: None)
        status = StatusReader(ledger.location, "s").read()
        json_line(status.to_record())
        status_line(status)
        status_picture(status, 8)
        mark.unlink()

    whole = (folder / "sweep.json").read_bytes()
    (folder / "sweep.json").write_bytes(data)
    try:
        list_sweeps(ledger.location)
        with refused_in_a_line():
            status = StatusReader(ledger.location, "s").read()
            json_line(status.to_record())
            status_line(status)
        with refused_in_a_line():
            opened = Ledger.open(ledger.location, "s")
            opened.front([objective(name) for name in opened.facts.objectives])
        with refused_in_a_line():
            Ledger.create(ledger.location, "s", FACTS)
    finally:
        (folder / "sweep.json").write_bytes(whole)
