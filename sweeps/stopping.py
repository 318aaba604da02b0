"""Ends trials that cannot reach the front before they are trained to their end.

Speed is measured before training, so a trial's costs are known at its first rung, and one number
says what its loss must come to: `L*`, the lowest final loss among the finished trials that are no
dearer. `BoundRule` stops a trial as soon as an optimistic bound on its final loss is worse than
that. `AshaRule`, which others have published, ranks trials by what they have reached.

A rule is asked by the driver, which alone sees all trials. Pure: NumPy, no Ray, no TensorFlow.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sweeps.config import SweepConfig
from sweeps.objectives import Objective, objective
from sweeps.pareto import non_dominated
from sweeps.trial import Status, Trial

Floats = npt.NDArray[np.float64]

HEADROOM = 0.05
"""How much better than the best final loss so far a trial is thought to be able to end."""

_FEWEST = 3
"""Finished trials with a loss at a rung, from which a mean and a deviation are taken."""

LOSS = "val_loss"
"""The objective that learning curves are of; all others are known before training."""


class StoppingRule(Protocol):
    """Decides at a rung whether a trial goes on.

    Every method may be called twice with the same trial: the second call changes nothing.
    """

    def learn(self, trial: Trial) -> None:
        """Takes note of a record, of whatever status."""

    def verdict(self, reached: Trial, steps: int) -> str | None:
        """Returns why a trial is to stop; None when it goes on.

        Args:
          reached: The trial as far as it came; its learning curve ends at the rung.
          steps: Training steps that it was to have.
        """


def stopping_rule(config: SweepConfig) -> StoppingRule:
    """Returns the rule that a sweep asks for, before it has seen anything."""
    costs = tuple(objective(name) for name in config.objectives if name != LOSS)
    match config.stopping:
        case "none":
            return NoRule()
        case "bound":
            return BoundRule(costs, confidence=config.confidence)
        case "asha":
            return AshaRule(costs, reduction_factor=config.reduction_factor)


class NoRule:
    """Trains every trial to its end."""

    def learn(self, trial: Trial) -> None:
        """Has no use for it."""

    def verdict(self, reached: Trial, steps: int) -> str | None:
        """Returns None."""
        return None


# --- The bound ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Finished:
    """A completed trial: what it costs, and how its loss came down."""

    id: str
    sweep: str
    costs: tuple[tuple[float, float], ...]
    loss: float
    curve: dict[int, float]
    steps: int


class BoundRule:
    """Stops a trial whose optimistic bound on the final loss is over `L*`.

    The bound extrapolates by how the n finished trials went on. A slow learner may still come down
    from a high loss, one whose loss is low already has little left to gain; so what compares is the
    share of the way that trial i goes from rung s to its end, towards a floor a little under the
    best final loss so far (`HEADROOM`), all in logarithms:

        share[i,s] = log(loss of i at s / final loss of i) / log(loss of i at s / floor)

    The score of a trial is how far its share is above what the others' mean leads to expect, in
    standard deviations, at the rung where it is furthest:

        score[i] = max over s of (share[i,s] - mean of the others' share[.,s]) / sd of share[.,s]

    With z the k-th largest score, k = floor((1 - confidence) (n + 1)), the bound at s is where a
    trial ends that goes a share of mean + z sd. For a trial that is exchangeable with the finished
    ones no rank of its score among the n + 1 is likelier than another: with a probability of at
    least `confidence` it ends above its bound at every one of its rungs (conformal prediction,
    Vovk, Gammerman & Shafer 2005; a maximum over the curve, Diquigiovanni, Fontana & Vantini 2022).
    A member of the front is removed only if it does not, and by more than what it is better than
    `L*`. Before 1 / (1 - confidence) - 1 trials have finished nothing is stopped.

    Trials are not quite exchangeable in a sweep: a sampler learns, the finished ones are those that
    were not stopped, and the best of all does not know its own loss as a floor.
    docs/results/search.md has the rate on real curves.
    """

    def __init__(self, costs: tuple[Objective, ...], *, confidence: float) -> None:
        """Starts with nothing finished.

        Args:
          costs: The objectives beside the loss; known before training.
          confidence: In the bound, 0 to 1.
        """
        self._costs = costs
        self._risk = 1.0 - confidence
        self._finished: dict[tuple[str, str], _Finished] = {}

    def learn(self, trial: Trial) -> None:
        """Takes note of a completed trial; others tell nothing of how curves end."""
        costs = _costs(trial, self._costs)
        loss = trial.metric(LOSS)
        if trial.status is Status.COMPLETED and costs is not None and loss and loss > 0:
            self._finished[trial.sweep, trial.id] = _Finished(
                trial.id, trial.sweep, costs, loss, dict(trial.curve), trial.provenance.train_steps
            )

    def verdict(self, reached: Trial, steps: int) -> str | None:
        """Returns why a trial is to stop; None when it goes on."""
        costs = _costs(reached, self._costs)
        if costs is None:
            return None
        # What a warm start brings in tells how curves go on, and competes in its own sweep.
        no_dearer = [
            other
            for other in self._finished.values()
            if other.sweep == reached.sweep and _no_dearer(other.costs, costs)
        ]
        if not no_dearer:
            return None
        best = min(no_dearer, key=lambda other: other.loss)
        step = max(reached.curve)
        alike = [other for other in self._finished.values() if other.steps == steps]
        bound = optimistic_bound(
            step,
            reached.curve[step],
            [other.curve for other in alike],
            [other.loss for other in alike],
            risk=self._risk,
        )
        if bound <= best.loss:
            return None
        return (
            f"step {step} of {steps}; val_loss {reached.curve[step]:.4g} then, at best {bound:.4g} "
            f"at the end; {best.id} has {best.loss:.4g} at no higher cost"
        )


def optimistic_bound(
    step: int,
    loss: float,
    curves: Sequence[Mapping[int, float]],
    finals: Sequence[float],
    *,
    risk: float,
) -> float:
    """Returns what a loss at a rung may come down to, see `BoundRule`.

    Args:
      step: The rung.
      loss: There; positive, as all losses.
      curves: Of the finished trials, losses by rung. A worker that dies may miss a rung.
      finals: Of the same trials, the final losses.
      risk: Probability with which an exchangeable trial may end under its bound at any of its
        rungs, 0 to 1.

    Returns:
      The bound, at most `loss`; minus infinity where too few have finished for any.
    """
    rank = math.floor(risk * (len(curves) + 1) + 1e-9)
    if rank < 1 or sum(step in curve for curve in curves) < _FEWEST:
        return -math.inf
    steps = [s for s in {*itertools.chain(*curves)} if sum(s in c for c in curves) >= _FEWEST]
    at_rung = np.log([[curve.get(s, math.nan) for s in steps] for curve in curves])
    final = np.log(finals)[:, None]
    headroom = math.log(1.0 + HEADROOM)
    share = (at_rung - final) / (np.maximum(at_rung - final.min(), 0.0) + headroom)
    mean, deviation = np.nanmean(share, axis=0), np.nanstd(share, axis=0, ddof=1) + 1e-9
    count = (~np.isnan(share)).sum(axis=0)
    mean_of_others = (count * mean - share) / (count - 1)
    scores = np.nanmax((share - mean_of_others) / deviation, axis=1)
    here = steps.index(step)
    furthest = max(mean[here] + np.sort(scores)[-rank] * deviation[here], 0.0)
    way = max(math.log(loss) - final.min(), 0.0) + headroom
    return float(loss * math.exp(-furthest * way))


def _costs(trial: Trial, costs: tuple[Objective, ...]) -> tuple[tuple[float, float], ...] | None:
    """Returns lower and upper end of each cost, lower being better; None if one is not known."""
    ends = []
    for cost in costs:
        value = cost.of(trial)
        if value is None or not math.isfinite(value):
            return None
        low, high = value, value
        if cost.metric == "rtf_ratio":
            low = trial.measurement.rtf_ratio_low or value
            high = trial.measurement.rtf_ratio_high or value
        ends.append((low, high) if cost.sign > 0 else (-high, -low))
    return tuple(ends)


def _no_dearer(
    one: tuple[tuple[float, float], ...], other: tuple[tuple[float, float], ...]
) -> bool:
    """Returns whether costs are surely not above others: no overlap, or the same measurement."""
    return all(a == b or a[1] <= b[0] for a, b in zip(one, other, strict=True))


# --- What others do -----------------------------------------------------------------------------


class AshaRule:
    """Multi-objective asynchronous successive halving, as a rule that stops.

    Of the trials that have come to a rung, one in `reduction_factor` goes on: the best by
    non-dominated sorting of loss at the rung and costs; of the last front that has a place, those
    furthest from the ones chosen before (R. Schmucker et al. 2021, "Multi-objective Asynchronous
    Successive Halving"; the epsilon-net of D. Salinas et al. 2021). The first trials at a rung go
    on until there are `reduction_factor`.
    """

    def __init__(self, costs: tuple[Objective, ...], *, reduction_factor: int) -> None:
        """Starts with empty rungs.

        Args:
          costs: The objectives beside the loss; known before training.
          reduction_factor: Of so many trials at a rung one goes on.
        """
        self._costs = costs
        self._factor = reduction_factor
        self._rungs: dict[int, dict[str, tuple[float, ...]]] = {}

    def learn(self, trial: Trial) -> None:
        """Takes note of the rungs that a trial came to."""
        costs = [cost.of(trial) for cost in self._costs]
        if None in costs:
            return
        signed = [c.sign * float(v or 0.0) for c, v in zip(self._costs, costs, strict=True)]
        for step, loss in trial.curve.items():
            self._rungs.setdefault(step, {})[trial.id] = (loss, *signed)

    def verdict(self, reached: Trial, steps: int) -> str | None:
        """Returns why a trial is to stop; None when it goes on."""
        self.learn(reached)
        step = max(reached.curve)
        rung = self._rungs.get(step, {})
        if reached.id not in rung or len(rung) < self._factor:
            return None
        places = len(rung) // self._factor
        ranking = _ranked(np.array([*rung.values()], np.float64))
        rank = ranking.index([*rung].index(reached.id)) + 1
        if rank <= places:
            return None
        return (
            f"step {step} of {steps}; val_loss {reached.curve[step]:.4g} then, rank {rank} of "
            f"{len(rung)} at this rung, where {places} go on"
        )


def _ranked(points: Floats) -> list[int]:
    """Returns the points' indices, best first: front by front, and each as an epsilon-net."""
    spread = np.ptp(points, axis=0)
    scaled = (points - points.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    left, ranking = np.arange(len(points)), list[int]()
    while left.size:
        inside = non_dominated(points[left])
        if not inside.any():  # only points with a NaN are left
            inside[:] = True
        front, left = [int(i) for i in left[inside]], left[~inside]
        chosen = [front.pop(0)]
        while front:
            gaps = [np.linalg.norm(scaled[chosen] - scaled[i], axis=1).min() for i in front]
            chosen.append(front.pop(int(np.argmax(gaps))))
        ranking += chosen
    return ranking
