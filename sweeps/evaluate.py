"""Evaluates one candidate: build, measure, train, export, and what came of it as a `Trial`.

TensorFlow is imported when a trial starts, not with this module: the driver needs the types only.
"""

import errno
import json
import math
import os
import platform
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps import __version__
from sweeps.config import Limits, SweepConfig, parse_candidate, parse_run
from sweeps.errors import LedgerError
from sweeps.feasibility import broken_limit, closed_form_metrics
from sweeps.trial import PROJECT, Candidate, Measurement, Provenance, Reason, Trial
from thesis.config import MeasureConfig, ModelConfig
from thesis.data import Clips, Dataset, Split, load_dataset
from thesis.errors import ExportError, UserError
from thesis.typed_json import build, parse_object

if TYPE_CHECKING:
    from thesis.build import Model
    from thesis.measure import RtfMeasurement
    from thesis.runtimes.contract import TrainedDecoder

Measure = Callable[[bytes, float, MeasureConfig], "RtfMeasurement"]
"""Measures a decoder (ONNX bytes) on a clip of so many seconds. Remote under Ray: one at a time."""

ARTIFACTS = "artifacts"
"""Folder in a trial's working folder: what is kept of it."""
HISTORY_FILE = "history.json"
"""File in a trial's working folder: its learning curve so far, and the time that it took."""
SUMMARIES = "summaries"
"""Folder in `ARTIFACTS` for TensorBoard, where `train.summaries` asks for it."""


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
      stage: 'build', 'measure', 'train' or 'export'.
      step: Training steps done.
      steps: Training steps asked for.
      train_loss: Mean loss of the last steps; None before the first.
      reached: At a rung, the trial as it is on record if it ends here: status pruned, the metrics
        and the learning curve so far. None elsewhere.
    """

    stage: str
    step: int
    steps: int
    train_loss: float | None = None
    reached: Trial | None = None


def evaluate(task: Task, *, workdir: Path, measure: Measure) -> Trial:
    """Evaluates a candidate from start to end; see `stages`."""
    running = stages(task, workdir=workdir, measure=measure)
    while True:
        try:
            next(running)
        except StopIteration as finished:
            trial: Trial = finished.value
            return trial


def stages(task: Task, *, workdir: Path, measure: Measure) -> Generator[Progress, None, Trial]:
    """Evaluates a candidate, and hands control back at every step worth reporting.

    Args:
      task: The candidate, its configuration and its data.
      workdir: Holds checkpoints, from which an interrupted evaluation continues, and at the end
        `ARTIFACTS`: the exported decoder, the reverb, the weights and the configuration.
      measure: Measures the exported decoder, before it is trained.

    Yields:
      Where the evaluation is.

    Returns:
      The trial. What goes wrong with the candidate (a diverged loss, an export that differs, too
      little memory, a broken limit) is its `reason`.

    Raises:
      UserError: What is wrong with the sweep and not with the candidate: dataset, configuration,
        a full disk.
    """
    run = parse_run(task.gin_text)
    config = parse_candidate(task.gin_text, task.candidate)
    dataset = load_dataset(Path(task.dataset))
    record = _Record(task, config, dataset)
    workdir.mkdir(parents=True, exist_ok=True)  # later on not: where it is gone, a mount may be
    try:
        yield from _stages(record, run.sweep, workdir, measure)
    except ExportError as error:  # the candidate's own: others may export well
        return record.trial(*_cause(error))
    except UserError:
        raise
    except _Rejected as rejected:
        return record.trial(rejected.reason, str(rejected))
    except Exception as error:
        blame_full_disk(error, workdir)
        return record.trial(*_cause(error))
    return record.trial()


class _Rejected(Exception):  # noqa: N818  an outcome, not an error
    """Ends an evaluation with a reason."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass
class _Record:
    """Collects what becomes the trial."""

    task: Task
    config: ModelConfig
    dataset: Dataset
    metrics: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    started_at: float = field(default_factory=time.time)
    train_seconds: float = 0.0
    measure_seconds: float = 0.0
    train_steps: int = 0
    curve: dict[int, float] = field(default_factory=dict)

    def trial(self, reason: Reason | None = None, detail: str = "") -> Trial:
        return Trial(
            sweep=self.task.sweep,
            candidate=self.task.candidate,
            measurement=Measurement(**self.metrics),
            reason=reason,
            detail=detail,
            provenance=Provenance(
                **{"host": platform.node(), **self.measured},
                versions=versions(),
                gin_config=self.task.gin_text,
                dataset_fingerprint=self.dataset.facts.fingerprint,
                seed=self.config.train.seed,
                train_steps=self.train_steps,
                started_at=self.started_at,
                finished_at=time.time(),
                train_seconds=self.train_seconds,
                measure_seconds=self.measure_seconds,
            ),
            curve=dict(self.curve),
        )

    def clips(self, split: Split) -> Clips:
        """Returns the clips of a split with the frames that the candidate's decoder runs on."""
        return self.dataset.clips(split).subsampled(self.config.synth.hop_multiple)

    def require_within(self, limits: Limits) -> None:
        broken = broken_limit(Measurement(**self.metrics), limits)
        if broken:
            raise _Rejected(*broken)


