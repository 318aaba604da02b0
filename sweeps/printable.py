"""The door to a terminal: what others wrote is shown, and never acts.

A record, a bundle or a dataset may be anybody's, and so may the strings in it. A terminal obeys
control characters: they move its cursor, change its title, and hide what was printed before.
"""

from sweeps.credentials import without_credentials
from thesis.errors import printable

__all__ = ["in_a_line", "printable", "show", "show_text"]

LONGEST = 2_000
"""Characters of a line that says what went wrong; a value in it may be as long as a file."""


def in_a_line(text: str) -> str:
    """Returns a text as one line that can be printed, cut where it is very long."""
    line = printable(text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def show(line: str = "") -> None:
    """Prints one line to stdout, whatever is in it, but for credentials."""
    print(printable(without_credentials(line)), flush=True)


def show_text(text: str) -> None:
    """Prints a text of several lines to stdout."""
    print(printable(text, keep="\n"))
