"""The nouns of a sweep: what was tried (`Candidate`) and what happened (`Trial`).

Standard library only, so that a command which reads the ledger starts in milliseconds.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from thesis.typed_json import UnixTime, fields_of, parse_object, scalar, text

SCHEMA_VERSION = 1

PROJECT = "ddsp-sweeps"
"""This project's name among the versions of a record."""

AxisValue = bool | int | float | str


class Status(Enum):
    """What became of a trial. Derived from its record, never stored beside it."""

    COMPLETED = "completed"
    INFEASIBLE = "infeasible"
    PRUNED = "pruned"
    FAILED = "failed"


class Reason(Enum):
    """Why a trial has no place on the front, and what a user may do about it."""

    RECEPTIVE_FIELD = "receptive field over the limit"
    PARAMETERS = "parameters over the limit"
    RTF = "real-time factor over the limit"
    MISSED_PITCH = "share of missed pitch over the limit"
    PRUNED = "stopped early"
    DIVERGED = "loss became NaN or exploded; lower the learning rate"
    OUT_OF_MEMORY = "out of memory; lower the batch size"
    EXPORT_MISMATCH = "exported model differs from the trained one"
    CRASHED = "worker died"
    ERROR = "unexpected error"

    @property
    def status(self) -> Status:
        """The status of a trial that ended for this reason."""
        if self.limited:
            return Status.INFEASIBLE
        return Status.PRUNED if self is Reason.PRUNED else Status.FAILED

    @property
    def limited(self) -> str:
        """The metric that is over its limit; '' where that is not the reason."""
        return {
            Reason.RECEPTIVE_FIELD: "receptive_field_seconds",
            Reason.PARAMETERS: "parameters",
            Reason.RTF: "rtf_ratio",
            Reason.MISSED_PITCH: "f0_missed_share",
        }.get(self, "")

    @property
    def is_crash(self) -> bool:
        """Whether this may be the fault of what every trial runs on, and not of the candidate."""
        return self in (Reason.OUT_OF_MEMORY, Reason.CRASHED, Reason.ERROR)


@dataclass(frozen=True)
class Candidate:
    """One point of the search space. Hashable; its `id` names it everywhere.

    Attributes:
      values: `(axis, value)` pairs sorted by axis. Axes that have no effect on the model (say,
        the dilation base of a one-layer stack) are left out by the space that made the
        candidate, so that equal models are equal candidates.
    """

    values: tuple[tuple[str, AxisValue], ...]

    @classmethod
    def of(cls, values: Mapping[str, AxisValue]) -> "Candidate":
        """Returns the candidate with these axis values, in canonical order."""
        return cls(tuple(sorted(values.items())))

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits: the SHA-256 of the canonical JSON of `values`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Returns the canonical JSON: one object, keys sorted, no spaces."""
        return json.dumps(dict(self.values), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, data: str) -> "Candidate":
        """Returns the candidate that `to_json` wrote.

        Raises:
          ValueError: It has written no such text.
        """
        return cls.checked(parse_object(data))

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> "Candidate":
        """Returns the candidate with these axis values, which may be anything.

        Raises:
          ValueError: One cannot be an axis's value.
        """
        return cls.of({text("axis", name): scalar(name, value) for name, value in values.items()})

    def __getitem__(self, axis: str) -> AxisValue:
        return dict(self.values)[axis]

    def get(self, axis: str, default: AxisValue | None = None) -> AxisValue | None:
        """Returns an axis's value, or `default` where the candidate does not have the axis."""
        return dict(self.values).get(axis, default)


def _metric(unit: str, description: str) -> Any:
    """Declares one optional metric column, with its unit and its meaning."""
    return field(default=None, metadata={"unit": unit, "description": description})


