"""Proposes candidates: the one importer of Optuna.

Optuna is used as a sampler and nothing else. Its study lives in memory and is rebuilt from the
ledger, so it cannot disagree with the records, and no crash leaves half a trial behind in it.
Ask and tell go through two narrow doors, `Search.propose` and `Search.record`; whatever a trial
came to, exactly one of Optuna's final states is told for it.
"""

import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseGASampler, BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sweeps.config import Limits, RunConfig, SweepConfig
from sweeps.evaluate import versions
from sweeps.feasibility import broken_limit, closed_form_metrics
from sweeps.objectives import Goal, Objective, objective
from sweeps.space import Axis, Choice, SearchSpace
from sweeps.trial import Candidate, Measurement, Provenance, Status, Trial
from thesis.data import DatasetFacts

_ATTEMPTS = 10
"""Proposals of the sampler, all tried before, after which a random unseen candidate is taken."""

_RANDOM_ATTEMPTS = 200
"""Random candidates, all tried before, after which a finite space is listed instead."""

_POPULATION = 20
"""Generation size of NSGA-II. Optuna's 50 would leave most sweeps in their random generation."""


class Search:
    """Proposes candidates that were not tried before, and learns from what came of them.

    Attributes:
      exhausted: Whether the last proposal failed because nothing is left to try.
    """

    def __init__(
        self,
        space: SearchSpace,
        config: SweepConfig,
        *,
        finished: Iterable[Trial] = (),
        started: Iterable[Candidate] = (),
    ) -> None:
        """Rebuilds the search from what a sweep has stored.

        Args:
          space: What is varied.
          config: Objectives, sampler, seed, limits.
          finished: Every trial on record, of whatever status.
          started: Candidates that were begun; the ones not finished are proposed again.

        Raises:
          MetricError: An objective names no metric.
        """
        history = sorted(finished, key=lambda trial: (trial.provenance.finished_at, trial.id))
        self.exhausted = False
        self._space = space
        self._limits = config.limits
        self._objectives = tuple(objective(name) for name in config.objectives)
        self._distributions = {axis.name: _distribution(axis) for axis in space.axes}
        # Seeded with the history's length too: a continued search that drew the same numbers
        # again would propose what it has proposed before.
        self._rng = random.Random(f"{config.seed}/{len(history)}")
        self._study = _study(self._objectives, _sampler(config, space, self._rng.getrandbits(32)))
        self._running: dict[str, optuna.Trial] = {}
        self._seen: set[str] = set()
        for trial in history:
            self.record(trial)
        baseline = space.baseline()
        self._queue = deque(([baseline] if baseline else []) + list(started))

    def propose(self) -> Candidate | None:
        """Returns a candidate that is neither finished nor running; None when none is left.

        The baseline comes first, then what an earlier run has begun, then the sampler's choice.
        """
        candidate = self._next_queued() or self._sample() or self._unseen()
        self.exhausted = candidate is None
        if candidate is not None:
            self._running[candidate.id] = self._admit(candidate)
        return candidate

    def record(self, trial: Trial) -> None:
        """Learns what came of a candidate, proposed here or not. A second record is ignored."""
        if trial.id in self._seen and trial.id not in self._running:
            return
        asked = self._running.pop(trial.id, None) or self._admit(trial.candidate)
        for name, excess in _constraints(trial, self._limits).items():
            asked.set_constraint(name, excess)
        state, values = _outcome(trial, self._objectives)
        self._study.tell(asked, values, state=state)

    def _next_queued(self) -> Candidate | None:
        while self._queue:
            candidate = self._queue.popleft()
            if candidate.id not in self._seen:
                return candidate
        return None

    def _sample(self) -> Candidate | None:
        """Returns the sampler's choice; None when it insists on candidates tried before."""
        for _ in range(_ATTEMPTS):
            draft = self._study.ask(self._distributions)
            # A draft may hold axes that do nothing. What the study learns from is the canonical
            # candidate, entered by `_admit`; samplers do not look at failed trials.
            self._study.tell(draft, state=TrialState.FAIL)
            candidate = self._space.candidate(draft.params)
            if candidate.id not in self._seen:
                return candidate
        return None

    def _unseen(self) -> Candidate | None:
        """Returns a random candidate not tried before; None when the space is exhausted."""
        for _ in range(_RANDOM_ATTEMPTS):
            candidate = self._space.sample(self._rng)
            if candidate.id not in self._seen:
                return candidate
        # Nearly everything was tried, so the list is short.
        left = [c for c in self._space.candidates() or () if c.id not in self._seen]
        return self._rng.choice(left) if left else None

    def _admit(self, candidate: Candidate) -> optuna.Trial:
        """Enters a candidate into the study as a running trial with exactly its values."""
        self._seen.add(candidate.id)
        values = dict(candidate.values)
        self._study.enqueue_trial(values)
        asked = self._study.ask({name: self._distributions[name] for name in values})
        if isinstance(self._study.sampler, BaseGASampler):
            # A trial joins a generation when it is sampled, which a given candidate is not.
            trial = self._study.get_trials(deepcopy=False)[asked.number]
            self._study.sampler.get_trial_generation(self._study, trial)
        return asked


