"""The ledger: every finished trial of every sweep, as files on any storage that pyarrow knows.

A storage location is a local folder, a network mount, or an object store (`s3://`, `gs://`):

    <sweep>/sweep.json                    what the sweep is (`SweepFacts`)
    <sweep>/trials/<trial id>.parquet     one record of one finished trial; never changed
    <sweep>/trials/merged-<n>/*.parquet   the same records, many to a file (`Ledger.compact`)
    <sweep>/started/<trial id>.json       candidates that somebody works on
    <sweep>/models/<trial id>/            artefacts; `complete.json` names the folder that counts

Any number of processes may append, compact and read at once, without locks:

- A file appears under its name whole or not at all (`Location.put`).
- A record leaves a file only after a file one level further up holds it. Readers list the levels
  upwards, so a record that moves meanwhile is met twice at worst, and they keep one of an id.

Only this module and `sweeps.storage` import pyarrow.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sweeps.errors import LedgerError, SweepError, TrialError, nearest
from sweeps.objectives import Limit, Objective
from sweeps.pareto import (
    REASONS,
    Column,
    Ints,
    ParetoFront,
    Records,
    assemble,
    columns_needed,
    front_rows,
)
from sweeps.standing import Outcomes
from sweeps.storage import Location
from sweeps.trial import (
    METRICS,
    SCHEMA_VERSION,
    Attempt,
    Candidate,
    Measurement,
    Provenance,
    Reason,
    Trial,
)

T = TypeVar("T")

# ---------------------------------------------------------------------------------------------
# Records: a trial as a row


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


def _row(trial: Trial) -> dict[str, Any]:
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
    return {name: _storable(value) for name, value in row.items()}


def _storable(value: Any) -> Any:
    # An exception's text may hold half a surrogate pair. It must not cost us the record.
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def _trial(row: Mapping[str, Any]) -> Trial:
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
            hint=_UPGRADE,
        ) from None


def _to_parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return bytes(sink.getvalue())


# What makes large files small makes files of one row slow to read: without dictionaries,
# compression, statistics and the Arrow schema, 1,000 of them take half of the time.
_ONE_ROW = {
    "use_dictionary": False,
    "compression": "none",
    "write_statistics": False,
    "store_schema": False,
}
_MANY_ROWS = {"compression": "zstd", "row_group_size": 50_000}


def _conform(table: pa.Table, names: Sequence[str]) -> pa.Table:
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


# pa.array and to_numpy import pandas where it is installed, which takes longer than a front does.


def _to_numpy(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """Returns a column of numbers without nulls."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return np.from_dlpack(column)


def _to_arrow(numbers: Ints) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(numbers, np.int64))
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, buffer])


def _to_strings(texts: Sequence[str]) -> pa.Array:
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def _first_of_each_id(table: pa.Table) -> pa.Table:
    ids = table["trial_id"].combine_chunks().dictionary_encode()
    if len(ids.dictionary) == len(ids):
        return table
    _, first = np.unique(_to_numpy(ids.indices), return_index=True)
    return table.take(_to_arrow(np.sort(first)))


def _parse(source: pa.NativeFile, columns: Sequence[str] | None, ids: pa.Array | None) -> pa.Table:
    """Reads some columns (default: all), and of these some trials (default: all)."""
    with pq.ParquetFile(source) as file:
        if ids is None:
            return file.read(columns, use_threads=False)
        groups = []
        for group in range(file.num_row_groups):
            wanted = pc.is_in(file.read_row_group(group, ["trial_id"])["trial_id"], ids)
            if pc.any(wanted).as_py():
                groups.append(file.read_row_group(group, columns).filter(wanted))
        return pa.concat_tables(groups) if groups else file.read_row_groups([], columns)


# ---------------------------------------------------------------------------------------------
# Sweeps


