"""A ledger that somebody damaged, or wrote to harm: what each reader makes of it.

A sound ledger with one file changed. Every reader either raises one `UserError`, or goes on without
the file and says so; nothing is deleted.
"""

import dataclasses
import json
import pickle
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps import ledger as ledger_module
from sweeps.errors import DamagedError, LedgerError
from sweeps.export import export_table
from sweeps.lease import LeaseWatch
from sweeps.ledger import Ledger, Tail, find_trial
from sweeps.objectives import objective
from sweeps.records import SCHEMA, row_of
from sweeps.storage import Location
from sweeps.trial import Attempt, Candidate, Provenance, Reason
from tests.fuzz import ledger_json, ledger_parquet
from tests.sweeps.test_ledger import facts, trial

OBJECTIVES = [objective("val_loss"), objective("rtf_ratio")]
MERGED, SINGLES = (1, 2), (3, 4, 5)


def record(number, **changes):
    return dataclasses.replace(
        trial(number, val_loss=float(number), rtf_ratio=9.0 - number), **changes
    )


@pytest.fixture
def ledger(tmp_path):
    """Two records in a merged file, three on their own, and a started mark."""
    ledger = Ledger.create(tmp_path / "store", "tiny", facts())
    ledger.extend([record(number) for number in MERGED])
    for number in SINGLES:
        ledger.append(record(number))
    ledger.mark_started(Attempt(trial(9).candidate, host="h", began_at=5.0))
    return ledger


@pytest.fixture
def sweep(ledger):
    return Path(ledger.location.at("tiny"))


def single(sweep, number=3):
    return sweep / "trials" / f"{trial(number).id}.parquet"


def merged(sweep):
    (file,) = (sweep / "trials" / "merged-1").iterdir()
    return file


FILES = pytest.mark.parametrize("file", [single, merged])


def rewrite(path, change):
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)


def column(name, values):
    """A change of a table: another column of that name."""

    def change(table):
        new = pa.concat_arrays([pa.array(values)] * len(table))
        return table.set_column(table.column_names.index(name), name, new)

    return change


def reads(ledger, folder):
    """All that is done with a ledger but for changing it."""
    path = folder / "out"
    path.unlink(missing_ok=True)
    yield ledger.trials
    yield lambda: ledger.front(OBJECTIVES)
    yield lambda: [*ledger.outcomes(OBJECTIVES)]
    yield lambda: ledger.history(OBJECTIVES, 99)
    yield lambda: ledger.get(trial(3).id)
    yield lambda: ledger.get(trial(1).id)
    yield lambda: Tail(ledger, OBJECTIVES).read(lambda _: None)
    yield lambda: [batch.versions() for batch in ledger.scan(("versions",))]
    yield lambda: export_table(ledger, path, "csv")
    yield lambda: find_trial(ledger.location, trial(3).id)


def errors_of(ledger, folder):
    """What the readers end with, checked to be one line and one hint each."""
    errors = []
    for read in reads(ledger, folder):
        try:
            read()
        except LedgerError as error:
            errors.append(error)
    assert all(error.hint and "\n" not in error.message + error.hint for error in errors)
    return errors


# -- records

NO_RECORD = {
    "val_loss": ["x"], "schema_version": [None], "trial_id": ["0123456789ab"],
    "candidate": ["[]"], "sweep": ["other"], "started_at": [float("nan")], "finished_at": [1e300],
}  # fmt: skip
"""Values that no reader of the column takes."""

NO_WHOLE_RECORD = {
    "curve": ['{"a": 1}'], "versions": ['{"ddsp-sweeps": 3}'], "measure_conditions": ["[]"],
    "train_steps": [-5], "measured_at": [-1.0], "train_seconds": [float("inf")],
}  # fmt: skip
"""Values that only a reader of whole records meets."""


@FILES
@pytest.mark.parametrize(("name", "values"), NO_RECORD.items())
def test_record_with_a_value_that_is_none_is_an_error_for_who_reads_it(
    ledger, sweep, tmp_path, file, name, values
):
    rewrite(file(sweep), column(name, values))
    errors = errors_of(ledger, tmp_path)
    assert errors
    if file is single:
        assert all(str(file(sweep)) in error.message for error in errors)
        with pytest.raises(DamagedError, match="is not a readable record"):
            ledger.front(OBJECTIVES)


