"""Benches model bundles: every artefact in every runtime, in blocks as audio callbacks have them.

Calls of all variants of an artefact take turns, in rounds with new sessions, and the speed of each
is compared with that of the same artefact of the first bundle, as floats in ONNX Runtime, in blocks
of the same size. What a runtime that is warm cannot tell, its start, first calls and memory, is
measured in processes of their own. See `thesis.measure` for the estimator.
"""

import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from thesis.bench_process import ARTIFACTS, FreshProcess, Request
from thesis.bench_variants import (
    FLOATS,
    PLAYS,
    REFERENCE,
    Block,
    Maker,
    Skipped,
    Variant,
    check_dataset,
    check_quantisations,
    chosen_runtimes,
    version_of,
)
from thesis.bundle import CONTROLS_FILE, ModelBundle, load_bundle
from thesis.conditions import conditions, observe
from thesis.data import Dataset, load_dataset
from thesis.environ import environment
from thesis.errors import BenchError, ExportError
from thesis.measure import QUANTILE, pinned_to_one_core, processor, ratio_interval
from thesis.runtimes import runtime

BLOCKS: tuple[Block, ...] = (64, 256, 1024, 2048, "clip")
"""Samples. Hosts of plugins ask for 64 to 2,048 at a time."""
MAX_BLOCK = 2**20
"""Samples: half a minute and more."""
SECONDS = 0.5
_ROUNDS = 10
"""Fewer than in `thesis.measure`: some runtimes take a second to load."""
_MIN_CALLS = 50
_WARM_UP_CALLS = 3
_TRY = "without options, the usual artefacts and sizes of blocks are benched"

Progress = Callable[[int, int], None]
_Result = TypeVar("_Result")
Times = list[npt.NDArray[np.float64]]
"""The seconds of every call, an array for each round."""


@dataclass(frozen=True)
class BenchRow:
    """What was found of one variant in blocks of one size.

    Attributes:
      bundle: Folder of the bundle.
      artifact: 'decoder', 'decoder_stream' or 'synth_stream'.
      runtime: Name of the runtime, or 'c'.
      version: Of the runtime, or of the C compiler.
      quantisation: Name of a `Quantisation`, or 'float'.
      block: Samples of a block, or 'clip' for the whole clip of the bundle.
      block_samples: Samples of a block.
      deadline_seconds: How long a block sounds.
      rtf: Processing time over audio time where nothing disturbs; lower is better.
      is_reference: The others of this artefact and this size of blocks are compared with it.
      rtf_ratio: `rtf` over the reference's in blocks of this size, in the same run; None where the
        reference cannot play those.
      rtf_ratio_low: Lower end of the ratio's 95% interval.
      rtf_ratio_high: Its upper end.
      p50_seconds: Median time of a call, disturbed or not.
      p95_seconds: 95th percentile.
      p99_seconds: 99th percentile.
      max_seconds: The longest call.
      p99_share_of_deadline: `p99_seconds` over the deadline.
      calls: How many there were.
      first_call_seconds: The first call in a new process.
      start_seconds: To import the runtime and load the model in a new process.
      load_seconds: To load it once more there.
      peak_memory_bytes: The most that the new process had resident, Python and libraries included.
      size_bytes: Of the model's files.
      val_loss: Spectral loss of its renderings of validation clips; None where not asked for,
        or where they are not finite.
    """

    bundle: str
    artifact: str
    runtime: str
    version: str
    quantisation: str
    block: Block
    block_samples: int
    deadline_seconds: float
    rtf: float
    is_reference: bool
    rtf_ratio: float | None
    rtf_ratio_low: float | None
    rtf_ratio_high: float | None
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    max_seconds: float
    p99_share_of_deadline: float
    calls: int
    first_call_seconds: float
    start_seconds: float
    load_seconds: float
    peak_memory_bytes: int
    size_bytes: int
    val_loss: float | None

    @property
    def x_real_time(self) -> float:
        """Seconds of audio in a second of processing."""
        return 1 / self.rtf

    def to_record(self) -> dict[str, Any]:
        """Returns it as one flat mapping with stable keys."""
        return asdict(self) | {"x_real_time": self.x_real_time}


