"""What samplers and stopping rules save: sweeps replayed over recorded learning curves.

Real candidates were trained to their end once, and validated on the way. A replay goes through them
in the order that a sampler wants, two at a time, and stops those that a rule stops; what that costs
is the sum of their training steps. The reference is random search, all trained to the end.
"""

import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analysis.search_figure import Band, draw_search
from benchmarks import _curves
from benchmarks import _harness as harness
from sweeps.config import DEFAULT_RUNGS, RunConfig, find_run, load_run
from sweeps.driver import MOST_WAITING
from sweeps.evaluate import rung_steps
from sweeps.pareto import hypervolume, non_dominated
from sweeps.search import Search
from sweeps.space import Choice, SearchSpace
from sweeps.stopping import Waiting, most_promising, stopping_rule
from sweeps.tables import print_table
from sweeps.trial import AxisValue, Candidate, Provenance, Reason, Trial

NAME = "search"
WORKERS = 2
STEPS = 300
"""Of every trial that was recorded."""
TARGET = 0.999
"""Share of the hypervolume of all candidates that counts as having reached it."""
VALIDATION_STEPS = 6
"""Training steps that take as long as a validation; measured on one core, 41 clips of 4 s."""
RESUME_STEPS = 13
"""Training steps that take as long as going on with a trial on another worker: 1.2 s, measured with
five decoders on a worker that had built others."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Strategy:
    """A sampler and a rule, as a run file would ask for them."""

    sampler: str
    stopping: str
    options: tuple[str, ...] = ()
    steps: tuple[int, ...] | None = None

    @property
    def rungs(self) -> tuple[int, ...]:
        """Training steps at which the rule is asked: a run's own, unless `steps` says which."""
        default = rung_steps(DEFAULT_RUNGS[self.stopping], STEPS, every=10)
        return tuple(default) if self.steps is None else self.steps

    @property
    def name(self) -> str:
        """What tables call it."""
        values = [option.partition("=")[2] for option in self.options]
        if self.steps:
            values.append("steps " + " ".join(map(str, self.steps)))
        return " ".join([f"{self.sampler},", self.stopping, ", ".join(values)]).strip()

    def run(self) -> RunConfig:
        """Returns the run that this strategy would have been."""
        settings = (f"SAMPLER={self.sampler}", f"STOPPING={self.stopping}", *self.options)
        return load_run(find_run(_curves.RUN), settings)


def _bound(sampler: str, confidence: float) -> Strategy:
    return Strategy(sampler, "bound", (f"sweep.confidence={confidence}",))


def _deferring(sampler: str, confidence: float, steps: tuple[int, ...] | None = None) -> Strategy:
    return Strategy(sampler, "defer", (f"sweep.confidence={confidence}",), steps)


def _halving(sampler: str, factor: int, rungs: tuple[int, ...]) -> Strategy:
    return Strategy(sampler, "asha", (f"sweep.reduction_factor={factor}",), rungs)


REFERENCE = Strategy("random", "none")
BEST = _deferring("tpe", 0.9)
"""Whose share is the benchmark's value: sampler and confidence are the defaults."""

STRATEGIES = (
    REFERENCE,
    _bound("random", 0.9),
    _bound("random", 0.8),
    _bound("random", 0.7),
    _deferring("random", 0.9),
    _deferring("random", 0.8),
    _halving("random", 3, (30, 80, 240)),  # three times as many steps at each rung
    _halving("random", 2, (40, 80, 160)),
    _halving("random", 2, (160,)),
    Strategy("tpe", "none"),
    _bound("tpe", 0.9),
    _bound("tpe", 0.8),
    _bound("tpe", 0.7),
    BEST,
    _deferring("tpe", 0.8),
    _deferring("tpe", 0.8, (40, 80, 160)),
    _halving("tpe", 2, (40, 80, 160)),
    Strategy("nsga2", "none"),
    _bound("nsga2", 0.8),
    _deferring("nsga2", 0.9),
)
DRAWN = (REFERENCE, _bound("tpe", 0.8), BEST, _halving("random", 2, (40, 80, 160)))


@dataclass
class Replay:
    """What a sweep came to.

    Attributes:
      spent: Training steps of all trials together when a trial finished, rising.
      finished: That trial.
      stopped: The trials that were stopped.
      steps: Training steps of the whole sweep.
      validations: Rungs that trials came to.
      resumed: Trials that went on after they had waited.
    """

    spent: list[int] = field(default_factory=list)
    finished: list[Trial] = field(default_factory=list)
    stopped: list[Trial] = field(default_factory=list)
    steps: int = 0
    validations: int = 0
    resumed: int = 0


