"""Errors of the sweep system. All are `UserError`s: one line and a hint, exit code 1."""

import difflib
from collections.abc import Iterable

from thesis.errors import UserError


class SpaceError(UserError):
    """A search space with an unknown axis or a value outside an axis's range."""


class SweepError(UserError):
    """A sweep that does not exist, or that differs from the one already stored under its name."""


class TrialError(UserError):
    """A trial id that names no trial, or more than one."""


class MetricError(UserError):
    """A metric that no record has."""


class LedgerError(UserError):
    """A ledger that cannot be read or written."""


class DamagedError(LedgerError):
    """What a storage holds is not what it should be: damaged, or made by somebody else.

    Trying again does not help. Where it need not be read, others of its kind may be gone on with.

    Attributes:
      name: Of the file in its storage, where it is one of many.
    """

    name = ""


def nearest(name: str, known: Iterable[str], *, otherwise: str) -> str:
    """Returns a hint that offers the known name nearest to a misspelt one."""
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"did you mean '{matches[0]}'? {otherwise}" if matches else otherwise
