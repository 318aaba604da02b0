"""Records as Parquet: a trial as a row, what is read of many rows as columns of NumPy.

With `sweeps.storage` and `sweeps.ledger` the only importers of pyarrow in `sweeps`.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sweeps.errors import LedgerError
from sweeps.pareto import REASONS, Column, Ints, Records
from sweeps.standing import Outcomes
from sweeps.trial import METRICS, Candidate, Measurement, Provenance, Reason, Trial
from sweeps.trial_ids import Numbers

UPGRADE = "a newer release wrote it; upgrade ddsp-sweeps"
"""Hint of an error about what only a newer release can read."""


def _arrow_field(declared: "dataclasses.Field[Any]") -> pa.Field:
    # `float | None` is a float column; a mapping is kept as JSON.
    kinds = get_args(declared.type) or (declared.type,)
    types = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    return pa.field(declared.name, types[kinds[0]])


_PROVENANCE = tuple(f.name for f in dataclasses.fields(Provenance))
_MAPPINGS = tuple(f.name for f in dataclasses.fields(Provenance) if get_origin(f.type) is Mapping)

SCHEMA = pa.schema(
    [
        ("schema_version", pa.int64()),
        ("sweep", pa.string()),
        ("trial_id", pa.string()),
        ("candidate", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        *map(_arrow_field, dataclasses.fields(Measurement)),
        *map(_arrow_field, dataclasses.fields(Provenance)),
        ("curve", pa.string()),
    ]
)
"""The columns of a record. Null: a metric that was not reached; the reason of a completed trial.

`candidate`, `versions`, `measure_conditions` and `curve` are JSON objects, `reason` is the name of
a `Reason`. A column is added by adding a field to `sweeps.trial`: files without it read as null, or
as the field's default.
"""

NO_ROWS = pa.Table.from_batches([], SCHEMA)


def row_of(trial: Trial) -> dict[str, Any]:
    """Returns a trial as one row of `SCHEMA`."""
    provenance = {name: getattr(trial.provenance, name) for name in _PROVENANCE}
    row = {
        "schema_version": trial.schema_version,
        "sweep": trial.sweep,
        "trial_id": trial.id,
        "candidate": trial.candidate.to_json(),
        "reason": trial.reason and trial.reason.name,
        "detail": trial.detail,
        **{name: trial.metric(name) for name in METRICS},
        **provenance,
        **{name: json.dumps(dict(provenance[name]), sort_keys=True) for name in _MAPPINGS},
        "curve": json.dumps(dict(sorted(trial.curve.items()))),
    }
    return {name: storable(value) for name, value in row.items()}


def storable(value: Any) -> Any:
    """Returns a value that Parquet takes: texts without what is no Unicode."""
    # An exception's text may hold half a surrogate pair. It must not cost us the record.
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def trial_of(row: Mapping[str, Any]) -> Trial:
    """Returns the trial that a row was made of; what an older release did not record is a default.

    Raises:
      LedgerError: Its reason is one of a newer release.
    """
    provenance = {name: row[name] for name in _PROVENANCE if row[name] is not None}
    provenance |= {name: json.loads(provenance[name]) for name in _MAPPINGS if name in provenance}
    return Trial(
        sweep=row["sweep"],
        candidate=Candidate.from_json(row["candidate"]),
        measurement=Measurement(**{name: row[name] for name in METRICS}),
        reason=None if row["reason"] is None else _reason(row["reason"]),
        detail=row["detail"] or "",
        provenance=Provenance(**provenance),
        schema_version=row["schema_version"],
        curve={int(step): loss for step, loss in json.loads(row["curve"] or "{}").items()},
    )


def _reason(name: str) -> Reason:
    try:
        return Reason[name]
    except KeyError:
        raise LedgerError(
            f"a record gives '{name}' as its reason, which is unknown here",
            hint=UPGRADE,
        ) from None


# What makes large files small makes files of one row slow to read: without dictionaries,
# compression, statistics and the Arrow schema, 1,000 of them take half of the time.
_ONE_ROW = {
    "use_dictionary": False,
    "compression": "none",
    "write_statistics": False,
    "store_schema": False,
}

GROUP_ROWS = 5_000
"""Rows of a row group, and of what is held in memory at a time: some 15 MB with their gin texts.

Larger groups make the few rows of a front dearer to read, smaller ones the few columns that decide
it: of a million records, the columns take 0.12 s of CPU time and a row 6 ms; 0.22 s and 3 ms in
groups of 2,000, 0.08 s and 115 ms in groups of 50,000.
"""


def one_record(trial: Trial) -> bytes:
    """Returns the Parquet file of one trial."""
    sink = pa.BufferOutputStream()
    pq.write_table(table_of([trial]), sink, **_ONE_ROW)
    return bytes(sink.getvalue())


def table_of(trials: Iterable[Trial]) -> pa.Table:
    """Returns trials as rows of `SCHEMA`."""
    return pa.Table.from_pylist([row_of(trial) for trial in trials], schema=SCHEMA)


def many_records(tables: Iterable[pa.Table], schema: pa.Schema) -> bytes:
    """Returns one Parquet file of many tables, of which one at a time is held in memory."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(_promoted(table, schema), row_group_size=GROUP_ROWS)
    return bytes(sink.getvalue())