def replay(table: Sequence[Trial], strategy: Strategy, run: RunConfig, seed: int) -> Replay:
    """Goes through all trials of a table, `WORKERS` at a time, all equally fast."""
    return _Replay(table, strategy, run, seed).result()


@dataclass(frozen=True, eq=False)
class _Running:
    """A trial on its way to a rung, or to its end. They sort by when they come there."""

    at: int
    number: int
    rung: int
    trial: Trial

    def __lt__(self, other: "_Running") -> bool:
        return (self.at, self.number) < (other.at, other.number)


class _Replay:
    """A sweep's driver, as `sweeps.driver` has it, over trials that are known."""

    def __init__(self, table: Sequence[Trial], strategy: Strategy, run: RunConfig, seed: int):
        self._order = _Order(table, run, seed)
        self._rungs = strategy.rungs
        self._rule = stopping_rule(run.sweep)
        self._running: list[_Running] = []
        self._waiting: dict[_Running, Waiting] = {}
        self._result = Replay()

    def result(self) -> Replay:
        for _ in range(WORKERS):
            self._begin(0)
        while self._running:
            one = heapq.heappop(self._running)
            if one.rung == len(self._rungs):
                self._end(one)
            elif not self._is_put_off(one):
                self._go_on(one, one.at)
                continue
            self._begin(one.at)
        return self._result

    def _begin(self, now: int) -> None:
        """Has a worker take up what is new, or what waits."""
        trial = self._order.next() if self._wants_new_ones() else None
        if trial is not None:
            first = self._ends(trial)[0]
            heapq.heappush(self._running, _Running(now + first, self._order.given, 0, trial))
            return
        while one := most_promising(self._waiting, self._rule):
            waiting = self._waiting.pop(one)
            if not waiting.verdict.stop:
                self._result.resumed += 1
                self._go_on(one, now)
                return
            self._stop(one, now, waiting.verdict.stop)

    def _is_put_off(self, one: _Running) -> bool:
        """Asks the rule whether a trial is not to go on from a rung, for now or for good."""
        steps = one.trial.provenance.train_steps
        reached = _reached(one.trial, self._rungs[one.rung], one.at)
        verdict = self._rule.verdict(reached, steps)
        self._result.validations += 1
        if verdict.stop:
            self._stop(one, one.at, verdict.stop)
            return True
        if verdict.waits and self._has_better_than(verdict.gain):
            waiting = Waiting(self._rungs[one.rung], verdict, steps, reached)
            self._waiting[one] = waiting
            return True
        return False

    def _has_better_than(self, gain: float) -> bool:
        if self._wants_new_ones():
            return True
        best = most_promising(self._waiting, self._rule)
        return best is not None and self._waiting[best].verdict.gain > gain

    def _wants_new_ones(self) -> bool:
        on_record = len(self._result.finished) + len(self._result.stopped)
        room = len(self._waiting) < max(1, MOST_WAITING * on_record)
        return room and self._order.left > 0

    def _go_on(self, one: _Running, now: int) -> None:
        ends = self._ends(one.trial)
        later = now + ends[one.rung + 1] - ends[one.rung]
        heapq.heappush(self._running, _Running(later, one.number, one.rung + 1, one.trial))

    def _stop(self, one: _Running, now: int, why: str) -> None:
        record = replace(_reached(one.trial, self._rungs[one.rung], now), detail=why)
        self._result.steps += self._rungs[one.rung]
        self._result.stopped.append(record)
        self._learn(record)

    def _end(self, one: _Running) -> None:
        provenance = replace(one.trial.provenance, finished_at=one.at)
        record = replace(one.trial, provenance=provenance)
        self._result.steps += record.provenance.train_steps
        self._result.finished.append(record)
        # What runs has been trained up to now as well, and what waits up to its rung.
        begun = sum(self._ends(r.trial)[r.rung] - (r.at - one.at) for r in self._running)
        begun += sum(waiting.step for waiting in self._waiting.values())
        self._result.spent.append(self._result.steps + begun)
        self._learn(record)

    def _learn(self, record: Trial) -> None:
        self._rule.learn(record)
        self._order.learn(record)

    def _ends(self, trial: Trial) -> tuple[int, ...]:
        return (*self._rungs, trial.provenance.train_steps)


def _reached(trial: Trial, step: int, now: int) -> Trial:
    return replace(
        trial,
        measurement=replace(trial.measurement, val_loss=None),
        reason=Reason.PRUNED,
        provenance=Provenance(train_steps=step, finished_at=now),
        curve={at: loss for at, loss in trial.curve.items() if at <= step},
    )


