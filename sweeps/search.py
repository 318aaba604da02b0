"""Proposes candidates, by Optuna.

Optuna is used as a sampler and nothing else. Its study lives in memory and is rebuilt from the
ledger, so it cannot disagree with the records, and no crash leaves half a trial behind in it.
Ask and tell go through two narrow doors, `Search.propose` and `Search.record`; whatever a trial
came to, exactly one of Optuna's final states is told for it.
"""

import dataclasses
import importlib.util
import itertools
import math
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseGASampler,
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sweeps.config import Limits, RunConfig, SweepConfig, parse_run
from sweeps.errors import SpaceError
from sweeps.evaluate import versions
from sweeps.feasibility import broken_limit, closed_form_metrics
from sweeps.ledger import Ledger
from sweeps.objectives import Goal, Objective, objective
from sweeps.space import Axis, Choice, SearchSpace
from sweeps.trial import Candidate, Measurement, Provenance, Status, Trial
from thesis.data import DatasetFacts
from thesis.errors import ConfigError

_ATTEMPTS = 10
"""Proposals of the sampler, all tried before, after which a random unseen candidate is taken."""

_RANDOM_ATTEMPTS = 200
"""Random candidates, all tried before, after which a finite space is listed instead."""


HISTORY = 1_000
"""Trials on record that a search learns from: those on the front, then the latest.

A continued search begins with so many; one that goes on for long is cut down to them when its study
holds twice as many. A proposal of TPE, for which the driver waits, takes 0.03 s of CPU time with
1,000 trials, 0.07 s with 3,000, 0.27 s with 10,000, and as much again where it proposes what was
tried before.
"""


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
        on_record: Collection[str] = (),
        started: Iterable[Candidate] = (),
        deferred: Iterable[Candidate] = (),
        known: Iterable[Trial] = (),
    ) -> None:
        """Rebuilds the search from what a sweep has stored.

        What is stored of candidates that are not of the space is passed over.

        Args:
          space: What is varied.
          config: Objectives, sampler, seed, limits.
          finished: Trials on record, of whatever status: all, or those to learn from.
          on_record: Ids of all trials on record, where `finished` are some of them.
          started: Candidates that were begun; the ones not finished are proposed again.
          deferred: Candidates that wait: they were begun as well, and are not proposed.
          known: Trials of another sweep. They inform the sampler; their candidates may be proposed.

        Raises:
          MetricError: An objective names no metric.
          ConfigError: The sampler needs what is not installed.
        """
        history = sorted(
            (trial for trial in finished if space.holds(trial.candidate)),
            key=lambda trial: (trial.provenance.finished_at, trial.id),
        )
        self.exhausted = False
        self._space = space
        self._config = config
        self._objectives = tuple(objective(name) for name in config.objectives)
        self._distributions = {axis.name: distribution_of(axis) for axis in space.axes}
        # Seeded with the history's length too: a continued search that drew the same numbers
        # again would propose what it has proposed before.
        self._rng = random.Random(f"{config.seed}/{len(on_record) or len(history)}")
        self._study = self._new_study()
        self._told = 0
        self._running: dict[str, optuna.Trial] = {}
        self._on_record = on_record
        self._seen: set[str] = set()
        for trial in known:
            self._tell(self._enter(trial.candidate), trial)
        for trial in history:
            self.record(trial)
        for candidate in filter(space.holds, deferred):
            self._running[candidate.id] = self._admit(candidate)
        self._whole_grid = config.sampler == "grid"
        baseline = space.baseline()
        self._queue = itertools.chain(
            [baseline] if baseline else [],
            map(space.variant, config.baselines),
            list(filter(space.holds, started)),
            space.grid(config.grid_points) if self._whole_grid else (),
        )

    def propose(self) -> Candidate | None:
        """Returns a candidate that is neither finished nor running; None when none is left.

        The baselines come first, then what an earlier run has begun, then the sampler's choice.
        """
        candidate = next((c for c in self._queue if not self._tried(c)), None)
        if candidate is None and not self._whole_grid:
            candidate = self._sample() or self._unseen()
        self.exhausted = candidate is None
        if candidate is not None:
            self._running[candidate.id] = self._admit(candidate)
        return candidate

    def record(self, trial: Trial) -> None:
        """Learns what came of a candidate, proposed here or not. A second record is ignored."""
        if trial.id in self._seen and trial.id not in self._running:
            return
        asked = self._running.pop(trial.id, None)
        self._tell(asked or self._admit(trial.candidate), trial)

    def _tried(self, candidate: Candidate) -> bool:
        return candidate.id in self._seen or candidate.id in self._on_record

    def _tell(self, asked: optuna.Trial, trial: Trial) -> None:
        for name, excess in constraints_of(trial, self._config.limits).items():
            asked.set_constraint(name, excess)
        if trial.status is Status.PRUNED:
            # Not reported to Optuna as intermediate values: it takes those of one objective only.
            asked.set_user_attr("curve", {str(step): loss for step, loss in trial.curve.items()})
        state, values = outcome_of(trial, self._objectives)
        self._study.tell(asked, values, state=state)
        self._told += 1
        # Genetic samplers look at the last generation only, by its numbers in the study.
        if self._told >= 2 * HISTORY and not isinstance(self._study.sampler, BaseGASampler):
            self._forget()

    def _forget(self) -> None:
        """Goes on with a study of the front, the last trials, and those that run."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        told = self._study.get_trials(deepcopy=False, states=states)
        front = {trial.number for trial in self._study.best_trials}
        oldest = len(told) - HISTORY
        kept = [t for i, t in enumerate(told) if i >= oldest or t.number in front]
        self._study = self._new_study()
        self._study.add_trials(kept)
        self._told = HISTORY
        self._running = {
            trial_id: self._enter(Candidate.of(asked.params))
            for trial_id, asked in self._running.items()
        }

    def _new_study(self) -> optuna.Study:
        sampler = _sampler(self._config, self._space, self._rng.getrandbits(32))
        return _study(self._objectives, sampler)

    def _sample(self) -> Candidate | None:
        """Returns the sampler's choice; None when it insists on candidates tried before."""
        for _ in range(_ATTEMPTS):
            draft = self._study.ask(self._distributions)
            # A draft may hold axes that do nothing. What the study learns from is the canonical
            # candidate, entered by `_admit`; samplers do not look at failed trials.
            self._study.tell(draft, state=TrialState.FAIL)
            candidate = self._space.candidate(draft.params)
            if not self._tried(candidate):
                return candidate
        return None

    def _unseen(self) -> Candidate | None:
        """Returns a random candidate not tried before; None when the space is exhausted."""
        for _ in range(_RANDOM_ATTEMPTS):
            candidate = self._space.sample(self._rng)
            if not self._tried(candidate):
                return candidate
        # Nearly everything was tried, so the list is short.
        left = [c for c in self._space.candidates() or () if not self._tried(c)]
        return self._rng.choice(left) if left else None

    def _admit(self, candidate: Candidate) -> optuna.Trial:
        """Enters a candidate into the study, and sees to it that it is not proposed again."""
        self._seen.add(candidate.id)
        return self._enter(candidate)

    def _enter(self, candidate: Candidate) -> optuna.Trial:
        """Enters a candidate into the study as a running trial with exactly its values."""
        values = dict(candidate.values)
        self._study.enqueue_trial(values)
        asked = self._study.ask({name: self._distributions[name] for name in values})
        if isinstance(self._study.sampler, BaseGASampler):
            # A trial joins a generation when it is sampled, which a given candidate is not.
            trial = self._study.get_trials(deepcopy=False)[asked.number]
            self._study.sampler.get_trial_generation(self._study, trial)
        return asked


