"""Real-time factor of an exported decoder: how long it computes for a second of audio.

Shared machines are noisy in one direction: other work can make a call slower, never faster. So
the candidate and the reference are called in turn, each is summed up by a low quantile of its
times, and what is reported first is their ratio, which carries over to other machines and days.
Where a session's memory lies is worth half a per cent for as long as it lives, and depends on how
many were loaded before it. So the measurement is made of rounds with fresh sessions, two of each
model, loaded so that both models come at the same place on average, behind memory of random
sizes, and its interval comes from the rounds' spread. See `docs/concepts/measurement.md`.
"""

import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from scipy.special import stdtrit

from thesis.conditions import conditions, observe
from thesis.config import MeasureConfig
from thesis.controls import decoder_inputs
from thesis.errors import ExportError
from thesis.export import reference_onnx
from thesis.runtimes.onnx_runtime import VERSION, Session

QUANTILE = 0.1
"""Of the call times; low, since noise only adds. The minimum rests on a single lucky call."""
ROUNDS = 20
_SHARED_ERROR = 4e-4
"""Standard deviation of a model's ratio against itself that its rounds' spread does not show."""
_CANDIDATE, _REFERENCE = 0, 1
_ORDERS = np.array([[0, 1, 1, 0], [1, 0, 0, 1]])
"""Models in the order in which a round's sessions are loaded and called; rounds take turns."""
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})
_SESSIONS = 2
"""Of each model in a round."""
_WARM_UP_CALLS = 5
_WARM_UP_SHARE = 0.1
"""Of a round's time, at the most: where a call takes long, one is enough."""


@dataclass(frozen=True)
class RtfMeasurement:
    """What one interleaved measurement found.

    Attributes:
      rtf: Processing time over audio time; lower is better, x real time is its inverse.
      rtf_ratio: `rtf` over the reference's in the same loop.
      rtf_ratio_low: Lower end of the ratio's 95% interval.
      rtf_ratio_high: Its upper end.
      reference_rtf: The reference's rtf in the same loop.
      reference_drift: How far the reference's rtf moved between the first half of the rounds and
        the second, as a share; a meter (`sweeps.meter`) compares it with earlier ones, too.
      reference_frames: Frames that the reference decodes in a call.
      p50_seconds: Median time of a call on the whole clip.
      p95_seconds: 95th percentile.
      p99_seconds: 99th percentile.
      calls: Calls of each model.
      host: Name of the machine.
      host_fingerprint: Identifies machine, processor and runtime; `rtf` compares within one.
      measured_at: When it began, Unix time.
      measure_attempts: Measurements that were made to get this one; more than one where the
        reference had drifted.
      measure_conditions: What the machine did meanwhile, see `thesis.conditions`.
    """

    rtf: float
    rtf_ratio: float
    rtf_ratio_low: float
    rtf_ratio_high: float
    reference_rtf: float
    reference_drift: float
    reference_frames: int
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    calls: int
    host: str
    host_fingerprint: str
    measured_at: float
    measure_attempts: int
    measure_conditions: Mapping[str, float]


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
    measured_at = time.time()
    with pinned_to_one_core():
        before = observe()
        rounds = [_round((model, reference), inputs, config, i) for i in range(ROUNDS)]
        during = conditions(before, observe())
    rtfs = np.array([floors(times) for times in rounds]) / audio_seconds
    ratio, low, high = ratio_interval(rtfs[:, _CANDIDATE] / rtfs[:, _REFERENCE])
    times = np.concatenate(rounds)[:, _CANDIDATE]
    p50, p95, p99 = np.quantile(times, [0.5, 0.95, 0.99])
    return RtfMeasurement(
        rtf=float(np.median(rtfs[:, _CANDIDATE])),
        rtf_ratio=ratio,
        rtf_ratio_low=low,
        rtf_ratio_high=high,
        reference_rtf=float(np.median(rtfs[:, _REFERENCE])),
        reference_drift=drift(rtfs[:, _REFERENCE]),
        reference_frames=inputs[_REFERENCE].shape[-1],
        p50_seconds=float(p50),
        p95_seconds=float(p95),
        p99_seconds=float(p99),
        calls=times.size,
        host=platform.node(),
        host_fingerprint=host_fingerprint(),
        measured_at=measured_at,
        measure_attempts=1,
        measure_conditions=during,
    )