class _Order:
    """In which order a sampler takes the trials of a table.

    Where it proposes a candidate that the table does not have, the nearest one left is taken.
    """

    def __init__(self, table: Sequence[Trial], run: RunConfig, seed: int) -> None:
        self.given = 0
        self._left = random.Random(seed).sample(list(table), len(table))
        seeded = replace(run.sweep, seed=seed)
        self._search = None if run.sweep.sampler == "random" else Search(run.space, seeded)
        self._distance = _Distance(run.space)

    @property
    def left(self) -> int:
        """Number of trials that nobody has begun."""
        return len(self._left)

    def next(self) -> Trial | None:
        if not self._left:
            return None
        self.given += 1
        if self._search is None:
            return self._left.pop()
        wanted = self._search.propose()
        assert wanted is not None
        nearest = min(self._left, key=lambda trial: self._distance(trial.candidate, wanted))
        self._left.remove(nearest)
        if nearest.candidate != wanted:  # which nobody will evaluate
            self._search.record(Trial("replay", wanted, reason=Reason.CRASHED))
        return nearest

    def learn(self, record: Trial) -> None:
        if self._search is not None:
            self._search.record(record)


class _Distance:
    """How far candidates are apart: the sum over axes, each of length 1."""

    def __init__(self, space: SearchSpace) -> None:
        self._axes = {axis.name: axis.domain for axis in space.axes}

    def __call__(self, one: Candidate, other: Candidate) -> float:
        return sum(self._apart(name, one.get(name), other.get(name)) for name in self._axes)

    def _apart(self, name: str, one: AxisValue | None, other: AxisValue | None) -> float:
        domain = self._axes[name]
        # Where an axis has no effect on one of them, that is due to another axis, which counts.
        if one is None or other is None or one == other:
            return 0.0
        if isinstance(one, str) or isinstance(other, str):
            return 1.0
        values = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
        low, high = min(map(float, values)), max(map(float, values))
        return abs(math.log(one / other)) / math.log(high / low)


def points_of(trials: Sequence[Trial]) -> Floats:
    """Returns loss and logarithm of the cost, to be minimised."""
    found = [(t.measurement.val_loss, t.measurement.rtf_ratio) for t in trials]
    points = np.array(found, np.float64).reshape(-1, 2)
    points[:, 1] = np.log(points[:, 1])
    return points


def reference_point(table: Sequence[Trial]) -> tuple[float, float]:
    """Returns the worst loss and the worst cost of the table's front, and a tenth of its span."""
    points = points_of(table)
    front = points[non_dominated(points)]
    loss, cost = front.max(axis=0) + 0.1 * np.ptp(front, axis=0)
    return float(loss), float(cost)


def volumes(result: Replay, reference: tuple[float, float]) -> Floats:
    """Returns the hypervolume after each finished trial."""
    points = points_of(result.finished)
    return np.array([hypervolume(points[: i + 1], reference) for i in range(len(points))])


def steps_to(result: Replay, volume: Floats, target: float) -> float:
    """Returns the training steps after which a hypervolume is reached; infinity for never."""
    reached = np.flatnonzero(volume >= target - 1e-9)
    return float(result.spent[reached[0]]) if len(reached) else math.inf


@dataclass(frozen=True)
class Summary:
    """What a strategy came to, over all seeds, as shares of random search's training steps.

    Attributes:
      share: Steps to the hypervolume of all candidates; the median with its interval.
      share_of_half: Steps to what random search has as a median after half of the candidates, as a
        share of its steps for these.
      cost: Steps to go through all candidates; the mean.
      cost_with_overhead: The same with what validations at rungs and second starts take, in steps.
      removed: Share of the members of the table's front that were stopped.
      sweeps_that_removed: Share of the sweeps that stopped one of them at the least.
      found: Hypervolume in the end, as a share of that of all candidates; the mean.
      resumed: Trials that went on after they had waited, to one that was begun; the mean.
      band: Hypervolume against steps.
    """

    share: harness.Interval
    share_of_half: harness.Interval
    cost: float
    cost_with_overhead: float
    removed: float
    sweeps_that_removed: float
    found: float
    resumed: float
    band: Band


