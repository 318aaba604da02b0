"""A sweep as one table for other programs: a row for each trial, a column for each axis."""

import contextlib
import csv
import json
import os
import stat
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sweeps.errors import SweepError
from sweeps.ledger import Ledger
from sweeps.records import SCHEMA, storable
from sweeps.storage import give_name
from sweeps.trial import Trial

AXIS = "axis_"
"""What the columns of axes begin with, as in `Trial.to_record`."""


def export_table(
    ledger: Ledger, path: Path, form: Literal["parquet", "csv"], *, replace: bool = False
) -> int:
    """Writes the finished trials of a sweep as one file, whole or not at all.

    Columns are those of `Trial.to_record`, with an axis that some trials do not have left empty;
    what is a mapping there is JSON. Rows are in no particular order. Some thousand trials are held
    in memory at a time.

    Args:
      ledger: Of the sweep.
      path: The file.
      form: What it shall be.
      replace: Whether a file that is there may be replaced.

    Returns:
      The number of trials.

    Raises:
      SweepError: There is such a file already, or it cannot be written.
      LedgerError: A record cannot be read.
    """
    schema = _schema(ledger)
    write = _write_parquet if form == "parquet" else _write_csv
    with appearing(path, replace=replace) as temporary:
        return write(temporary, schema, _rows(ledger, schema))


@contextlib.contextmanager
def appearing(path: Path, *, replace: bool) -> Iterator[Path]:
    """Gives a file its name when the block is through with it; whole or not at all.

    Nothing but a file is replaced: no device, pipe, folder or link.

    Yields:
      Where to write it.

    Raises:
      SweepError: There is such a file already, or it cannot be written.
    """
    if not path.name or (os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode)):
        raise SweepError(f"'{path}' is no file", hint="give the name of a file to write")
    temporary = path.with_name(f"_{path.name}.{uuid.uuid4().hex}")
    try:
        if path.exists() and not replace:
            raise FileExistsError
        yield temporary
        if replace:
            temporary.replace(path)
        elif not give_name(temporary, path):
            raise FileExistsError
    except FileExistsError:
        raise SweepError(f"'{path}' exists", hint="give another name, or --force") from None
    except OSError as error:
        hint = "give a file in a folder that is there and can be written"
        raise SweepError(f"cannot write '{path}': {error.strerror or error}", hint=hint) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _schema(ledger: Ledger) -> pa.Schema:
    kinds = defaultdict[str, set[type]](set)
    for batch in ledger.scan(("candidate",)):
        for candidate in batch.candidates():
            for axis, value in candidate.values:
                kinds[axis].add(type(value))
    names = [name for name in SCHEMA.names if name not in _RENAMED]
    return pa.schema(
        [
            *((name, pa.string()) for name in ("id", "sweep", "status", "reason", "detail")),
            *((AXIS + axis, _arrow_type(kinds[axis])) for axis in sorted(kinds)),
            *(SCHEMA.field(name) for name in names),
            SCHEMA.field("schema_version"),
        ]
    )


_RENAMED = {"schema_version", "trial_id", "sweep", "candidate", "reason", "detail"}


def _arrow_type(kinds: set[type]) -> pa.DataType:
    """Returns the type of an axis; values of several kinds become JSON."""
    for kind, of in ((pa.bool_(), {bool}), (pa.int64(), {int}), (pa.float64(), {int, float})):
        if kinds <= of:
            return kind
    return pa.string()


def _rows(ledger: Ledger, schema: pa.Schema) -> Iterator[list[dict[str, Any]]]:
    for batch in ledger.scan(SCHEMA.names):
        yield [_row(trial, schema) for trial in batch.trials()]


def _row(trial: Trial, schema: pa.Schema) -> dict[str, Any]:
    record: Mapping[str, Any] = trial.to_record()
    row = {}
    for field in schema:
        value = record.get(field.name)
        if field.type == pa.string() and value is not None and not isinstance(value, str):
            value = json.dumps(value)
        row[field.name] = storable(value)
    return row


def _write_parquet(path: Path, schema: pa.Schema, batches: Iterator[list[dict[str, Any]]]) -> int:
    count = 0
    with path.open("xb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for rows in batches:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                count += len(rows)
        os.fsync(file.fileno())
    return count


def _write_csv(path: Path, schema: pa.Schema, batches: Iterator[list[dict[str, Any]]]) -> int:
    count = 0
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, schema.names, lineterminator="\n")
        writer.writeheader()
        for rows in batches:
            writer.writerows(rows)
            count += len(rows)
        file.flush()
        os.fsync(file.fileno())
    return count