@FILES
@pytest.mark.parametrize(("name", "values"), NO_WHOLE_RECORD.items())
def test_record_with_a_value_that_is_none_is_an_error_for_who_reads_it_whole(
    ledger, sweep, tmp_path, file, name, values
):
    rewrite(file(sweep), column(name, values))
    assert str(file(sweep)) in errors_of(ledger, tmp_path)[0].message
    with pytest.raises(DamagedError, match="is not a readable record"):
        ledger.trials()


@pytest.mark.parametrize("name", ["schema_version", "trial_id", "candidate", "sweep"])
@FILES
def test_record_without_what_tells_whose_it_is_is_an_error(ledger, sweep, tmp_path, file, name):
    rewrite(file(sweep), lambda table: table.drop_columns([name]))
    assert errors_of(ledger, tmp_path)
    with pytest.raises(DamagedError, match="is not a readable record"):
        ledger.trials()


def test_numbers_that_are_no_good_are_shown_as_they_are(ledger, sweep, tmp_path):
    for name, value in {"val_loss": float("nan"), "rtf": -1.0, "rtf_ratio": float("inf")}.items():
        rewrite(single(sweep), column(name, [value]))
        assert errors_of(ledger, tmp_path) == []


floats = st.floats(allow_subnormal=False)
scalars = st.none() | st.booleans() | st.integers() | floats | st.text()
json_texts = st.one_of(
    scalars, st.lists(scalars, max_size=2), st.dictionaries(st.text(), scalars, max_size=2)
).map(json.dumps)
cells = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), floats, st.text(),
    st.binary(max_size=12), st.lists(floats, max_size=2), json_texts,
    st.dictionaries(st.sampled_from("ab"), st.integers(0, 9), min_size=1),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([*SCHEMA.names, "other"]), cells, min_size=1, max_size=3))
@settings(max_examples=60)
def test_any_values_in_a_record_are_taken_or_refused_in_a_line(values):
    row = {name: [value] for name, value in row_of(ledger_parquet.TRIAL).items()}
    others = {name: [value] for name, value in values.items()}
    ledger_parquet.check(ledger_parquet.file_of(pa.table({**row, **others})))


@pytest.mark.parametrize("target", [ledger_json, ledger_parquet], ids=lambda m: m.__name__)
def test_what_was_found_by_fuzzing_stays_mended(target):
    for data in target.SEEDS:
        target.check(data)
        target.check(data[: len(data) // 2])
        target.check(data * 2)


@pytest.mark.parametrize("count", [0, 2])
def test_record_of_no_row_or_two_counts_neither_once_nor_twice(ledger, sweep, tmp_path, count):
    rewrite(single(sweep), lambda table: pa.concat_tables([table.slice(0, 0), *[table] * count]))
    with pytest.raises(DamagedError, match=f"it has {count} rows, not 1"):
        ledger.trials()
    assert errors_of(ledger, tmp_path)


@FILES
def test_two_columns_of_one_name_are_an_error(ledger, sweep, tmp_path, file):
    rewrite(
        file(sweep),
        lambda t: pa.table([*t.columns, t["val_loss"]], names=[*t.column_names, "val_loss"]),
    )
    with pytest.raises(DamagedError, match="two columns have one name"):
        ledger.trials()
    assert errors_of(ledger, tmp_path)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()])
@FILES
def test_texts_of_another_width_are_read(ledger, sweep, file, kind):
    before = ledger.trials()
    rewrite(
        file(sweep),
        lambda table: table.cast(
            pa.schema([f.with_type(kind) if f.type == pa.string() else f for f in table.schema])
        ),
    )
    again = Ledger.open(ledger.location, "tiny")
    assert again.trials() == before
    assert again.ids() == {t.id for t in before}
    again.compact(fully=True)
    assert again.trials() == before


@pytest.mark.parametrize("text", [b"\xff\xfe", b"\xed\xa0\x80"])
def test_text_that_is_no_unicode_is_an_error(ledger, sweep, tmp_path, text):
    broken = pa.Array.from_buffers(
        pa.string(),
        1,
        [None, pa.array([0, len(text)], pa.int32()).buffers()[1], pa.py_buffer(text)],
    )
    for name in ("host_fingerprint", "reason", "detail"):
        rewrite(
            single(sweep),
            lambda t, name=name: t.set_column(t.column_names.index(name), name, broken),
        )
        with pytest.raises(DamagedError, match="UTF"):
            ledger.trials()
        assert errors_of(ledger, tmp_path)


