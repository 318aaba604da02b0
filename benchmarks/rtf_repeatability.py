"""Repeatability of the real-time factor: one model measured with every core busy, and without.

Measurements take turns: one as the machine is, one beside a process on every core that multiplies
matrices. The value is how much the median of `rtf_ratio` differs between the two; the reference is
the same for raw `rtf`. "Idle" means that this benchmark adds no load: the load average beside it
tells how much others did.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from benchmarks import _harness as harness
from sweeps.tables import print_table
from thesis.architecture import initial_weights
from thesis.config import DilatedConvStackConfig, MeasureConfig, SynthConfig
from thesis.export import decoder_onnx
from thesis.measure import RtfMeasurement, measure_rtf

NAME = "rtf_repeatability"
_WARM_UP_SECONDS = 1.0
_BUSY = "import numpy as np\na = np.ones((512, 512), np.float32)\nwhile True: a @ a"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    quick = harness.is_quick(NAME, __doc__, arguments)
    model, config = _model(channels=16), MeasureConfig(seconds=1.0 if quick else 2.0)
    idle: list[RtfMeasurement] = []
    loaded: list[RtfMeasurement] = []
    loads = []
    for block in range(3 if quick else 10):
        harness.say(f"block {block + 1}")
        loads.append(os.getloadavg()[0])
        idle.append(measure_rtf(model, 4.0, config))
        with _every_core_busy():
            loaded.append(measure_rtf(model, 4.0, config))
    rows = {name: _compared(name, idle, loaded) for name in ("rtf_ratio", "rtf", "p50_seconds")}
    print_table(
        ["metric", "idle, median", "loaded, median", "difference"],
        [[name, f"{a:.4g}", f"{b:.4g}", f"{d:.2%}"] for name, (a, b, d) in rows.items()],
    )
    details = {
        "blocks": len(idle),
        "idle_loaded_difference": rows,
        "load_average_before_each_block": loads,
        "rtf_ratios_idle": [m.rtf_ratio for m in idle],
        "rtf_ratios_loaded": [m.rtf_ratio for m in loaded],
    }
    reference = f"the same for raw rtf: {rows['rtf'][2]:.4f}"
    value = rows["rtf_ratio"][2]
    result = harness.Result(NAME, value, "relative difference", "lower", reference, details)
    harness.emit(result, quick=quick)


def _model(channels: int) -> bytes:
    decoder, synth = DilatedConvStackConfig(channels=channels), SynthConfig()
    weights = initial_weights(decoder.plan(synth.n_outputs), seed=0)
    return decoder_onnx(decoder, synth, weights, sample_rate=16_000, hop_size=64)


def _compared(
    metric: str, idle: Sequence[RtfMeasurement], loaded: Sequence[RtfMeasurement]
) -> tuple[float, float, float]:
    """Returns both medians of a metric and their relative difference."""
    a, b = (float(np.median([getattr(m, metric) for m in group])) for group in (idle, loaded))
    return a, b, abs(b / a - 1.0)


@contextmanager
def _every_core_busy() -> Iterator[None]:
    """Keeps a process on every core multiplying matrices."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _BUSY]
    processes = [subprocess.Popen(command, env=environment) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(_WARM_UP_SECONDS)
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


if __name__ == "__main__":
    main()
