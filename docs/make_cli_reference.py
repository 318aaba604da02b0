"""Writes docs/cli.md from the command line's own help: python docs/make_cli_reference.py."""

import io
import os
from contextlib import redirect_stdout, suppress
from pathlib import Path

from sweeps.cli import main, verbs

TARGET = Path(__file__).with_name("cli.md")


def reference() -> str:
    """Returns the reference as Markdown."""
    parts = [
        "# Command line",
        "Written by `python docs/make_cli_reference.py` from `--help`; a test keeps it fresh.",
        "Data goes to stdout, progress and messages to stderr. Exit status: 0 done, 1 something "
        "that you can mend, 2 wrong usage, 3 unexpected, 130 interrupted.",
        _section("sweeps", []),
        *(_section(f"sweeps {verb}", verb.split()) for verb in verbs()),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, arguments: list[str]) -> str:
    out = io.StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        main([*arguments, "--help"])
    return f"## {title}\n\n```\n{out.getvalue().strip()}\n```"


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    TARGET.write_text(reference())
