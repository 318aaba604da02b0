"""Start of a trial: a worker that lives on against a fresh process for each trial.

A process runs two trials of different decoders in a row through `sweeps.evaluate.stages`, as one
of Ray's reused workers does. The value is the time from the end of the first trial to the end of
the second one's first training step. The reference is the time from the start of the process to
the end of the first trial's first training step, which is what a trainable that gets a process of
its own pays every time.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import _harness as harness
from sweeps.tables import print_table

NAME = "trial_start"
_CHANNELS = (8, 12)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    quick = harness.is_quick(NAME, __doc__, arguments)
    with harness.scratch_folder() as folder:
        from thesis.prepare import prepare_demo

        prepare_demo(folder / "data", n_train=8, n_validation=2)
        found = np.array([_two_trials(folder, run) for run in range(1 if quick else 5)])
    fresh, reused = (harness.floor_interval(column) for column in found.T)
    speedup = harness.ratio_interval(*found.T)
    print_table(
        ["first training step of a trial", "s [95%]"],
        [
            ["in a fresh process", str(fresh)],
            ["in a reused one", str(reused)],
            ["fresh / reused", str(speedup)],
        ],
    )
    details = {"fresh_seconds": fresh, "reused_seconds": reused, "fresh_over_reused": speedup}
    reference = f"a fresh process for each trial: {fresh.value:.1f} s"
    result = harness.Result(NAME, reused.value, "s", "lower", reference, details)
    harness.emit(result, quick=quick)


def _two_trials(folder: Path, run: int) -> tuple[float, float]:
    """Returns the seconds to a first training step: of a new process, of a used one."""
    harness.say(f"run {run + 1}: two trials in a new process")
    paths = str(folder / "data"), str(folder / f"run-{run}")
    code = f"from benchmarks.trial_start import work; work{paths!r}"
    started_at = time.time()
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    first, second = json.loads(done.stdout.splitlines()[-1])
    return first["stepped_at"] - started_at, second["stepped_at"] - first["ended_at"]


def work(dataset: str, workdir: str) -> None:
    """Runs two trials, as a worker does, and prints when each took its first step and ended."""
    os.environ.update(OMP_NUM_THREADS="1", SWEEPS_THREADS="1")
    moments = [_trial(dataset, Path(workdir), channels) for channels in _CHANNELS]
    print(json.dumps(moments))


def _trial(dataset: str, workdir: Path, channels: int) -> dict[str, float]:
    from sweeps.config import find_run, load_run
    from sweeps.evaluate import Task, stages
    from thesis.measure import measure_rtf

    run = load_run(find_run("tiny"), ["STEPS=1", "measure.seconds=0.2"])
    baseline = run.space.baseline()
    candidate = run.space.candidate({**dict(baseline.values), "channels": channels})
    task = Task("benchmark", candidate, run.text_for(candidate), dataset)
    running = stages(task, workdir=workdir / candidate.id, measure=measure_rtf)
    stepped_at = 0.0
    while True:
        try:
            if next(running).stage == "train":
                stepped_at = time.time()
        except StopIteration as end:
            if end.value.reason:
                raise RuntimeError(f"{end.value.reason}: {end.value.detail}") from None
            return {"stepped_at": stepped_at, "ended_at": time.time()}


if __name__ == "__main__":
    main()