@dataclass(frozen=True)
class BenchReport:
    """What a bench found, and what it left out.

    Attributes:
      rows: A variant in blocks of one size each.
      skipped: What could not be had.
      machine: What figures depend on: processor, cores, and the conditions while calls were timed,
        see `thesis.conditions`.
    """

    rows: tuple[BenchRow, ...]
    skipped: tuple[Skipped, ...]
    machine: Mapping[str, Any]


def bench(
    bundles: Sequence[Path],
    *,
    artifacts: Sequence[str] = ARTIFACTS,
    runtimes: Sequence[str] = (REFERENCE,),
    quantisations: Sequence[str] = (),
    blocks: Sequence[Block] = BLOCKS,
    seconds: float = SECONDS,
    dataset: Path | None = None,
    on_progress: Progress = lambda done, total: None,
) -> BenchReport:
    """Benches bundles on one pinned core, one thread.

    Args:
      bundles: Their folders. What the first holds is the reference, asked for or not.
      artifacts: Which of `ARTIFACTS`.
      runtimes: Names of runtimes, 'c' for generated C, or 'all' for those that are installed.
        Streams play in those of `PLAYS` only.
      quantisations: Names of quantisations of the decoder to bench beside its floats, in the
        runtimes that have them, or 'all'.
      blocks: Samples of a block, 1 or more, or 'clip' for all of a bundle's clip at once.
      seconds: How long to call one variant in blocks of one size, more than 0.
      dataset: Its validation clips judge decoders, which takes TensorFlow; its training clips
        calibrate quantisations. Without it a bundle's own clip calibrates.
      on_progress: Called with the steps done and the steps there are.

    Raises:
      BundleError: A folder is no bundle.
      MissingRuntimeError: A runtime that is named is not there.
      ExportError: C is named and there is no compiler.
      BenchError: An option has a value that is not taken, or there is nothing to bench.
      DatasetError: There is no such dataset, or it has other rates than a bundle.
    """
    _check(artifacts, blocks, seconds)
    chosen, skipped = chosen_runtimes(runtimes)
    check_quantisations(quantisations, chosen)
    loaded = [load_bundle(path) for path in dict.fromkeys(bundles)]
    data = load_dataset(dataset) if dataset else None
    if data:
        for bundle in loaded:
            check_dataset(bundle, data)
    # TensorFlow reads it when it is imported, here or in the new processes.
    with environment(SWEEPS_THREADS="1"), tempfile.TemporaryDirectory(prefix="bench-") as folder:
        made = [
            each
            for artifact in dict.fromkeys(artifacts)
            for each in _variants(artifact, loaded, chosen, quantisations, Path(folder), data)
        ]
        variants = [each for each in made if isinstance(each, Variant)]
        every = [_Case(v, block) for v in variants for block in dict.fromkeys(blocks)]
        cases = [case for case in every if case.n_frames]
        skipped += [each for each in made if isinstance(each, Skipped)]
        skipped += [case.skipped for case in every if not case.n_frames]
        if not cases:
            first = skipped[0] if skipped else Skipped("no artefact, or no block")
            raise BenchError(f"nothing to bench: {first.why}", hint=first.hint or _TRY)
        judged = [v for v in variants if data and v.subject.artifact == "decoder"]
        played = dict.fromkeys(case.variant.subject.artifact for case in cases)
        steps = _Steps(on_progress, _ROUNDS * len(played) + len(cases) + len(judged))
        with pinned_to_one_core(), _no_garbage_collection():
            before = observe()
            times: dict[_Case, Times] = {}
            for artifact in played:
                group = [case for case in cases if case.variant.subject.artifact == artifact]
                times |= _times(group, seconds, steps)
            during = conditions(before, observe())
            fresh = {case: steps.done(_in_new_process(case)) for case in cases}
        losses = {v: steps.done(_loss(v, data)) for v in judged if data}
    rows = []
    for case in cases:
        reference = _reference(case, cases)
        against = (reference, times[reference]) if reference else None
        loss = losses.get(case.variant)
        rows.append(_row(case, times[case], against, fresh[case], loss))
    machine = {"processor": processor(), "cores": os.cpu_count(), "conditions": during}
    return BenchReport(tuple(rows), tuple(skipped), machine)


