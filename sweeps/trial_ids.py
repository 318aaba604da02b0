"""Ids of many trials in little memory: eight bytes each, a tenth of what a set of strings takes."""

import re
from collections.abc import Iterable, Iterator, Set
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint64]
"""Trial ids as the numbers that their twelve hexadecimal digits stand for."""

_ID = re.compile("[0-9a-f]{12}")
_DIGITS = 12


def number_of(trial_id: str) -> int | None:
    """Returns the number that an id stands for; None for what cannot be an id."""
    return int(trial_id, 16) if _ID.fullmatch(trial_id) else None


def id_of(number: int) -> str:
    """Returns the id that a number stands for."""
    return f"{number:0{_DIGITS}x}"


class TrialIds(Set[str]):
    """A set of trial ids, as any other set but for its size in memory. Does not change.

    Attributes:
      numbers: uint64 [ids], rising.
    """

    def __init__(self, *numbers: Numbers) -> None:
        """Holds the ids that occur in any of some arrays, each of any order."""
        ordered = np.sort(np.concatenate([np.empty(0, np.uint64), *numbers]))
        # np.unique takes eight times as long.
        self.numbers = ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]

    @classmethod
    def of(cls, ids: Iterable[str]) -> "TrialIds":
        """Returns the set of these ids; what cannot be one is left out."""
        numbers = [number for trial_id in ids if (number := number_of(trial_id)) is not None]
        return cls(np.array(numbers, np.uint64))

    @classmethod
    def _from_iterable(cls, ids: Iterable[Any]) -> Set[Any]:  # what set operators build with
        return cls.of(ids)

    def __contains__(self, trial_id: object) -> bool:
        number = number_of(trial_id) if isinstance(trial_id, str) else None
        return number is not None and bool(self.hold(np.array([number], np.uint64))[0])

    def __iter__(self) -> Iterator[str]:
        return map(id_of, self.numbers.tolist())

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        return f"TrialIds({len(self)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return TrialIds, (self.numbers,)

    def hold(self, numbers: Numbers) -> npt.NDArray[np.bool_]:
        """Returns for each number whether its id is one of these."""
        if not len(self):
            return np.zeros(len(numbers), np.bool_)
        places = np.searchsorted(self.numbers, numbers)
        return np.asarray(self.numbers[np.minimum(places, len(self) - 1)] == numbers)

    def beginning(self, prefix: str) -> "TrialIds":
        """Returns the ids that begin so."""
        if not re.fullmatch(f"[0-9a-f]{{0,{_DIGITS}}}", prefix):
            return TrialIds()
        first, last = (int(prefix.ljust(_DIGITS, digit), 16) for digit in "0f")
        start, stop = np.searchsorted(self.numbers, np.array([first, last + 1], np.uint64))
        return TrialIds(self.numbers[start:stop])


def first_of_each(numbers: Numbers) -> npt.NDArray[np.bool_]:
    """Returns where a number occurs for the first time."""
    ordered = np.sort(numbers)
    mask = np.ones(len(numbers), np.bool_)
    if (ordered[1:] == ordered[:-1]).any():
        mask[:] = False
        mask[np.unique(numbers, return_index=True)[1]] = True
    return mask