def graph_hash(model: bytes) -> str:
    """Returns twelve hexadecimal digits of a model's graph: equal for models of one speed.

    Everything counts but the values of its weights: operators, attributes, connections, shapes,
    types, rates and the rest of the metadata. A weight is a tensor of floating-point numbers with
    an axis; other constants are part of the graph, say the bounds of a slice or of a clip.

    Raises:
      ExportError: It is no ONNX model.
    """
    try:
        parsed = onnx.load_model_from_string(model)
    except DecodeError as error:
        raise ExportError("model is no ONNX model", hint="export it again") from error
    for tensor in parsed.graph.initializer:
        if tensor.dims and tensor.data_type in _FLOATS:
            for values in ("raw_data", "float_data", "double_data", "int32_data"):
                tensor.ClearField(values)
    digest = hashlib.sha256(parsed.SerializeToString(deterministic=True))
    return digest.hexdigest()[:12]


def _round(
    models: Sequence[bytes],
    inputs: Sequence[npt.NDArray[np.float32]],
    config: MeasureConfig,
    i: int,
) -> npt.NDArray[np.float64]:
    """Returns the seconds of every call of fresh sessions, [calls, models, sessions]."""
    deadline = time.process_time() + config.seconds / ROUNDS
    order = _ORDERS[i % len(_ORDERS)]
    ballast, sessions = [], []
    for which in order:
        ballast.append(_ballast())
        # A copy, since where the inputs lie counts as well.
        sessions.append((Session(models[which]), inputs[which].copy()))
    times = interleaved_times(sessions, config, deadline)
    of_models = times[:, np.argsort(order, kind="stable")]
    return of_models.reshape(-1, len(models), _SESSIONS)


def _ballast() -> list[bytearray]:
    """Returns memory of random sizes, so that what is allocated next lies anywhere.

    Without it, the sessions of a round come to lie where those of the last but one had been, and
    rounds are no independent samples (Curtsinger & Berger, "Stabilizer", ASPLOS 2013).
    """
    exponents = np.random.default_rng().uniform(10, 20, size=8)
    return [bytearray(int(2**exponent)) for exponent in exponents]


def interleaved_times(
    sessions: Sequence[tuple[Callable[[npt.NDArray[np.float32]], Any], npt.NDArray[np.float32]]],
    config: MeasureConfig,
    deadline: float,
) -> npt.NDArray[np.float64]:
    """Calls sessions in turn for one round; returns the seconds of every call, [calls, sessions].

    Each is called twice when it is its turn, and timed the second time.

    Args:
      sessions: What is called, each with its input.
      config: How many calls there are at least and at the most.
      deadline: When to stop, as `time.process_time` tells it: what other processes take of the core
        is not counted, so that a busy machine measures for longer and not with fewer calls.
    """
    warm = time.process_time() + _WARM_UP_SHARE * config.seconds / ROUNDS
    for _ in range(_WARM_UP_CALLS):
        for session, frames in sessions:
            session(frames)
        if time.process_time() > warm:
            break
    share = ROUNDS * _SESSIONS
    least, most = -(-config.min_calls // share), -(-config.max_calls // share)
    times: list[list[float]] = []
    while len(times) < least or (len(times) < most and time.process_time() < deadline):
        row = []
        for session, frames in sessions:
            session(frames)  # so that the cache is its own, whatever ran before
            start = time.perf_counter()
            session(frames)
            row.append(time.perf_counter() - start)
        times.append(row)
    return np.array(times)


def floors(times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns what each model's call takes undisturbed, [models], in seconds.

    Args:
      times: Of every call of a round, [calls, models, sessions].
    """
    of_sessions = np.quantile(times, QUANTILE, axis=0)
    found: npt.NDArray[np.float64] = np.exp(np.log(of_sessions).mean(axis=-1))
    return found


def ratio_interval(ratios: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Returns the geometric mean of the rounds' ratios and the ends of its 95% interval.

    Student's t on the logarithms: there are few rounds, and a ratio is symmetric only in its
    logarithm. What the rounds share and so do not show is added in quadrature, as an uncertainty
    of type B (JCGM 100:2008, "GUM", 4.3 and 5.1).
    """
    logs = np.log(ratios)
    error = np.hypot(logs.std(ddof=1) / np.sqrt(logs.size), _SHARED_ERROR)
    half = stdtrit(logs.size - 1, 0.975) * error
    mean, low, high = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
    return float(mean), float(low), float(high)


def drift(rtfs: npt.NDArray[np.float64]) -> float:
    """Returns how much a half of the rounds differs from the other in its median, as a share."""
    first, second = (np.median(half) for half in np.array_split(rtfs, 2))
    return float(max(first, second) / min(first, second) - 1.0)


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
    facts = (platform.node(), processor(), os.cpu_count(), VERSION)
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
