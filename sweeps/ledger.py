"""The ledger: every finished trial of every sweep, as files on any storage that pyarrow knows.

A storage location is a local folder, a network mount, or an object store (`s3://`, `gs://`). It has
a folder for each sweep, with

    sweep.json                    what the sweep is (`SweepFacts`)
    lease.json                    who launches it (`sweeps.lease`)
    trials/<trial id>.parquet     one record of one finished trial; never changed
    trials/merged-<n>/*.parquet   the same records, many to a file (`Ledger.compact`)
    started/<trial id>.json       candidates that somebody works on
    forgotten/*.parquet           records that `Ledger.forget` took off the books; nobody reads them
    models/<trial id>/            artefacts; `complete.json` names the folder that counts
    work/<trial id>/              of a running trial: its work folder; in object stores, what was
                                  last kept of it, as artefacts are
    dataset/                      if it was shipped (`sweeps.shipping`)

Any number of processes may append, compact and read at once, without locks:

- A file appears under its name whole or not at all (`Location.put`).
- A record leaves a file only after a file one level further up holds it. Readers list the levels
  upwards, so a record that moves meanwhile is met twice at worst, and they keep one of an id.

With `sweeps.storage` and `sweeps.records` the only importers of pyarrow in `sweeps`.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sweeps.errors import DamagedError, LedgerError, SweepError, TrialError, nearest
from sweeps.lease import leased
from sweeps.objectives import Limit, Objective
from sweeps.pareto import (
    Ints,
    ParetoFront,
    assemble,
    columns_needed,
    front_rows,
    non_dominated_rows,
)
from sweeps.records import (
    GROUP_ROWS,
    NO_ROWS,
    SCHEMA,
    SINGLE_CHECKS,
    Batch,
    check_rows,
    check_single,
    common_schema,
    conform,
    damaged,
    declared,
    declared_schema,
    many_records,
    newer,
    numbers_in,
    one_record,
    read_rows,
    table_of,
)
from sweeps.standing import Outcomes, columns_of
from sweeps.storage import Location, files_in
from sweeps.trial import SCHEMA_VERSION, Attempt, Reason, Status, Trial
from sweeps.trial_ids import Numbers, TrialIds, first_of_each, number_of
from thesis.typed_json import UnixTime, fields_of, parse_object, short

T = TypeVar("T")

FAILURES = frozenset(reason for reason in Reason if reason.status is Status.FAILED)
"""Reasons of trials that failed."""


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
      limits: What the metrics among `sweeps.config.Limits` may be at the most; None where an older
        release wrote the facts. Follows from the configuration, as `baseline` does, so that nobody
        has to read that who only looks.
      baseline: Id of the model itself as a candidate; '' where the space does not hold it.
    """

    name: str
    gin_config: str
    dataset_fingerprint: str
    objectives: tuple[str, ...]
    dataset_path: str = field(default="", compare=False)
    trials_asked: int = field(default=0, compare=False)
    created_at: UnixTime = field(default_factory=time.time, compare=False)
    schema_version: int = field(default=SCHEMA_VERSION, compare=False)
    limits: Mapping[str, float] | None = field(default=None, compare=False)
    baseline: str = field(default="", compare=False)

    def to_json(self) -> str:
        """Returns the content of sweep.json."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, data: bytes | str) -> "SweepFacts":
        """Returns the facts that `to_json` wrote; fields that are unknown here are passed over.

        Raises:
          ValueError: It has written no such text.
        """
        facts = cls(**fields_of(cls, parse_object(data)))
        if not _SWEEP.fullmatch(facts.name):
            raise ValueError(f"'name' is {short(facts.name)}")
        if not (facts.objectives and all(map(_METRIC.fullmatch, facts.objectives))):
            raise ValueError("'objectives' are no names of metrics")
        if "\0" in facts.dataset_path:
            raise ValueError("'dataset_path' is no path")
        return facts

    def difference(self, other: "SweepFacts") -> str:
        """Returns, in words, the first defining field in which `other` differs; '' if none does."""
        for f in dataclasses.fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if f.compare and mine != theirs:
                if f.name == "gin_config":
                    mine, theirs = _first_different_line(mine, theirs)
                return f"{f.name} is {short(mine, 200)} there and {short(theirs, 200)} here"
        return ""


def _first_different_line(a: str, b: str) -> tuple[str, str]:
    left, right = a.splitlines(), b.splitlines()
    length = max(len(left), len(right))
    padded = (lines + [""] * (length - len(lines)) for lines in (left, right))
    return next((pair for pair in zip(*padded, strict=True) if pair[0] != pair[1]), (a, b))


_SWEEP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_METRIC = re.compile("[A-Za-z0-9_]{1,100}")
_VERSION = re.compile("[0-9a-f]{32}")


def check_name(name: str) -> None:
    """Raises SweepError for a name that cannot be a folder everywhere."""
    if not _SWEEP.fullmatch(name):
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
        self._merged_numbers: dict[str, Numbers] = {}
        self._passed_over: dict[str, DamagedError] = {}

    @classmethod
    def create(cls, storage: str | Path | Location, sweep: str, facts: SweepFacts) -> "Ledger":
        """Returns the ledger of a new sweep, or of an existing one that has the same facts.

        What does not define the sweep (where the dataset is, how many trials are asked for) is
        brought up to date in an existing one.

        Raises:
          SweepError: The name will not do, or a different sweep has it.
          LedgerError: The storage cannot be used.
        """
        location = cls.planned(storage, sweep, facts).location
        location.make_folder(sweep)
        if location.put(_facts(sweep), facts.to_json().encode()):
            return cls(location, facts)
        ledger = cls.open(location, sweep)
        ledger._continue_with(facts)
        return ledger

    @classmethod
    def planned(cls, storage: str | Path | Location, sweep: str, facts: SweepFacts) -> "Ledger":
        """Returns what `create` would, and writes nothing: there may be no such sweep yet.

        Raises:
          SweepError, LedgerError: As `create`, as far as that can be seen from what is there.
        """
        check_name(sweep)
        if facts.name != sweep:
            raise ValueError(f"facts of {facts.name!r} given for sweep {sweep!r}")
        location = Location.of(storage)
        if not location.exists(_facts(sweep)):
            return cls(location, facts)
        ledger = cls.open(location, sweep)
        ledger._check_same(facts)
        return ledger

    @property
    def is_made(self) -> bool:
        """Whether the sweep is there, and not only planned."""
        return self.location.exists(_facts(self.name))

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
            return cls(location, _read_facts(location, sweep))
        except FileNotFoundError:
            raise SweepError(
                f"no sweep named '{sweep}' in {location.uri}",
                hint=nearest(sweep, list_sweeps(location), otherwise="'sweeps status' lists them"),
            ) from None

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
        if self.holds(trial.id):
            return False
        added = self._put(self._single(trial.id), one_record(trial))
        # The record is safe, and a mark that stays is harmless: `started` passes over it.
        with contextlib.suppress(LedgerError):
            self.location.delete(self._mark(trial.id))
            if self.location.local_folder is None:  # else it is the worker's, who is in it
                self.location.delete_folder(self._work(trial.id))
        return added

    def extend(self, trials: Iterable[Trial]) -> int:
        """Records many finished trials in one file, as an import from elsewhere does.

        Returns:
          The number of trials that had no record yet.

        Raises:
          LedgerError: As in `append`.
        """
        known = self.ids()
        new: dict[str, Trial] = {}
        for trial in trials:
            self._check_own(trial)
            if trial.id not in known:
                new.setdefault(trial.id, trial)
        if new:
            data = many_records([table_of(new.values())], SCHEMA)
            self._put_hashed(_levels(self.name)[1], data)
        return len(new)

    def trials(self) -> list[Trial]:
        """Returns all finished trials in the order in which they finished.

        A trial takes some 10 kB; `scan` and `outcomes` are for sweeps that are too large for that.

        Raises:
          LedgerError: A record cannot be read, or a newer release wrote it.
        """
        return _in_order(t for batch in self.scan(SCHEMA.names) for t in batch.trials())

    def holds(self, trial_id: str) -> bool:
        """Returns whether a trial is on record."""
        # This order: a record that moves to a merged file meanwhile is there when we look.
        return self.location.exists(self._single(trial_id)) or self._is_merged(trial_id)

    def ids(self) -> TrialIds:
        """Returns the ids of all finished trials."""
        names = self.location.names(_levels(self.name)[0], ".parquet")
        single = _ids_of(name for name in names if name not in self._passed_over)
        return TrialIds(single.numbers, *self._numbers_of_merged(level=1))

    def scan(
        self, columns: Sequence[str], *, known: Collection[str] = (), passed: Collection[str] = ()
    ) -> Iterator[Batch]:
        """Yields some columns of all finished trials, each trial once, some thousand at a time.

        Trials that are recorded meanwhile may be left out. What is read need not fit into memory.

        Args:
          columns: Names of `SCHEMA`.
          known: Ids of trials that are left out.
          passed: Names of files that hold no other trials, and are not looked at.

        Raises:
          LedgerError: As in `trials`.
        """
        met = [known.numbers if isinstance(known, TrialIds) else TrialIds.of(known).numbers]
        for _ in range(_LOOKS):
            try:
                for chunk in _chunks(self._parts(TrialIds(*met), passed)):
                    batch = self._batch(columns, chunk)
                    yield batch
                    met.append(numbers_in(batch.table["trial_id"]))
                return
            except FileNotFoundError:
                pass  # What is left has moved.
        raise _restless()

    def outcomes(
        self,
        objectives: Sequence[Objective],
        *,
        known: Collection[str] = (),
        passed: Collection[str] = (),
    ) -> Iterator[Outcomes]:
        """Yields what a `Standing` is made of, some thousand trials at a time; as `scan`."""
        columns = columns_of(objectives)
        needed = ("reason", "host_fingerprint", "started_at", "finished_at", *columns)
        for batch in self.scan(needed, known=known, passed=passed):
            yield batch.outcomes(columns)

    def history(self, objectives: Sequence[Objective], most: int) -> list[Trial]:
        """Returns what a search may learn from: non-dominated trials, then the latest to finish.

        Args:
          objectives: What trials compete in, whatever their hosts.
          most: Number of trials at the most.

        Returns:
          The trials in the order in which they finished.

        Raises:
          LedgerError: As in `trials`.
        """
        columns = columns_needed(objectives, ())

        def look() -> list[Trial]:
            parts = self._parts()
            batch = self._batch(("reason", "host_fingerprint", "finished_at", *columns), parts)
            best = non_dominated_rows(batch.records(columns), objectives)
            order = np.argsort(-batch.column("finished_at").values, kind="stable")
            order = np.concatenate([best, order[~np.isin(order, best)]])[:most]
            return self._batch(SCHEMA.names, _choose(parts, np.sort(order))).trials()

        return _in_order(_while_files_move(look))

    def get(self, prefix: str) -> Trial:
        """Returns the trial whose id is, or alone begins with, `prefix`.

        Raises:
          TrialError: There is none, or more than one.
        """
        ids = self.ids()
        matches = ids.beginning(prefix)
        if not matches:
            for name, error in self._passed_over.items():
                if PurePosixPath(name).stem.startswith(prefix):
                    raise error
            raise _unknown(prefix, ids, f"'sweeps front {self.name}' lists the best")
        if len(matches) > 1:
            some = ", ".join(islice(matches, 5)) + (", ..." if len(matches) > 5 else "")
            raise TrialError(
                f"'{prefix}' begins the ids of {len(matches)} trials: {some}",
                hint="give more digits of the id",
            )

        def look() -> list[Trial]:
            parts = [part.only(matches.hold(part.numbers)) for part in self._parts()]
            return self._batch(SCHEMA.names, parts).trials()

        return _while_files_move(look)[0]

    def front(self, objectives: Sequence[Objective], limits: Sequence[Limit] = ()) -> ParetoFront:
        """Returns what `pareto_front` makes of `trials()`, but reads only the columns in question.

        Raises:
          MetricError: As in `pareto_front`.
          LedgerError: As in `trials`.
        """
        columns = columns_needed(objectives, limits)

        def look() -> ParetoFront:
            parts = self._parts()
            batch = self._batch(("reason", "host_fingerprint", *columns), parts)
            records, own_limits = batch.records(columns), self.facts.limits or {}
            rows, excluded = front_rows(records, objectives, limits, own_limits)
            members = self._batch(SCHEMA.names, _choose(parts, rows)).trials()
            return assemble(members, objectives, len(batch), excluded)

        return _while_files_move(look)

    def compact(
        self, *, fully: bool = False, tell: Callable[[str], None] = lambda line: None
    ) -> int:
        """Merges small files into larger ones, so that many trials are read as fast as few.

        A thousand single records read in about a third of a second, so a sweep needs this once in
        some hundred trials. Any process may do it at any time; two at once do some work twice.
        What writers that were killed left behind is removed when it is a day old. Files that are
        damaged stay where and as they are.

        Args:
          fully: Merges what there is, even where that is little.
          tell: Is told, in a line, of each file that cannot be read.

        Returns:
          The number of files that were merged away.

        Raises:
          LedgerError: The storage cannot be used. Every record stays readable.
        """
        merged = 0
        for level, folder in enumerate(_levels(self.name)[:-1]):
            names = [
                n for n in self.location.names(folder, ".parquet") if n not in self._passed_over
            ]
            if len(names) >= (2 if fully else _FAN_IN[level]):
                merged += self._merge(names[::-1], level + 1, tell)
        for folder in (self.name, _started(self.name), _forgotten(self.name), *_levels(self.name)):
            self.location.delete_leftovers(folder)
        if self.location.local_folder is None:
            self._delete_leftover_work()
        return merged

    def forget(
        self,
        reasons: Collection[Reason] = FAILURES,
        *,
        waiting: Callable[[str], None] = lambda line: None,
    ) -> Counter[Reason]:
        """Takes records off the books, so that the next launch may try their candidates again.

        Every record that is removed is kept in the sweep's folder `forgotten` first, where no
        reader of the ledger looks. Whoever is killed on the way has removed some of them and lost
        none; forgetting again goes on. No launch may be under way: the lease is held meanwhile. A
        process that compacts at the same moment may bring some of them back: forget those again.

        Args:
          reasons: Why the trials have no place on the front.
          waiting: Is told, in a line, that and for whom the lease is watched.

        Returns:
          How many trials of each reason were forgotten.

        Raises:
          SweepError: The sweep is being launched.
          LedgerError: A record cannot be read or written. What was not forgotten is as it was.
        """
        forgotten: dict[str, Reason] = {}
        with leased(self.location, self.name, waiting=waiting) as lost:
            for _ in range(_LOOKS):
                found = self._with_reasons(reasons)
                if not found:
                    return Counter(forgotten.values())
                for trial_id in found.keys() - forgotten.keys():
                    # First: the mark may say how many workers died of it. While its trial is on
                    # record nobody asks for these.
                    self.location.delete(self._mark(trial_id))
                    self.location.delete_folder(self._work(trial_id))
                forgotten |= found
                with contextlib.suppress(FileNotFoundError):  # merged meanwhile: look again
                    for name in self._files():
                        if error := lost():
                            raise error
                        self._forget_in(name, reasons)
        raise _restless()

    def _with_reasons(self, reasons: Collection[Reason]) -> dict[str, Reason]:
        """Returns the trials that ended for one of some reasons, by id."""
        wanted = {reason.name: reason for reason in reasons}
        return {
            trial_id: wanted[name]
            for batch in self.scan(("reason",))
            for trial_id, name in zip(batch.ids, batch.texts("reason"), strict=True)
            if name in wanted
        }

    def _forget_in(self, name: str, reasons: Collection[Reason]) -> None:
        """Moves the records of a file that have one of some reasons to the forgotten ones."""
        (every,) = self._parts_of([name])
        found = self._batch(("reason",), [every]).texts("reason")
        gone = np.isin(found, [reason.name for reason in reasons])
        if not gone.any():
            return
        if _is_single(name):
            self._put_hashed(_forgotten(self.name), self.location.read(name))
        else:
            schema = common_schema([self._schema(name)])
            self._write([every.only(gone)], schema, _forgotten(self.name))
            # Beside the old file first: no reader misses what stays.
            self._write([every.only(~gone)], schema, str(PurePosixPath(name).parent))
        self.location.delete(name)

    def _delete_leftover_work(self) -> None:
        """Deletes what a worker kept of a trial that somebody else had recorded meanwhile."""
        kept, on_record = self.location.entries(_work(self.name)), self._readable_ids(level=0)
        for info in kept:
            if info.base_name in on_record:
                self.location.delete_folder(self._work(info.base_name))

    def mark_started(self, attempt: Attempt) -> None:
        """Notes that somebody works on a candidate, until `append` records its trial.

        Raises:
          LedgerError: The mark cannot be written.
        """
        mark = self._mark(attempt.candidate.id)
        self._put(mark, attempt.to_json().encode(), replace=True)

    def started(self, tell: Callable[[str], None] = lambda line: None) -> list[Attempt]:
        """Returns the attempts at candidates that are not finished, by id.

        Somebody works on them, or did when a machine was lost: only the driver can tell.

        Args:
          tell: Is told, in a line, of each mark that cannot be read. It is passed over.
        """
        finished, attempts = TrialIds(self.ids().numbers, self.taken().numbers), []
        for mark in self.location.names(_started(self.name), ".json"):
            if PurePosixPath(mark).stem not in finished:
                try:
                    attempts.append(self._attempt(mark))
                except DamagedError as error:
                    tell(error.message)
                except FileNotFoundError:
                    pass  # its trial has just finished
        return attempts

    def _attempt(self, mark: str) -> Attempt:
        """Returns what a started mark says.

        Raises:
          FileNotFoundError: It is gone.
          DamagedError: It cannot be read, or is that of another candidate.
        """

        def parse(data: bytes) -> Attempt:
            attempt = Attempt.from_json(data)
            if attempt.candidate.id != PurePosixPath(mark).stem:
                raise ValueError(f"it is the mark of trial {attempt.candidate.id}")
            return attempt

        return self.location.load(mark, parse, hint="delete it: the next launch begins anew")

    def pass_over_damaged(self) -> list[DamagedError]:
        """Leaves out single records that cannot be read, of all that is read here from now on.

        No trial counts for them. Nothing is written in their place either, see `taken`. A merged
        file that cannot be read remains an error: nobody knows whose records it holds.

        Returns:
          What is wrong with each.
        """
        names = self.location.names(_levels(self.name)[0], ".parquet")
        found = [error for error in self.location.each(self._damage_of, names) if error]
        self._passed_over |= {error.name: error for error in found}
        return found

    def _damage_of(self, name: str) -> DamagedError | None:
        """Returns what is wrong with a file of records; None for one that is sound, or gone."""
        try:
            for pieces in _chunks(self._parts_of([name])):
                self._whole_rows(pieces)
        except DamagedError as error:
            return error
        except FileNotFoundError:
            pass
        return None

    def taken(self) -> TrialIds:
        """Returns the ids under which no trial can be recorded: a damaged file has the name."""
        return _ids_of(self._passed_over)

    def put_artifacts(self, trial_id: str, folder: Path) -> None:
        """Stores a folder of files for a trial, in place of what was stored for it before.

        Others see the old files or all of the new ones: the files go to a folder of their own, and
        `complete.json`, written last, names it.

        Raises:
          LedgerError: They cannot be written.
        """
        self._put_version(self._artifacts(trial_id), folder)

    def get_artifacts(self, trial_id: str, folder: Path) -> None:
        """Copies a trial's stored files into a folder, which is made if need be.

        Raises:
          TrialError: None are stored, or not all of them yet.
          LedgerError: They cannot be read, or `folder` cannot be written.
        """
        if not self._get_version(self._artifacts(trial_id), folder):
            raise TrialError(
                f"no model is stored for trial {trial_id} of '{self.name}'",
                hint="only completed trials keep their model",
            )

    def has_artifacts(self, trial_id: str) -> bool:
        """Returns whether a trial's files are stored, all of them."""
        return self._version(self._artifacts(trial_id)) is not None

    def put_work(self, trial_id: str, folder: Path) -> str:
        """Stores the work folder of a running trial, as `put_artifacts`; `append` removes it.

        Returns:
          What `work_version` returns of it.

        Raises:
          LedgerError: It cannot be written.
        """
        return self._put_version(self._work(trial_id), folder)

    def work_version(self, trial_id: str) -> str | None:
        """Returns a name for what is stored as a trial's work folder now; None for nothing."""
        return self._version(self._work(trial_id))

    def get_work(self, trial_id: str, folder: Path) -> bool:
        """Copies a running trial's stored work folder into one here; False where none is stored.

        Raises:
          LedgerError: It cannot be read, or `folder` cannot be written.
        """
        return self._get_version(self._work(trial_id), folder)

    def _put_version(self, place: str, folder: Path) -> str:
        before, version = None, uuid.uuid4().hex
        with contextlib.suppress(DamagedError):
            before = self._version(place)
        self.check_there()
        files_in(folder)  # no link among them
        self.location.copy_in(folder, f"{place}/{version}")
        self._put(_complete(place), json.dumps({"folder": version}).encode(), replace=True)
        if before is not None:
            self.location.delete_folder(f"{place}/{before}")
        return version

    def _get_version(self, place: str, folder: Path) -> bool:
        def copy() -> bool:
            version = self._version(place)
            if version is not None:
                self.location.copy_out(f"{place}/{version}", folder)
            return version is not None

        return _while_files_move(copy)

    def _version(self, place: str) -> str | None:
        """Returns the name of the folder that counts among those in a place; None if none does.

        Raises:
          DamagedError: What says so has been damaged.
        """

        def parse(data: bytes) -> str:
            version = parse_object(data).get("folder")
            if not (isinstance(version, str) and _VERSION.fullmatch(version)):
                raise ValueError("it names no folder")
            return version

        try:
            hint = "delete it: what it stands for counts as not stored"
            return self.location.load(_complete(place), parse, hint=hint)
        except FileNotFoundError:
            return None

    def _put(self, name: str, data: bytes, *, replace: bool = False) -> bool:
        self.check_there()
        return self.location.put(name, data, replace=replace)

    def check_there(self) -> None:
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
        self._check_same(facts)
        current = dataclasses.replace(
            self.facts,
            dataset_path=facts.dataset_path,
            trials_asked=facts.trials_asked,
            limits=facts.limits,  # which an older release did not write
            baseline=facts.baseline,
        )
        if current.to_json() != self.facts.to_json():
            self.location.put(_facts(self.name), current.to_json().encode(), replace=True)
            self.facts = current

    def _check_same(self, facts: SweepFacts) -> None:
        """Raises SweepError where facts are those of another sweep."""
        difference = self.facts.difference(facts)
        if difference:
            raise SweepError(
                f"sweep '{self.name}' exists and differs: {difference}",
                hint="to continue it as it was started, leave out the run file, --set and --data; "
                "for what is here, take another --name",
            )

    def _batch(self, columns: Sequence[str], parts: Sequence["_Part"]) -> Batch:
        """Reads some columns of what counts of some files.

        Raises:
          FileNotFoundError: One of them is gone: it has been merged into another.
          LedgerError: One cannot be read, or a newer release wrote it.
        """
        columns = tuple(dict.fromkeys(("trial_id", *columns)))
        read = ("schema_version", *columns)

        parts = [part for part in parts if len(part)]
        tables = self.location.each(lambda part: conform(self._load(part, read), columns), parts)
        files = [(self.location.show(part.name), len(part)) for part in parts]
        return Batch(pa.concat_tables([NO_ROWS.select(columns), *tables]), self.name, files)

    def _parts(self, known: TrialIds | None = None, passed: Collection[str] = ()) -> list["_Part"]:
        """Returns what counts of each file, oldest first; the trials in `known` do not."""

        def look() -> list[_Part]:
            names = self._files()
            return self._parts_of([n for n in names if n not in passed] if passed else names, known)

        return _while_files_move(look)

    def _parts_of(self, names: Sequence[str], known: TrialIds | None = None) -> list["_Part"]:
        numbers = self.location.each(self._numbers_in, names)
        every = np.concatenate([np.empty(0, np.uint64), *numbers])
        counts = first_of_each(every)
        if known:
            counts &= ~known.hold(every)
        ends = np.cumsum([len(some) for some in numbers], dtype=np.intp)
        masks = np.split(counts, ends[:-1]) if names else []
        return [
            _Part(name, some[mask], np.flatnonzero(mask))
            for name, some, mask in zip(names, numbers, masks, strict=True)
        ]

    def _files(self) -> list[str]:
        """Returns the files of all trials, oldest first."""
        single = self.location.names(_levels(self.name)[0], ".parquet")
        # Listed upwards for the sake of records that move, but the upper ones came first.
        files = [*self._merged_files(level=1), *single[::-1]]
        return [name for name in files if name not in self._passed_over]

    def _merged_files(self, level: int) -> list[str]:
        """Returns the merged files of this level and above, oldest first."""
        folders = _levels(self.name)[level:]
        return [name for folder in folders for name in self.location.names(folder, ".parquet")][
            ::-1
        ]

    def _load(self, part: "_Part", columns: Sequence[str] | None = None) -> pa.Table:
        """Reads what counts of one file, some columns or all; see `_batch`."""
        single = _is_single(part.name)
        if single and columns is not None:  # it is read whole anyway
            columns = [*dict.fromkeys((*columns, *SINGLE_CHECKS))]

        def parse(file: pa.NativeFile) -> pa.Table:
            # One request for a small file; only the columns in question of a large one.
            small = file.size() <= _SMALL_BYTES
            source = pa.BufferReader(file.read_buffer()) if small else file
            return read_rows(source, columns, None if single else part.rows)

        with self._reporting_damage(part.name) as file:
            table = declared(self.location.parse(part.name, parse))
            check_rows(table, part.numbers, file)
            if single:
                check_single(table, self.name, whole=columns is None)
        return table

    @contextlib.contextmanager
    def _reporting_damage(self, name: str) -> Iterator[str]:
        """Has a file named by what is wrong with it. Yields its full name."""
        file = self.location.show(name)
        try:
            yield file
        except FileNotFoundError:
            raise
        except DamagedError as error:
            error.name = name
            raise
        except _DAMAGE as cause:
            damage = damaged(file, cause)
            damage.name = name
            raise damage from cause

    def _merge(self, names: Sequence[str], level: int, tell: Callable[[str], None]) -> int:
        """Merges files into some of the given level; returns how many."""
        left = list(names)
        while len(left) > 1:
            try:
                self._merge_all(left, level)
                break
            except FileNotFoundError:
                return 0  # Somebody else is at it.
            except DamagedError as error:
                if error.name not in left:
                    raise
                # All that are, at once. If none is on its own, it does not go with the others.
                found = [e for e in self.location.each(self._damage_of, left) if e] or [error]
                for damage in found:
                    tell(damage.message)
                    left.remove(damage.name)
        else:
            return 0
        self.location.each(self.location.delete, left)
        return len(left)

    def _merge_all(self, names: Sequence[str], level: int) -> None:
        # Of two records of one id, readers take that of the upper level. It stays the one.
        parts = self._parts_of(names, known=self._readable_ids(level))
        schema = pa.schema([])
        for name, its_schema in zip(names, self.location.each(self._schema, names), strict=True):
            with self._reporting_damage(name):
                schema = common_schema([schema, its_schema])
        self._write(parts, schema, _levels(self.name)[level])

    def _write(self, parts: Sequence["_Part"], schema: pa.Schema, folder: str) -> None:
        """Writes whole rows, columns of other releases included, to some files of a folder."""
        chunks = _chunks(parts)
        while file_chunks := [*islice(chunks, _MAX_GROUPS)]:
            tables = map(self._whole_rows, file_chunks)
            self._put_hashed(folder, many_records(tables, schema))

    def _whole_rows(self, parts: Sequence["_Part"]) -> pa.Table:
        tables = self.location.each(self._load, parts)
        return pa.concat_tables(tables, promote_options="permissive")

    def _schema(self, name: str) -> pa.Schema:
        with self._reporting_damage(name):
            return declared_schema(self.location.parse(name, pq.read_schema))

    def _put_hashed(self, folder: str, data: bytes) -> None:
        """Writes a Parquet file that is named by what it holds: twice the same is one file."""
        name = hashlib.sha256(data).hexdigest()[:16]
        self._put(f"{folder}/{name}.parquet", data)

    def _is_merged(self, trial_id: str) -> bool:
        # In a file that is damaged it may be, and is to be recorded all the same.
        return trial_id in self._readable_ids(level=1)

    def _readable_ids(self, level: int) -> TrialIds:
        """Returns the ids in files of this level and above, those that cannot be read left out."""

        def numbers() -> list[Numbers]:
            found = []
            for name in self._files() if level == 0 else self._merged_files(level):
                with contextlib.suppress(DamagedError):
                    found.append(self._numbers_in(name))
            return found

        return TrialIds(*_while_files_move(numbers))

    def _numbers_of_merged(self, level: int) -> list[Numbers]:
        """Returns the ids in each merged file of this level and above."""

        def numbers() -> list[Numbers]:
            return [self._numbers_in(name) for name in self._merged_files(level)]

        return _while_files_move(numbers)

    def _numbers_in(self, name: str) -> Numbers:
        """Returns the ids of a file's rows, in their order."""
        if name in self._merged_numbers:
            return self._merged_numbers[name]
        with self._reporting_damage(name):
            if _is_single(name):
                number = number_of(PurePosixPath(name).stem)
                if number is None:
                    raise ValueError("its name is no trial's id")
                return np.array([number], np.uint64)
            table = self.location.parse(name, lambda file: read_rows(file, ["trial_id"], None))
            self._merged_numbers[name] = numbers_in(conform(table, ["trial_id"])["trial_id"])
        return self._merged_numbers[name]

    def _single(self, trial_id: str) -> str:
        return f"{_levels(self.name)[0]}/{trial_id}.parquet"

    def _mark(self, trial_id: str) -> str:
        return f"{_started(self.name)}/{trial_id}.json"

    def _artifacts(self, trial_id: str) -> str:
        return f"{self.name}/models/{trial_id}"

    def _work(self, trial_id: str) -> str:
        return f"{_work(self.name)}/{trial_id}"


