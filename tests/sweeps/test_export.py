import csv
import json
import math
from dataclasses import replace

import pandas as pd
import pyarrow.parquet as pq
import pytest

from sweeps.errors import LedgerError, SweepError
from sweeps.export import export_table
from sweeps.ledger import Ledger
from sweeps.trial import Candidate, Measurement, Provenance, Reason, Trial
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
