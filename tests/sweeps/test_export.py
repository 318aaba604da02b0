import csv
import json
import math
import os
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from sweeps.errors import LedgerError, SweepError
from sweeps.export import export_table
from sweeps.ledger import Ledger, SweepFacts
from sweeps.study import export_study
from sweeps.trial import Candidate, Measurement, Provenance, Reason, Trial
from tests.sweeps.fakes import run_of, trial_of
from tests.sweeps.test_ledger import facts, trial


def candidate_of(number):
    values = {"channels": number, "causal": number % 2 == 0, "norm": "none", "rate": number / 8}
    if number > 1:
        values |= {"base": number if number > 2 else 1.5, "reverb": "off" if number > 2 else 3}
    return Candidate.of(values)


@pytest.fixture
def trials():
    provenance = Provenance(versions={"onnx": "1.17"}, gin_config='a = "b"\nc = 1', seed=3)
    completed = [
        Trial(
            "tiny",
            candidate_of(number),
            Measurement(val_loss=number / 3, parameters=number),
            provenance=replace(provenance, finished_at=float(number)),
            curve={10: 2.5, 20: 1.25},
        )
        for number in range(5)
    ]
    diverged = replace(
        completed[0],
        candidate=Candidate.of({"channels": 99}),
        measurement=Measurement(val_loss=math.nan),
        reason=Reason.DIVERGED,
        detail='said "no", \udcff',
    )
    return [*completed, diverged]


@pytest.fixture
def ledger(tmp_path, trials):
    ledger = Ledger.create(tmp_path / "store", "tiny", facts())
    ledger.extend(trials[:3])
    for one in trials[3:]:
        ledger.append(one)
    return ledger


@pytest.fixture
def run_ledger(tmp_path):
    """A ledger whose configuration is one."""
    run = run_of({"DilatedConvStack.channels": (4, 8)})
    facts = SweepFacts(
        name="s", gin_config=run.text, dataset_fingerprint="f", objectives=run.sweep.objectives
    )
    ledger = Ledger.create(tmp_path / "store", "s", facts)
    ledger.append(trial_of("s", Candidate.of({"channels": 8})))
    return ledger


def test_parquet_holds_the_flat_records(ledger, trials, tmp_path):
    assert export_table(ledger, tmp_path / "t.parquet", "parquet") == 6
    table = pq.read_table(tmp_path / "t.parquet")
    rows = {row["id"]: row for row in table.to_pylist()}
    types = {name: str(table.schema.field(f"axis_{name}").type) for name in
             ("channels", "causal", "norm", "rate", "base", "reverb")}  # fmt: skip
    assert types == {
        "channels": "int64", "causal": "bool", "norm": "string", "rate": "double",
        "base": "double", "reverb": "string",
    }  # fmt: skip
    for one in trials:
        expected, row = one.to_record(), rows[one.id]
        assert {k for k, v in row.items() if v is not None} == {
            k for k, v in expected.items() if v is not None
        }
        for name, value in expected.items():
            if isinstance(value, dict):
                assert json.loads(row[name]) == value
            elif name == "axis_reverb":
                assert row[name] == str(value)
            elif name == "detail":
                assert row[name] == value.encode("utf-8", "backslashreplace").decode()
            else:
                assert row[name] == value


def test_csv_holds_what_parquet_holds(ledger, tmp_path):
    export_table(ledger, tmp_path / "t.parquet", "parquet")
    export_table(ledger, tmp_path / "t.csv", "csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    for expected in pq.read_table(tmp_path / "t.parquet").to_pylist():
        row = rows[expected["id"]]
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, float):
                assert float(row[name]) == value
            else:
                assert row[name] == ("" if value is None else str(value))


def test_pandas_reads_both(ledger, trials, tmp_path):
    export_table(ledger, tmp_path / "t.parquet", "parquet")
    export_table(ledger, tmp_path / "t.csv", "csv")
    for frame in (pd.read_parquet(tmp_path / "t.parquet"), pd.read_csv(tmp_path / "t.csv")):
        done = frame[frame.status == "completed"].sort_values("finished_at")
        assert done.axis_channels.tolist() == [0, 1, 2, 3, 4]
        assert done.val_loss.tolist() == [t.measurement.val_loss for t in trials[:5]]
        assert frame.val_loss.isna().sum() == 1