@dataclass(frozen=True)
class Measurement:
    """What was measured of one candidate. A metric that was not reached is None.

    Every field is a column of the ledger and may be named in `sweeps front`.
    `rtf` is processing time over audio time (lower is better; x real time is its inverse). It
    compares only within one host; `rtf_ratio`, against the reference model measured in the same
    loop, compares across hosts.
    """

    val_loss: float | None = _metric("", "spectral loss of the exported model, validation clips")
    train_loss: float | None = _metric("", "mean spectral loss of the last training steps")
    f0_error_cents: float | None = _metric("cents", "median pitch error, frames voiced in both")
    f0_missed_share: float | None = _metric(
        "", "voiced frames rendered unvoiced or 50 cents off; one tracker judges both sides"
    )
    loudness_error_db: float | None = _metric("dB", "mean A-weighted loudness error of a frame")
    mel_cepstral_distance_db: float | None = _metric("dB", "mean distance of timbre, level aside")
    log_mel_distance_db: float | None = _metric(
        "dB", "mean |difference| of 64 mel bands, frames of 64 ms, levels made equal"
    )
    multi_scale_log_mel_distance_db: float | None = _metric(
        "dB", "the same, mean of frames of 32, 64, 128 and 256 ms"
    )
    loudness_error_sounding_db: float | None = _metric(
        "dB", "loudness_error_db where the clip sounds, less than 50 dB under its loudest frame"
    )
    rest_excess_db: float | None = _metric(
        "dB", "mean loudness over the clip's where the clip rests, from -60 dB on"
    )
    register_level_error_db: float | None = _metric(
        "dB", "mean loudness error, with its sign, of the worst third of the clips' pitches"
    )
    onset_error_ms: float | None = _metric(
        "ms", "mean distance to the nearest onset of the other side, 100 at most (Bello 2005)"
    )
    rtf: float | None = _metric("s/s", "processing time / audio time, low quantile, one thread")
    rtf_ratio: float | None = _metric("x reference", "rtf / rtf of DDSP-CNN-Tiny, interleaved")
    rtf_ratio_low: float | None = _metric("x reference", "lower end of the 95% interval")
    rtf_ratio_high: float | None = _metric("x reference", "upper end of the 95% interval")
    reference_rtf: float | None = _metric("s/s", "rtf of the reference in the same loop")
    reference_drift: float | None = _metric(
        "", "how far the reference moved meanwhile, or is from the machine's best"
    )
    p50_seconds: float | None = _metric("s", "median time of one call")
    p95_seconds: float | None = _metric("s", "95th percentile of one call")
    p99_seconds: float | None = _metric("s", "99th percentile of one call")
    parameters: int | None = _metric("", "decoder weights, with the output layer")
    parameters_with_reverb: int | None = _metric("", "decoder weights and reverb taps")
    macs_per_frame: int | None = _metric("", "multiply-accumulates of one decoder frame")
    macs_per_second: float | None = _metric("1/s", "the same of a second of audio")
    receptive_field_frames: int | None = _metric(
        "frames", "input frames that one output sees; none without a bound"
    )
    receptive_field_seconds: float | None = _metric("s", "the same in seconds")
    export_max_error: float | None = _metric("", "largest |ONNX - TensorFlow| over the controls")
    model_bytes: int | None = _metric("bytes", "size of decoder.onnx")