def summaries(
    table: Sequence[Trial], strategies: Sequence[Strategy], seeds: int
) -> Iterator[tuple[Strategy, Summary]]:
    """Replays strategies. The first one is the reference of all, and trains to the end."""
    points, reference = points_of(table), reference_point(table)
    every = hypervolume(points, reference)
    inside = non_dominated(points)
    front = {trial.id for trial, member in zip(table, inside, strict=True) if member}
    whole = sum(trial.provenance.train_steps for trial in table)
    half_way = math.nan
    for strategy in strategies:
        run = strategy.run()
        results = [replay(table, strategy, run, seed) for seed in range(seeds)]
        pairs = [(result, volumes(result, reference)) for result in results]
        if math.isnan(half_way):
            half_way = float(np.median([_at(r, v, whole / 2) for r, v in pairs]))
        lost = np.array([sum(t.id in front for t in result.stopped) for result in results])
        steps = np.array([result.steps for result in results])
        overhead = np.array(
            [VALIDATION_STEPS * r.validations + RESUME_STEPS * r.resumed for r in results]
        )
        yield (
            strategy,
            Summary(
                share=_median([steps_to(r, v, TARGET * every) / whole for r, v in pairs]),
                share_of_half=_median([steps_to(r, v, half_way) / (whole / 2) for r, v in pairs]),
                cost=float(np.mean(steps) / whole),
                cost_with_overhead=float(np.mean(steps + overhead) / whole),
                removed=float(lost.mean() / len(front)),
                sweeps_that_removed=float(np.mean(lost > 0)),
                found=float(np.mean([v[-1] for _, v in pairs]) / every),
                resumed=float(np.mean([result.resumed for result in results]) / len(table)),
                band=_band(pairs, whole, every),
            ),
        )


def _at(result: Replay, volume: Floats, spent: float) -> float:
    """Returns the hypervolume after so many steps."""
    finished = np.searchsorted(result.spent, spent, side="right")
    return float(volume[finished - 1]) if finished else 0.0


def _band(pairs: Sequence[tuple[Replay, Floats]], whole: float, every: float) -> Band:
    shares = np.linspace(0.0, 1.0, 201)
    heights = [[_at(r, v, share * whole) / every for share in shares] for r, v in pairs]
    low, middle, high = np.quantile(heights, [0.1, 0.5, 0.9], axis=0)
    return Band(shares, low, middle, high)


def _median(shares: Sequence[float]) -> harness.Interval:
    """Returns the median, with its 95% interval by the ranks of a binomial distribution."""
    ordered, n = sorted(shares), len(shares)
    margin = 1.96 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - margin)), min(n - 1, math.ceil(n / 2 + margin))
    middle = ordered[(n - 1) // 2 : n // 2 + 1]
    return harness.Interval(sum(middle) / len(middle), ordered[low], ordered[high])


def _cell(share: harness.Interval) -> str:
    def text(value: float) -> str:
        return "never" if math.isinf(value) else f"{value:.2f}"

    return f"{text(share.value)} [{text(share.low)}, {text(share.high)}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = harness.parser(NAME, __doc__)
    parser.add_argument("--seeds", type=int, metavar="N", help="default: 100, with --quick 5")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="also draw it")
    options = parser.parse_args(arguments)
    seeds = options.seeds or (5 if options.quick else 100)
    table = _curves.read()
    found: dict[str, Summary] = {}
    for strategy, summary in summaries(table, STRATEGIES, seeds):
        found[strategy.name] = summary
        harness.say(f"{strategy.name}: {_cell(summary.share)}")
    reference = reference_point(table)
    print(
        f"{len(table)} candidates, {int(non_dominated(points_of(table)).sum())} on the front, "
        f"{seeds} seeds, {WORKERS} workers; hypervolume of val_loss and log(rtf_ratio) up to "
        f"({reference[0]:.2f}, log {math.exp(reference[1]):.2f})\n"
    )
    columns = ["sampler, rule", "to all [95%]", "to half [95%]", "cost", "with overhead"]
    rows = [
        [
            name, _cell(s.share), _cell(s.share_of_half), f"{s.cost:.2f}",
            f"{s.cost_with_overhead:.2f}", f"{s.removed:.1%}", f"{s.found:.1%}",
            f"{s.resumed:.2f}",
        ]
        for name, s in found.items()
    ]  # fmt: skip
    print_table([*columns, "removed", "found", "resumed"], rows)
    if options.figure:
        draw_search({s.name: found[s.name].band for s in DRAWN}, options.figure)
    details: dict[str, object] = {
        "strategy": BEST.name,
        "seeds": seeds,
        "candidates": len(table),
        "reference_point": [reference[0], math.exp(reference[1])],
    }
    for name, s in found.items():
        details[name] = {
            "share": _plain(s.share),
            "share_of_half": _plain(s.share_of_half),
            "cost": s.cost,
            "cost_with_overhead": s.cost_with_overhead,
            "front_members_removed": s.removed,
            "sweeps_that_removed_one": s.sweeps_that_removed,
            "hypervolume_found": s.found,
            "resumed": s.resumed,
        }
    harness.emit(
        harness.Result(
            benchmark=NAME,
            value=found[BEST.name].share.value,
            unit="of random search's training steps, to its final hypervolume",
            better="lower",
            reference=REFERENCE.name,
            details=details,
        ),
        quick=options.quick,
        options=f"--seeds {options.seeds}" if options.seeds else "",
    )


def _plain(share: harness.Interval) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in (share.value, share.low, share.high)]


if __name__ == "__main__":
    main()
