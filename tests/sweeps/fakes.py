"""Evaluators that take milliseconds, for tests of everything around an evaluation.

Workers load them by this file's path: `evaluator(name)`.
"""

import dataclasses
import json
import os
import signal
import time
from collections.abc import Generator
from pathlib import Path

from sweeps.evaluate import Measure, Progress, Task
from sweeps.trial import Candidate, Measurement, Provenance, Reason, Trial
from thesis.data import SCHEMA_VERSION, DatasetFacts, Statistics

STEPS = 4


def evaluator(name: str) -> str:
    """Returns how `launch` is told of one of these evaluators."""
    return f"{Path(__file__).resolve()}:{name}"


def loss_of(candidate: Candidate) -> float:
    """Wider is better, and dearer: every width is on the front."""
    return 10 / float(candidate["channels"])


def trial_of(task: Task, started_at: float = 0.0) -> Trial:
    channels = float(task.candidate["channels"])
    return Trial(
        task.sweep,
        task.candidate,
        Measurement(val_loss=loss_of(task.candidate), rtf_ratio=channels / 8),
        provenance=Provenance(started_at=started_at, finished_at=time.time(), train_steps=STEPS),
    )


def quick(
    task: Task, *, workdir: Path, measure: Measure, step_seconds: float = 0.0
) -> Generator[Progress, None, Trial]:
    """Trains for `STEPS` steps, from the checkpoint that it finds, and exports a model."""
    started_at = time.time()
    checkpoint = workdir / "step"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(first, STEPS):
        time.sleep(step_seconds)
        checkpoint.write_text(str(step + 1))
        yield Progress("train", step + 1, STEPS, train_loss=1.0 / (step + 1))
    (workdir / "artifacts").mkdir(exist_ok=True)
    (workdir / "artifacts" / "decoder.onnx").write_bytes(task.candidate.id.encode())
    trial = trial_of(task, started_at)
    detail = f"resumed at {first}, pid {os.getpid()}"
    return dataclasses.replace(trial, detail=detail)