def _stages(
    record: _Record, sweep: SweepConfig, workdir: Path, measure: Measure
) -> Generator[Progress, None, None]:
    config, facts, limits = record.config, record.dataset.facts, sweep.limits
    steps = config.train.steps
    rates = {"sample_rate": facts.sample_rate, "hop_size": facts.hop_size}
    record.metrics |= closed_form_metrics(config, **rates)
    record.require_within(limits)

    yield Progress("build", 0, steps)
    from thesis.build import build
    from thesis.quantise import shipped_onnx
    from thesis.train import REPORT_EVERY, train

    model = build(config, **rates)
    yield Progress("measure", 0, steps)
    # Speed depends on the architecture, not on the weights: measure before paying for them.
    clips = record.clips("train")
    _measure(record, shipped_onnx(_trained(model, config), config.export, clips), measure)
    record.require_within(limits)

    started = time.monotonic()
    files = workdir / ARTIFACTS / SUMMARIES if config.train.summaries else None
    history = _History.read(workdir / HISTORY_FILE)
    curve, seconds_before = history.curve, history.train_seconds
    rungs = rung_steps(sweep.rungs, steps, every=REPORT_EVERY)
    # Where a trial may be put off, another worker goes on.
    running = train(
        model,
        clips,
        config.train,
        checkpoints=workdir / "checkpoints",
        save_at=rungs,
        summaries=files,
    )
    for report in running:
        record.metrics["train_loss"] = report.loss
        record.train_steps = report.step
        history.train_seconds = seconds_before + time.monotonic() - started
        record.train_seconds = history.train_seconds
        if report.step in rungs and report.step not in curve:
            curve[report.step] = _rung_loss(record, model)
            history.write(workdir / HISTORY_FILE)
        # A checkpoint may be older than the curve.
        record.curve = {at: loss for at, loss in curve.items() if at <= report.step}
        reached = record.trial(Reason.PRUNED) if report.step in rungs else None
        yield Progress("train", report.step, steps, report.loss, reached)

    yield Progress("export", steps, steps, record.metrics.get("train_loss"))
    trained = _trained(model, config)
    _check_export(record, model, trained.onnx)
    decoder = shipped_onnx(trained, config.export, clips)
    _validate(record, model, decoder)
    _save_artifacts(workdir / ARTIFACTS, model, decoder, record.task.gin_text)
    record.require_within(limits)  # of what is learnt; the model is kept either way


def rung_steps(shares: Iterable[float], steps: int, *, every: int) -> list[int]:
    """Returns the steps after which a trial of so many steps is validated, rising.

    They are multiples of `every`, where training reports. The end is none of them.
    """
    rungs = {every * math.ceil(share * steps / every) for share in shares}
    return sorted(rung for rung in rungs if rung < steps)


@dataclass
class _History:
    """What a trial keeps of itself besides its checkpoints, for who goes on with it.

    Attributes:
      curve: Validation loss by step, as far as any worker came.
      train_seconds: Time of training up to the last rung.
    """

    curve: dict[int, float] = field(default_factory=dict)
    train_seconds: float = 0.0

    @classmethod
    def read(cls, file: Path) -> "_History":
        """Returns what another worker has left, if one has; nothing where that is damaged."""
        try:
            kept = build(_KeptHistory, parse_object(file.read_bytes()))
            return cls({int(step): loss for step, loss in kept.curve.items()}, kept.train_seconds)
        except (FileNotFoundError, ValueError):
            return cls()

    def write(self, file: Path) -> None:
        whole = file.with_suffix(".new")
        whole.write_text(json.dumps(asdict(self)))
        whole.replace(file)


@dataclass(frozen=True)
class _KeptHistory:
    """A history as JSON has it: no object of its has numbers for names."""

    curve: Mapping[str, float]
    train_seconds: float


def _rung_loss(record: _Record, model: "Model") -> float:
    """Returns the validation loss of the decoder as it is, which is not exported for it."""
    from thesis.train import validate

    clips = record.clips("validation")
    found = validate(model, clips, lambda inputs: model.decoder(inputs).numpy())
    return _finite(found.loss)


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise _Rejected(Reason.DIVERGED, f"the validation loss is {loss}")
    return loss


def _trained(model: "Model", config: ModelConfig) -> "TrainedDecoder":
    from thesis.runtimes.contract import TrainedDecoder

    return TrainedDecoder(
        config.decoder,
        config.synth,
        model.decoder.named_weights(),
        sample_rate=model.synthesizer.sample_rate,
        hop_size=model.synthesizer.hop_size,
    )