@dataclass(frozen=True, kw_only=True)
class SweepFacts:
    """What a sweep is. Two launches are of one sweep when the fields that define it are equal.

    Attributes:
      name: Name of the sweep.
      gin_config: The resolved configuration.
      dataset_fingerprint: Identifies the dataset, wherever it is kept.
      objectives: Metrics that the search minimises or maximises.
      dataset_path: Where the dataset was at the last launch. Does not define the sweep.
      trials_asked: Number of trials the last launch asked for in all. Does not define the sweep.
      created_at: Unix time of the first launch, in seconds. Does not define the sweep.
      schema_version: Version of the records' schema at the first launch.
    """

    name: str
    gin_config: str
    dataset_fingerprint: str
    objectives: tuple[str, ...]
    dataset_path: str = field(default="", compare=False)
    trials_asked: int = field(default=0, compare=False)
    created_at: float = field(default_factory=time.time, compare=False)
    schema_version: int = field(default=SCHEMA_VERSION, compare=False)

    def to_json(self) -> str:
        """Returns the content of sweep.json."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "SweepFacts":
        """Returns the facts that `to_json` wrote; fields that are unknown here are passed over.

        Raises:
          ValueError: It is no JSON.
          TypeError: It is not an object, or a field without a default is missing.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: v for k, v in dict(json.loads(text)).items() if k in known}
        return cls(**{**values, "objectives": tuple(values.get("objectives", ()))})

    def difference(self, other: "SweepFacts") -> str:
        """Returns, in words, the first defining field in which `other` differs; '' if none does."""
        for f in dataclasses.fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if f.compare and mine != theirs:
                if f.name == "gin_config":
                    mine, theirs = _first_different_line(mine, theirs)
                return f"{f.name} is {mine!r} there and {theirs!r} here"
        return ""


def _first_different_line(a: str, b: str) -> tuple[str, str]:
    left, right = a.splitlines(), b.splitlines()
    length = max(len(left), len(right))
    padded = (lines + [""] * (length - len(lines)) for lines in (left, right))
    return next((pair for pair in zip(*padded, strict=True) if pair[0] != pair[1]), (a, b))


