"""Ends trials that cannot reach the front before they are trained to their end.

Speed is measured before training, so a trial's costs are known at its first rung, and one number
says what its loss must come to: `L*`, the lowest final loss among the finished trials that are no
dearer. `BoundRule` stops a trial as soon as an optimistic bound on its final loss is worse than
that. It may also have a trial wait whose loss is only expected to be: others are tried first, and
may rule it out. `AshaRule`, which others have published, ranks trials by what they have reached.

A rule is asked by the driver, which alone sees all trials. Pure: NumPy, no Ray, no TensorFlow.
"""

import itertools
import math
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from sweeps.config import SweepConfig
from sweeps.objectives import Objective, objective
from sweeps.pareto import ReferencePoint, non_dominated
from sweeps.trial import Status, Trial

Floats = npt.NDArray[np.float64]
K = TypeVar("K", bound=Hashable)

HEADROOM = 0.05
"""How much better than the best final loss so far a trial is thought to be able to end."""

_MOST_ENDS = 16
"""Ends that the expectation of a gain is taken over."""

_MARGIN = 1.1
"""Factor by which the worst value that counts in a gain is beyond the worst one known."""

_CONFIDENCE = {"bound": 0.8, "defer": 0.9}
"""Where a run names none. Trials that wait leave those to finish that are quick to learn, of which
slow ones are not quite exchangeable; so more is asked for."""

_FEWEST = 3
"""Finished trials with a loss at a rung, from which a mean and a deviation are taken."""

LOSS = "val_loss"
"""The objective that learning curves are of; all others are known before training."""


class Verdict(NamedTuple):
    """What a rule says of a trial at a rung.

    Attributes:
      stop: Why the trial is to stop; '' when it need not.
      waits: It is to wait while there is better to do.
      gain: The volume that it is expected to add to what the front beats, where it waits.
    """

    stop: str = ""
    waits: bool = False
    gain: float = 0.0