class _Mark(NamedTuple):
    """A started mark as it was listed; it may be written anew."""

    name: str
    size: int | None
    mtime_ns: int | None


class Tail:
    """Reads what is new in a sweep since it was read last: each trial once, each file once.

    It keeps the ids of all trials in mind, eight bytes each. Not for several threads at once.

    Attributes:
      damaged: What is wrong with each started mark that cannot be read.
      outdated: Whether trials that were told are on record no more (`Ledger.forget`): what was made
        of them has to be made anew, by another tail.
    """

    def __init__(self, ledger: Ledger, objectives: Sequence[Objective]) -> None:
        """Begins at the sweep's first trial, and reads what these objectives need."""
        self._ledger = ledger
        self._objectives = objectives
        self._ids = TrialIds()
        self._files: frozenset[str] = frozenset()
        self._marks: dict[_Mark, Attempt | DamagedError] = {}
        self._forgotten: frozenset[str] | None = None
        self.damaged: tuple[str, ...] = ()
        self.outdated = False

    def read(self, tell: Callable[[Outcomes], None]) -> list[Attempt]:
        """Tells the trials that were not on record at the last call; returns what is started now.

        Args:
          tell: Is told some thousand trials at a time.

        Raises:
          LedgerError: A record cannot be read, or a newer release wrote it.
        """
        # Marks first: a trial that ends meanwhile is then found among them, or on record.
        attempts = self._read_marks()
        forgotten = frozenset(
            self._ledger.location.names(_forgotten(self._ledger.name), ".parquet")
        )
        files = frozenset(self._ledger._files())
        new = self._ledger.outcomes(self._objectives, known=self._ids, passed=self._files)
        told = [self._ids.numbers]
        try:
            for outcomes in new:
                tell(outcomes)
                told.append(TrialIds.of(outcomes.ids).numbers)
        finally:
            if len(told) > 1:
                self._ids = TrialIds(*told)
        if self._forgotten not in (None, forgotten):
            self.outdated = True  # what was forgotten may be on record again by now
        elif not self._files <= files:
            self.outdated = not self._ledger.ids().hold(self._ids.numbers).all()
        self._forgotten = forgotten
        self._files = files  # what they held was told, wherever it has moved meanwhile or not
        return [attempt for attempt in attempts if attempt.candidate.id not in self._ids]

    def _read_marks(self) -> list[Attempt]:
        location, folder = self._ledger.location, _started(self._ledger.name)
        marks = [
            _Mark(f"{folder}/{info.base_name}", info.size, info.mtime_ns)
            for info in location.entries(folder)
            if info.is_file
            and info.extension == "json"
            and PurePosixPath(info.base_name).stem not in self._ids
        ]
        new = [mark for mark in marks if mark not in self._marks]
        read = dict(zip(new, location.each(self._attempt, new), strict=True))
        known = {mark: self._marks.get(mark) or read.get(mark) for mark in marks}
        self._marks = {mark: found for mark, found in known.items() if found}
        found = self._marks.values()
        self.damaged = tuple(f.message for f in found if isinstance(f, DamagedError))
        return [f for f in found if isinstance(f, Attempt)]

    def _attempt(self, mark: "_Mark") -> Attempt | DamagedError | None:
        try:
            return self._ledger._attempt(mark.name)
        except FileNotFoundError:  # its trial has just finished
            return None
        except DamagedError as error:
            return error