def known_from(other: Ledger, run: RunConfig, fingerprint: str) -> tuple[list[Trial], str]:
    """Returns what another sweep knows of a run's candidates, and a line about it.

    Its trials keep their sweep's name, so that nobody takes them for this one's.

    Args:
      other: Its ledger.
      run: The run that wants to know.
      fingerprint: Of the run's dataset.
    """
    known, skipped = [], Counter[str]()
    if other.facts.dataset_fingerprint != fingerprint:
        skipped["another dataset"] = len(other.ids())
    else:
        space = parse_run(other.facts.gin_config).space
        objectives = [objective(name) for name in run.sweep.objectives]
        for trial in other.history(objectives, HISTORY):
            try:
                if trial.status is Status.FAILED:
                    raise SpaceError("failed")
                candidate = run.space.candidate_of(space.config(trial.candidate))
            except (SpaceError, ConfigError) as error:  # of a candidate that its space has not
                skipped[error.message] += 1
            else:
                known.append(dataclasses.replace(trial, candidate=candidate))
    line = f"warm start: {len(known)} trials of '{other.name}' are known"
    if skipped:
        reasons = ", ".join(f"{count} ({why})" for why, count in skipped.most_common(3))
        line += f"; {skipped.total()} skipped: {reasons}"
    return known, line


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


