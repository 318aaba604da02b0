"""What a front can be asked for: metrics by name, their better direction, their limits.

Standard library only. A metric that is measured is a field of `sweeps.trial.Measurement`; one that
follows from another is added to `_DERIVED` here. Everything else asks the `Metric`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sweeps.errors import MetricError, nearest
from sweeps.trial import METRICS, Trial


class Goal(Enum):
    """Which values of a metric are the better ones."""

    MIN = "lower"
    MAX = "higher"


@dataclass(frozen=True)
class Metric:
    """A number that a trial may have: a column of the ledger, or what follows from one.

    Attributes:
      name: What users call it.
      unit: As shown in a table; empty for a bare number.
      description: One line.
      column: The field of `Measurement` that it is computed from.
      convert: Column value to metric value; takes floats and NumPy arrays alike.
      goal: The direction that is better.
      host_bound: Whether values compare within one host only.
      learnt: Whether it is known only when a model is trained. Costs are known before.
      measured_with: A column that every trial has where this one was looked for. If that one is
        there and this one is not, there was nothing to be measured, and no limit on it is broken.
      spans_decades: Whether equal ratios matter rather than equal differences, as for costs: such
        a metric belongs on a logarithmic axis.
    """

    name: str
    unit: str
    description: str
    column: str
    convert: Callable[[Any], Any] = lambda value: value
    goal: Goal = Goal.MIN
    host_bound: bool = False
    learnt: bool = False
    measured_with: str = ""
    spans_decades: bool = True

    def of(self, trial: Trial) -> float | None:
        """Returns the metric's value, or None where the trial did not reach it."""
        value = trial.metric(self.column)
        return None if value is None else self.convert(value)


_HOST_BOUND = {"rtf", "reference_rtf", "p50_seconds", "p95_seconds", "p99_seconds"}
_LINEAR = {
    "val_loss",
    "train_loss",
    "f0_error_cents",
    "f0_missed_share",
    "loudness_error_db",
    "mel_cepstral_distance_db",
    "log_mel_distance_db",
    "multi_scale_log_mel_distance_db",
    "loudness_error_sounding_db",
    "rest_excess_db",
    "register_level_error_db",
    "onset_error_ms",
    "export_max_error",
}
_LEARNT = _LINEAR | {"model_bytes"}
_MEASURED_WITH = {"f0_missed_share": "loudness_error_db"}


def _column(field: dataclasses.Field[Any]) -> Metric:
    return Metric(
        name=field.name,
        unit=field.metadata["unit"],
        description=field.metadata["description"],
        column=field.name,
        host_bound=field.name in _HOST_BOUND,
        learnt=field.name in _LEARNT,
        measured_with=_MEASURED_WITH.get(field.name, ""),
        spans_decades=field.name not in _LINEAR,
    )


def _times_real_time(rtf: Any) -> Any:
    try:
        return 1.0 / rtf
    except ZeroDivisionError:  # what NumPy gives for an array
        return math.inf


_DERIVED = (
    Metric(
        name="x_real_time",
        unit="x real time",
        description="1 / rtf: seconds of audio that one second of processing makes",
        column="rtf",
        convert=_times_real_time,
        goal=Goal.MAX,
        host_bound=True,
    ),
)

KNOWN: Mapping[str, Metric] = {
    metric.name: metric for metric in (*map(_column, METRICS.values()), *_DERIVED)
}
"""Every metric that can be named, the derived ones included."""


def metric(name: str) -> Metric:
    """Returns the metric of this name.

    Raises:
      MetricError: There is none; the hint offers the nearest name.
    """
    # It may come from a file: whatever is there in place of a name.
    if isinstance(name, str) and name in KNOWN:
        return KNOWN[name]
    raise MetricError(
        f"no metric named {name!r}",
        hint=nearest(str(name), KNOWN, otherwise=f"metrics: {', '.join(KNOWN)}"),
    )


MISSED_PITCH = "f0_missed_share"
"""The metric that tells whether a model sings."""

MOST_MISSED = 0.3
"""Largest share of missed pitch at which a model sings, where a run does not say otherwise.

The demo's models miss a tenth, good ones of a cello a few hundredths, one without any pitch all.
"""


def sings(trial: Trial, most_missed: float = MOST_MISSED) -> bool:
    """Returns whether a model plays the notes that it is given.

    One of which it is not known does: records of older releases do not say, and where no frame of
    the clips is voiced there is no pitch to be missed.
    """
    missed = trial.metric(MISSED_PITCH)
    return missed is None or missed <= most_missed


@dataclass(frozen=True)
class Limit:
    """A range that a metric must stay in; both ends are allowed values.

    Attributes:
      metric: Name of a metric.
      low: Smallest value allowed.
      high: Largest value allowed.
    """

    metric: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        metric(self.metric)

    def excess(self) -> str:
        """Returns what is said of a trial outside the range: 'rtf_ratio over 2'."""
        if math.isinf(self.low):
            return f"{self.metric} over {self.high:g}"
        if math.isinf(self.high):
            return f"{self.metric} under {self.low:g}"
        return f"{self.metric} outside {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Objective:
    """A metric to be made as good as possible, with its direction and an optional limit.

    Attributes:
      metric: Name of a metric.
      goal: The direction that is better.
      limit: Worst value allowed: an upper bound where lower is better, else a lower bound.

    Raises:
      MetricError: No metric has this name.
    """

    metric: str
    goal: Goal
    limit: float | None = None

    def __post_init__(self) -> None:
        metric(self.metric)

    @property
    def unit(self) -> str:
        """Unit of the metric; empty for a bare number."""
        return metric(self.metric).unit

    @property
    def sign(self) -> int:
        """1 where lower is better and -1 where higher is: `sign * value` is to be minimised."""
        return 1 if self.goal is Goal.MIN else -1

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limit as a range; empty without one."""
        if self.limit is None:
            return ()
        if self.goal is Goal.MIN:
            return (Limit(self.metric, high=self.limit),)
        return (Limit(self.metric, low=self.limit),)

    def of(self, trial: Trial) -> float | None:
        """Returns the metric's value, or None where the trial did not reach it."""
        return metric(self.metric).of(trial)


def objective(name: str, *, limit: float | None = None) -> Objective:
    """Returns the objective on a metric, in the direction that is better for it.

    Raises:
      MetricError: No metric has this name; the hint offers the nearest one.
    """
    return Objective(name, metric(name).goal, limit)


def at_most(text: str) -> Limit:
    """Returns the upper limit that `--max rtf_ratio=2` asks for.

    Raises:
      MetricError: `text` is not `METRIC=NUMBER`, or names no metric.
    """
    name, value = _parse(text, "--max")
    return Limit(name, high=value)


def at_least(text: str) -> Limit:
    """Returns the lower limit that `--min x_real_time=100` asks for.

    Raises:
      MetricError: `text` is not `METRIC=NUMBER`, or names no metric.
    """
    name, value = _parse(text, "--min")
    return Limit(name, low=value)


def _parse(text: str, option: str) -> tuple[str, float]:
    name, _, number = (part.strip() for part in text.partition("="))
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MetricError(
            f"limit '{text}' is not METRIC=NUMBER", hint=f"for example {option} rtf_ratio=2"
        )
    return metric(name).name, value
