"""Evaluators that take milliseconds, for tests of everything around an evaluation.

Workers load them by this file's path: `evaluator("quick")`.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray

import sweeps
from sweeps.config import RunConfig, parse_run
from sweeps.evaluate import Measure, Progress, Task
from sweeps.feasibility import broken_limit
from sweeps.trial import Candidate, Measurement, Provenance, Reason, Trial
from thesis.config import MeasureConfig
from thesis.data import Clip, ClipFormat, Split, write_dataset
from thesis.errors import DatasetError
from thesis.measure import RtfMeasurement

STEPS = 4

Stages = Generator[Progress, None, Trial]


@contextmanager
def small_cluster() -> Iterator[None]:
    """A Ray cluster of two CPUs, which launches of this process use: a start costs seconds."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


def evaluator(name: str) -> str:
    """How `launch` is told of a function of this file."""
    return f"{Path(__file__).resolve()}:{name}"


def run_of(axes: Mapping[str, object], *bindings: str) -> RunConfig:
    """A run over some axes, with more bindings."""
    return parse_run("\n".join([f"search_space.axes = {axes!r}", *bindings]))


def make_dataset(folder: Path, seed: int = 0) -> str:
    """A dataset of two clips of noise, in milliseconds; equal seeds make equal ones."""
    rng = np.random.default_rng(seed)
    rates = ClipFormat(
        sample_rate=16000,
        hop_size=64,
        clip_seconds=0.2,
        clip_hop_seconds=0.2,
        f0_min_hz=60.0,
        f0_max_hz=2000.0,
    )

    def drawn(low: float, high: float, size: int = rates.n_frames) -> NDArray[np.float32]:
        return rng.uniform(low, high, size).astype(np.float32)

    splits: tuple[Split, ...] = ("train", "validation")
    clips = [
        Clip(
            clip_id=f"noise@{number}",
            source="noise",
            start_seconds=0.2 * number,
            split=split,
            audio=drawn(-1, 1, rates.n_samples),
            f0_hz=drawn(100, 400),
            f0_confidence=drawn(0, 1),
            loudness_db=drawn(-60, 0),
        )
        for number, split in enumerate(splits)
    ]
    dataset = write_dataset(
        folder,
        clips,
        clip_format=rates,
        f0_estimator="none",
        sources={},
        skipped={},
        total_seconds=0.4,
    )
    return str(dataset.path)


def trial_of(sweep: str, candidate: Candidate, *, seconds: float = 0.0, **measured: float) -> Trial:
    """A finished trial: wider is better, and dearer, so every width is on the front."""
    channels = float(candidate["channels"])
    values = {"val_loss": 10 / channels, "rtf_ratio": channels / 8, **measured}
    now = time.time()
    provenance = Provenance(started_at=now - seconds, finished_at=now)
    return Trial(sweep, candidate, Measurement(**values), provenance=provenance)


def quick(task: Task, *, workdir: Path, measure: Measure, step_seconds: float = 0.0) -> Stages:
    """Trains for `STEPS` steps, from the checkpoint that it finds, and exports a model.

    `train_loss` tells the step it began at, `p50_seconds` the process that it ran in.
    """
    checkpoint = workdir / "step"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(first, STEPS):
        time.sleep(step_seconds)
        new = workdir / "step.new"
        new.write_text(str(step + 1))
        new.replace(checkpoint)  # whole or not at all, as TensorFlow's are
        yield Progress("train", step + 1, STEPS, train_loss=1.0 / (step + 1))
    (workdir / "artifacts").mkdir(exist_ok=True)
    (workdir / "artifacts" / "decoder.onnx").write_bytes(task.candidate.id.encode())
    return trial_of(task.sweep, task.candidate, train_loss=first, p50_seconds=os.getpid())


def halfway(task: Task, *, workdir: Path, measure: Measure, step_seconds: float = 0.0) -> Stages:
    """As `quick`, with a rung in the middle: the loss is twice the final one there."""
    ended = trial_of(task.sweep, task.candidate, rtf_ratio=1.0, p50_seconds=os.getpid())
    running = quick(task, workdir=workdir, measure=measure, step_seconds=step_seconds)
    while True:
        try:
            progress = next(running)
        except StopIteration:
            return ended
        reached = None
        if progress.step == STEPS // 2:
            curve = {progress.step: 2 * cast(float, ended.measurement.val_loss)}
            reached = replace(
                ended,
                measurement=replace(ended.measurement, val_loss=None),
                reason=Reason.PRUNED,
                provenance=Provenance(train_steps=progress.step, finished_at=time.time()),
                curve=curve,
            )
        ended = replace(
            ended,
            provenance=Provenance(train_steps=progress.step, finished_at=time.time()),
            curve=reached.curve if reached else ended.curve,
        )
        yield replace(progress, reached=reached)


