"""Records of made-up trials for benchmarks of the ledger: as large and as varied as real ones."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sweeps.config import find_run, load_run
from sweeps.ledger import Ledger, SweepFacts
from sweeps.trial import Candidate, Measurement, Provenance, Reason, Trial

SWEEP = "synthetic"
OBJECTIVES = ("val_loss", "rtf_ratio")

_VERSIONS = {"python": "3.11.7", "ddsp": "3.7.0", "ray": "2.60.0", "tensorflow-cpu": "2.21.0"}
_FAILURES = (Reason.RTF, Reason.PRUNED, Reason.DIVERGED)


def synthetic_ledger(storage: Path) -> Ledger:
    """Returns the ledger at a location; makes it if there is none."""
    run = load_run(find_run("tiny"))
    facts = SweepFacts(
        name=SWEEP, gin_config=run.text, dataset_fingerprint="0" * 64, objectives=OBJECTIVES
    )
    return Ledger.create(storage, SWEEP, facts)


def synthetic_trials(count: int, *, first: int = 0) -> Iterator[Trial]:
    """Yields trials with a trade-off of loss and cost, a tenth of them without a place on it.

    Args:
      count: How many.
      first: Number of the first one; a number stands for the same trial whatever else is asked for.
    """
    run = load_run(find_run("tiny"))
    baseline = dict(run.space.baseline().values)
    rng = np.random.default_rng([0, first])
    for number in range(first, first + count):
        values = {**baseline, "learning_rate": number / 1e9}
        yield _trial(number, Candidate.of(values), run.text, rng)


def _trial(number: int, candidate: Candidate, gin_text: str, rng: np.random.Generator) -> Trial:
    cost, luck = float(np.exp(rng.normal())), float(rng.gamma(4.0))
    measurement = Measurement(
        val_loss=5.0 + 3.0 / (1.0 + cost) + luck,
        train_loss=5.0 + luck,
        rtf=2e-5 * cost,
        rtf_ratio=cost,
        rtf_ratio_low=0.99 * cost,
        rtf_ratio_high=1.01 * cost,
        reference_rtf=2e-5,
        p50_seconds=9e-5 * cost,
        p95_seconds=11e-5 * cost,
        p99_seconds=15e-5 * cost,
        parameters=round(2446 * cost),
        parameters_with_reverb=16_000 + round(2446 * cost),
        macs_per_frame=round(2300 * cost),
        receptive_field_frames=55,
        receptive_field_seconds=0.22,
        export_max_error=1e-6,
        model_bytes=round(15_000 * cost),
    )
    provenance = Provenance(
        host=f"node-{number % 8}",
        host_fingerprint=f"{number % 8:012x}",
        versions=_VERSIONS,
        gin_config=f"{gin_text}\n# Candidate {candidate.id}\ntrain.seed = {number}\n",
        dataset_fingerprint="0" * 64,
        train_steps=300,
        started_at=float(number),
        finished_at=number + 100.0,
        train_seconds=90.0,
        measure_seconds=4.0,
    )
    reason = _FAILURES[number % 3] if rng.random() < 0.1 else None
    return Trial(SWEEP, candidate, measurement, reason, provenance=provenance)