def check_name(name: str) -> None:
    """Raises SweepError for a name that cannot be a folder everywhere."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise SweepError(
            f"'{name}' cannot be the name of a sweep",
            hint="use up to 100 letters, digits, '-', '_' and '.', with a letter or digit first",
        )


class Ledger:
    """The finished trials of one sweep. May be pickled and used by many processes at once.

    Attributes:
      location: The storage that the sweep is kept in.
      facts: What the sweep is.
    """

    def __init__(self, location: Location, facts: SweepFacts) -> None:
        """Use `create` or `open`."""
        self.location = location
        self.facts = facts
        # Merged files never change, so what they hold need not be asked for twice.
        self._ids_of_merged: dict[str, frozenset[str]] = {}

    @classmethod
    def create(cls, storage: str | Path | Location, sweep: str, facts: SweepFacts) -> "Ledger":
        """Returns the ledger of a new sweep, or of an existing one that has the same facts.

        What does not define the sweep (where the dataset is, how many trials are asked for) is
        brought up to date in an existing one.

        Raises:
          SweepError: The name will not do, or a different sweep has it.
          LedgerError: The storage cannot be used.
        """
        check_name(sweep)
        if facts.name != sweep:
            raise ValueError(f"facts of {facts.name!r} given for sweep {sweep!r}")
        location = Location.of(storage)
        location.make_folder(sweep)
        if location.put(_facts(sweep), facts.to_json().encode()):
            return cls(location, facts)
        ledger = cls.open(location, sweep)
        ledger._continue_with(facts)
        return ledger

    @classmethod
    def open(cls, storage: str | Path | Location, sweep: str) -> "Ledger":
        """Returns the ledger of an existing sweep.

        Raises:
          SweepError: There is none of this name; the hint offers the nearest.
          LedgerError: The storage cannot be read, or a newer release wrote it.
        """
        check_name(sweep)
        location = Location.of(storage)
        try:
            text = location.read(_facts(sweep)).decode()
        except FileNotFoundError:
            raise SweepError(
                f"no sweep named '{sweep}' in {location.uri}",
                hint=nearest(sweep, list_sweeps(location), otherwise="'sweeps status' lists them"),
            ) from None
        return cls(location, _parse_facts(text, location.show(_facts(sweep))))

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.facts.name

    @property
    def uri(self) -> str:
        """Where the sweep is kept, for messages."""
        return self.location.show(self.name)

    def append(self, trial: Trial) -> bool:
        """Records a finished trial and removes its started mark.

        When this returns, the record is on disk, or in the object store. The first record of an id
        stays: a trial that two workers finished is one trial.

        Returns:
          False if there is a record of this id already; nothing was changed.

        Raises:
          LedgerError: The record cannot be written: disk full, read-only. Nothing is left behind.
        """
        self._check_own(trial)
        name = f"{_levels(self.name)[0]}/{trial.id}.parquet"
        # This order: a record that moves to a merged file meanwhile is there when we look.
        if self.location.exists(name) or any(trial.id in ids for ids in self._merged_ids()):
            return False
        table = pa.Table.from_pylist([_row(trial)], schema=SCHEMA)
        added = self._put(name, _to_parquet(table, **_ONE_ROW))
        # The record is safe, and a mark that stays is harmless: `started` passes over it.
        with contextlib.suppress(LedgerError):
            self.location.delete(self._mark(trial.id))
        return added

    def extend(self, trials: Iterable[Trial]) -> int:
        """Records many finished trials in one file, as an import from elsewhere does.

        Returns:
          The number of trials that had no record yet.

        Raises:
          LedgerError: As in `append`.
        """
        known = self.ids()
        rows: dict[str, dict[str, Any]] = {}
        for trial in trials:
            self._check_own(trial)
            if trial.id not in known:
                rows.setdefault(trial.id, _row(trial))
        if rows:
            self._put_merged(pa.Table.from_pylist([*rows.values()], schema=SCHEMA), level=1)
        return len(rows)

    def trials(self) -> list[Trial]:
        """Returns all finished trials in the order in which they finished.

        Raises:
          LedgerError: A record cannot be read, or a newer release wrote it.
        """
        return _in_order(self._read(SCHEMA.names))

    def ids(self) -> set[str]:
        """Returns the ids of all finished trials."""
        single = self.location.names(_levels(self.name)[0], ".parquet")
        return {PurePosixPath(name).stem for name in single}.union(*self._merged_ids())

    def get(self, prefix: str) -> Trial:
        """Returns the trial whose id is, or alone begins with, `prefix`.

        Raises:
          TrialError: There is none, or more than one.
        """
        ids = self.ids()
        matches = _matching(prefix, ids)
        if not matches:
            raise _unknown(prefix, ids, f"'sweeps front {self.name}' lists the best")
        if len(matches) > 1:
            some = ", ".join(matches[:5]) + (", ..." if len(matches) > 5 else "")
            raise TrialError(
                f"'{prefix}' begins the ids of {len(matches)} trials: {some}",
                hint="give more digits of the id",
            )
        return _in_order(self._read(SCHEMA.names, matches))[0]

    def front(self, objectives: Sequence[Objective], limits: Sequence[Limit] = ()) -> ParetoFront:
        """Returns what `pareto_front` makes of `trials()`, but reads only the columns in question.

        Raises:
          MetricError: As in `pareto_front`.
          LedgerError: As in `trials`.
        """
        columns = columns_needed(objectives, limits)
        table = self._read(("trial_id", "reason", "host_fingerprint", *columns))
        rows, excluded = front_rows(_records(table, columns), objectives, limits)
        ids = table["trial_id"].take(_to_arrow(rows)).to_pylist()
        members = _in_order(self._read(SCHEMA.names, ids)) if ids else []
        return assemble(members, objectives, len(table), excluded)

    def compact(self) -> int:
        """Merges small files into larger ones, so that many trials are read as fast as few.

        A thousand single records read in about a third of a second, so a sweep needs this once in
        some hundred trials. Any process may do it at any time; two at once do some work twice.

        Returns:
          The number of files that were merged away.

        Raises:
          LedgerError: A file cannot be read or written. Every record stays readable.
        """
        merged = 0
        for level, folder in enumerate(_levels(self.name)[:-1]):
            names = self.location.names(folder, ".parquet")
            if len(names) >= _FAN_IN[level]:
                merged += self._merge(names, level + 1)
        return merged

    def mark_started(self, attempt: Attempt) -> None:
        """Notes that somebody works on a candidate, until `append` records its trial.

        Raises:
          LedgerError: The mark cannot be written.
        """
        mark = self._mark(attempt.candidate.id)
        self._put(mark, attempt.to_json().encode(), replace=True)

    def started(self) -> list[Attempt]:
        """Returns the attempts at candidates that are not finished, by id.

        Somebody works on them, or did when a machine was lost: only the driver can tell.
        """
        marks = self.location.names(_started(self.name), ".json")
        finished = self.ids()
        attempts = []
        for mark in marks:
            # A mark that is gone by now belongs to a trial that has just finished.
            if PurePosixPath(mark).stem not in finished:
                with contextlib.suppress(FileNotFoundError):
                    attempts.append(Attempt.from_json(self.location.read(mark).decode()))
        return attempts

    def put_artifacts(self, trial_id: str, folder: Path) -> None:
        """Stores a folder of files for a trial, in place of what was stored for it before.

        Others see the old files or all of the new ones: the files go to a folder of their own, and
        `complete.json`, written last, names it.

        Raises:
          LedgerError: They cannot be written.
        """
        before = self._artifacts(trial_id)
        version = uuid.uuid4().hex
        self._check_there()
        self.location.copy_in(folder, f"{_models(self.name)}/{trial_id}/{version}")
        complete = json.dumps({"folder": version}).encode()
        self._put(self._complete(trial_id), complete, replace=True)
        if before is not None:
            self.location.delete_folder(before)

    def get_artifacts(self, trial_id: str, folder: Path) -> None:
        """Copies a trial's stored files into a folder, which is made if need be.

        Raises:
          TrialError: None are stored, or not all of them yet.
          LedgerError: They cannot be read, or `folder` cannot be written.
        """

        def copy() -> None:
            source = self._artifacts(trial_id)
            if source is None:
                raise TrialError(
                    f"no model is stored for trial {trial_id} of '{self.name}'",
                    hint="only completed trials keep their model",
                )
            self.location.copy_out(source, folder)

        _while_files_move(copy)

    def has_artifacts(self, trial_id: str) -> bool:
        """Returns whether a trial's files are stored, all of them."""
        return self._artifacts(trial_id) is not None

    def _put(self, name: str, data: bytes, *, replace: bool = False) -> bool:
        self._check_there()
        return self.location.put(name, data, replace=replace)

    def _check_there(self) -> None:
        """Raises LedgerError where the sweep is gone: nothing is written in place of a mount."""
        if not self.location.exists(_facts(self.name)):
            raise LedgerError(
                f"{self.uri} is gone: it holds no sweep.json",
                hint="mount or restore it and launch again: finished trials are as they were, "
                "running ones continue from their checkpoints",
            )

    def _check_own(self, trial: Trial) -> None:
        if trial.sweep != self.name:
            raise ValueError(f"trial of sweep {trial.sweep!r} given to sweep {self.name!r}")

    def _continue_with(self, facts: SweepFacts) -> None:
        """Brings the facts that do not define the sweep up to date."""
        difference = self.facts.difference(facts)
        if difference:
            raise SweepError(
                f"sweep '{self.name}' exists and differs: {difference}",
                hint="to continue it as it was started, leave out the run file, --set and --data; "
                "for what is here, take another --name",
            )
        current = dataclasses.replace(
            self.facts, dataset_path=facts.dataset_path, trials_asked=facts.trials_asked
        )
        if current.to_json() != self.facts.to_json():
            self.location.put(_facts(self.name), current.to_json().encode(), replace=True)
            self.facts = current

    def _read(self, columns: Sequence[str], ids: Collection[str] | None = None) -> pa.Table:
        """Reads some columns of all trials, or of those with these ids; one row an id."""
        wanted = None if ids is None else _to_strings(sorted(ids))
        return self._read_files(lambda: self._files(ids), columns, wanted)[1]

    def _read_files(
        self, list_files: Callable[[], list[str]], columns: Sequence[str], ids: pa.Array | None
    ) -> tuple[list[str], pa.Table]:
        """Reads some columns of some files; returns these files, and one row an id."""
        columns = tuple(dict.fromkeys(("schema_version", "trial_id", *columns)))

        def read() -> tuple[list[str], list[pa.Table]]:
            names = list_files()
            return names, self.location.each(lambda name: self._load(name, columns, ids), names)

        names, tables = _while_files_move(read)
        if not tables:
            return names, SCHEMA.empty_table().select(columns)
        # A column that only some releases knew is filled with null.
        table = pa.concat_tables(tables, promote_options="permissive")
        return names, _first_of_each_id(_conform(table, columns))

    def _files(self, ids: Collection[str] | None = None) -> list[str]:
        """Returns the files to read for all trials, or for those with these ids; oldest first."""
        names = self.location.names(_levels(self.name)[0], ".parquet")
        if ids is not None:
            names = [name for name in names if PurePosixPath(name).stem in ids]
        # Listed upwards for the sake of records that move, but the upper ones came first.
        return [*self._merged_files(1), *names[::-1]]

    def _merged_files(self, level: int) -> list[str]:
        """Returns the merged files of this level and above; oldest first."""
        folders = _levels(self.name)[level:]
        return [name for folder in folders for name in self.location.names(folder, ".parquet")][
            ::-1
        ]

    def _load(
        self, name: str, columns: Sequence[str] | None = None, ids: pa.Array | None = None
    ) -> pa.Table:
        """Reads one file.

        Raises:
          FileNotFoundError: It is gone: its records have been merged into another.
          LedgerError: It cannot be read, or a newer release wrote it.
        """

        def parse(file: pa.NativeFile) -> pa.Table:
            # One request for a small file; only the columns in question of a large one.
            small = file.size() <= _SMALL_BYTES
            return _parse(pa.BufferReader(file.read_buffer()) if small else file, columns, ids)

        try:
            table = self.location.parse(name, parse)
            version = pc.max(table["schema_version"]).as_py()
        except FileNotFoundError:
            raise
        except (pa.ArrowInvalid, OSError, KeyError) as error:
            raise LedgerError(
                f"{self.location.show(name)} is not a readable record: "
                f"{str(error).partition(chr(10))[0]}",
                hint="restore the file, or delete it and launch the sweep again: "
                "what it held is run again",
            ) from error
        if version is not None and version > SCHEMA_VERSION:
            raise LedgerError(
                f"{self.location.show(name)} has schema version {version}, "
                f"and this release reads up to {SCHEMA_VERSION}",
                hint=_UPGRADE,
            )
        return table

    def _merge(self, names: Sequence[str], level: int) -> int:
        """Merges files into one of the given level; returns how many."""
        try:
            tables = self.location.each(self._load, names[::-1])  # in the order of `_files`
        except FileNotFoundError:
            return 0  # Somebody else is at it.
        # Whole rows, columns of other releases included.
        table = _first_of_each_id(pa.concat_tables(tables, promote_options="permissive"))
        # Of two records of one id, readers take that of the upper level. It stays the one.
        for ids in self._merged_ids(level):
            table = table.filter(pc.invert(pc.is_in(table["trial_id"], _to_strings([*ids]))))
        if len(table):
            self._put_merged(table, level)
        self.location.each(self.location.delete, names)
        return len(names)

    def _put_merged(self, table: pa.Table, level: int) -> None:
        data = _to_parquet(table, **_MANY_ROWS)
        name = hashlib.sha256(data).hexdigest()[:16]
        self._put(f"{_levels(self.name)[level]}/{name}.parquet", data)

    def _merged_ids(self, level: int = 1) -> list[frozenset[str]]:
        """Returns the ids in each merged file of this level and above."""

        def ids() -> list[frozenset[str]]:
            return [self._ids_in(name) for name in self._merged_files(level)]

        return _while_files_move(ids)

    def _ids_in(self, name: str) -> frozenset[str]:
        if name not in self._ids_of_merged:
            ids = self._load(name, ("schema_version", "trial_id"))["trial_id"]
            self._ids_of_merged[name] = frozenset(ids.to_pylist())
        return self._ids_of_merged[name]

    def _mark(self, trial_id: str) -> str:
        return f"{_started(self.name)}/{trial_id}.json"

    def _complete(self, trial_id: str) -> str:
        return f"{_models(self.name)}/{trial_id}/complete.json"

    def _artifacts(self, trial_id: str) -> str | None:
        """Returns the folder of a trial's complete artefacts."""
        try:
            version = json.loads(self.location.read(self._complete(trial_id)))["folder"]
        except FileNotFoundError:
            return None
        return f"{_models(self.name)}/{trial_id}/{version}"


