"""Real-time factor."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RtfMeasurement:
    """What one interleaved measurement found."""

    rtf: float
    rtf_ratio: float
    rtf_ratio_low: float
    rtf_ratio_high: float
    reference_rtf: float
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    calls: int
    host: str
    host_fingerprint: str