def test_file_that_claims_more_rows_than_it_has_bytes_is_not_read(tmp_path):
    ledger = Ledger.create(tmp_path, "tiny", facts())
    ids = pa.array(["0123456789ab"]).take(pa.array([0] * 2_000_000))
    path = tmp_path / "tiny/trials/merged-1/0.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"trial_id": ids}), path, compression="zstd")
    with pytest.raises(DamagedError, match="2000000 rows"):
        ledger.ids()


# -- whose a record is


def copied(sweep, name):
    target = sweep / "trials" / name
    shutil.copy(single(sweep), target)
    return target


@pytest.mark.parametrize("name", ["0123456789ab", "zz", "abc", "ABCDEF012345", "0123456789abc"])
def test_copy_of_a_record_under_another_name_never_counts(ledger, sweep, tmp_path, name):
    file = copied(sweep, f"{name}.parquet")
    with pytest.raises(DamagedError, match=file.name):
        ledger.front(OBJECTIVES)
    assert errors_of(ledger, tmp_path)
    assert [e.name for e in ledger.pass_over_damaged()] == [f"tiny/trials/{file.name}"]
    assert len(ledger.trials()) == len(ledger.ids()) == 5
    assert ledger.front(OBJECTIVES).finished == 5


def test_copy_of_a_record_among_the_merged_ones_counts_once(ledger, sweep, tmp_path):
    copied(sweep, "merged-1/zz.parquet")
    assert len(ledger.trials()) == len(ledger.ids()) == 5
    assert ledger.front(OBJECTIVES).finished == 5
    assert errors_of(ledger, tmp_path) == []


@FILES
def test_record_whose_id_is_not_that_of_its_candidate_is_an_error(ledger, sweep, tmp_path, file):
    rewrite(file(sweep), column("candidate", [trial(4).candidate.to_json()]))
    for read in (ledger.trials, lambda: ledger.front(OBJECTIVES)):
        with pytest.raises(DamagedError, match=f"candidate is that of trial {trial(4).id}"):
            read()
    assert errors_of(ledger, tmp_path)


def test_record_of_another_sweep_is_an_error(ledger, sweep, tmp_path):
    other = Ledger.create(ledger.location, "other", facts("other"))
    other.append(record(7, sweep="other"))
    shutil.copy(sweep.parent / "other" / "trials" / f"{trial(7).id}.parquet", sweep / "trials")
    with pytest.raises(DamagedError, match="it is of sweep 'other'"):
        ledger.front(OBJECTIVES)
    assert errors_of(ledger, tmp_path)


def test_folder_under_another_name_than_its_sweep_is_an_error(ledger, sweep):
    shutil.copytree(sweep, sweep.parent / "copy")
    with pytest.raises(DamagedError, match="that of a sweep named 'tiny'") as caught:
        Ledger.open(ledger.location, "copy")
    assert "that name" in caught.value.hint


@pytest.mark.parametrize("name", ["../tiny", "/tiny", "..", "tiny/../tiny", "a\nb", ""])
def test_name_in_a_sweep_file_becomes_no_path(ledger, sweep, name):
    values = {**json.loads((sweep / "sweep.json").read_text()), "name": name}
    (sweep / "sweep.json").write_text(json.dumps(values))
    with pytest.raises(DamagedError):
        Ledger.open(ledger.location, "tiny")


def test_trial_is_found_though_another_sweep_is_damaged(ledger, sweep):
    (sweep.parent / "broken").mkdir()
    (sweep.parent / "broken" / "sweep.json").write_text("{")
    assert find_trial(ledger.location, trial(3).id)[1] == record(3)
    with pytest.raises(DamagedError, match=r"broken/sweep\.json"):  # it may be there
        find_trial(ledger.location, trial(8).id)


# -- compaction

