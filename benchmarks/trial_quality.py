"""Trial quality: how far the loss of a trial is from what its candidate converges to.

Eight decoders of 400 to 23,000 weights are trained on real cello and alto saxophone by
`sweeps.evaluate`, as in a sweep: with the recipe that ships, with half of its steps, and with the
settings of before (300 steps of 8 x 4 s at a constant rate, levels that start flat). What each
converges to, after 3,000 steps of 8 x 4 s from the start of today, takes hours: it is recorded in
`benchmarks/data/converged.json` by `--converge`, which goes on where it was interrupted.
Without the recordings there is nothing to measure, and it says so.
"""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy.stats

from benchmarks import _harness as harness
from benchmarks._trained import dataset_of
from sweeps.config import find_run, load_run
from sweeps.tables import print_table
from thesis.config import MeasureConfig

if TYPE_CHECKING:
    from thesis.measure import RtfMeasurement

NAME = "trial_quality"
CONVERGED = Path(__file__).parent / "data" / "converged.json"
_BESIDE = Path(__file__).parents[2] / "shared" / "data"
_SINGS = 0.3
"""Largest `f0_missed_share` of a model that sings."""


def _stack(channels: int, layers: int, stacks: int, base: int, norm: str) -> dict[str, Any]:
    return {
        "channels": channels, "layers_per_stack": layers, "stacks": stacks, "kernel_size": 3,
        "dilation_base": base, "block": "plain", "norm": norm,
    }  # fmt: skip


ARCHITECTURES = {
    "ch=2, 1x1": _stack(2, 1, 1, 2, "none"),
    "ch=4, 1x1": _stack(4, 1, 1, 2, "none"),
    "ch=6, 2x2": _stack(6, 2, 2, 3, "none"),
    "ch=8, 3x2": _stack(8, 3, 2, 3, "none"),
    "DDSP-CNN-Tiny": _stack(8, 3, 2, 3, "frame"),
    "ch=8, 4x2": _stack(8, 4, 2, 3, "none"),  # sees 0.65 s
    "ch=16, 3x2, norm": _stack(16, 3, 2, 3, "frame"),
    "ch=32, 3x2, norm": _stack(32, 3, 2, 3, "frame"),
}
QUICK = ("ch=4, 1x1", "ch=6, 2x2", "DDSP-CNN-Tiny", "ch=16, 3x2, norm")

WHOLE_CLIPS = ("BATCH_SIZE=8", "CROP_SECONDS=0.0")
LONG = ("STEPS=3000", *WHOLE_CLIPS)
BEFORE = (
    "STEPS=300", *WHOLE_CLIPS, "LEARNING_RATE=3e-3", "REVERB_SECONDS=1.0",
    "REVERB_DECAY_SECONDS=0.3",
    "Synth.levels='absolute'", "train.schedule='exponential'",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
      val_loss: Validation loss of the exported model.
      f0_missed_share: Share of its voiced frames without the clip's pitch.
      cpu_seconds: CPU time of all threads for training, export and scoring.
      dataset: Fingerprint of the dataset.
    """

    val_loss: float
    f0_missed_share: float
    cpu_seconds: float
    dataset: str


@dataclass(frozen=True)
class Summary:
    """What became of one recipe on one instrument.

    Attributes:
      excess: Mean excess of the loss over the converged one, in %.
      excess_range: Of the candidates' means over seeds: the smallest and the largest, in %.
      seed_deviation: Standard deviation over seeds, pooled over candidates, in % of the loss;
        None with one seed.
      spearman: Rank correlation of the losses, means over seeds, with the converged ones.
      silent: How many trials miss more than 0.3 of the pitch.
      cpu_seconds: CPU time of a trial, the mean.
    """

    excess: float
    excess_range: tuple[float, float]
    seed_deviation: float | None
    spearman: float
    silent: int
    cpu_seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = harness.parser(NAME, __doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SWEEPS_DATA", _BESIDE)),
        help="folder that holds cello/ and alto_sax/; default: $SWEEPS_DATA, or shared/data beside "
        "the checkout",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keeps datasets and trials there, and uses them"
    )
    parser.add_argument(
        "--instruments", nargs="+", help="folders of --data; default: cello alto_sax"
    )
    parser.add_argument(
        "--converge", action="store_true", help="records what has not been trained to its end yet"
    )
    options = parser.parse_args(arguments)
    instruments = options.instruments or (["cello"] if options.quick else ["cello", "alto_sax"])
    missing = [name for name in instruments if not (options.data / name).is_dir()]
    if missing:
        harness.say(f"skipped: no {missing[0]}/ in '{options.data}'; name a folder with --data")
        return
    names = QUICK if options.quick else tuple(ARCHITECTURES)
    with harness.scratch_folder() as scratch:
        folder = options.keep or scratch
        datasets = {}
        for name in instruments:
            datasets[name] = folder / "datasets" / name
            dataset_of(options.data / name, datasets[name])
        if options.converge:
            _converge(datasets, names, folder)
        else:
            _compare(datasets, names, folder, quick=options.quick)


def _converge(datasets: Mapping[str, Path], names: Sequence[str], folder: Path) -> None:
    """Trains what has no converged loss yet, and records it at once."""
    for name in names:
        for instrument, dataset in datasets.items():
            if name not in _recorded().get(instrument, {}):
                workdir = folder / "converged" / instrument / _slug(name)
                outcome = _trained(name, dataset, workdir, LONG, seed=0)
                recorded = _recorded()  # another process may have recorded another meanwhile
                recorded.setdefault(instrument, {})[name] = asdict(outcome)
                CONVERGED.write_text(json.dumps(recorded, indent=1) + "\n")
                harness.say(f"{instrument}, {name}: converges to {outcome.val_loss:.3f}")


def _recorded() -> dict[str, dict[str, dict[str, Any]]]:
    found = json.loads(CONVERGED.read_text()) if CONVERGED.exists() else {}
    return cast(dict[str, dict[str, dict[str, Any]]], found)


def _compare(
    datasets: Mapping[str, Path], names: Sequence[str], folder: Path, *, quick: bool
) -> None:
    recorded = _recorded()
    for instrument in datasets:
        if lacking := [name for name in names if name not in recorded.get(instrument, {})]:
            raise SystemExit(
                f"no converged loss of {'; '.join(lacking)} on {instrument}: run with --converge"
            )
    converged = {i: {name: recorded[i][name]["val_loss"] for name in names} for i in datasets}
    steps = load_run(find_run("tiny")).model.train.steps
    recipes = {"shipped": (), "half": (f"STEPS={steps // 2}",), "before": BEFORE}
    outcomes = {}
    for instrument, dataset in datasets.items():
        # What a worker compiles once, for all of its trials, is no part of a trial's cost.
        for which, knobs in {"crops": (), "clips": WHOLE_CLIPS}.items():
            workdir = folder / "compiled" / instrument / which
            _trained(names[0], dataset, workdir, ("STEPS=2", *knobs), seed=0)
        for recipe, knobs in recipes.items():
            seeds = (0,) if quick and recipe == "before" else (0, 1)
            outcomes[instrument, recipe] = {
                name: _of_seeds(name, instrument, dataset, folder / recipe, knobs, seeds)
                for name in names
            }
    summaries = {
        (instrument, recipe): _summary(found, converged[instrument])
        for (instrument, recipe), found in outcomes.items()
    }
    _print(outcomes, converged, summaries)
    harness.emit(
        harness.Result(
            NAME,
            float(np.mean([summaries[instrument, "shipped"].excess for instrument in datasets])),
            "%",
            "lower",
            f"the same candidates after {' '.join(LONG)}, recorded in benchmarks/data",
            {f"{i}, {recipe}": asdict(summary) for (i, recipe), summary in summaries.items()},
        ),
        quick=quick,
    )


def _of_seeds(
    name: str,
    instrument: str,
    dataset: Path,
    folder: Path,
    knobs: Sequence[str],
    seeds: Sequence[int],
) -> list[Outcome]:
    outcomes = []
    for seed in seeds:
        workdir = folder / instrument / f"{_slug(name)}-{seed}"
        outcome = _trained(name, dataset, workdir, knobs, seed=seed)
        outcomes.append(outcome)
        harness.say(
            f"{instrument}, {folder.name}, {name}, seed {seed}: loss {outcome.val_loss:.3f}, "
            f"{outcome.cpu_seconds:.0f} s of CPU"
        )
    return outcomes


def _trained(
    name: str, dataset: Path, workdir: Path, knobs: Sequence[str], *, seed: int
) -> Outcome:
    """Returns what becomes of a trial, from its folder if it has been evaluated there before."""
    from sweeps.evaluate import Task, evaluate
    from thesis.measure import measure_rtf

    kept = workdir / "outcome.json"
    if kept.exists():
        return Outcome(**json.loads(kept.read_text()))
    run = load_run(find_run("tiny"), [*knobs, f"SEED={seed}"])
    candidate = run.space.variant(ARCHITECTURES[name])
    measuring = 0.0

    def measured(model: bytes, seconds: float, config: MeasureConfig) -> "RtfMeasurement":
        nonlocal measuring
        began = time.process_time()
        try:
            return measure_rtf(model, seconds, config)
        finally:
            measuring += time.process_time() - began

    began = time.process_time()
    task = Task(NAME, candidate, run.text_for(candidate), str(dataset))
    trial = evaluate(task, workdir=workdir, measure=measured)
    spent = time.process_time() - began - measuring
    found = trial.measurement
    if found.val_loss is None or found.f0_missed_share is None:
        raise RuntimeError(f"{name}: {trial.reason}: {trial.detail}")
    outcome = Outcome(
        found.val_loss, found.f0_missed_share, spent, trial.provenance.dataset_fingerprint
    )
    kept.write_text(json.dumps(asdict(outcome)))
    return outcome


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def _summary(outcomes: Mapping[str, Sequence[Outcome]], converged: Mapping[str, float]) -> Summary:
    """Sums up trials by architecture, one for each seed, beside what each converges to."""
    names = list(outcomes)
    losses = np.array([[trial.val_loss for trial in outcomes[name]] for name in names])
    ends = np.array([converged[name] for name in names])
    means = losses.mean(axis=1)
    excess = 100 * (means / ends - 1)
    deviations = losses.std(axis=1, ddof=1) / means if losses.shape[1] > 1 else None
    trials = [trial for name in names for trial in outcomes[name]]
    return Summary(
        float(excess.mean()),
        (float(excess.min()), float(excess.max())),
        None if deviations is None else float(100 * np.sqrt((deviations**2).mean())),
        float(scipy.stats.spearmanr(means, ends).statistic),
        sum(trial.f0_missed_share > _SINGS for trial in trials),
        float(np.mean([trial.cpu_seconds for trial in trials])),
    )


def _print(
    outcomes: Mapping[tuple[str, str], Mapping[str, Sequence[Outcome]]],
    converged: Mapping[str, Mapping[str, float]],
    summaries: Mapping[tuple[str, str], Summary],
) -> None:
    for instrument in dict.fromkeys(instrument for instrument, _ in outcomes):
        recipes = [recipe for found, recipe in outcomes if found == instrument]
        print_table(
            [instrument, "converged", *recipes, "f0 missed (same order)"],
            [
                [
                    name,
                    f"{converged[instrument][name]:.3f}",
                    *(_each(outcomes[instrument, r][name], "val_loss", 3) for r in recipes),
                    "  ".join(
                        _each(outcomes[instrument, r][name], "f0_missed_share", 2) for r in recipes
                    ),
                ]
                for name in outcomes[instrument, recipes[0]]
            ],
        )
    print_table(
        ["", "excess %", "of candidates", "seeds, sd %", "Spearman", "silent", "CPU s a trial"],
        [
            [
                f"{instrument}, {recipe}",
                f"{summary.excess:.1f}",
                "{:.1f} to {:.1f}".format(*summary.excess_range),
                "-" if summary.seed_deviation is None else f"{summary.seed_deviation:.2f}",
                f"{summary.spearman:.2f}",
                str(summary.silent),
                f"{summary.cpu_seconds:.0f}",
            ]
            for (instrument, recipe), summary in summaries.items()
        ],
    )


def _each(trials: Sequence[Outcome], field: str, digits: int) -> str:
    return " ".join(f"{getattr(trial, field):.{digits}f}" for trial in trials)


if __name__ == "__main__":
    main()
