"""Real-time factor of an exported decoder: how long it computes for a second of audio.

Shared machines are noisy in one direction: other work can make a call slower, never faster. So
the candidate and the reference are called in turn, each is summed up by a low quantile of its
times, and what is reported first is their ratio, which carries over to other machines and days.
Where a session's memory happens to lie is worth half a per cent for as long as it lives, so the
measurement is made of rounds with fresh sessions, and its interval comes from their spread.
"""

import hashlib
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from thesis.config import MeasureConfig
from thesis.controls import decoder_inputs
from thesis.export import reference_onnx
from thesis.runtimes.onnx_runtime import Session

QUANTILE = 0.1
"""Of the call times; low, since noise only adds. The minimum rests on a single lucky call."""
ROUNDS = 10
_STUDENT_T = 2.262
"""97.5% quantile of Student's t with ROUNDS - 1 degrees of freedom."""
_WARM_UP_CALLS = 5


@dataclass(frozen=True)
class RtfMeasurement:
    """What one interleaved measurement found.

    Attributes:
      rtf: Processing time over audio time; lower is better, x real time is its inverse.
      rtf_ratio: `rtf` over the reference's in the same loop.
      rtf_ratio_low: Lower end of the ratio's 95% interval.
      rtf_ratio_high: Its upper end.
      reference_rtf: The reference's rtf in the same loop.
      p50_seconds: Median time of a call on the whole clip.
      p95_seconds: 95th percentile.
      p99_seconds: 99th percentile.
      calls: Calls of each model.
      host: Name of the machine.
      host_fingerprint: Identifies machine, processor and runtime; `rtf` compares within one.
    """

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


def measure_rtf(model: bytes, audio_seconds: float, config: MeasureConfig) -> RtfMeasurement:
    """Measures a decoder against DDSP-CNN-Tiny on one pinned core.

    Args:
      model: The exported decoder (ONNX).
      audio_seconds: Length of the clip that one call decodes.
      config: How long to measure.

    Raises:
      ExportError: The model cannot be loaded.
    """
    rates = Session(model)
    # The reference decodes every frame of the dataset, also where the candidate does not.
    hop_size = rates.hop_size // rates.synth.hop_multiple
    reference = reference_onnx(sample_rate=rates.sample_rate, hop_size=hop_size)
    n_samples = max(1, round(audio_seconds * rates.sample_rate))
    inputs = [_typical_inputs(-(-n_samples // hop)) for hop in (rates.hop_size, hop_size)]
    with pinned_to_one_core():
        rounds = [_round(model, reference, inputs, config, i) for i in range(ROUNDS)]
    rtfs = np.array([np.quantile(times, QUANTILE, axis=0) for times in rounds]) / audio_seconds
    ratio, low, high = ratio_interval(rtfs[:, 0] / rtfs[:, 1])
    times = np.concatenate(rounds)[:, 0]
    p50, p95, p99 = np.quantile(times, [0.5, 0.95, 0.99])
    return RtfMeasurement(
        rtf=float(np.median(rtfs[:, 0])),
        rtf_ratio=ratio,
        rtf_ratio_low=low,
        rtf_ratio_high=high,
        reference_rtf=float(np.median(rtfs[:, 1])),
        p50_seconds=float(p50),
        p95_seconds=float(p95),
        p99_seconds=float(p99),
        calls=times.size,
        host=platform.node(),
        host_fingerprint=host_fingerprint(),
    )


def _round(
    model: bytes,
    reference: bytes,
    inputs: Sequence[npt.NDArray[np.float32]],
    config: MeasureConfig,
    i: int,
) -> npt.NDArray[np.float64]:
    """Measures with fresh sessions, loaded in an order that alternates from round to round."""
    if i % 2:
        candidate, against = Session(model), Session(reference)
    else:
        against, candidate = Session(reference), Session(model)
    return interleaved_times(candidate, against, inputs, config)


def interleaved_times(
    candidate: Session,
    reference: Session,
    inputs: Sequence[npt.NDArray[np.float32]],
    config: MeasureConfig,
) -> npt.NDArray[np.float64]:
    """Calls two models in turn for one round and returns the seconds of every call, [calls, 2].

    Which goes first alternates, so that neither always finds the other's data in the cache.

    Args:
      candidate: The model to measure.
      reference: What it is measured against.
      inputs: What each of them decodes, [1, 2, frames].
      config: How long to measure.
    """
    sessions = (candidate, reference)
    for _ in range(_WARM_UP_CALLS):
        for session, frames in zip(sessions, inputs, strict=True):
            session(frames)
    least, most = -(-config.min_calls // ROUNDS), -(-config.max_calls // ROUNDS)
    times: list[list[float]] = []
    deadline = time.perf_counter() + config.seconds / ROUNDS
    while len(times) < least or (len(times) < most and time.perf_counter() < deadline):
        pair = [0.0, 0.0]
        for which in (0, 1) if len(times) % 2 else (1, 0):
            start = time.perf_counter()
            sessions[which](inputs[which])
            pair[which] = time.perf_counter() - start
        times.append(pair)
    return np.array(times)


def ratio_interval(ratios: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Returns the geometric mean of the rounds' ratios and the ends of its 95% interval.

    Student's t on the logarithms: there are few rounds, and a ratio is symmetric only in its
    logarithm.
    """
    logs = np.log(ratios)
    half = _STUDENT_T * logs.std(ddof=1) / np.sqrt(logs.size)
    mean, low, high = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
    return float(mean), float(low), float(high)


@contextmanager
def pinned_to_one_core() -> Iterator[None]:
    """Keeps this process on one of its cores, so that caches stay warm; then lets it go."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@lru_cache(maxsize=1)
def host_fingerprint() -> str:
    """Returns twelve hexadecimal digits of machine name, processor, cores and runtime version."""
    facts = (platform.node(), processor(), os.cpu_count(), onnxruntime.__version__)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def processor() -> str:
    """Returns the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _typical_inputs(n_frames: int) -> npt.NDArray[Any]:
    """Returns a vibrato with a swell, [1, 2, n_frames]: neither zeros nor noise."""
    t = np.arange(n_frames) / 250.0
    f0_hz = 220.0 * 2.0 ** (0.3 * np.sin(2 * np.pi * 5.0 * t) / 12.0)
    loudness_db = -40.0 + 20.0 * np.sin(2 * np.pi * 0.25 * t)
    return np.ascontiguousarray(decoder_inputs(f0_hz, loudness_db).T[None])
