"""A circuit breaker: ends a launch whose trials all crash alike, before it uses its candidates up.

A library that crashes, a file that cannot be read, too little memory: what is wrong with a machine
meets one candidate after another. Nothing tells it from a fault of the candidates but that it meets
all of them. So crashes are held against a launch as long as nothing works in it:

- Crashes count as alike when they say the same, but for numbers, names and addresses.
- `ALIKE` candidates that crash alike are enough; or two, where they have killed more workers than
  one of them may. One candidate never is.
- Whatever has got further than those that crashed speaks for the launch. Who asks waits for what
  still runs.
- A trial that is trained to its end, or stopped at a rung, settles it: the launch works. So does
  who launches with `--keep-going`.
"""

import re
from collections import defaultdict
from dataclasses import dataclass

from sweeps.trial import Candidate, Reason

ALIKE = 3
"""Candidates that crash alike before anything works, and end the launch."""

MAX_DEATHS = 3
"""Workers that may die of a candidate before it is recorded as failed."""


@dataclass(frozen=True)
class Fault:
    """What all trials of a launch meet.

    Attributes:
      cause: What the last one said, in a line.
      reason: Which kind of crash it was.
      candidates: How many met it.
    """

    cause: str
    reason: Reason
    candidates: int


class Breaker:
    """Watches the trials of a launch, and tells whether all of them crash alike.

    Attributes:
      works: A trial was trained to its end, or stopped at a rung; no fault will be found any more.
    """

    def __init__(self) -> None:
        self.works = False
        self._reached: dict[Candidate, float] = {}
        self._crashes: dict[str, dict[Candidate, int]] = defaultdict(dict)
        self._said: dict[str, tuple[str, Reason]] = {}

    def reached(self, candidate: Candidate, share: float) -> None:
        """A trial has so much of its training behind it, 0 to 1."""
        if not self.works:
            self._reached[candidate] = max(share, self._reached.get(candidate, 0.0))

    def worked(self) -> None:
        """A trial was trained to its end, or stopped at a rung."""
        self.works = True

    def died(self, candidate: Candidate, cause: str, reason: Reason) -> None:
        """A worker has died of a candidate, which goes to another one.

        It does not count where it may have come from without: once the candidate is being trained,
        and for want of memory, for which Ray kills others than the one that takes it.
        """
        if reason is Reason.CRASHED and not self._reached.get(candidate):
            crashes = self._crashes_like(cause, reason)
            crashes[candidate] = crashes.get(candidate, 0) + 1

    def gave_up(self, candidate: Candidate, cause: str, reason: Reason) -> None:
        """As many workers have died of a candidate as may."""
        self._crashes_like(cause, reason)[candidate] = MAX_DEATHS

    def failed(self, candidate: Candidate, cause: str, reason: Reason) -> None:
        """A trial has failed by itself, by an exception."""
        self._crashes_like(cause, reason)[candidate] = 1

    @property
    def fault(self) -> Fault | None:
        """What all trials meet; None while that cannot be said."""
        for kind, crashes in self._crashes.items():
            if not self.works and self._is_enough(crashes) and not self._got_beyond(crashes):
                return Fault(*self._said[kind], len(crashes))
        return None

    def _crashes_like(self, cause: str, reason: Reason) -> dict[Candidate, int]:
        kind = _kind(cause)
        self._said[kind] = (cause, reason)
        return self._crashes[kind]

    def _is_enough(self, crashes: dict[Candidate, int]) -> bool:
        again = len(crashes) > 1 and sum(crashes.values()) > MAX_DEATHS
        return len(crashes) >= ALIKE or again

    def _got_beyond(self, crashes: dict[Candidate, int]) -> bool:
        """Returns whether another trial has more behind it than any of those that crashed."""
        here = max(self._reached.get(candidate, 0.0) for candidate in crashes)
        return any(share > here for other, share in self._reached.items() if other not in crashes)


_PARTICULAR = (
    (re.compile(r"'[^']*'|\"[^\"]*\""), "''"),
    (re.compile(r"\S*/\S*"), "/"),
    (re.compile(r"\b0x[0-9a-f]+|\b(?=[a-z]*[0-9])[0-9a-f]{6,}\b", re.IGNORECASE), "#"),
    (re.compile(r"[-+]?\d[\d.,e]*"), "#"),
)
"""What differs between crashes that are alike: names, paths, addresses and ids, numbers."""

_BRACKETED = re.compile(r"\([^()]*\)|\[[^][]*\]|\{[^{}]*\}")
"""Values, as Python prints them, are as long as they like."""


def _kind(cause: str) -> str:
    """Returns what crashes that are alike have in common."""
    for pattern, stand_in in _PARTICULAR:
        cause = pattern.sub(stand_in, cause)
    while (shorter := _BRACKETED.sub("", cause)) != cause:
        cause = shorter
    return " ".join(cause.split())