class StoppingRule(Protocol):
    """Decides at a rung whether a trial goes on.

    Every method may be called twice with the same trial: the second call changes nothing.
    """

    def learn(self, trial: Trial) -> None:
        """Takes note of a record, of whatever status."""

    def verdict(self, reached: Trial, steps: int) -> Verdict:
        """Returns whether a trial is to stop, or to wait.

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
        case "bound" | "defer":
            confidence = config.confidence or _CONFIDENCE[config.stopping]
            return BoundRule(costs, confidence=confidence, defers=config.stopping == "defer")
        case "asha":
            return AshaRule(costs, reduction_factor=config.reduction_factor)


class NoRule:
    """Trains every trial to its end."""

    def learn(self, trial: Trial) -> None:
        """Has no use for it."""

    def verdict(self, reached: Trial, steps: int) -> Verdict:
        """Has every trial go on."""
        return Verdict()


# --- The bound ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Finished:
    """A completed trial: what it costs, as recorded and as intervals, and its loss."""

    id: str
    sweep: str
    values: tuple[float, ...]
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

    With `defers`, a trial that goes the mean share of the way and would end above `L*` is to wait.
    Those that wait go on by their expected improvement of the hypervolume (Emmerich, Deutz &
    Klinkenberg 2011), over where a trial ends that goes as far as one of the finished ones did.
    """

    def __init__(self, costs: tuple[Objective, ...], *, confidence: float, defers: bool) -> None:
        """Starts with nothing finished.

        Args:
          costs: The objectives beside the loss; known before training.
          confidence: In the bound, 0 to 1.
          defers: Have trials wait that are not expected to get there.
        """
        self._costs = costs
        self._risk = 1.0 - confidence
        self._defers = defers
        self._finished: dict[tuple[str, str], _Finished] = {}
        self._extrapolations: dict[int, Extrapolation] = {}

    def learn(self, trial: Trial) -> None:
        """Takes note of a completed trial.

        Others tell nothing of how curves end, or, as one that is infeasible for what it has learnt,
        are no rivals: a model without a pitch may have a low loss, and must not raise the bar.
        """
        costs = _costs(trial, self._costs)
        loss = trial.metric(LOSS)
        if trial.status is Status.COMPLETED and costs is not None and loss and loss > 0:
            self._finished[trial.sweep, trial.id] = _Finished(
                trial.id,
                trial.sweep,
                tuple(cost.of(trial) or 0.0 for cost in self._costs),
                costs,
                loss,
                dict(trial.curve),
                trial.provenance.train_steps,
            )
            self._extrapolations.clear()

    def verdict(self, reached: Trial, steps: int) -> Verdict:
        """Returns whether a trial is to stop, or to wait."""
        costs = _costs(reached, self._costs)
        if costs is None:
            return Verdict()
        # What a warm start brings in tells how curves go on, and competes in its own sweep.
        no_dearer = [
            other
            for other in self._finished.values()
            if other.sweep == reached.sweep and _no_dearer(other.costs, costs)
        ]
        if not no_dearer:
            return Verdict()
        best = min(no_dearer, key=lambda other: other.loss)
        step, loss = max(reached.curve), reached.curve[max(reached.curve)]
        extrapolation = self._extrapolation(steps)
        bound = extrapolation.bound(step, loss)
        if bound > best.loss:
            return Verdict(
                f"step {step} of {steps}; val_loss {loss:.4g} then, at best {bound:.4g} "
                f"at the end; {best.id} has {best.loss:.4g} at no higher cost"
            )
        expected = extrapolation.expected(step, loss) if self._defers else None
        if expected is None or expected <= best.loss:
            return Verdict()
        return Verdict(waits=True, gain=self._gain(reached, extrapolation.finals(step, loss)))

    def _gain(self, reached: Trial, finals: Floats) -> float:
        """Returns the volume that a trial is expected to add, if it ends at one of some losses."""
        costs = [cost.of(reached) for cost in self._costs]
        own = np.array(
            [(o.loss, *o.values) for o in self._finished.values() if o.sweep == reached.sweep]
        )
        ends = np.array([(final, *costs) for final in finals])
        objectives = (objective(LOSS), *self._costs)
        signs = np.array([o.sign for o in objectives])
        worst = (signs * np.vstack([own, ends])).max(axis=0) * signs
        if not (worst > 0).all():  # no scale: nothing tells those that wait apart
            return 0.0
        reference = ReferencePoint(objectives, tuple(worst * _MARGIN**signs))
        front = own[non_dominated(signs * own)]
        before = reference.hypervolume(front)
        after = [reference.hypervolume(np.vstack([front, end])) for end in ends]
        return float(np.mean(after)) - before

    def _extrapolation(self, steps: int) -> "Extrapolation":
        if steps not in self._extrapolations:
            alike = [other for other in self._finished.values() if other.steps == steps]
            self._extrapolations[steps] = Extrapolation(
                [other.curve for other in alike],
                [other.loss for other in alike],
                risk=self._risk,
            )
        return self._extrapolations[steps]