@dataclass(frozen=True)
class Provenance:
    """Where a record comes from: enough to trust it and to make it again.

    `versions` has this project's under `PROJECT`; before 0.2.0 it was not recorded. Where
    `measured_at` (Unix time, as the others) is before `started_at`, the real-time factor was
    measured for an earlier trial with an equal graph. It is the calmest of `measure_attempts`, and
    `measure_conditions` tells what the machine did meanwhile, see `thesis.conditions`.
    """

    host: str = ""
    host_fingerprint: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    gin_config: str = ""
    dataset_fingerprint: str = ""
    seed: int = 0
    train_steps: int = 0
    started_at: UnixTime = 0.0
    finished_at: UnixTime = 0.0
    train_seconds: float = 0.0
    measure_seconds: float = 0.0
    measured_at: UnixTime = 0.0
    measure_attempts: int = 0
    measure_conditions: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt:
    """That a candidate is being tried, and how often that went wrong before.

    Attributes:
      candidate: What is tried.
      host: Where; '' before a worker has taken it up.
      began_at: Since when, in Unix time.
      deaths: Workers that died of it, or at least with it, on nodes that lived on.
      losses: Workers that went away with their nodes.
      cause: What the last death or loss was, in a line.
      waits_at: Training steps after which it waits for others, see `sweeps.stopping`; 0 if it runs.
      gain: What was expected of it then, see `sweeps.stopping.Verdict`.
    """

    candidate: Candidate
    host: str = ""
    began_at: UnixTime = 0.0
    deaths: int = 0
    losses: int = 0
    cause: str = ""
    waits_at: int = 0
    gain: float = 0.0

    def to_json(self) -> str:
        """Returns one JSON object."""
        return json.dumps({**vars(self), "candidate": dict(self.candidate.values)})

    @classmethod
    def from_json(cls, data: bytes | str) -> "Attempt":
        """Returns the attempt that `to_json` wrote, or a release that wrote the candidate only.

        Raises:
          ValueError: Neither has.
        """
        values = parse_object(data)
        if not isinstance(values.get("candidate"), dict):
            return cls(Candidate.checked(values))
        candidate = Candidate.checked(values["candidate"])
        return cls(**fields_of(cls, {**values, "candidate": candidate}))


@dataclass(frozen=True)
class Trial:
    """A candidate and what happened to it: metrics, or the reason why there are none.

    Attributes:
      sweep: Name of the sweep that the trial belongs to.
      candidate: What was tried. Its id is the trial's id: a sweep tries a candidate once.
      measurement: What was measured, as far as the trial came.
      reason: Why the trial has no place on the front; None when it has one.
      detail: The reason in particular: the step and the last finite loss, the limit and the
        value that broke it, the exception.
      provenance: Host, versions, configuration, times.
      curve: The learning curve: validation loss by training step, at the rungs that were reached.
        That of the trained decoder, before its export; `val_loss` is that of the exported one, and
        only a completed trial has it.
    """

    sweep: str
    candidate: Candidate
    measurement: Measurement = field(default_factory=Measurement)
    reason: Reason | None = None
    detail: str = ""
    provenance: Provenance = field(default_factory=Provenance)
    curve: Mapping[int, float] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def id(self) -> str:
        """The candidate's id."""
        return self.candidate.id

    @property
    def status(self) -> Status:
        """Derived from `reason`, so that it cannot disagree with it."""
        return Status.COMPLETED if self.reason is None else self.reason.status

    @property
    def trained(self) -> bool:
        """Whether it was trained to its end, so that there is a model and all is measured."""
        return self.reason in (None, Reason.MISSED_PITCH)

    def metric(self, name: str) -> float | None:
        """Returns a metric by column name; None where the trial did not reach it."""
        value: float | None = getattr(self.measurement, name)
        return value

    def to_record(self) -> dict[str, Any]:
        """Returns the trial as one flat record of JSON values, for programs.

        Axis values are prefixed with 'axis_'; numbers that JSON cannot hold are None.
        """
        record: dict[str, Any] = {
            "id": self.id,
            "sweep": self.sweep,
            "status": self.status.value,
            "reason": self.reason and self.reason.name.lower(),
            "detail": self.detail,
            **{f"axis_{name}": value for name, value in self.candidate.values},
            **dataclasses.asdict(self.measurement),
            **dataclasses.asdict(self.provenance),
            "curve": {str(step): loss for step, loss in self.curve.items()},
            "schema_version": self.schema_version,
        }
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }


METRICS: Mapping[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Measurement)}
"""Every metric by name; `.metadata` holds its unit and description."""