def _check(artifacts: Sequence[str], blocks: Sequence[Block], seconds: float) -> None:
    for artifact in artifacts:
        if artifact not in ARTIFACTS:
            near = f"there are {', '.join(ARTIFACTS)}"
            raise BenchError(f"no artefact named '{artifact}'", hint=near)
    for block in blocks:
        if block != "clip" and (isinstance(block, str) or not 1 <= block <= MAX_BLOCK):
            raise BenchError(
                f"no block of '{block}'",
                hint=f"a block is a number of samples, {MAX_BLOCK:,} at the most, or 'clip'",
            )
    if not 0 < seconds < float("inf"):
        raise BenchError(f"{seconds:g} s of calls", hint=f"by default it is {SECONDS:g}")


# --- What is benched -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    """A variant in blocks of one size."""

    variant: Variant
    block: Block

    @property
    def n_frames(self) -> int:
        """Of a block; 0 where the variant cannot play such."""
        return self.variant.frames(self.block)

    @property
    def n_samples(self) -> int:
        """Of a block."""
        return self.n_frames * self.variant.bundle.session.hop_size

    @property
    def seconds(self) -> float:
        """How long a block sounds."""
        return self.n_samples / self.variant.bundle.session.sample_rate

    @property
    def skipped(self) -> Skipped:
        """Why there is no such case."""
        return Skipped(
            f"no blocks of {self.block} samples: they hold multiples of "
            f"{self.variant.cycle_samples}",
            **self.variant.names,
            block=self.block,
        )


def _variants(
    artifact: str,
    bundles: Sequence[ModelBundle],
    runtimes: Sequence[str],
    quantisations: Sequence[str],
    folder: Path,
    dataset: Dataset | None,
) -> Iterator[Variant | Skipped]:
    """Yields the variants of an artefact, the reference first."""
    names = [name for name in runtimes if name in PLAYS[artifact]]
    if not names:
        yield Skipped(f"{artifact} plays in {', '.join(PLAYS[artifact])} only", artifact=artifact)
        return
    for i, bundle in enumerate(bundles):
        maker = Maker(bundle, folder / str(i), dataset)
        with_reference = names if i else [*dict.fromkeys((REFERENCE, *names))]
        yield from maker.variants(artifact, with_reference, quantisations)


def _reference(case: _Case, cases: Sequence[_Case]) -> _Case | None:
    """Returns what a case is compared with: the first like it, as floats in ONNX Runtime."""
    wanted = {
        "artifact": case.variant.subject.artifact,
        "runtime": REFERENCE,
        "quantisation": FLOATS,
    }
    alike = (
        c for c in cases if c.block == case.block and wanted.items() <= c.variant.names.items()
    )
    return next(alike, None)


# --- How it is measured --------------------------------------------------------------------------


class _Steps:
    """Counts what is done of what there is to do."""

    def __init__(self, on_progress: Progress, total: int):
        self._on_progress, self._total, self._done = on_progress, total, 0

    def done(self, result: _Result) -> _Result:
        """Counts one more, and returns what came of it."""
        self._done += 1
        self._on_progress(self._done, self._total)
        return result


def _times(cases: Sequence[_Case], seconds: float, steps: _Steps) -> dict[_Case, Times]:
    """Returns the seconds of all calls of the cases of an artefact.

    Each round loads all of its variants anew, in an order that alternates, and calls them in turn,
    one size of blocks after the other.
    """
    times: dict[_Case, Times] = {case: [] for case in cases}
    variants = [*dict.fromkeys(case.variant for case in cases)]
    for i in range(_ROUNDS):
        loaded = {v: v.subject.load() for v in (reversed(variants) if i % 2 else variants)}
        for block in dict.fromkeys(case.block for case in cases):
            chosen = [case for case in cases if case.block == block]
            calls = []
            for case in chosen:
                controls = case.variant.bundle.controls()
                calls.append(
                    loaded[case.variant].calls(controls.f0_hz, controls.loudness_db, case.n_frames)
                )
            in_turn = _in_turn(calls, seconds * len(calls) / _ROUNDS)
            for case, column in zip(chosen, in_turn.T, strict=True):
                times[case].append(column)
        steps.done(None)
    return times