def common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Returns a schema that holds the columns of all, those of other releases included."""
    bare = [schema.remove_metadata() for schema in schemas]
    return pa.unify_schemas(bare, promote_options="permissive")


def _promoted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    all_columns = pa.concat_tables(
        [table, schema.empty_table()], promote_options="permissive"
    ).select(schema.names)
    return all_columns.cast(schema)


def conform(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Returns these columns in their declared types; null where an older file has none."""
    columns = {}
    for name in names:
        kind = SCHEMA.field(name).type
        if name not in table.column_names:
            columns[name] = pa.nulls(len(table), kind)
        else:
            column = table[name]
            columns[name] = column if column.type == kind else column.cast(kind)
    return pa.table(columns)


def read_rows(source: pa.NativeFile, columns: Sequence[str] | None, rows: Ints | None) -> pa.Table:
    """Reads some columns (default: all) of some rows (default: all) of a Parquet file.

    Args:
      source: The file.
      columns: Names; those that the file does not have are passed over.
      rows: Numbers of the rows, rising.

    Raises:
      pa.ArrowInvalid: It is no Parquet file.
      OSError: It is a broken one.
    """
    with pq.ParquetFile(source) as file:
        if rows is None:
            return file.read(columns, use_threads=False)
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        group_of = np.searchsorted(starts, rows, "right") - 1
        groups = [file.read_row_groups([], columns)]
        for group in np.unique(group_of).tolist():
            wanted = rows[group_of == group] - starts[group]
            groups.append(file.read_row_group(group, columns, use_threads=False))
            if len(wanted) < len(groups[-1]):
                groups[-1] = groups[-1].take(_to_arrow(wanted))
        return pa.concat_tables(groups)


@dataclass(frozen=True)
class Batch:
    """Some columns of some trials.

    Attributes:
      table: The trials' rows.
    """

    table: pa.Table

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids(self) -> list[str]:
        """The trials' ids."""
        return self.texts("trial_id")

    def texts(self, name: str) -> list[Any]:
        """Returns a column of texts; None where a trial has none."""
        values: list[Any] = self.table[name].to_pylist()
        return values

    def column(self, name: str) -> Column:
        """Returns a column of numbers."""
        column = self.table[name]
        present = _to_numpy(column.is_valid().cast(pa.uint8())).astype(np.bool_)
        values = np.full(len(column), math.nan)
        values[present] = _to_numpy(column.drop_null())
        return Column(values, present)

    def records(self, columns: Iterable[str]) -> Records:
        """Returns what a front needs to know of each trial."""
        reasons, names = _codes(self.table["reason"])
        index = [REASONS.index(None if name is None else _reason(name)) for name in names]
        return Records(
            reasons=np.array(index, np.intp)[reasons],
            hosts=_codes(self.table["host_fingerprint"])[0],
            columns={name: self.column(name) for name in columns},
        )

    def outcomes(self, columns: Iterable[str]) -> Outcomes:
        """Returns what a standing needs to know of each trial."""
        return Outcomes(
            ids=self.ids,
            records=self.records(columns),
            hosts=[host or "" for host in _codes(self.table["host_fingerprint"])[1]],
            started_at=np.nan_to_num(self.column("started_at").values),
            finished_at=np.nan_to_num(self.column("finished_at").values),
        )

    def trials(self) -> list[Trial]:
        """Returns the trials, of whom every column was read."""
        return [trial_of(row) for row in self.table.to_pylist()]


def numbers_in(column: pa.ChunkedArray) -> Numbers:
    """Returns a column of trial ids as numbers.

    Raises:
      ValueError: One of them is no id.
    """
    if not len(column):
        return np.empty(0, np.uint64)
    ids = column.combine_chunks()
    _, offset_bytes, text_bytes = ids.buffers()
    offsets = np.frombuffer(offset_bytes, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    if ids.null_count or (np.diff(offsets) != 12).any():
        raise ValueError("a trial id is missing or has not 12 digits")
    text = np.frombuffer(text_bytes, np.uint8)[offsets[0] : offsets[-1]]
    values = _HEXADECIMAL[text.reshape(-1, 12)]
    if (values > 15).any():
        raise ValueError("a trial id has digits that are not hexadecimal")
    numbers = np.zeros((len(values), 8), np.uint8)
    numbers[:, 2:] = values[:, 0::2] << 4 | values[:, 1::2]
    return numbers.view(">u8").ravel().astype(np.uint64)


_HEXADECIMAL = np.full(256, 255, np.uint8)
_HEXADECIMAL[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)

# pa.array, to_numpy and empty_table import pandas where it is installed, which takes longer than a
# front does.


def _to_numpy(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """Returns a column of numbers without nulls."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return np.from_dlpack(column)


def _to_arrow(numbers: Ints) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(numbers, np.int64))
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, buffer])


def _codes(column: pa.ChunkedArray) -> tuple[Ints, list[Any]]:
    """Returns a number for each row, and the value that each number stands for."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return _to_numpy(encoded.indices).astype(np.intp), encoded.dictionary.to_pylist()