def _check_export(record: _Record, model: "Model", decoder: bytes) -> None:
    """Compares the exported decoder, in floats, with the trained one."""
    from thesis.controls import decoder_inputs
    from thesis.export import MAX_ERROR
    from thesis.runtimes.onnx_runtime import Session

    session, clips = Session(decoder), record.clips("validation")
    inputs = decoder_inputs(clips.f0_hz, clips.loudness_db)
    errors = []
    for clip in inputs:
        trained = model.decoder(clip[None]).numpy()
        if not np.isfinite(trained).all():
            raise _Rejected(
                Reason.DIVERGED, "the decoder's output on a validation clip is not finite"
            )
        errors.append(np.abs(session.decode(clip[None]) - trained).max())
    error = float(np.max(errors))  # NaN when one is
    record.metrics["export_max_error"] = error
    if not error <= MAX_ERROR:
        raise _Rejected(
            Reason.EXPORT_MISMATCH,
            f"largest difference {error:.3g} over the validation clips, allowed {MAX_ERROR:g}",
        )


def _validate(record: _Record, model: "Model", decoder: bytes) -> None:
    """Compares the renderings of what ships with the clips."""
    from thesis.metrics import compare
    from thesis.runtimes.onnx_runtime import Session
    from thesis.train import validate

    record.metrics["model_bytes"] = len(decoder)
    found = validate(model, record.clips("validation"), Session(decoder).decode)
    record.metrics["val_loss"] = _finite(found.loss)
    # Compared on the dataset's own frames, whichever the candidate's are.
    clips = record.dataset.clips("validation")
    record.metrics |= asdict(compare(clips, found.renderings, record.dataset.facts))


def _measure(record: _Record, decoder: bytes, measure: Measure) -> None:
    started = time.monotonic()
    rtf = asdict(measure(decoder, record.dataset.facts.clip_seconds, record.config.measure))
    record.measure_seconds = time.monotonic() - started
    record.measured = {key: rtf[key] for key in rtf if key in Provenance.__dataclass_fields__}
    record.metrics |= {key: rtf[key] for key in rtf if key in Measurement.__dataclass_fields__}


def _save_artifacts(folder: Path, model: "Model", decoder: bytes, gin_text: str) -> None:
    from thesis.bundle import CONFIG_FILE, DECODER_FILE, REVERB_FILE, WEIGHTS_FILE, write_audio

    folder.mkdir(exist_ok=True)
    (folder / DECODER_FILE).write_bytes(decoder)
    (folder / CONFIG_FILE).write_text(gin_text)
    np.savez(folder / WEIGHTS_FILE, allow_pickle=False, **model.decoder.named_weights())
    response = model.impulse_response.numpy()
    write_audio(folder / REVERB_FILE, response, model.synthesizer.sample_rate)


def _cause(error: Exception) -> tuple[Reason, str]:
    """Returns the reason that an exception stands for, and its own words."""
    from thesis.train import DivergedError

    if isinstance(error, DivergedError):
        return Reason.DIVERGED, str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return Reason.OUT_OF_MEMORY, cause_of(error)
    return Reason.ERROR, cause_of(error)


def cause_of(error: BaseException) -> str:
    """Returns an exception with the place that raised it: 'ValueError: no (train.py, line 7)'.

    Errors for users say where they are at home themselves.
    """
    traceback = None if isinstance(error, UserError) else error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    place = ""
    if traceback is not None:
        file = Path(traceback.tb_frame.f_code.co_filename).name
        place = f" ({file}, line {traceback.tb_lineno})"
    words = " ".join(_said(error).split())  # of TensorFlow's, pages of them
    return f"{type(error).__name__}: {words[:_MOST_WORDS]}{place}"


_MOST_WORDS = 300
"""Characters of an exception's message that a record keeps."""


def _said(error: BaseException) -> str:
    """Returns an exception's words, as text that can be stored: it may quote names that are none.

    Those of one that cannot even say what it is are ''.
    """
    try:
        return str(error).encode(errors="backslashreplace").decode()
    except Exception:
        return ""


def blame_full_disk(error: Exception, workdir: Path) -> None:
    """Raises LedgerError if an exception tells of a full disk, which every trial would meet.

    It goes by the words: TensorFlow's has no number, and is of the kind that tells of memory.
    """
    for number in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(number) in _said(error):
            raise LedgerError(
                f"cannot write {workdir}: {os.strerror(number)}",
                hint="free some space and launch again: what was running continues from its "
                "checkpoints",
            ) from error


def versions() -> dict[str, str]:
    """Returns the versions that a record depends on, by name: this project's and its libraries'."""
    names = ("ddsp", "numpy", "onnxruntime", "optuna", "ray", "tensorflow-cpu")
    return {
        PROJECT: __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }
