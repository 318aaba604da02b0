"""Quality: our loss against published figures, and what this project's training reaches.

First the violin clips and what five models of the thesis made of them: our spectral loss, in
TensorFlow and in float64, against the figure that the thesis gives for each of the 75 renderings,
with the metrics that a sweep records beside it. Then DDSP-CNN-Tiny (8 channels) and DDSP-CNN (128,
causal as Tiny is), trained on the cello recordings for equally many steps by `sweeps.evaluate`, as
in a sweep. Without the recordings there is nothing to measure, and it says so.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import _harness as harness
from sweeps.tables import format_number, print_table
from sweeps.trial import Trial
from thesis.data import ClipFormat, Clips
from thesis.metrics import Quality, compare

NAME = "quality"
_BESIDE = Path(__file__).parents[2] / "shared" / "data"
_VIOLIN = ClipFormat(16_000, 64, 4.0, 4.0, f0_min_hz=50.0, f0_max_hz=2000.0)
_CHANNELS = {"DDSP-CNN-Tiny": 8, "DDSP-CNN": 128}
_METRICS = {
    "f0_error_cents": "f0 cents",
    "f0_missed_share": "f0 missed",
    "loudness_error_db": "loudness dB",
    "mel_cepstral_distance_db": "mel cepstrum dB",
    "log_mel_distance_db": "log mel dB",
    "onset_error_ms": "onset ms",
}
"""Metric -> its head in a table."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = harness.parser(NAME, __doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SWEEPS_DATA", _BESIDE)),
        help="folder that holds violin/ and cello/; default: $SWEEPS_DATA, or shared/data beside "
        "the checkout",
    )
    parser.add_argument("--steps", type=int, help="of training; default: 1000, with --quick 20")
    parser.add_argument(
        "--set", action="append", default=[], metavar="K=V", help="a knob of the run, as in launch"
    )
    options = parser.parse_args(arguments)
    if not (options.data / "violin").is_dir() or not (options.data / "cello").is_dir():
        harness.say(
            f"skipped: no violin/ and cello/ in '{options.data}'; name a folder with --data"
        )
        return
    steps = options.steps or (20 if options.quick else 1000)
    violin = load_violin(options.data / "violin")
    losses = losses_of(violin)
    qualities = _qualities(violin)
    largest = max(loss.largest_difference for loss in losses.values())
    _print_violin(losses, qualities)
    trials = _trained(options.data / "cello", [f"STEPS={steps}", *options.set])
    _print_cello(trials)
    result = harness.Result(
        NAME,
        largest,
        "",
        "lower",
        "the thesis's losses of 75 renderings, to four decimals, of audio stored with 16 bits",
        {
            "violin": {m: loss.means() | asdict(qualities[m]) for m, loss in losses.items()},
            "cello": {
                model: asdict(trial.measurement)
                | {"steps": steps, "train_seconds": trial.provenance.train_seconds}
                for model, trial in trials.items()
            },
        },
    )
    asked = " ".join([f"--steps {steps}", *(f"--set {knob}" for knob in options.set)])
    harness.emit(result, quick=options.quick, options=asked)


@dataclass(frozen=True)
class Violin:
    """The violin clips and what is known of their renderings.

    Attributes:
      targets: The clips, [n, n_samples].
      renderings: What each model made of them, [n, n_samples], best model of the thesis first.
      published: The loss that the thesis gives for each, [n].
    """

    targets: npt.NDArray[np.float32]
    renderings: Mapping[str, npt.NDArray[np.float32]]
    published: Mapping[str, npt.NDArray[np.float64]]