def outcome_of(
    trial: Trial, objectives: Iterable[Objective]
) -> tuple[TrialState, list[float] | None]:
    """Returns what Optuna is told of a trial.

    Only a trial that was trained to its end, with a finite value for every objective, is COMPLETE:
    Optuna would take infinity for a good value, and leave a trial told NaN running for ever. That
    holds of one that is infeasible for what it has learnt, too. Constraints say how bad it is, and
    samplers that model them (`gp`) know of such trials only. Others that are infeasible or pruned
    carry no values, partial ones least of all.
    """
    values = [o.of(trial) for o in objectives]
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if trial.trained and len(finite) == len(values):
        return TrialState.COMPLETE, finite
    if trial.status in (Status.INFEASIBLE, Status.PRUNED):
        return TrialState.PRUNED, None
    return TrialState.FAIL, None


def constraints_of(trial: Trial, limits: Limits) -> dict[str, float]:
    """Returns by how much a trial is over each limit, relative to it; allowed is at most 0.

    Optuna's samplers prefer feasible candidates, and among the others those nearest to the limit.
    A trial that was trained has a number for each limit, as `gp` demands: 0 where there is nothing
    to be measured, a pitch without voiced frames for instance.
    """
    excess = {
        name: value / limit - 1
        for name, limit in limits.given.items()
        if (value := trial.metric(name)) is not None and math.isfinite(value)
    }
    if trial.trained:
        excess = dict.fromkeys(limits.given, 0.0) | excess
    if trial.reason and trial.status is Status.INFEASIBLE and max(excess.values(), default=0) <= 0:
        # Infeasible must look so, even where the number that says it was not recorded. What was
        # trained may be within the limits of this run, though not of the one that it is known from.
        if not trial.trained:
            excess[trial.reason.name] = 1.0
        elif trial.reason.limited in excess:
            excess[trial.reason.limited] = 1.0
    return excess


def distribution_of(axis: Axis) -> BaseDistribution:
    """Returns an axis's domain as Optuna has it."""
    domain = axis.domain
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if domain.integer:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def _study(objectives: Iterable[Objective], sampler: BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(directions=directions_of(objectives), sampler=sampler)


def directions_of(objectives: Iterable[Objective]) -> list[StudyDirection]:
    """Returns the objectives' directions as Optuna has them."""
    minimize, maximize = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
    return [minimize if o.goal is Goal.MIN else maximize for o in objectives]


def _sampler(config: SweepConfig, space: SearchSpace, seed: int) -> BaseSampler:
    # Two random trials an axis before there is anything to model; Optuna's ten for small spaces.
    startup = config.startup_trials or max(10, 2 * len(space.axes))
    modelling: dict[str, Any] = {"seed": seed, "n_startup_trials": startup}
    # Optuna's population of 50 would leave most sweeps in their random generation.
    evolving: dict[str, Any] = {"seed": seed, "population_size": config.population_size}
    makers: Mapping[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: TPESampler(**modelling),
        # Grouped: candidates without an axis that does nothing still are of one model with others.
        "multivariate_tpe": lambda: TPESampler(**modelling, multivariate=True, group=True),
        "nsga2": lambda: NSGAIISampler(**evolving),
        "nsga3": lambda: NSGAIIISampler(**evolving),
        "gp": lambda: _gp_sampler(**modelling),
        "random": lambda: RandomSampler(seed=seed),
        "grid": lambda: RandomSampler(seed=seed),  # is not asked
    }
    with warnings.catch_warnings():
        # Some may change with a release of Optuna, which requirements.lock pins.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return makers[config.sampler]()


def _gp_sampler(**options: Any) -> BaseSampler:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            "sampler 'gp' needs PyTorch, which is not installed",
            hint='pip install "ddsp-sweeps[torch]", or take multivariate_tpe',
        )
    return GPSampler(**options)