class _Mark(NamedTuple):
    """A started mark as it was listed; it may be written anew."""

    name: str
    size: int | None
    mtime_ns: int | None


class Tail:
    """Reads what is new in a sweep since it was read last: each file once, and each trial once.

    It keeps the ids of all trials in mind, some 100 bytes each. Not for several threads at once.
    """

    def __init__(self, ledger: Ledger, objectives: Sequence[Objective]) -> None:
        """Begins at the sweep's first trial, and reads what these objectives need."""
        self._ledger = ledger
        self._metrics = columns_needed(objectives, ())
        self._ids: set[str] = set()
        self._merged: set[str] = set()
        self._attempts: dict[_Mark, Attempt] = {}

    def read(self) -> tuple[Outcomes, list[Attempt]]:
        """Returns the trials that were not on record at the last call, and what is started now.

        Raises:
          LedgerError: A record cannot be read, or a newer release wrote it.
        """
        # Marks first: a trial that ends meanwhile is then found among them, or on record.
        attempts = self._read_marks()
        outcomes = self._read_records()
        return outcomes, [each for each in attempts if each.candidate.id not in self._ids]

    def _read_records(self) -> Outcomes:
        columns = ("reason", "host_fingerprint", "started_at", "finished_at", *self._metrics)
        names, table = self._ledger._read_files(self._new_files, columns, None)
        ids = table["trial_id"].to_pylist()
        new = [row for row, trial_id in enumerate(ids) if trial_id not in self._ids]
        if len(new) < len(ids):
            table, ids = table.take(_to_arrow(np.array(new, np.intp))), [ids[row] for row in new]
        self._ids.update(ids)
        # The others are named by the one trial that they hold.
        self._merged.update(name for name in names if PurePosixPath(name).stem not in self._ids)
        return Outcomes(
            ids=ids,
            records=_records(table, self._metrics),
            hosts=[host or "" for host in _codes(table["host_fingerprint"])[1]],
            started_at=np.nan_to_num(_column(table["started_at"]).values),
            finished_at=np.nan_to_num(_column(table["finished_at"]).values),
        )

    def _read_marks(self) -> list[Attempt]:
        location, folder = self._ledger.location, _started(self._ledger.name)
        marks = [
            _Mark(f"{folder}/{info.base_name}", info.size, info.mtime_ns)
            for info in location.entries(folder)
            if info.is_file and PurePosixPath(info.base_name).stem not in self._ids
        ]
        new = [mark for mark in marks if mark not in self._attempts]
        read = dict(zip(new, location.each(self._attempt, new), strict=True))
        known = {mark: self._attempts.get(mark) or read.get(mark) for mark in marks}
        self._attempts = {mark: attempt for mark, attempt in known.items() if attempt}
        return list(self._attempts.values())

    def _attempt(self, mark: "_Mark") -> Attempt | None:
        try:
            return Attempt.from_json(self._ledger.location.read(mark.name).decode())
        except FileNotFoundError:  # its trial has just finished
            return None

    def _new_files(self) -> list[str]:
        return [
            name
            for name in self._ledger._files()
            if name not in self._merged and PurePosixPath(name).stem not in self._ids
        ]