def load_violin(folder: Path) -> Violin:
    """Returns the clips in a folder with `reference/`, `renders/` and `thesis_losses.json`."""
    from thesis.features import load_audio

    def load(names: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.stack([load_audio(folder / name, _VIOLIN.sample_rate) for name in names])

    losses = json.loads((folder / "thesis_losses.json").read_text())
    by_model = {model: np.array([losses[c][model] for c in losses]) for model in losses["clip_10"]}
    models = sorted(by_model, key=lambda model: float(by_model[model].mean()))
    return Violin(
        load([f"reference/{clip}.wav" for clip in losses]),
        {model: load([f"renders/{clip}.{model}.wav" for clip in losses]) for model in models},
        {model: by_model[model] for model in models},
    )


@dataclass(frozen=True)
class Losses:
    """Spectral losses of one model's renderings, [n] each: by the thesis, by us, in float64."""

    published: npt.NDArray[np.float64]
    ours: npt.NDArray[np.float64]
    float64: npt.NDArray[np.float64]

    @property
    def largest_difference(self) -> float:
        """Of either of our losses from the published one, over all clips."""
        return float(np.abs([self.ours - self.published, self.float64 - self.published]).max())

    def means(self) -> dict[str, float]:
        """Returns the mean over the clips of each."""
        return {name: float(values.mean()) for name, values in vars(self).items()}


def losses_of(violin: Violin) -> dict[str, Losses]:
    """Returns the losses of each model's renderings."""
    from thesis import reference
    from thesis.losses import spectral_loss

    def float64(audio: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        pairs = zip(violin.targets, audio, strict=True)
        return np.array([reference.spectral_loss(*pair) for pair in pairs])

    return {
        model: Losses(
            violin.published[model],
            spectral_loss(violin.targets, audio).numpy().astype(np.float64),
            float64(audio),
        )
        for model, audio in violin.renderings.items()
    }


def _qualities(violin: Violin) -> dict[str, Quality]:
    """Returns the other metrics of each model's renderings."""
    from thesis.features import compute_loudness, estimate_f0

    harness.say("violin: pitch, loudness and timbre")
    rate, hop_size = _VIOLIN.sample_rate, _VIOLIN.hop_size
    tracked = [
        estimate_f0(clip, rate, hop_size, _VIOLIN.f0_min_hz, _VIOLIN.f0_max_hz)
        for clip in violin.targets
    ]
    f0_hz, confidence = (np.stack(values) for values in zip(*tracked, strict=True))
    loudness_db = np.stack([compute_loudness(clip, rate, hop_size) for clip in violin.targets])
    names = tuple(map(str, range(len(f0_hz))))
    clips = Clips(violin.targets, f0_hz, confidence, loudness_db, names, names)
    return {model: compare(clips, audio, _VIOLIN) for model, audio in violin.renderings.items()}


def _trained(recordings: Path, knobs: Sequence[str]) -> dict[str, Trial]:
    """Returns a trial of each decoder on the same dataset."""
    from sweeps.config import find_run, load_run
    from sweeps.evaluate import Task, evaluate
    from thesis.measure import measure_rtf
    from thesis.prepare import prepare

    channels = ", ".join(map(str, _CHANNELS.values()))
    run = load_run(find_run("tiny"), [*knobs, f"CHANNELS=({channels})"])
    baseline = dict(run.space.baseline().values)
    trials = {}
    with harness.scratch_folder() as folder:
        harness.say("cello: preparing the dataset")
        prepare(recordings, folder / "cello")
        for model, width in _CHANNELS.items():
            harness.say(f"cello: {model}, {', '.join(knobs)}")
            candidate = run.space.candidate({**baseline, "channels": width})
            task = Task(NAME, candidate, run.text_for(candidate), str(folder / "cello"))
            trials[model] = evaluate(task, workdir=folder / model, measure=measure_rtf)
            if trials[model].reason:
                raise RuntimeError(f"{trials[model].reason}: {trials[model].detail}")
    return trials


def _print_violin(losses: Mapping[str, Losses], qualities: Mapping[str, Quality]) -> None:
    print_table(
        ["violin: loss by", "thesis", "ours", "float64", "difference", *_METRICS.values()],
        [
            [
                model,
                *(f"{mean:.4f}" for mean in loss.means().values()),
                f"{loss.largest_difference:.1e}",
                *_cells(getattr(qualities[model], metric) for metric in _METRICS),
            ]
            for model, loss in losses.items()
        ],
    )


def _print_cello(trials: Mapping[str, Trial]) -> None:
    columns = {"parameters": "parameters", "val_loss": "loss", **_METRICS, "rtf_ratio": "rtf ratio"}
    print_table(
        ["cello", *columns.values(), "steps", "training s"],
        [
            [
                model,
                *_cells(trial.metric(column) for column in columns),
                *_cells([trial.provenance.train_steps, round(trial.provenance.train_seconds)]),
            ]
            for model, trial in trials.items()
        ],
    )


def _cells(values: Any) -> list[str]:
    return ["-" if value is None else format_number(value) for value in values]


if __name__ == "__main__":
    main()
