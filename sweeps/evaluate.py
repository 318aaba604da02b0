"""Evaluates one candidate: build, train, export, measure, and what came of it as a `Trial`.

TensorFlow is imported when a trial starts, not with this module: the driver needs the types only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sweeps.trial import Candidate, Trial
from thesis.config import MeasureConfig
from thesis.measure import RtfMeasurement

Measure = Callable[[bytes, float, MeasureConfig], RtfMeasurement]
"""Measures a decoder (ONNX bytes) on a clip of so many seconds. Remote under Ray: one at a time."""


@dataclass(frozen=True)
class Task:
    """What a worker needs to evaluate one candidate; plain values that can be sent anywhere.

    Attributes:
      sweep: Name of the sweep.
      candidate: What is tried.
      gin_text: The candidate's resolved configuration (`RunConfig.text_for`).
      dataset: Folder of the dataset.
    """

    sweep: str
    candidate: Candidate
    gin_text: str
    dataset: str


@dataclass(frozen=True)
class Progress:
    """Where a running trial is.

    Attributes:
      stage: 'build', 'train', 'export' or 'measure'.
      step: Training steps done.
      steps: Training steps asked for.
      train_loss: Mean loss of the last steps; None before the first.
    """

    stage: str
    step: int
    steps: int
    train_loss: float | None = None


Stages = Iterator[Progress]


def stages(task: Task, *, workdir: Path, measure: Measure) -> "Iterator[Progress]":
    """Evaluates a candidate step by step."""
    raise NotImplementedError


def evaluate(task: Task, *, workdir: Path, measure: Measure) -> Trial:
    """Evaluates a candidate."""
    raise NotImplementedError
