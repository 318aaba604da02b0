"""What all benchmarks share: options, interleaved timing, ratios with intervals, the JSON line.

Needs neither TensorFlow nor Ray.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from thesis.measure import QUANTILE, processor

_RESAMPLES = 2000
_DISTRIBUTIONS = ("ddsp", "numpy", "onnxruntime", "optuna", "pyarrow", "ray", "tensorflow-cpu")

Seconds = npt.NDArray[np.float64]
"""Times of interleaved calls, [rounds, calls]."""


@dataclass(frozen=True)
class Times:
    """What interleaved calls took: on the clock, and of all this process's threads together."""

    wall: Seconds
    cpu: Seconds


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Result:
    """What a benchmark found.

    Attributes:
      benchmark: Its name.
      value: The one number.
      unit: Of the value.
      better: Which values are the better ones.
      reference: What the value is compared with, measured in the same run.
      details: Everything else worth keeping.
    """

    benchmark: str
    value: float
    unit: str
    better: Literal["higher", "lower"]
    reference: str
    details: Mapping[str, Any] = field(default_factory=dict)


def is_quick(benchmark: str, description: str | None, arguments: Sequence[str] | None) -> bool:
    """Parses a command line that has the one option, and returns whether it is given."""
    quick: bool = parser(benchmark, description).parse_args(arguments).quick
    return quick


def parser(benchmark: str, description: str | None) -> argparse.ArgumentParser:
    """Returns a benchmark's command line with the option that all of them have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{benchmark}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats, the same measurement")
    return parser


def emit(result: Result, *, quick: bool, options: str = "") -> None:
    """Prints the last line of a benchmark: the result as one JSON object.

    Args:
      result: What was found.
      quick: Whether it was a run with fewer repeats.
      options: What else was on the command line that matters to the result.
    """
    record = {
        "benchmark": result.benchmark,
        "value": result.value,
        "unit": result.unit,
        "better": result.better,
        "reference": result.reference,
        "machine": machine(),
        "command": " ".join(
            filter(None, [f"python -m benchmarks.{result.benchmark}", "--quick" * quick, options])
        ),
        "details": dict(result.details),
    }
    print(json.dumps(record, default=_plain), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return [value.value, value.low, value.high]
    return value.item()  # a NumPy number


def machine() -> dict[str, Any]:
    """Returns what a figure depends on: processor, cores, load, versions."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _DISTRIBUTIONS},
    }


def say(line: str) -> None:
    """Prints a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Makes a folder that is gone afterwards."""
    with TemporaryDirectory(prefix="benchmark-") as folder:
        yield Path(folder)


def interleaved(calls: Sequence[Callable[[], object]], rounds: int) -> Times:
    """Times calls in turn, so that other work on the machine slows all of them alike.

    Which goes first alternates from round to round.
    """
    times = np.empty((rounds, len(calls), 2))
    for round_ in range(rounds):
        order = range(len(calls))
        for which in reversed(order) if round_ % 2 else order:
            start = time.perf_counter(), time.process_time()
            calls[which]()
            times[round_, which] = time.perf_counter() - start[0], time.process_time() - start[1]
    return Times(times[..., 0], times[..., 1])


def floors(times: Seconds) -> Seconds:
    """Returns a low quantile of each call's times: other work can make a call slower only."""
    return np.quantile(times, QUANTILE, axis=0)


def floor_interval(times: Iterable[float]) -> Interval:
    """Returns the low quantile of one call's times, with a bootstrap interval."""
    column = np.array([*times])[:, None]
    return _bootstrap(column, lambda resampled: floors(resampled)[0])


def ratio_interval(numerator: Iterable[float], denominator: Iterable[float]) -> Interval:
    """Returns the ratio of two calls' low quantiles, with an interval from resampled rounds."""
    return _bootstrap(
        np.stack([[*numerator], [*denominator]], axis=-1),
        lambda resampled: np.divide(*floors(resampled)),
    )


def _bootstrap(times: Seconds, estimate: Callable[[Seconds], float]) -> Interval:
    rng = np.random.default_rng(0)
    resampled = [estimate(rng.choice(times, len(times))) for _ in range(_RESAMPLES)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(estimate(times)), float(low), float(high))
