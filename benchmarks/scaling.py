"""What a sweep costs beside its trials: workers that sleep, driven by the real launch.

The trials sleep for 30 s and report once a second; that is their work, and all else is overhead:
the gap between two trials of a worker, round trips to the driver, the records. The value is the
share of eight workers' time that is work, from the first trial's start to the last one's end. The
reference is one worker alone. Beside it: the driver's CPU time by part; the ledger's time for a
trial; and, with trials of milliseconds, how a trial's cost grows with those that have finished.

The cluster is on this machine and is told to have so many CPUs: those who sleep need none.
"""

import io
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import _harness as harness
from benchmarks._sleeping import EVALUATOR, make_dataset
from sweeps.config import RunConfig, find_run, load_run
from sweeps.ledger import Ledger
from sweeps.progress import Event, SweepProgress, TrialBegan, TrialEnded
from sweeps.search import Search
from sweeps.tables import print_table
from sweeps.trial import Attempt, Measurement, Provenance, Trial

NAME = "scaling"
_SWEEP = "sleep"
_ROUNDS = {1: 3, 2: 3, 4: 3, 8: 6}
"""Trials of a worker, by the number of workers."""
_MOST = max(_ROUNDS)
_REPORTS = 30
_WAITS = 20
_RUNNING = (8, 100, 1_000, 10_000)

_CLOCKED = (
    (Search, "propose", "search"),
    (Search, "record", "search"),
    (Ledger, "compact", "ledger"),
    (SweepProgress, "__call__", "display"),
)
"""Methods that the driver spends time in, and what of its parts they are."""

_PARTS = ("tune", "search", "ledger", "display", "ray")
"""The driver's CPU time: Tune's loop with our books, our methods above, Ray's own threads."""


@dataclass(frozen=True)
class _Moment:
    """The driver's clocks, in seconds, and its memory; `parts` of CPU time as in `_PARTS`."""

    wall: float
    parts: Mapping[str, float]
    memory_bytes: int

    @property
    def cpu(self) -> float:
        return sum(self.parts.values())


@dataclass
class _Watch:
    """Listens to a launch, and reads the driver's clocks as trials begin and end."""

    show: SweepProgress
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_PARTS[1:-1], 0.0))
    began: _Moment | None = None
    ended: list[_Moment] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.show(event)
        match event:
            case TrialBegan() if self.began is None:
                self.began = self._now()
            case TrialEnded():
                self.ended.append(self._now())

    def _now(self) -> _Moment:
        # This is the driver's thread. What is neither a part of it nor its own loop is Ray's.
        mine = time.thread_time()
        tune = mine - sum(self.spent.values())
        rays = time.process_time() - mine
        return _Moment(time.time(), {**self.spent, "tune": tune, "ray": rays}, _memory_bytes())


def _memory_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@contextmanager
def _clocked(owner: type, method: str, spent: dict[str, float], part: str) -> Iterator[None]:
    """Adds up the CPU time of a method's calls."""
    original = getattr(owner, method)

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.thread_time()
        try:
            return original(*arguments, **options)
        finally:
            spent[part] += time.thread_time() - start

    setattr(owner, method, timed)
    try:
        yield
    finally:
        setattr(owner, method, original)


