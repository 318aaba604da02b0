"""Records as Parquet: a trial as a row, what is read of many rows as columns of NumPy.

With `sweeps.storage` and `sweeps.ledger` the only importers of pyarrow in `sweeps`.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, TypeVar, get_args, get_origin

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sweeps.errors import DamagedError, LedgerError
from sweeps.pareto import REASONS, Column, Ints, Records
from sweeps.standing import Outcomes
from sweeps.trial import (
    METRICS,
    SCHEMA_VERSION,
    Candidate,
    Measurement,
    Provenance,
    Reason,
    Trial,
)
from sweeps.trial_ids import Numbers, id_of
from thesis.errors import first_line
from thesis.typed_json import UnixTime, checked, fields_of, is_time, parse_object, short

T = TypeVar("T")

UPGRADE = "a newer release wrote it; upgrade ddsp-sweeps"
"""Hint of an error about what only a newer release can read."""

MEND = "restore the file, or delete it and launch the sweep again: what it held is run again"
"""Hint of an error about a record that is damaged."""


def _arrow_field(declared: "dataclasses.Field[Any]") -> pa.Field:
    # `float | None` is a float column; a mapping is kept as JSON.
    kinds = get_args(declared.type) or (declared.type,)
    types = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    return pa.field(declared.name, types[kinds[0]])


_PROVENANCE = tuple(f.name for f in dataclasses.fields(Provenance))
_TIMES = tuple(f.name for f in dataclasses.fields(Provenance) if f.type == UnixTime)
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
      ValueError: It was made of none: a value is not what it should be, or the id is another's.
      LedgerError: Its reason is one of a newer release.
    """
    provenance = {name: row[name] for name in _PROVENANCE if row[name] is not None}
    provenance |= {name: parse_object(provenance[name]) for name in _MAPPINGS if name in provenance}
    return Trial(
        sweep=_present(row, "sweep"),
        candidate=_candidate(row),
        measurement=Measurement(**{name: row[name] for name in METRICS}),
        reason=None if row["reason"] is None else _reason(row["reason"]),
        detail=row["detail"] or "",
        provenance=Provenance(**fields_of(Provenance, provenance)),
        schema_version=_present(row, "schema_version"),
        curve=checked("curve", parse_object(row["curve"] or "{}"), Mapping[int, float]),
    )


def _candidate(row: Mapping[str, Any]) -> Candidate:
    candidate = Candidate.from_json(_present(row, "candidate"))
    if candidate.id != row["trial_id"]:
        raise ValueError(f"its candidate is that of trial {candidate.id}, not {row['trial_id']}")
    return candidate


def _present(row: Mapping[str, Any], name: str) -> Any:
    if row[name] is None:
        raise ValueError(f"'{name}' is missing")
    return row[name]


