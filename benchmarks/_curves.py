"""Recorded learning curves: what a sweep without a stopping rule has found, as one small table.

`python -m benchmarks._curves STORAGE SWEEP` writes the table from a sweep's records.
"""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sweeps.ledger import Ledger
from sweeps.trial import Candidate, Measurement, Provenance, Status, Trial

RUN = "search"
"""The run of gin/runs whose candidates these are."""
FILE = Path(__file__).parent / "data" / "search_curves.parquet"

_METRICS = ("val_loss", "rtf_ratio", "rtf_ratio_low", "rtf_ratio_high", "parameters")
_PROVENANCE = ("train_steps", "train_seconds")
_AXIS = "axis_"


def write(trials: list[Trial], file: Path = FILE) -> None:
    """Writes the completed ones of some trials: axes, metrics, and curves as JSON text."""
    rows = [
        {
            **{_AXIS + axis: value for axis, value in trial.candidate.values},
            **{name: trial.metric(name) for name in _METRICS},
            **{name: getattr(trial.provenance, name) for name in _PROVENANCE},
            "curve": json.dumps(dict(trial.curve)),
        }
        for trial in sorted(trials, key=lambda trial: trial.id)
        if trial.status is Status.COMPLETED
    ]
    names = {name: None for row in rows for name in row}  # an axis without effect is left out
    columns = {name: [row.get(name) for row in rows] for name in names}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, compression="zstd")


def read(file: Path = FILE) -> list[Trial]:
    """Returns the recorded trials."""
    trials = []
    for row in pq.read_table(file).to_pylist():
        axes = {
            name.removeprefix(_AXIS): value
            for name, value in row.items()
            if name.startswith(_AXIS) and value is not None
        }
        trials.append(
            Trial(
                "replay",
                Candidate.of(axes),
                Measurement(**{name: row[name] for name in _METRICS}),
                provenance=Provenance(**{name: row[name] for name in _PROVENANCE}),
                curve={int(step): loss for step, loss in json.loads(row["curve"]).items()},
            )
        )
    return trials


if __name__ == "__main__":
    storage, sweep = sys.argv[1:]
    write(Ledger.open(storage, sweep).trials())