_FAN_IN = (2, 8, 8)
"""How many files of a level it takes before they are merged into one of the next."""

_SMALL_BYTES = 1 << 20

_UPGRADE = "a newer release wrote it; upgrade ddsp-sweeps"


def _levels(sweep: str) -> tuple[str, ...]:
    """Folders of records, each fed by the one before it: single ones first."""
    trials = f"{sweep}/trials"
    return (trials, *(f"{trials}/merged-{n}" for n in range(1, len(_FAN_IN) + 1)))


def _facts(sweep: str) -> str:
    return f"{sweep}/sweep.json"


def _started(sweep: str) -> str:
    return f"{sweep}/started"


def _models(sweep: str) -> str:
    return f"{sweep}/models"


def _while_files_move(look: Callable[[], T]) -> T:
    """Looks again when a file is gone between being listed and being read: it has been merged."""
    for _ in range(_LOOKS):
        with contextlib.suppress(FileNotFoundError):
            return look()
    raise LedgerError(
        "the ledger's files move faster than they can be read",
        hint="let one process at a time compact the sweep",
    )


_LOOKS = 50


def _in_order(table: pa.Table) -> list[Trial]:
    trials = map(_trial, table.to_pylist())
    return sorted(trials, key=lambda trial: (trial.provenance.finished_at, trial.id))