class Extrapolation:
    """Where trials end that are at a rung, by how others went on; see `BoundRule`."""

    def __init__(
        self, curves: Sequence[Mapping[int, float]], finals: Sequence[float], *, risk: float
    ) -> None:
        """Learns from finished trials.

        Args:
          curves: Their losses by rung. A worker that dies may miss a rung.
          finals: Their final losses; positive, as all losses.
          risk: Probability with which an exchangeable trial may end under its bound at any of its
            rungs, 0 to 1.
        """
        steps = {*itertools.chain(*curves)}
        known = [s for s in steps if sum(s in curve for curve in curves) >= _FEWEST]
        self._rungs = {step: rung for rung, step in enumerate(known)}
        losses = np.array([[curve.get(s, math.nan) for s in known] for curve in curves])
        telling = ~np.isnan(losses).all(axis=1) if known else np.zeros(len(curves), np.bool_)
        self._rank = math.floor(risk * (telling.sum() + 1) + 1e-9)
        if not known:
            return
        at_rung, final = np.log(losses[telling]), np.log(np.array(finals)[telling, None])
        self._floor = float(final.min()) - math.log(1.0 + HEADROOM)
        share = (at_rung - final) / (np.maximum(at_rung, final.min()) - self._floor)
        self._share = share
        self._mean = np.nanmean(share, axis=0)
        self._deviation = np.nanstd(share, axis=0, ddof=1) + 1e-9
        count = (~np.isnan(share)).sum(axis=0)
        mean_of_others = (count * self._mean - share) / (count - 1)
        self._scores = np.sort(np.nanmax((share - mean_of_others) / self._deviation, axis=1))

    def bound(self, step: int, loss: float) -> float:
        """Returns what a loss at a rung may come down to: at most itself.

        Minus infinity where too few have finished for any bound.
        """
        if self._rank < 1 or step not in self._rungs:
            return -math.inf
        rung = self._rungs[step]
        furthest = float(self._mean[rung] + self._scores[-self._rank] * self._deviation[rung])
        return self._after(max(furthest, 0.0), loss)

    def expected(self, step: int, loss: float) -> float | None:
        """Returns where a loss at a rung ends that goes as far as others did in the mean.

        None where too few have finished.
        """
        return (
            self._after(float(self._mean[self._rungs[step]]), loss) if step in self._rungs else None
        )

    def finals(self, step: int, loss: float) -> Floats:
        """Returns where a loss at a rung ends that goes as far as each of some others did.

        Of many others the evenly spaced quantiles.
        """
        shares = self._share[:, self._rungs[step]]
        shares = shares[~np.isnan(shares)]
        if len(shares) > _MOST_ENDS:
            shares = np.quantile(shares, (np.arange(_MOST_ENDS) + 0.5) / _MOST_ENDS)
        return np.array([self._after(share, loss) for share in shares])

    def _after(self, share: float, loss: float) -> float:
        way = max(math.log(loss) - self._floor, math.log(1.0 + HEADROOM))
        return loss * math.exp(-share * way)


@dataclass(frozen=True)
class Waiting:
    """Where a trial waits while there is better to do.

    Attributes:
      step: Training steps that it has behind it.
      verdict: What was said of it last.
      steps: Training steps that it is to have.
      reached: The trial as far as it came; None where an earlier launch has put it off.
    """

    step: int
    verdict: Verdict
    steps: int = 0
    reached: Trial | None = None

    def judged_by(self, rule: StoppingRule) -> "Waiting":
        """Returns it with what the rule says by now."""
        if self.reached is None:
            return self
        return replace(self, verdict=rule.verdict(self.reached, self.steps))


def most_promising(waiting: MutableMapping[K, Waiting], rule: StoppingRule) -> K | None:
    """Returns which of those that wait is to go on first, by what is known now; None for none.

    Gains shrink as a front grows. So what leads the others, as they were judged before, when it is
    judged again leads them in truth, and few have to be.
    """
    judged = set[K]()
    while waiting:
        best = max(waiting, key=lambda key: waiting[key].verdict.gain)
        if best in judged:
            return best
        waiting[best] = waiting[best].judged_by(rule)
        judged.add(best)
    return None


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
        """Takes note of the rungs that a trial came to, unless it turned out to be infeasible."""
        if trial.status is Status.INFEASIBLE:
            for rung in self._rungs.values():
                rung.pop(trial.id, None)
            return
        costs = [cost.of(trial) for cost in self._costs]
        if None in costs:
            return
        signed = [c.sign * float(v or 0.0) for c, v in zip(self._costs, costs, strict=True)]
        for step, loss in trial.curve.items():
            self._rungs.setdefault(step, {})[trial.id] = (loss, *signed)

    def verdict(self, reached: Trial, steps: int) -> Verdict:
        """Returns whether a trial is to stop."""
        self.learn(reached)
        step = max(reached.curve)
        rung = self._rungs.get(step, {})
        if reached.id not in rung or len(rung) < self._factor:
            return Verdict()
        places = len(rung) // self._factor
        ranking = _ranked(np.array([*rung.values()], np.float64))
        rank = ranking.index([*rung].index(reached.id)) + 1
        if rank <= places:
            return Verdict()
        return Verdict(
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
