"""Fuzz target: a file of records holds the input, one on its own or a merged one."""

import atexit
import functools
import io
import shutil
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sweeps.export import export_table
from sweeps.ledger import Ledger, SweepFacts, Tail
from sweeps.objectives import objective
from sweeps.records import SCHEMA, one_record, row_of, table_of
from sweeps.standing import Standing
from sweeps.tables import front_json, json_line
from sweeps.trial import Candidate, Measurement, Provenance, Reason, Trial
from tests.fuzz.ledger_json import refused_in_a_line

MEMORY = Path("/dev/shm")  # files are flushed, which takes disks a while
OBJECTIVES = [objective("val_loss"), objective("rtf_ratio")]
TRIAL = Trial(
    "s",
    Candidate.of({"channels": 8, "rate": 0.5, "norm": "none"}),
    Measurement(val_loss=1.5, rtf=1e-5, rtf_ratio=0.5, parameters=100),
    detail="d",
    provenance=Provenance(
        host="h",
        host_fingerprint="f",
        versions={"onnx": "1.17"},
        gin_config="a = 1",
        measure_conditions={"load_average": 0.5},
        started_at=1e9,
        finished_at=1e9 + 60,
    ),
    curve={100: 2.5},
)
OTHERS = [replace(TRIAL, candidate=Candidate.of({"channels": n})) for n in (1, 2, 3)]


def file_of(table: pa.Table, **options: object) -> bytes:
    """Returns a table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def _with(name: str, value: object) -> bytes:
    """Returns the record with another value in a column, of whatever type it is."""
    table = pa.table({**{k: [v] for k, v in row_of(TRIAL).items()}, name: [value]})
    return file_of(table, compression="none")


SEEDS: list[bytes] = [
    one_record(TRIAL),
    one_record(replace(TRIAL, reason=Reason.DIVERGED)),
    file_of(table_of([TRIAL, *OTHERS[:1]]), compression="none"),
    file_of(table_of([TRIAL] * 3), compression="none", use_dictionary=False),
    file_of(SCHEMA.empty_table()),
    file_of(pa.table({"a": [1]})),
    _with("candidate", "[[]]"),
    _with("curve", '{"1": "x"}'),
    _with("versions", "{}"),
    _with("schema_version", "1"),
    _with("started_at", "soon"),
    _with("val_loss", [1.0]),
    _with("trial_id", b"\xff" * 12),
    b"PAR1PAR1",
]


@functools.cache
def _sweep() -> Path:
    storage = tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None)
    atexit.register(shutil.rmtree, storage)
    facts = SweepFacts(
        name="s", gin_config="", dataset_fingerprint="f", objectives=("val_loss", "rtf_ratio")
    )
    ledger = Ledger.create(storage, "s", facts)
    ledger.extend(OTHERS[:2])
    return Path(storage)


def check(data: bytes) -> None:
    """Reads the input in place of a record; raises what no verb turns into a line and a hint."""
    storage = _sweep()
    trials = storage / "s" / "trials"
    single = zlib.crc32(data) % 2
    file = trials / f"{TRIAL.id}.parquet" if single else trials / "merged-1" / "0.parquet"
    file.write_bytes(data)
    try:
        _read(storage)
    finally:
        file.unlink()


def _read(storage: Path) -> None:
    ledger, out = Ledger.open(storage, "s"), storage / "out"
    with refused_in_a_line():
        ledger.ids()
    with refused_in_a_line():
        assert len(ledger.trials()) <= 4  # none of the input's counts twice
    with refused_in_a_line():
        front = ledger.front(OBJECTIVES)
        assert len({t.id for t in front.members}) == len(front.members)
        json_line(front_json(front, "s"))
    with refused_in_a_line():
        json_line(ledger.get(TRIAL.id).to_record())
    with refused_in_a_line():
        ledger.history(OBJECTIVES, 10)
    with refused_in_a_line():
        [batch.versions() for batch in ledger.scan(("versions",))]
    with refused_in_a_line():
        standing = Standing(OBJECTIVES)
        Tail(ledger, OBJECTIVES).read(standing.add)
        standing.summary(10, [5.0])
    out.unlink(missing_ok=True)
    with refused_in_a_line():
        export_table(ledger, out, "parquet")
    with refused_in_a_line():
        ledger.pass_over_damaged()
