"""Honesty of the real-time factor's interval: the reference model measured against itself.

The true ratio is 1, so 95 in 100 intervals should cover it. How far the ratio strays from 1 is
compared with the ratio of raw rtf from one measurement to the next, which is what comparing models
without interleaving them would be like.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from benchmarks import _harness as harness
from sweeps.tables import print_table
from thesis.config import MeasureConfig
from thesis.export import reference_onnx
from thesis.measure import RtfMeasurement, measure_rtf

NAME = "rtf_aa"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    quick = harness.is_quick(NAME, __doc__, arguments)
    model = reference_onnx(sample_rate=16_000, hop_size=64)
    count = 20 if quick else 100
    harness.say(f"{count} measurements")
    found = [measure_rtf(model, 4.0, MeasureConfig()) for _ in range(count)]
    covered = [m.rtf_ratio_low <= 1.0 <= m.rtf_ratio_high for m in found]
    share, (low, high) = float(np.mean(covered)), _wilson(sum(covered), count)
    details = {
        "measurements": count,
        "covered": [share, low, high],
        "interval_half_width": float(np.median([_half_width(m) for m in found])),
        "stray_of_ratio": _stray([m.rtf_ratio for m in found]),
        "stray_of_raw_rtf": _stray([b.rtf / a.rtf for a, b in itertools.pairwise(found)]),
        "reference_drift": float(np.quantile([m.reference_drift for m in found], 0.95)),
        "load_average": [m.measure_conditions.get("load_average") for m in found],
    }
    print_table(
        ["reference against itself", f"{count} measurements"],
        [
            ["intervals that cover 1", f"{share:.1%} [{low:.1%}, {high:.1%}]"],
            ["half width of an interval, median", f"{details['interval_half_width']:.2%}"],
            ["|rtf_ratio - 1|, 95th percentile", f"{details['stray_of_ratio']:.2%}"],
            ["the same for raw rtf, not interleaved", f"{details['stray_of_raw_rtf']:.2%}"],
            ["drift of the reference, 95th percentile", f"{details['reference_drift']:.2%}"],
        ],
    )
    result = harness.Result(NAME, share, "share", "higher", "nominal coverage: 0.95", details)
    harness.emit(result, quick=quick)


def _half_width(measured: RtfMeasurement) -> float:
    return (measured.rtf_ratio_high - measured.rtf_ratio_low) / 2.0


def _stray(ratios: Sequence[float]) -> float:
    return float(np.quantile(np.abs(np.array(ratios) - 1.0), 0.95))


def _wilson(hits: int, count: int) -> tuple[float, float]:
    """Returns the 95% interval of a share (Wilson 1927)."""
    z, share = 1.96, hits / count
    centre = share + z**2 / (2 * count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return float((centre - half) / scale), float((centre + half) / scale)


if __name__ == "__main__":
    main()
