"""The thesis's models in every runtime that is installed: speed, size and the loss that is left.

DDSP-CNN-Tiny, DDSP-CNN and DDSP-full, trained on the cello recordings, decode clips of 4 s on one
thread. Each runtime, as it is and with each quantisation that it has, is called in turn with ONNX
Runtime on floats, which is the reference of the ratio. The loss is the spectral loss over the
validation clips, rendered with what the runtime decodes. All runtimes are installed by `make
runtimes`; those that are not are listed with the command that installs them.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from benchmarks import _harness as harness
from benchmarks._trained import MODELS, SPARSE, Trained, dataset_of, trained
from sweeps.tables import print_table
from thesis.bundle import MAX_HEADER_PARAMETERS
from thesis.c_code import c_header
from thesis.c_stream import CStream
from thesis.controls import decoder_inputs
from thesis.data import Dataset
from thesis.errors import UserError
from thesis.measure import pinned_to_one_core, ratio_interval
from thesis.runtimes import runtime, runtimes
from thesis.runtimes.contract import Quantisation, Runtime, Session, TrainedDecoder

NAME = "runtimes"
REFERENCE = "onnx_runtime"
_BESIDE = Path(__file__).parents[2] / "shared" / "data"
_CALIBRATION_CLIPS = 32
_SECONDS = 1.0
"""Time for which a runtime and the reference are called in turn, in all rounds together."""
_ROUNDS = 8
RANGES = ("dynamic", "minmax", "entropy", "percentile")

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One model in one runtime.

    Attributes:
      model: Its name.
      runtime: What the runtime calls itself, and its version.
      form: 'float', or the quantisation.
      ratio: Time of a call over that of the reference, with its interval.
      x_real_time: Audio time over processing time.
      bytes: Size of what is loaded.
      loss: Mean spectral loss over the validation clips.
      loss_change: Relative to the reference's.
      failure: Why there is nothing of the above.
    """

    model: str
    runtime: str
    form: str
    ratio: harness.Interval | None = None
    x_real_time: float | None = None
    bytes: int | None = None
    loss: float | None = None
    loss_change: float | None = None
    failure: str = ""

    def cells(self) -> list[str]:
        """Returns the row of a table."""
        if self.failure:
            return [self.model, self.runtime, self.form, "-", "-", "-", "-", self.failure]
        ratio = self.ratio
        assert ratio is not None
        return [
            self.model,
            self.runtime,
            self.form,
            f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
            f"{self.x_real_time:,.0f}",
            f"{(self.bytes or 0) / 1000:,.1f}",
            f"{self.loss:.3f}",
            f"{100 * (self.loss_change or 0):+.2f}%",
        ]


