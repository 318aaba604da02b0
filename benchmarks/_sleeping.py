"""Trials that sleep instead of training, for benchmarks of everything around them.

Workers load the evaluator by this file's path: `EVALUATOR`. A sleeping trial needs no core, so a
machine of two can have eight of them, or as many as its memory holds.
"""

import json
import os
import time
from collections.abc import Generator
from pathlib import Path

from sweeps.evaluate import ARTIFACTS, Measure, Progress, Task, versions
from sweeps.trial import Measurement, Provenance, Trial
from thesis.prepare import prepare_demo

EVALUATOR = f"{Path(__file__).resolve()}:sleep"
"""How `launch` is told of the evaluator."""

_PACE_FILE = "pace.json"
_CROWD = "workers"
_MODEL_BYTES = 15_000


def make_dataset(folder: Path, *, seconds: float, reports: int, crowd: int = 1) -> str:
    """Makes a dataset that says how to sleep, too.

    Args:
      folder: Where.
      seconds: That a trial on it sleeps.
      reports: That it makes meanwhile.
      crowd: Workers that there must be before the first trial goes on. Trials that are shorter
        than the start of a worker would be over before there are more than one.
    """
    prepare_demo(folder, n_train=1, n_validation=1, clip_seconds=0.2)
    (folder / _CROWD).mkdir()
    pace = {"seconds": seconds, "reports": reports, "crowd": crowd}
    (folder / _PACE_FILE).write_text(json.dumps(pace))
    return str(folder)


def sleep(task: Task, *, workdir: Path, measure: Measure) -> Generator[Progress, None, Trial]:
    """Sleeps, reports as training does, and leaves a model. Its record's host is its process."""
    pace = json.loads(Path(task.dataset, _PACE_FILE).read_text())
    crowd = Path(task.dataset, _CROWD)
    (crowd / str(os.getpid())).touch()
    while sum(1 for _ in crowd.iterdir()) < pace["crowd"]:
        time.sleep(0.05)
    began_at = time.time()
    reports = pace["reports"]
    for report in range(1, reports + 1):
        time.sleep(pace["seconds"] / reports)
        yield Progress("train", report, reports, train_loss=10.0 / report)
    (workdir / ARTIFACTS).mkdir(exist_ok=True)
    (workdir / ARTIFACTS / "decoder.onnx").write_bytes(bytes(_MODEL_BYTES))
    return Trial(
        task.sweep,
        task.candidate,
        _measurement(task),
        provenance=Provenance(
            host=f"process {os.getpid()}",
            versions=versions(),
            gin_config=task.gin_text,
            started_at=began_at,
            finished_at=time.time(),
        ),
    )


def _measurement(task: Task) -> Measurement:
    """Wider is better, and dearer, and the rest is chance: a front of dozens, as in a sweep."""
    channels = float(task.candidate["channels"])
    luck = int(task.candidate.id, 16) / 16**12
    return Measurement(val_loss=6.0 + (3.0 + luck) / channels, rtf_ratio=channels / 8 * (1 + luck))
