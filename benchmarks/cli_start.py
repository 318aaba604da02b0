"""Start of the command line: `sweeps front` on a ledger of 1,000 records, in fresh processes.

The records are files as a sweep leaves them, one a trial; the front of the compacted ledger and
`sweeps --help` are timed too. The reference is `import tensorflow, ray`: what every command would
pay if it imported what it does not need. All commands run in turn, with warm file caches.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import _harness as harness
from benchmarks._records import synthetic_ledger, synthetic_trials
from sweeps.tables import print_table

NAME = "cli_start"
RECORDS = 1000

_SWEEPS = "import sys; from sweeps.cli import main; sys.exit(main())"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    quick = harness.is_quick(NAME, __doc__, arguments)
    with harness.scratch_folder() as folder:
        harness.say(f"writing {RECORDS} records, twice")
        single, merged = (_write(folder / name) for name in ("single", "merged"))
        synthetic_ledger(merged).compact()
        commands = {
            "sweeps front, 1,000 files": _command(_SWEEPS, "front", *_at(single)),
            "sweeps front, compacted": _command(_SWEEPS, "front", *_at(merged)),
            "sweeps --help": _command(_SWEEPS, "--help"),
            "import tensorflow, ray": _command("import tensorflow, ray"),
        }
        for command in commands.values():
            command()
        wall = harness.interleaved([*commands.values()], 3 if quick else 15).wall
    seconds = [harness.floor_interval(column) for column in wall.T]
    print_table(
        ["command", "s [95%]"],
        [[name, str(interval)] for name, interval in zip(commands, seconds, strict=True)],
    )
    details = dict(zip(commands, seconds, strict=True))
    reference = f"python -c 'import tensorflow, ray': {seconds[-1].value:.1f} s"
    result = harness.Result(NAME, seconds[0].value, "s", "lower", reference, details)
    harness.emit(result, quick=quick)


def _write(storage: Path) -> Path:
    ledger = synthetic_ledger(storage)
    for trial in synthetic_trials(RECORDS):
        ledger.append(trial)
    return storage


def _at(storage: Path) -> tuple[str, str, str]:
    return synthetic_ledger(storage).name, "--storage", str(storage)


def _command(code: str, *arguments: str) -> Callable[[], object]:
    command = [sys.executable, "-c", code, *arguments]
    return partial(subprocess.run, command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