_HEAD = ["model", "runtime", "form", "x reference [95%]", "x real time", "kB", "loss", "change"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = harness.parser(NAME, __doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SWEEPS_DATA", _BESIDE)),
        help="folder that holds cello/; default: $SWEEPS_DATA, or shared/data beside the checkout",
    )
    parser.add_argument("--models", type=Path, help="keeps the dataset and the trained models")
    parser.add_argument("--steps", type=int, help="of training; default: 1000, with --quick 20")
    parser.add_argument(
        "--only", nargs="+", choices={**MODELS, **SPARSE}, default=list(MODELS), metavar="MODEL"
    )
    parser.add_argument(
        "--ranges", nargs="*", choices=RANGES, default=list(RANGES), metavar="RANGES",
        help="quantisations whose ranges come from these; default: all",
    )  # fmt: skip
    parser.add_argument("--markdown", type=Path, help="writes the table there, too")
    options = parser.parse_args(arguments)
    recordings = options.data / "cello"
    if not recordings.is_dir():
        harness.say(f"skipped: no cello/ in '{options.data}'; name a folder with --data")
        return
    for each in runtimes():
        if each.version is None:
            harness.say(f"{each.title} is not installed: {each.install}")
    steps = options.steps or (20 if options.quick else 1000)
    with TemporaryDirectory() as scratch:
        folder = options.models or Path(scratch)
        dataset = dataset_of(recordings, folder / "cello")
        rows = [
            row
            for model in trained(dataset, folder, steps=steps, names=options.only)
            for row in rows_of(model, dataset, Path(scratch) / "converted", options.ranges)
        ]
    print_table(_HEAD, [row.cells() for row in rows])
    if options.markdown:
        options.markdown.write_text(_markdown([row.cells() for row in rows]))
    worth = [row for row in rows if row.loss_change is not None and row.form != "float"]
    best = min((abs(row.loss_change or 0) for row in worth), default=0.0)
    result = harness.Result(
        NAME, best, "relative change of the loss", "lower", f"{REFERENCE}, float, same run",
        {"steps": steps, "rows": [json.loads(json.dumps(asdict(row))) for row in rows]},
    )  # fmt: skip
    harness.emit(result, quick=options.quick, options=f"--steps {steps}")


def rows_of(
    model: Trained, dataset: Dataset, folder: Path, ranges: Sequence[str] = RANGES
) -> Iterator[Row]:
    """Measures a model in every runtime and form."""
    decoder = TrainedDecoder(
        model.config.decoder,
        model.config.synth,
        model.weights,
        dataset.facts.sample_rate,
        dataset.facts.hop_size,
    )
    clips = dataset.clips("train")
    chosen = np.linspace(0, len(clips) - 1, _CALIBRATION_CLIPS).astype(int)
    calibration = decoder_inputs(clips.f0_hz[chosen], clips.loudness_db[chosen])
    of_reference = runtime(REFERENCE)
    reference = of_reference.convert(decoder, folder / model.name / REFERENCE)
    baseline = _loss(model, dataset, of_reference.load(reference))
    yield _c_row(model, dataset, decoder, baseline, partial(of_reference.load, reference))
    for each in runtimes():
        if each.version is None:
            continue
        for how in (None, *(how for how in each.quantisations if how.ranges in ranges)):
            form = how.name if how else "float"
            harness.say(f"{model.name}: {each.title}, {form}")
            title = f"{each.title} {each.version}"
            to = folder / model.name / each.title.replace(" ", "_") / form
            try:
                path = _made(each, decoder, how, calibration, to)
                ratio, seconds = _timed(
                    partial(each.load, path), partial(of_reference.load, reference), calibration[:1]
                )
                loss = _loss(model, dataset, each.load(path))
            except UserError as error:
                yield Row(model.name, title, form, failure=error.message)
                continue
            audio_seconds = dataset.facts.clip_seconds
            yield Row(
                model.name, title, form, ratio, audio_seconds / seconds, _size(path), loss,
                loss / baseline - 1,
            )  # fmt: skip


class _CSession(Session):
    """The decoder of a C header, from its first frame on in every call."""

    def __init__(self, stream: CStream) -> None:
        self._stream = stream

    def __call__(self, inputs: Floats) -> Floats:
        """Returns the outputs for inputs [1, frames, 2]."""
        loudness, f0 = inputs[0, :, 0], inputs[0, :, 1]
        f0_hz = np.where(f0 > 0.0, 440.0 * 2.0 ** ((f0 * 127.0 - 69.0) / 12.0), 0.0)
        late = self._stream.decoder_delay_frames
        controls = [np.pad(x, (0, late), "edge") for x in (f0_hz, 80.0 * (loudness - 1.0))]
        self._stream.reset()
        return self._stream.decode(*controls)[None, late:]

    def seconds(self, arranged: Floats) -> float:
        """Returns what a call takes that goes on from the last one."""
        f0_hz = np.full(arranged.shape[1], 220.0, np.float32)
        call = self._stream.prepared(f0_hz, np.full_like(f0_hz, -30.0), decode=True)
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def _c_row(
    model: Trained,
    dataset: Dataset,
    decoder: TrainedDecoder,
    baseline: float,
    reference: Callable[[], Session],
) -> Row:
    """Measures the decoder of the generated C, a stream: a centred one is late."""
    harness.say(f"{model.name}: generated C")
    synth, title = model.config.synth, "generated C"
    parameters = model.config.decoder.parameter_count(synth.n_outputs)
    if parameters > MAX_HEADER_PARAMETERS:
        return Row(model.name, title, "float", failure=f"too large: {parameters:,} weights")
    response = model.model.impulse_response.numpy()
    rates = {"sample_rate": decoder.sample_rate, "hop_size": decoder.hop_size}
    header = c_header(decoder.config, synth, decoder.weights, response, **rates)
    session = _CSession(CStream(header))
    n_frames = round(dataset.facts.clip_seconds * decoder.sample_rate / decoder.hop_size)
    inputs = np.full((1, n_frames, 2), 0.5, np.float32)
    ratio, seconds = _timed(lambda: session, reference, inputs)
    loss = _loss(model, dataset, session)
    return Row(
        model.name, title, "float, stream", ratio, dataset.facts.clip_seconds / seconds,
        len(header), loss, loss / baseline - 1,
    )  # fmt: skip


def _made(
    each: Runtime,
    decoder: TrainedDecoder,
    how: Quantisation | None,
    calibration: Floats,
    folder: Path,
) -> Path:
    if how is None:
        return each.convert(decoder, folder)
    return each.quantise(decoder, folder, how, calibration)


def _timed(
    load: Callable[[], Session], load_reference: Callable[[], Session], inputs: Floats
) -> tuple[harness.Interval, float]:
    """Returns the ratio of two sessions' times and the time of the first.

    In rounds with fresh sessions: where a session's memory lies is worth a few per cent.
    """
    ratios, seconds = np.empty(_ROUNDS), np.empty(_ROUNDS)
    with pinned_to_one_core():
        for round_ in range(_ROUNDS):
            loads = (load, load_reference)
            order = (0, 1) if round_ % 2 else (1, 0)
            sessions = {which: loads[which]() for which in order}
            arranged = {which: each.arranged(inputs) for which, each in sessions.items()}
            once = sum(
                min(each.seconds(arranged[which]) for _ in range(3))
                for which, each in sessions.items()
            )
            times = np.empty((max(10, min(1000, round(_SECONDS / _ROUNDS / once))), 2))
            for i in range(len(times)):
                for which in order if i % 2 else order[::-1]:
                    times[i, which] = sessions[which].seconds(arranged[which])
            floors = harness.floors(times)
            ratios[round_], seconds[round_] = floors[0] / floors[1], floors[0]
    return harness.Interval(*ratio_interval(ratios)), float(np.median(seconds))


def _loss(model: Trained, dataset: Dataset, session: Session) -> float:
    from thesis.train import validate

    return validate(model.model, dataset.clips("validation"), session.decode).loss


def _size(path: Path) -> int:
    """Returns the bytes of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.stem}.*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [_HEAD, ["---"] * len(_HEAD), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