def _in_turn(calls: Sequence[Callable[[], float]], seconds: float) -> npt.NDArray[np.float64]:
    """Calls functions in turn for a time and returns the seconds that they return, [turns, calls].

    Which goes first alternates.
    """
    for call in [*calls] * _WARM_UP_CALLS:
        call()
    times: list[list[float]] = []
    deadline = time.perf_counter() + seconds
    while len(times) < _MIN_CALLS // _ROUNDS or time.perf_counter() < deadline:
        turn = [0.0] * len(calls)
        order = range(len(calls))
        for which in reversed(order) if len(times) % 2 else order:
            turn[which] = calls[which]()
        times.append(turn)
    return np.array(times)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keeps Python from stopping for a collection: hosts of plugins have none."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _in_new_process(case: _Case) -> FreshProcess:
    """Returns what a case costs a process of its own.

    Raises:
      ExportError: The process failed.
    """
    variant = case.variant
    request = Request(variant.subject, str(variant.bundle.path / CONTROLS_FILE), case.n_frames)
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "thesis.bench_process"],
        input=json.dumps(asdict(request)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode:
        said = (ran.stderr.strip().splitlines() or [f"status {ran.returncode}"])[-1]
        raise ExportError(
            f"{' '.join(variant.names.values())} failed in a new process: {said}",
            hint="leave it out, and report it",
        )
    return FreshProcess(**json.loads(ran.stdout.splitlines()[-1]))


def _loss(variant: Variant, dataset: Dataset) -> float | None:
    """Returns the spectral loss of a decoder's renderings, if it is a number. Needs TensorFlow."""
    from thesis._ddsp import tf
    from thesis.build import Model
    from thesis.decoder import Decoder
    from thesis.synthesis import Synthesizer
    from thesis.train import validate

    bundle = variant.bundle
    synth, rates = bundle.session.synth, (bundle.session.sample_rate, bundle.session.hop_size)
    model = Model(
        Decoder(bundle.session.decoder_config, synth.n_outputs),
        tf.Variable(bundle.impulse_response),
        np.float32(1),  # the impulse response is as it is heard
        Synthesizer(synth.oscillators, *rates),
    )
    clips = dataset.clips("validation").subsampled(synth.hop_multiple)
    session = runtime(variant.subject.runtime).load(Path(variant.subject.path))
    loss = validate(model, clips, session.decode).loss
    return loss if math.isfinite(loss) else None


def _row(
    case: _Case,
    times: Times,
    against: tuple[_Case, Times] | None,
    fresh: FreshProcess,
    loss: float | None,
) -> BenchRow:
    variant, rtfs = case.variant, _rtfs(case, times)
    ratio = ratio_interval(rtfs / _rtfs(*against)) if against else (None, None, None)
    together = np.concatenate(times)
    p50, p95, p99 = np.quantile(together, [0.5, 0.95, 0.99])
    return BenchRow(
        bundle=str(variant.bundle.path),
        artifact=variant.subject.artifact,
        runtime=variant.subject.runtime,
        quantisation=variant.quantisation,
        version=version_of(variant.subject.runtime),
        block=case.block,
        block_samples=case.n_samples,
        deadline_seconds=case.seconds,
        rtf=float(np.median(rtfs)),
        is_reference=against is not None and against[0] is case,
        rtf_ratio=ratio[0],
        rtf_ratio_low=ratio[1],
        rtf_ratio_high=ratio[2],
        p50_seconds=float(p50),
        p95_seconds=float(p95),
        p99_seconds=float(p99),
        max_seconds=float(together.max()),
        p99_share_of_deadline=float(p99 / case.seconds),
        calls=together.size,
        size_bytes=variant.size_bytes,
        val_loss=loss,
        **asdict(fresh),
    )


def _rtfs(case: _Case, times: Times) -> npt.NDArray[np.float64]:
    """Returns the undisturbed real-time factor of each round."""
    return np.array([np.quantile(seconds, QUANTILE) for seconds in times]) / case.seconds