_FAN_IN = (2, 16, 16)
"""How many files of a level it takes before they are merged into one of the next."""

_MAX_GROUPS = 20
"""Row groups of a merged file at the most: 100,000 trials, 12 MB."""

_SMALL_BYTES = 1 << 20

_DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError)
"""What reading a file ends with that holds something else than records."""


@dataclass(frozen=True)
class _Part:
    """What counts of a file.

    Attributes:
      name: Of the file.
      numbers: uint64 [trials]; the ids that count.
      rows: int [trials]; their rows in the file, rising.
    """

    name: str
    numbers: Numbers
    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, places: Any) -> "_Part":
        """Returns some of it: what a slice, a mask or an index of NumPy's chooses."""
        return _Part(self.name, self.numbers[places], self.rows[places])


def _chunks(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Yields parts of files, so many that they hold at most `GROUP_ROWS` trials together."""
    chunk: list[_Part] = []
    for part in parts:
        for start in range(0, len(part), GROUP_ROWS):
            piece = part.only(slice(start, start + GROUP_ROWS))
            if sum(map(len, chunk)) + len(piece) > GROUP_ROWS:
                yield chunk
                chunk = []
            chunk.append(piece)
    if chunk:
        yield chunk


def _choose(parts: Iterable[_Part], rows: Ints) -> list[_Part]:
    """Returns what is in some rows, counted through all parts."""
    chosen, start = [], 0
    for part in parts:
        chosen.append(part.only(rows[(rows >= start) & (rows < start + len(part))] - start))
        start += len(part)
    return chosen


def _levels(sweep: str) -> tuple[str, ...]:
    """Folders of records, each fed by the one before it: single ones first."""
    trials = f"{sweep}/trials"
    return (trials, *(f"{trials}/merged-{n}" for n in range(1, len(_FAN_IN) + 1)))


def _ids_of(names: Iterable[str]) -> TrialIds:
    return TrialIds.of(PurePosixPath(name).stem for name in names)


def _is_single(name: str) -> bool:
    return PurePosixPath(name).parent.name == "trials"


def _facts(sweep: str) -> str:
    return f"{sweep}/sweep.json"


def _started(sweep: str) -> str:
    return f"{sweep}/started"


def _work(sweep: str) -> str:
    return f"{sweep}/work"


def _forgotten(sweep: str) -> str:
    return f"{sweep}/forgotten"


def _complete(place: str) -> str:
    return f"{place}/complete.json"


def _in_order(trials: Iterable[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: (trial.provenance.finished_at, trial.id))


def _while_files_move(look: Callable[[], T]) -> T:
    """Looks again when a file is gone between being listed and being read: it has been merged."""
    for _ in range(_LOOKS):
        with contextlib.suppress(FileNotFoundError):
            return look()
    raise _restless()


def _restless() -> LedgerError:
    return LedgerError(
        "the ledger's files move faster than they can be read",
        hint="let one process at a time compact the sweep",
    )


_LOOKS = 50


def _read_facts(location: Location, sweep: str) -> SweepFacts:
    where = location.show(_facts(sweep))

    def parse(data: bytes) -> SweepFacts:
        version = parse_object(data).get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise newer(where, version)
        return SweepFacts.from_json(data)

    facts = location.load(_facts(sweep), parse, hint="restore it; the records are not touched")
    if facts.name != sweep:
        raise DamagedError(
            f"{where} is that of a sweep named '{facts.name}'",
            hint="give its folder that name: records know the name of their sweep",
        )
    return facts


def _unknown(prefix: str, ids: TrialIds, otherwise: str) -> TrialError:
    alike = islice(ids.beginning(prefix[:2]) or ids, _COMPARED)
    return TrialError(f"no trial '{prefix}'", hint=nearest(prefix, alike, otherwise=otherwise))


_COMPARED = 10_000
"""Ids that a misspelt one is compared with at the most: a tenth of a second's work."""


# ---------------------------------------------------------------------------------------------
# All sweeps of a storage location


def list_sweeps(storage: str | Path | Location) -> list[str]:
    """Returns the names of the sweeps in a storage location, in order; none if it is not there.

    Raises:
      LedgerError: The storage cannot be read.
    """
    location = Location.of(storage)
    folders = [info.base_name for info in location.entries("") if not info.is_file]
    return sorted(name for name in folders if _SWEEP.fullmatch(name) and _is_sweep(location, name))


def _is_sweep(location: Location, name: str) -> bool:
    try:
        return location.exists(_facts(name))
    except DamagedError:  # it is none that can be opened, which then says why
        return True


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
    ids: dict[Ledger, TrialIds] = {}
    errors = []
    for name in list_sweeps(location):
        try:
            ledger = Ledger.open(location, name)
            ids[ledger] = ledger.ids()
        except (DamagedError, SweepError) as error:  # it may be in another
            errors.append(error)
    holders = [ledger for ledger, its_ids in ids.items() if its_ids.beginning(prefix)]
    if errors and not holders:
        raise errors[0]
    if not holders:
        every = TrialIds(*(some.numbers for some in ids.values()))
        raise _unknown(prefix, every, "'sweeps status' lists the sweeps")
    if len(holders) > 1:
        names = ", ".join(f"'{ledger.name}'" for ledger in holders)
        raise TrialError(
            f"'{prefix}' begins the ids of trials in several sweeps: {names}",
            hint="name the sweep, or give more digits of the id",
        )
    return holders[0], holders[0].get(prefix)