def _reason(name: str) -> Reason:
    try:
        return Reason[name]
    except KeyError:
        raise LedgerError(
            f"a record gives {short(name)} as its reason, which is unknown here",
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


def declared_schema(schema: pa.Schema) -> pa.Schema:
    """Returns a schema in which the columns that are known here have their declared types.

    Raises:
      ValueError: Two columns have one name.
    """
    if len(set(schema.names)) < len(schema):
        raise ValueError("two columns have one name")
    return pa.schema([_FIELDS.get(field.name, field) for field in schema])


_FIELDS = {field.name: field for field in SCHEMA}


def declared(table: pa.Table) -> pa.Table:
    """Returns a table with its columns in their declared types, as far as they are known here.

    Raises:
      ValueError: Two columns have one name.
      pa.ArrowException: One cannot be made its type.
    """
    if table.schema.equals(SCHEMA):  # as nearly all are, and it takes no time to see
        return table
    schema = declared_schema(table.schema)
    return table if table.schema.equals(schema) else table.cast(schema)


def conform(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Returns these columns in their declared types; null where an older file has none."""
    table = declared(table)
    for name in {*names} - {*table.column_names}:
        nothing = pa.nulls(len(table), _FIELDS[name].type)
        table = table.append_column(_FIELDS[name], nothing)
    return table.select(names)


def read_rows(source: pa.NativeFile, columns: Sequence[str] | None, rows: Ints | None) -> pa.Table:
    """Reads some columns (default: all) of some rows (default: all) of a Parquet file.

    Args:
      source: The file.
      columns: Names; those that the file does not have are passed over.
      rows: Numbers of the rows, rising.

    Raises:
      pa.ArrowException: It is no Parquet file.
      OSError: It is a broken one.
      ValueError: It has no such rows.
    """
    with pq.ParquetFile(source) as file:
        count, least = file.metadata.num_rows, 0 if rows is None else int(rows.max(initial=-1)) + 1
        if not least <= count <= source.size():  # each row's id alone takes six bytes
            raise ValueError(f"it has {count} rows")
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


def check_rows(table: pa.Table, numbers: Numbers, file: str) -> None:
    """Checks what was read of some records, column by column: types, times, and whose they are.

    Args:
      table: Some columns in their declared types, among them `schema_version` and `trial_id`.
      numbers: uint64 [rows]; the ids that are expected.
      file: Where they are, for messages.

    Raises:
      ValueError: They are no records, or others.
      pa.ArrowException: A column has a type that cannot be made its own.
      LedgerError: A newer release wrote one of them.
    """
    versions = _column(table, "schema_version")
    if (versions.values > SCHEMA_VERSION).any():
        raise newer(file, versions.values.max())
    if not (versions.present.all() and (versions.values >= 0).all()):
        raise ValueError("it has no schema version")
    table.validate(full=True)
    found = numbers_in(table["trial_id"])
    if len(found) != len(numbers):
        raise ValueError(f"it has {len(found)} rows, not {len(numbers)}")
    if (found != numbers).any():
        row = int(np.argmax(found != numbers))
        raise ValueError(f"it holds trial {id_of(int(found[row]))}, not {id_of(int(numbers[row]))}")
    for name in _TIMES:
        if name in table.column_names:
            times = _column(table, name)
            if not is_time(times.values[times.present]).all():
                raise ValueError(f"'{name}' is no time")


SINGLE_CHECKS = ("sweep", "candidate")
"""Columns that `check_single` looks at, beside those that `check_rows` does."""


def check_single(table: pa.Table, sweep: str, *, whole: bool) -> None:
    """Checks a record that is on its own, after `check_rows`: whose it is, and its other values.

    Merged files hold what was checked so.

    Args:
      table: The record.
      sweep: Name of the sweep.
      whole: Whether all columns were read, and are to be looked at.

    Raises:
      ValueError: It is another's, or a value is not what it should be.
    """
    (row,) = conform(table, SCHEMA.names if whole else ("trial_id", *SINGLE_CHECKS)).to_pylist()
    _candidate(row)
    if row["sweep"] != sweep:
        raise ValueError(f"it is of sweep {short(row['sweep'])}")
    if whole:
        trial_of({**row, "reason": None})  # a reason of a newer release may be


@dataclass(frozen=True)
class Batch:
    """Some columns of some trials.

    Attributes:
      table: The trials' rows.
      sweep: The sweep that they are of.
      files: The files that they are in, for messages, and how many rows of each.
    """

    table: pa.Table
    sweep: str
    files: Sequence[tuple[str, int]] = ()

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
        return _column(self.table, name)

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
        """Returns the trials, of whom every column was read.

        Raises:
          DamagedError: A record is none.
          LedgerError: As in `trial_of`.
        """

        def trial(row: Mapping[str, Any]) -> Trial:
            if row["sweep"] != self.sweep:
                raise ValueError(f"it is of sweep {short(row['sweep'])}")
            return trial_of(row)

        return self._each(self.table.to_pylist(), trial)

    def candidates(self) -> list[Candidate]:
        """Returns the trials' candidates.

        Raises:
          DamagedError: One is none.
        """
        return self._each(self.texts("candidate"), Candidate.from_json)

    def versions(self) -> list[Mapping[str, str]]:
        """Returns what `Provenance.versions` holds of each trial.

        Raises:
          DamagedError: A record is none.
        """

        @cache  # many have the same
        def versions(text: str | None) -> Mapping[str, str]:
            found: Mapping[str, str] = checked(
                "versions", parse_object(text or "{}"), Mapping[str, str]
            )
            return found

        return self._each(self.texts("versions"), versions)

    def _each(self, rows: Iterable[Any], function: Callable[[Any], T]) -> list[T]:
        """Returns what a function makes of each row.

        Raises:
          DamagedError: It does not take one, in whose file this is.
        """
        made = []
        for place, row in enumerate(rows):
            try:
                value = function(row)
            except (ValueError, TypeError) as error:
                raise damaged(self._file_of(place), error) from error
            made.append(value)
        return made

    def _file_of(self, row: int) -> str:
        ends = accumulate(count for _, count in self.files)
        named = zip(self.files, ends, strict=True)
        return next((name for (name, _), end in named if row < end), "a file")


def _column(table: pa.Table, name: str) -> Column:
    column = table[name]
    present = _to_numpy(column.is_valid().cast(pa.uint8())).astype(np.bool_)
    values = np.full(len(column), math.nan)
    values[present] = _to_numpy(column.drop_null())
    return Column(values, present)


def newer(file: str, version: float) -> LedgerError:
    """Returns what is said of a file with a schema version that only a newer release reads."""
    return LedgerError(
        f"{file} has schema version {version:.0f}, and this release reads up to {SCHEMA_VERSION}",
        hint=UPGRADE,
    )


def damaged(file: str, error: Exception) -> DamagedError:
    """Returns what is said of a file that holds no records."""
    return DamagedError(f"{file} is not a readable record: {first_line(error)}", hint=MEND)


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
