"""Any bytes as the `dataset.json` of a dataset: it opens, or there is one clean error."""

import json
import tempfile
from functools import cache
from pathlib import Path

from tests.sweeps.fakes import make_dataset
from thesis.data import FACTS_FILE, load_dataset, load_facts
from thesis.errors import UserError


@cache
def _dataset() -> tuple[tempfile.TemporaryDirectory[str], Path, bytes]:
    """A whole dataset, and its facts as they were written."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-facts-")
    dataset = Path(make_dataset(Path(folder.name) / "data"))
    return folder, dataset, (dataset / FACTS_FILE).read_bytes()


def check(data: bytes) -> None:
    """Opens a dataset with these facts."""
    _, dataset, _ = _dataset()
    (dataset / FACTS_FILE).write_bytes(data)
    for opened in (load_facts, load_dataset):
        try:
            opened(dataset)
        except UserError as error:
            assert_one_line(error)


def assert_one_line(error: UserError) -> None:
    """Asserts that what a user reads of an error is a line and a hint."""
    for line in (error.message, error.hint):
        assert line.isprintable(), line
        assert line, "an error without a message, or without a hint"
        assert len(line) < 1000, line


def _with(**values: object) -> bytes:
    return json.dumps(json.loads(_dataset()[2]) | values).encode()


SEEDS: list[bytes] = [
    _dataset()[2],
    _with(clip_seconds=float("inf"), clip_hop_seconds=1e308),
    _with(n_train=-1, n_validation=10**30, sample_rate=10**400),
    _with(fingerprint="../../etc", sources=[], skipped={"\ud800": "a"}),
    _with(statistics=None, split_by=["time"]),
    b"\xef\xbb\xbf" + _dataset()[2],
    b'{"a":' * 5000,
    b"[" * 100_000,
]