def test_sweep_without_trials_is_a_table_without_rows(tmp_path):
    ledger = Ledger.create(tmp_path / "store", "tiny", facts())
    for form in ("parquet", "csv"):
        assert export_table(ledger, tmp_path / form, form) == 0
    assert pd.read_parquet(tmp_path / "parquet").columns.tolist() == (
        pd.read_csv(tmp_path / "csv").columns.tolist()
    )


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_file_that_is_there_is_replaced_only_when_told(ledger, tmp_path, form):
    path = tmp_path / "mine"
    path.write_text("precious")
    with pytest.raises(SweepError, match="exists") as caught:
        export_table(ledger, path, form)
    assert "--force" in caught.value.hint
    assert path.read_text() == "precious"
    export_table(ledger, path, form, replace=True)
    assert path.stat().st_size > 100


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_file_is_written_whole_or_not_at_all(ledger, tmp_path, form):
    path = tmp_path / "out" / "mine"
    with pytest.raises(SweepError, match="No such file"):
        export_table(ledger, path, form)
    path.parent.mkdir()
    path.write_text("precious")
    broken = tmp_path / "store/tiny/trials" / f"{trial(9).id}.parquet"
    broken.write_bytes(b"not a record")
    with pytest.raises(LedgerError, match="not a readable record"):
        export_table(ledger, path, form, replace=True)
    assert path.read_text() == "precious"
    assert [file.name for file in path.parent.iterdir()] == ["mine"]


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def make_device(path):
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null
    except PermissionError:
        pytest.skip("making a device is not permitted")


def make_link(path):
    target = path.with_name("target")
    target.write_text("precious")
    path.symlink_to(target)


def make_dangling_link(path):
    path.symlink_to("nothing")


NO_FILES = [make_pipe, make_socket, make_device, make_link, make_dangling_link, Path.mkdir]
EXPORTS = {
    "parquet": lambda ledger, path, **how: export_table(ledger, path, "parquet", **how),
    "csv": lambda ledger, path, **how: export_table(ledger, path, "csv", **how),
    "optuna": lambda ledger, path, **how: export_study(ledger, path, **how),
}


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("make", NO_FILES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("form", EXPORTS)
def test_what_is_no_file_is_never_replaced(run_ledger, tmp_path, monkeypatch, form, make, replace):
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.chdir(folder)  # a socket's path may not be long
    make(Path("x"))
    before = {path.name: path.lstat() for path in folder.iterdir()}
    with pytest.raises(SweepError, match="'x' is no file") as caught:
        EXPORTS[form](run_ledger, Path("x"), replace=replace)
    assert caught.value.hint
    after = {path.name: path.lstat() for path in folder.iterdir()}
    assert {name: (s.st_ino, s.st_mode, s.st_size) for name, s in before.items()} == {
        name: (s.st_ino, s.st_mode, s.st_size) for name, s in after.items()
    }


@pytest.mark.parametrize("path", ["/", ".", "..", "/dev/stdout", "/dev/null", "/proc/self/mem"])
@pytest.mark.parametrize("form", EXPORTS)
def test_place_that_holds_no_files_is_an_error(run_ledger, form, path):
    with pytest.raises(SweepError, match=r"is no file|cannot write"):
        EXPORTS[form](run_ledger, Path(path), replace=True)


@pytest.mark.parametrize("name", ["a?b.db", "a#b.db", "a%20b.db", "a b.db", "a;b&c=d.db"])
@pytest.mark.parametrize("form", EXPORTS)
def test_file_of_any_name_is_written_or_refused(run_ledger, tmp_path, form, name):
    folder = tmp_path / "out #y"
    folder.mkdir()
    if form == "optuna" and {"?", "%"} & {*name}:
        with pytest.raises(SweepError, match="has a '"):
            EXPORTS[form](run_ledger, folder / name)
    else:
        EXPORTS[form](run_ledger, folder / name)
        assert [path.name for path in folder.iterdir()] == [name]
    assert {path.name for path in tmp_path.iterdir()} == {"store", "out #y"}