def slow(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """As `quick`, slow enough to be killed in the middle."""
    return (yield from quick(task, workdir=workdir, measure=measure, step_seconds=0.25))


def slowly_halfway(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """As `halfway`, slow enough to be killed in the middle."""
    return (yield from halfway(task, workdir=workdir, measure=measure, step_seconds=0.25))


def hungry(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """As `quick`, and its process never gives back 64 MB."""
    # Not in this module: a worker loads that anew for every trial.
    kept = sys.modules.setdefault("kept by hungry", ModuleType("kept"))
    setattr(kept, task.candidate.id, b"x" * (64 * 2**20))
    return (yield from quick(task, workdir=workdir, measure=measure))


def greedy(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """As `quick`, but one of five channels takes 8 GB, and keeps them."""
    yield Progress("build", 0, STEPS)
    if task.candidate["channels"] == 5:
        taken = []
        for _ in range(64):
            taken.append(b"x" * 2**27)
            time.sleep(0.02)
        time.sleep(60)
    return (yield from quick(task, workdir=workdir, measure=measure))


def clock_set_back(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """As `quick`, and in the middle of each trial the clock of its process is set back."""
    began, now = time.time(), time.time
    running = quick(task, workdir=workdir, measure=measure)
    yield next(running)
    time.time = lambda: now() - 3600
    trial = yield from running
    return replace(trial, provenance=Provenance(started_at=began, finished_at=time.time()))


def moody(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """Meets every fate, by the number of channels."""
    deaths = workdir / "deaths"
    deaths.write_text(deaths.read_text() + "x" if deaths.exists() else "x")
    yield Progress("build", 0, STEPS)
    match task.candidate["channels"]:
        case 1:
            raise ValueError("no such\n  luck")
        case 2:
            os._exit(1)
        case 3 if len(deaths.read_text()) < 2:
            os._exit(1)
        case 4:
            return trial_of(task.sweep, task.candidate, val_loss=math.nan)
        case 5:
            diverged = Reason.DIVERGED
            return Trial(task.sweep, task.candidate, reason=diverged, detail="step 7")
    return (yield from quick(task, workdir=workdir, measure=measure))


def silent(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """As `quick`, but the narrow ones miss the pitch: of 1 channel all of it, of 8 an eighth."""
    trial = yield from quick(task, workdir=workdir, measure=measure)
    missed = 1.0 / cast(int, task.candidate["channels"])
    measurement = replace(trial.measurement, f0_missed_share=missed, loudness_error_db=3.0)
    broken = broken_limit(measurement, parse_run(task.gin_text).sweep.limits) or (None, "")
    return replace(trial, measurement=measurement, reason=broken[0], detail=broken[1])


def broken(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """Meets what every trial on this machine would, and says it in words of its own."""
    yield Progress("build", 0, STEPS)
    raise RuntimeError(f"{workdir}: no library at {id(task):#x}, process {os.getpid()}")


def broken_at_the_end(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """As `quick`, and the export fails every time."""
    yield from quick(task, workdir=workdir, measure=measure)
    raise ValueError(f"cannot export {task.candidate}")


def crashing(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """Kills every worker, as a library does that jumps to address 0."""
    yield Progress("build", 0, STEPS)
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)


def diverging(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """Ends as trials do whose learning rate is too high."""
    yield Progress("train", 1, STEPS)
    return Trial(task.sweep, task.candidate, reason=Reason.DIVERGED, detail="step 7")


def whereabouts(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """Tells, in a failure's detail, where its code and its data are."""
    yield Progress("build", 0, STEPS)
    said = f"{sweeps.__file__} {task.dataset}"
    return Trial(task.sweep, task.candidate, reason=Reason.DIVERGED, detail=said)


def without_data(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """Meets what every trial would meet."""
    yield Progress("build", 0, STEPS)
    raise DatasetError("no dataset on this node", hint="copy it")


def measuring(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """Measures through the launch's measurer, when another trial wants to do the same.

    A model of its own, of which `rtf` tells, and one that all trials have in common, of which
    `p50_seconds` tells when it was measured.
    """
    waiting = Path(task.dataset) / "waiting"
    waiting.mkdir(exist_ok=True)
    (waiting / str(os.getpid())).touch()
    while len(list(waiting.iterdir())) < 2:
        yield Progress("build", 0, STEPS)
        time.sleep(0.05)
    own, common = (
        measure(model.SerializeToString(), 4.0, MeasureConfig())
        for name in (task.candidate.id, "common")
        for model in [onnx.ModelProto(producer_name=name, doc_string=task.dataset)]
    )
    return trial_of(task.sweep, task.candidate, rtf=own.rtf, p50_seconds=common.measured_at)


def measured(task: Task, *, workdir: Path, measure: Measure) -> Stages:
    """Measures, and tells as the host where that was."""
    yield Progress("measure", 0, STEPS)
    found = measure(
        onnx.ModelProto(doc_string=task.dataset).SerializeToString(), 4.0, MeasureConfig()
    )
    trial = trial_of(task.sweep, task.candidate, reference_drift=found.reference_drift)
    return replace(trial, provenance=Provenance(host=found.host, finished_at=time.time()))


def measure_drifting(model: bytes, audio_seconds: float, config: MeasureConfig) -> RtfMeasurement:
    """Drifts on the head of `tests.e2e.cluster`, and nowhere else."""
    node = os.environ["TEST_NODE"]
    drift = 1.0 if node == "head" else 0.0
    return replace(measure_together(model, audio_seconds, config), host=node, reference_drift=drift)


def measure_together(model: bytes, audio_seconds: float, config: MeasureConfig) -> RtfMeasurement:
    """Tells, as `rtf`, how many processes measure at this time."""
    crowd = Path(onnx.load_model_from_string(model).doc_string) / "measuring"
    crowd.mkdir(exist_ok=True)
    mine = crowd / str(os.getpid())
    mine.touch()
    time.sleep(0.5)
    together = sum(Path("/proc", process.name).exists() for process in crowd.iterdir())
    mine.unlink()
    return RtfMeasurement(
        rtf=together,
        rtf_ratio=1.0,
        rtf_ratio_low=1.0,
        rtf_ratio_high=1.0,
        reference_rtf=1.0,
        reference_drift=0.0,
        reference_frames=1000,
        p50_seconds=0.0,
        p95_seconds=0.0,
        p99_seconds=0.0,
        calls=1,
        host="here",
        host_fingerprint="here",
        measured_at=time.time(),
        measure_attempts=1,
        measure_conditions={},
    )