DAMAGES = {
    "half": lambda path: path.write_bytes(path.read_bytes()[:-99]),
    "empty": lambda path: path.write_bytes(b""),
    "page": lambda path: path.write_bytes(b"PAR1" + bytes(200) + path.read_bytes()[204:]),
    "type": lambda path: rewrite(path, column("val_loss", ["x"])),
    "number as text": lambda path: rewrite(path, column("trial_id", [3])),
    "json": lambda path: rewrite(path, column("curve", ["["])),
    "rows": lambda path: rewrite(path, lambda table: table.slice(0, 0)),
    "candidate": lambda path: rewrite(path, column("candidate", ['{"number":77}'])),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_compaction_passes_over_a_damaged_record_and_says_so(ledger, sweep, damage):
    damage(single(sweep))
    kept, told = single(sweep).read_bytes(), []
    assert ledger.compact(tell=told.append) == 2
    assert len(told) == 1
    assert str(single(sweep)) in told[0]
    assert "\n" not in told[0]
    assert single(sweep).read_bytes() == kept
    single(sweep).unlink()
    again = Ledger.open(ledger.location, "tiny")
    assert {t.id for t in again.trials()} == {trial(n).id for n in (1, 2, 4, 5)}
    assert again.compact(fully=True) == 2


def test_compaction_passes_over_a_damaged_merged_file_and_says_so(ledger, sweep, monkeypatch):
    monkeypatch.setattr(ledger_module, "_FAN_IN", (9, 2, 2))
    damaged = merged(sweep)
    ledger.extend([record(number) for number in (11, 12)])
    ledger.extend([record(number) for number in (13, 14)])
    damaged.write_bytes(damaged.read_bytes()[:-99])
    kept, told = damaged.read_bytes(), []
    assert Ledger.open(ledger.location, "tiny").compact(tell=told.append) == 2
    assert damaged.read_bytes() == kept
    assert str(damaged) in told[0]
    damaged.unlink()
    assert len(Ledger.open(ledger.location, "tiny").ids()) == 7


def test_compaction_reads_no_file_again_and_again_for_many_that_are_damaged(tmp_path, monkeypatch):
    ledger, parses, parse = Ledger.create(tmp_path, "tiny", facts()), [], Location.parse
    for number in range(30):
        ledger.append(record(number))
    for number in range(25):
        single(tmp_path / "tiny", number).write_bytes(b"")
    monkeypatch.setattr(Location, "parse", lambda *a: parses.append(a[1]) or parse(*a))
    told = []
    assert ledger.compact(tell=told.append) == 5
    assert len(told) == 25
    assert max(Counter(parses).values()) <= 6


def test_record_with_a_readable_column_of_another_type_is_merged_as_it_should_be(ledger, sweep):
    rewrite(single(sweep), column("val_loss", ["3.0"]))
    rewrite(single(sweep, 4), column("val_loss", [4]))
    before = ledger.trials()
    assert ledger.compact() == 3
    assert ledger.trials() == before
    assert [t.metric("val_loss") for t in before] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_column_of_a_newer_release_in_two_types_is_merged_as_far_as_it_goes(ledger, sweep):
    extras = {3: [1.5], 4: ["text"], 5: [2]}
    for number, values in extras.items():
        rewrite(
            single(sweep, number),
            lambda t, v=values: t.append_column("energy", pa.array(v)),
        )
    told = []
    assert ledger.compact(tell=told.append) == 2
    assert len(told) == 1
    assert len(ledger.trials()) == 5


def test_reason_of_a_newer_release_is_merged(ledger, sweep):
    rewrite(single(sweep), column("reason", ["GREMLINS"]))
    told = []
    assert ledger.compact(tell=told.append) == 3
    assert told == []


def test_finished_trial_is_recorded_though_a_merged_file_is_damaged(ledger, sweep):
    merged(sweep).write_bytes(b"")
    again = Ledger.open(ledger.location, "tiny")
    assert again.append(record(7))
    assert not again.append(record(3))
    with pytest.raises(DamagedError, match="merged-1"):
        again.ids()


# -- what a launch goes on without


def test_damaged_single_records_are_passed_over_and_their_places_left_alone(ledger, sweep):
    DAMAGES["half"](single(sweep))
    (error,) = ledger.pass_over_damaged()
    assert str(single(sweep)) in error.message
    kept = single(sweep).read_bytes()
    assert [t.id for t in ledger.trials()] == [trial(n).id for n in (1, 2, 4, 5)]
    assert ledger.ids() == {trial(n).id for n in (1, 2, 4, 5)}
    assert ledger.taken() == {trial(3).id}  # nobody tries it again in its place
    ledger.mark_started(Attempt(trial(3).candidate))
    assert [attempt.candidate for attempt in ledger.started()] == [trial(9).candidate]
    assert ledger.holds(trial(3).id)
    assert not ledger.append(record(3))
    with pytest.raises(DamagedError, match="is not a readable record"):
        ledger.get(trial(3).id)
    told = []
    assert ledger.compact(tell=told.append) == 2
    assert told == []
    assert single(sweep).read_bytes() == kept
    single(sweep).unlink()
    assert Ledger.open(ledger.location, "tiny").append(record(3))


def test_nothing_is_passed_over_in_a_sound_ledger(ledger):
    assert ledger.pass_over_damaged() == []
    assert len(ledger.trials()) == 5


def test_record_of_a_newer_release_is_not_taken_for_damaged(ledger, sweep):
    rewrite(single(sweep), column("schema_version", [2]))
    with pytest.raises(LedgerError, match="schema version 2") as caught:
        ledger.pass_over_damaged()
    assert "upgrade" in caught.value.hint


# -- marks, leases, artefacts

NO_JSON = [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"\xef\xbb\xbf{}", b"[" * 10**6,
           '{"candidate": {"a": 1}}'.encode("utf-16"), b'{"a": 1e999}', b'{"a": [1]}',
           b'{"a": ' + b"9" * 5000 + b"}", b'{"candidate": {"number": 9}, "deaths": "many"}',
           b'{"candidate": {"number": 9}, "began_at": 1e300}', b'{"number": 10}']  # fmt: skip


@pytest.mark.parametrize("data", NO_JSON, ids=lambda data: str(data[:20]))
def test_damaged_started_mark_is_passed_over_and_told(ledger, sweep, data):
    mark = sweep / "started" / f"{trial(9).id}.json"
    ledger.mark_started(Attempt(trial(8).candidate))
    mark.write_bytes(data)
    told = []
    assert ledger.started(told.append) == [Attempt(trial(8).candidate)]
    assert len(told) == 1
    assert str(mark) in told[0]
    assert "\n" not in told[0]
    tail = Tail(ledger, OBJECTIVES)
    assert tail.read(lambda _: None) == [Attempt(trial(8).candidate)]
    assert tail.damaged == tuple(told)
    mark.write_text(Attempt(trial(9).candidate).to_json())
    assert len(tail.read(lambda _: None)) == 2
    assert tail.damaged == ()


def test_mark_under_another_name_is_no_second_attempt(ledger, sweep):
    for name in ("zz", "0123456789ab"):
        shutil.copy(sweep / "started" / f"{trial(9).id}.json", sweep / "started" / f"{name}.json")
    told = []
    assert [a.candidate for a in ledger.started(told.append)] == [trial(9).candidate]
    assert len(told) == 2


@pytest.mark.parametrize("data", NO_JSON, ids=lambda data: str(data[:20]))
def test_damaged_lease_and_sweep_file_are_errors_with_a_hint(ledger, sweep, data):
    (sweep / "lease.json").write_bytes(data)
    with pytest.raises(DamagedError, match=r"lease\.json cannot be read") as caught:
        LeaseWatch(ledger.location, "tiny").host()
    assert "\n" not in caught.value.message
    (sweep / "sweep.json").write_bytes(data)
    with pytest.raises(DamagedError, match=r"sweep\.json cannot be read") as caught:
        Ledger.open(ledger.location, "tiny")
    assert "\n" not in caught.value.message


VERSIONS = ["../../../outside", "..", "/outside", "", "a" * 31, "A" * 32, "g" * 32, "\0",
            "a" * 32 + "/..", None, 3, ["a" * 32]]  # fmt: skip


@pytest.fixture
def outside(tmp_path):
    """A folder beside the storage, that is there unchanged in the end."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("mine")
    yield folder
    assert [path.read_text() for path in folder.iterdir()] == ["mine"]


@pytest.mark.parametrize("version", VERSIONS, ids=repr)
def test_version_marker_leads_nowhere(ledger, sweep, outside, tmp_path, version):
    model = sweep / "models" / trial(3).id
    model.mkdir(parents=True)
    (model / "complete.json").write_text(json.dumps({"folder": version}))
    with pytest.raises(DamagedError, match=r"complete\.json cannot be read") as caught:
        ledger.get_artifacts(trial(3).id, tmp_path / "out")
    assert "delete it" in caught.value.hint
    assert not (tmp_path / "out").exists()
    new = tmp_path / "new"
    new.mkdir()
    (new / "model").write_text("new")
    ledger.put_artifacts(trial(3).id, new)
    ledger.get_artifacts(trial(3).id, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


@pytest.mark.parametrize("data", [data for data in NO_JSON if b"candidate" not in data], ids=repr)
def test_damaged_version_marker_is_an_error_and_replaced_by_the_next(ledger, sweep, tmp_path, data):
    model = tmp_path / "model"
    model.mkdir()
    (model / "a").write_text("a")
    ledger.put_artifacts(trial(3).id, model)
    (sweep / "models" / trial(3).id / "complete.json").write_bytes(data)
    with pytest.raises(DamagedError, match=r"complete\.json cannot be read"):
        ledger.get_artifacts(trial(3).id, tmp_path / "out")
    ledger.put_artifacts(trial(3).id, model)
    ledger.get_artifacts(trial(3).id, tmp_path / "out")


@pytest.mark.parametrize("place", ["", "model", "folder/model"])
def test_link_among_artefacts_leads_nowhere(ledger, sweep, outside, tmp_path, place):
    model = tmp_path / "model"
    (model / "folder").mkdir(parents=True)
    (model / "model").write_text("m")
    (model / "folder" / "model").write_text("m")
    ledger.put_artifacts(trial(3).id, model)
    (version,) = (p for p in (sweep / "models" / trial(3).id).iterdir() if p.is_dir())
    target = version / place if place else version
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    target.symlink_to(outside if not place else outside / "secret")
    with pytest.raises(DamagedError, match="is a link"):
        ledger.get_artifacts(trial(3).id, tmp_path / "out")
    assert not any(
        path.read_text() == "mine" for path in tmp_path.rglob("out/**/*") if path.is_file()
    )


@pytest.mark.parametrize("place", ["", "folder"])
def test_link_in_a_folder_that_is_stored_is_refused(ledger, sweep, outside, tmp_path, place):
    model = tmp_path / "model"
    (model / "folder").mkdir(parents=True)
    (model / "model").write_text("m")
    ledger.put_artifacts(trial(3).id, model)
    (model / place / "link").symlink_to(outside / "secret")
    for put in (ledger.put_artifacts, ledger.put_work):
        with pytest.raises(DamagedError, match="is a link"):
            put(trial(3).id, model)
    ledger.get_artifacts(trial(3).id, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    assert not [
        path for path in sweep.rglob("*") if path.is_file() and path.read_bytes() == b"mine"
    ]


@pytest.mark.parametrize("trial_id", ["..", "../x", "a/../b", "/x", "a\\b", ""])
def test_id_becomes_no_path(ledger, outside, trial_id, tmp_path):
    for use in (
        lambda: ledger.put_artifacts(trial_id, outside),
        lambda: ledger.get_artifacts(trial_id, tmp_path / "out"),
        lambda: ledger.get_work(trial_id, tmp_path / "out"),
    ):
        with pytest.raises(DamagedError):
            use()


def test_any_store_is_checked_alike(s3, tmp_path):
    ledger = Ledger.create(s3(tmp_path.name), "tiny", facts())
    for number in SINGLES:
        ledger.append(record(number, reason=Reason.ERROR if number == 3 else None))
    location, name = ledger.location, f"tiny/trials/{trial(3).id}.parquet"
    data = location.read(name)
    location.put("tiny/trials/0123456789ab.parquet", data)
    location.put(name, data[:-50], replace=True)
    location.put(f"tiny/models/{trial(4).id}/complete.json", b'{"folder": "../../x"}')
    location.put("tiny/started/zz.json", b"[")
    told = []
    assert ledger.compact(tell=told.append) == 2
    assert len(told) == 2
    assert location.read(name) == data[:-50]
    assert len(ledger.pass_over_damaged()) == 2
    assert len(ledger.trials()) == 2
    assert ledger.started(told.append) == []
    with pytest.raises(DamagedError, match=r"complete\.json"):
        ledger.get_artifacts(trial(4).id, tmp_path / "out")


def test_location_and_candidate_of_a_record_survive_a_hostile_host_name(ledger, tmp_path):
    provenance = Provenance(host="[/red]\x1b[2J\nhint: rm", host_fingerprint="h")
    ledger.append(record(6, provenance=provenance))
    assert ledger.get(trial(6).id).provenance.host == "[/red]\x1b[2J\nhint: rm"


def test_ledger_of_a_location_keeps_its_checks_in_other_processes(ledger, sweep):
    DAMAGES["half"](single(sweep))
    ledger.pass_over_damaged()
    sent = pickle.loads(pickle.dumps(ledger))
    assert len(sent.trials()) == 4
    assert isinstance(sent.location, Location)
    assert sent.taken() == {Candidate.of({"number": 3}).id}