def screen(sweep: str, run: RunConfig, candidate: Candidate, data: DatasetFacts) -> Trial | None:
    """Returns the record of a candidate that its closed forms rule out; None for one to train.

    Args:
      sweep: Name of the sweep.
      run: Holds the limits.
      candidate: What is looked at. Nothing is built.
      data: The dataset, whose rates turn frames into seconds.
    """
    config = run.space.config(candidate)
    rates = {"sample_rate": data.sample_rate, "hop_size": data.hop_size}
    costs: Any = closed_form_metrics(config, **rates)
    measurement = Measurement(**costs)
    broken = broken_limit(measurement, run.sweep.limits)
    if broken is None:
        return None
    reason, detail = broken
    now = time.time()
    provenance = Provenance(
        versions=versions(),
        gin_config=run.text_for(candidate),
        dataset_fingerprint=data.fingerprint,
        seed=config.train.seed,
        started_at=now,
        finished_at=now,
    )
    return Trial(sweep, candidate, measurement, reason, detail, provenance)


def _outcome(
    trial: Trial, objectives: Iterable[Objective]
) -> tuple[TrialState, list[float] | None]:
    """Returns what Optuna is told of a trial.

    Only a finished trial with a finite value for every objective is COMPLETE: Optuna would take
    infinity for a good value, and leave a trial told NaN running for ever. Infeasible and pruned
    ones carry no values, partial ones least of all; their constraints say how bad they are.
    """
    if trial.status in (Status.INFEASIBLE, Status.PRUNED):
        return TrialState.PRUNED, None
    values = [o.of(trial) for o in objectives]
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if trial.status is Status.COMPLETED and len(finite) == len(values):
        return TrialState.COMPLETE, finite
    return TrialState.FAIL, None


def _constraints(trial: Trial, limits: Limits) -> dict[str, float]:
    """Returns by how much a trial is over each limit, relative to it; allowed is at most 0.

    Optuna's samplers prefer feasible candidates, and among the others those nearest to the limit.
    """
    bounds: Mapping[str, float | None] = vars(limits)
    excess = {
        name: value / limit - 1
        for name, limit in bounds.items()
        if limit is not None and (value := trial.metric(name)) is not None and math.isfinite(value)
    }
    if trial.reason and trial.status is Status.INFEASIBLE and max(excess.values(), default=0) <= 0:
        # Infeasible must look so, even where the number that says it was not recorded.
        excess[trial.reason.name] = 1.0
    return excess


def _distribution(axis: Axis) -> BaseDistribution:
    domain = axis.domain
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if domain.integer:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def _study(objectives: Iterable[Objective], sampler: BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    minimize, maximize = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
    directions = [minimize if o.goal is Goal.MIN else maximize for o in objectives]
    return optuna.create_study(directions=directions, sampler=sampler)


def _sampler(config: SweepConfig, space: SearchSpace, seed: int) -> BaseSampler:
    # Two random trials an axis before TPE has anything to model; Optuna's ten for small spaces.
    startup = max(10, 2 * len(space.axes))
    makers: Mapping[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: TPESampler(seed=seed, n_startup_trials=startup),
        "nsga2": lambda: NSGAIISampler(seed=seed, population_size=_POPULATION),
        "random": lambda: RandomSampler(seed=seed),
    }
    return makers[config.sampler]()