@dataclass(frozen=True)
class _Launched:
    """What a launch of sleeping trials came to.

    Attributes:
      workers: That slept.
      seconds: Of sleep in a trial.
      trials: Its records, in order.
      wall: Seconds of the whole launch, with its cluster's start.
      began: The driver's clocks when the first trial began.
      ended: The same at each trial's end.
    """

    workers: int
    seconds: float
    trials: Sequence[Trial]
    wall: float
    began: _Moment
    ended: Sequence[_Moment]

    @property
    def utilisation(self) -> float:
        """The share of the workers' time that is work, from the first start to the last end."""
        first = min(trial.provenance.started_at for trial in self.trials)
        last = max(trial.provenance.finished_at for trial in self.trials)
        return self._share(last - first)

    @property
    def utilisation_with_start(self) -> float:
        """The same of the whole launch, the start of cluster and workers included."""
        return self._share(self.wall)

    @property
    def utilisation_of_a_worker(self) -> float:
        """The mean over workers of the share from its own first start to its own last end."""
        return float(
            np.mean(
                [
                    len(trials)
                    * self.seconds
                    / (trials[-1].provenance.finished_at - trials[0].provenance.started_at)
                    for trials in self._by_worker()
                ]
            )
        )

    def _share(self, seconds: float) -> float:
        return len(self.trials) * self.seconds / (self.workers * seconds)

    @property
    def gaps(self) -> list[float]:
        """Seconds from a trial's last step to the first one of the next on the same worker."""
        return [
            after.provenance.started_at - before.provenance.finished_at
            for trials in self._by_worker()
            for before, after in pairwise(trials)
        ]

    def _by_worker(self) -> list[list[Trial]]:
        """Returns each worker's trials, in order."""
        ordered = sorted(self.trials, key=lambda t: (t.provenance.host, t.provenance.started_at))
        return [[*trials] for _, trials in groupby(ordered, key=lambda t: t.provenance.host)]

    def cpu(self, first: int = 0, last: int | None = None) -> dict[str, float]:
        """The driver's CPU seconds for a trial, by part, from the first-th to the last-th end."""
        ends = [self.began, *self.ended]
        start, end = ends[first], ends[len(self.ended) if last is None else last]
        count = (len(self.ended) if last is None else last) - first
        return {part: (end.parts[part] - start.parts[part]) / count for part in _PARTS}

    @property
    def cpu_share(self) -> float:
        """The driver's CPU time over wall time, from the first start to the last end."""
        last = self.ended[-1]
        return (last.cpu - self.began.cpu) / (last.wall - self.began.wall)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    quick = harness.is_quick(NAME, __doc__, arguments)
    seconds, many = (3.0, 200) if quick else (30.0, 3000)
    with harness.scratch_folder() as folder:
        scaled = []
        for workers, rounds in _ROUNDS.items():
            harness.say(f"{workers} workers, {rounds} trials of {seconds:g} s each")
            trials = workers * rounds
            scaled.append(_launch(folder / str(workers), workers, trials, seconds, _REPORTS))
        harness.say(f"{many} trials of no time")
        grown = _launch(folder / "many", _MOST, many, 0.0, 1)
        harness.say(f"{many // 10} of them with {_REPORTS} reports each")
        reporting = _launch(folder / "reporting", _MOST, many // 10, 0.0, _REPORTS)
        ledger = _ledger_ms(folder / "many", calls=20 if quick else 100)
        harness.say("waits for an event of many")
        waits = {running: _wait_ms(running) for running in _RUNNING}
    _print(scaled, grown)
    report_ms = _report_ms(grown, reporting)
    print(f"\na report: {report_ms:.2f} ms of the driver's CPU time")
    print(
        f"the ledger: {ledger['begin']:.1f} ms as a trial begins, {ledger['end']:.1f} ms as it ends"
    )
    print(
        "Tune's wait for an event of one of many workers: "
        + ", ".join(f"{ms:.2f} ms of {running:,}" for running, ms in waits.items())
    )
    details = {
        "seconds_of_a_trial": seconds,
        "by_workers": [_described(launched) for launched in scaled],
        "growth": _growth(grown),
        "growth_trials_per_second": len(grown.ended) / (grown.ended[-1].wall - grown.began.wall),
        "report_ms": report_ms,
        "ledger_ms": ledger,
        "wait_ms": waits,
    }
    alone = f"one worker: {scaled[0].utilisation:.3f}"
    value = scaled[-1].utilisation
    result = harness.Result(NAME, value, "of workers' time", "higher", alone, details)
    harness.emit(result, quick=quick)


def _launch(folder: Path, workers: int, trials: int, seconds: float, reports: int) -> _Launched:

    from sweeps.launch import launch

    crowd = 1 if seconds else workers
    dataset = make_dataset(folder / "data", seconds=seconds, reports=reports, crowd=crowd)
    began_at = time.time()
    with SweepProgress(Console(file=io.StringIO())) as show, ExitStack() as stack:
        watch = _Watch(show)
        for owner, method, part in _CLOCKED:
            stack.enter_context(_clocked(owner, method, watch.spent, part))
        stack.enter_context(_cluster(workers))
        report = launch(
            _SWEEP,
            _run(),
            dataset=dataset,
            trials=trials,
            storage=str(folder),
            evaluator=EVALUATOR,
            on_event=watch,
        )
        wall = time.time() - began_at
    if len(report.recorded) != trials or watch.began is None:
        raise RuntimeError(f"{len(report.recorded)} of {trials} trials are on record")
    return _Launched(workers, seconds, report.recorded, wall, watch.began, watch.ended)


@contextmanager
def _cluster(cpus: int) -> Iterator[None]:
    """Starts a cluster here that is told to have so many CPUs; `launch` uses the one there is."""
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        ray.shutdown()


def _run() -> RunConfig:
    """The shipped space and an axis more, so that it has no end."""
    rate = "{'train.learning_rate': {'low': 1e-4, 'high': 1e-2, 'log': True}}"
    unlimited = "sweep.max_receptive_field_seconds = None"
    return load_run(find_run("tiny"), [f"search_space.learning = {rate}", unlimited])


def _ledger_ms(storage: Path, *, calls: int) -> dict[str, float]:
    """Returns the median milliseconds of what a worker asks of the ledger for a trial."""
    run = _run()
    ledger = Ledger.open(storage, _SWEEP)
    rng = random.Random(0)
    times = []
    for _ in range(calls):
        candidate = run.space.sample(rng)
        provenance = Provenance(gin_config=run.text_for(candidate), finished_at=time.time())
        trial = Trial(_SWEEP, candidate, Measurement(val_loss=1.0), provenance=provenance)
        start = time.perf_counter()
        ledger.holds(trial.id)
        ledger.mark_started(Attempt(candidate))
        begun = time.perf_counter()
        ledger.append(trial)
        times.append((begun - start, time.perf_counter() - begun))
    begin, end = 1e3 * np.median(times, axis=0)
    return {"begin": begin, "end": end}


def _wait_ms(running: int) -> float:
    """Returns the milliseconds of CPU time that Tune's wait for an event takes among so many."""
    import ray

    class Worker:
        def train(self) -> None:
            time.sleep(3600.0)

    with _cluster(1):
        worker: Any = ray.remote(Worker).remote()
        waited_for = [worker.train.remote() for _ in range(running)]
        ray.wait(waited_for, timeout=0.1)
        start = time.process_time()
        for _ in range(_WAITS):
            # As RayActorManager.next in ray.air.execution does, once for every event.
            futures = list(waited_for)
            random.shuffle(futures)
            ray.wait(futures, num_returns=1, timeout=0)
        return 1e3 * (time.process_time() - start) / _WAITS


def _report_ms(grown: _Launched, reporting: _Launched) -> float:
    count = len(reporting.ended)
    more = sum(reporting.cpu().values()) - sum(grown.cpu(0, count).values())
    return 1e3 * more / (_REPORTS - 1)


def _growth(grown: _Launched) -> list[dict[str, Any]]:
    """Returns what a trial cost the driver in each quarter of a launch."""
    moments = [grown.began, *grown.ended]
    quarters = np.linspace(0, len(grown.ended), 5).astype(int).tolist()
    return [
        {
            "trials": last,
            "cpu_ms": _ms(grown.cpu(first, last)),
            "wall_ms": 1e3 * (moments[last].wall - moments[first].wall) / (last - first),
            "memory_kb": (moments[last].memory_bytes - moments[first].memory_bytes)
            / 1024
            / (last - first),
        }
        for first, last in pairwise(quarters)
    ]


def _described(launched: _Launched) -> dict[str, Any]:
    p50, p95 = np.quantile(launched.gaps, [0.5, 0.95])
    return {
        "workers": launched.workers,
        "trials": len(launched.trials),
        "utilisation": launched.utilisation,
        "utilisation_of_a_worker": launched.utilisation_of_a_worker,
        "utilisation_with_start": launched.utilisation_with_start,
        "gap_p50_ms": 1e3 * p50,
        "gap_p95_ms": 1e3 * p95,
        "driver_cpu_share": launched.cpu_share,
        "cpu_ms": _ms(launched.cpu()),
    }


def _ms(parts: Mapping[str, float]) -> dict[str, float]:
    return {part: 1e3 * seconds for part, seconds in parts.items()}


def _print(scaled: Sequence[_Launched], grown: _Launched) -> None:
    print_table(
        [
            "workers",
            "utilisation",
            "of a worker",
            "with start",
            "gap p50",
            "p95",
            "CPU share",
            "ms a trial",
            *_PARTS,
        ],
        [
            [
                str(d["workers"]),
                f"{d['utilisation']:.1%}",
                f"{d['utilisation_of_a_worker']:.1%}",
                f"{d['utilisation_with_start']:.1%}",
                f"{d['gap_p50_ms']:.0f} ms",
                f"{d['gap_p95_ms']:.0f} ms",
                f"{d['driver_cpu_share']:.1%}",
                f"{sum(d['cpu_ms'].values()):.0f}",
                *(f"{d['cpu_ms'][part]:.1f}" for part in _PARTS),
            ]
            for d in map(_described, scaled)
        ],
    )
    print_table(
        ["driver CPU of a trial, up to", "ms", *_PARTS, "wall ms", "memory KB"],
        [
            [
                f"{quarter['trials']:,} trials",
                f"{sum(quarter['cpu_ms'].values()):.1f}",
                *(f"{quarter['cpu_ms'][part]:.1f}" for part in _PARTS),
                f"{quarter['wall_ms']:.0f}",
                f"{quarter['memory_kb']:.0f}",
            ]
            for quarter in _growth(grown)
        ],
    )


if __name__ == "__main__":
    main()
