"""What to do next with a sweep: which trial to promote, or what to mend where none sings."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.ledger import Ledger, SweepFacts
from sweeps.objectives import MISSED_PITCH, MOST_MISSED, Limit, sings
from sweeps.pareto import ParetoFront, knee
from sweeps.trial import Trial
from thesis.errors import UserError

_LONGER = 4
"""So many times the training steps of a sweep whose trials do not sing."""


@dataclass(frozen=True)
class Advice:
    """What to do next.

    Attributes:
      trial: The trial to promote; None where none sings.
      problem: What is wrong with the front, in a line; '' where nothing is.
      command: What to run, without the storage; '' where nothing is known to help.
    """

    trial: Trial | None = None
    problem: str = ""
    command: str = ""


def most_missed(facts: SweepFacts) -> float:
    """Returns the largest share of missed pitch at which a sweep's models sing."""
    return (facts.limits or {}).get(MISSED_PITCH, MOST_MISSED)


def advise(ledger: Ledger, front: ParetoFront, limits: Sequence[Limit] = ()) -> Advice:
    """Returns what to do next with a front.

    Args:
      ledger: The sweep.
      front: What was found.
      limits: Those that the front was asked for with.

    Raises:
      LedgerError: The records cannot be read.
    """
    facts, most = ledger.facts, most_missed(ledger.facts)
    if front.members:
        trial = knee(front, most_missed=most)
        if sings(trial, most):
            short = trial.id[:6]
            return Advice(trial, command=f"sweeps promote {short} --to bundles/{short}")
        problem = f"no member of the front sings: {MISSED_PITCH} is over {most:g} in all"
        singing = Limit(MISSED_PITCH, high=most)
        if ledger.front(front.objectives, [*limits, singing]).members:
            # They were beaten by those that do not.
            command = f"sweeps front {facts.name} --max {MISSED_PITCH}={most:g}"
            names = [o.metric for o in front.objectives]
            if names != [*facts.objectives]:
                command += f" --metrics {' '.join(names)}"
            return Advice(problem=f"{problem}; other trials do", command=command)
        return Advice(problem=f"{problem}; {_TRAIN_LONGER}", command=_longer(facts))
    silent = [e for e in front.excluded if e.limited == MISSED_PITCH]
    if not silent:
        return Advice()
    of = ", ".join(f"{e.why} in {e.count}" for e in silent)
    return Advice(problem=f"no trial sings: {of}; {_TRAIN_LONGER}", command=_longer(facts))


_TRAIN_LONGER = "train longer, as a new sweep with the same run file and settings"


def _longer(facts: SweepFacts) -> str:
    """Returns the command that trains a sweep's candidates for longer, under another name."""
    from sweeps.config import parse_run  # reads gin, which hardly any front needs

    try:
        steps = _LONGER * parse_run(facts.gin_config).model.train.steps
    except UserError:  # of a release with other bindings
        return ""
    knob = "STEPS" if re.search("^STEPS = ", facts.gin_config, re.MULTILINE) else "train.steps"
    data = shlex.quote(facts.dataset_path) if facts.dataset_path else "DATASET"
    trials = facts.trials_asked or 16
    name = f"{facts.name}-{steps}"
    return f"sweeps launch --name {name} --data {data} --trials {trials} --set {knob}={steps}"