def _records(table: pa.Table, columns: Iterable[str]) -> Records:
    """Returns what a front needs to know of each row."""
    reasons, names = _codes(table["reason"])
    hosts, _ = _codes(table["host_fingerprint"])
    index = [REASONS.index(None if name is None else _reason(name)) for name in names]
    return Records(
        reasons=np.array(index, np.intp)[reasons],
        hosts=hosts,
        columns={name: _column(table[name]) for name in columns},
    )


def _column(column: pa.ChunkedArray) -> Column:
    present = _to_numpy(column.is_valid().cast(pa.uint8())).astype(np.bool_)
    values = np.full(len(column), math.nan)
    values[present] = _to_numpy(column.drop_null())
    return Column(values, present)


def _codes(column: pa.ChunkedArray) -> tuple[Ints, list[Any]]:
    """Returns a number for each row, and the value that each number stands for."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return _to_numpy(encoded.indices).astype(np.intp), encoded.dictionary.to_pylist()


def _parse_facts(text: str, where: str) -> SweepFacts:
    try:
        facts = SweepFacts.from_json(text)
    except (ValueError, TypeError) as error:
        raise LedgerError(
            f"{where} cannot be read: {error}", hint="restore it; the records are not touched"
        ) from error
    if facts.schema_version > SCHEMA_VERSION:
        raise LedgerError(
            f"{where} has schema version {facts.schema_version}, "
            f"and this release reads up to {SCHEMA_VERSION}",
            hint=_UPGRADE,
        )
    return facts


def _matching(prefix: str, ids: Iterable[str]) -> list[str]:
    """Returns the ids that a user may mean: the very one, or those that begin so."""
    matches = sorted(trial_id for trial_id in ids if trial_id.startswith(prefix))
    return [prefix] if prefix in matches else matches


def _unknown(prefix: str, ids: Iterable[str], otherwise: str) -> TrialError:
    return TrialError(f"no trial '{prefix}'", hint=nearest(prefix, ids, otherwise=otherwise))


# ---------------------------------------------------------------------------------------------
# All sweeps of a storage location


def list_sweeps(storage: str | Path | Location) -> list[str]:
    """Returns the names of the sweeps in a storage location, in order; none if it is not there.

    Raises:
      LedgerError: The storage cannot be read.
    """
    location = Location.of(storage)
    folders = [info.base_name for info in location.entries("") if not info.is_file]
    return sorted(name for name in folders if location.exists(_facts(name)))


def find_trial(
    storage: str | Path | Location, prefix: str, sweep: str | None = None
) -> tuple[Ledger, Trial]:
    """Returns the trial whose id begins with `prefix`, and the ledger that it is in.

    Args:
      storage: Where to look.
      prefix: A trial's id, or as much of it as no other trial's begins with.
      sweep: Look in this sweep only; by default in all.

    Raises:
      TrialError: There is no such trial, or more than one.
      SweepError: There is no such sweep.
      LedgerError: The storage cannot be read.
    """
    location = Location.of(storage)
    if sweep is not None:
        ledger = Ledger.open(location, sweep)
        return ledger, ledger.get(prefix)
    ledgers = [Ledger.open(location, name) for name in list_sweeps(location)]
    ids = {ledger.name: ledger.ids() for ledger in ledgers}
    holders = [ledger for ledger in ledgers if _matching(prefix, ids[ledger.name])]
    if not holders:
        every = set[str]().union(*ids.values())
        raise _unknown(prefix, every, "'sweeps status' lists the sweeps")
    if len(holders) > 1:
        names = ", ".join(f"'{ledger.name}'" for ledger in holders)
        raise TrialError(
            f"'{prefix}' begins the ids of trials in several sweeps: {names}",
            hint="name the sweep, or give more digits of the id",
        )
    return holders[0], holders[0].get(prefix)
