"""Fuzzes what reads other people's files, guided by coverage: python -m tests.fuzz --seconds 900.

Each module beside this one is a target: `check` takes bytes, and raises for what is neither read
nor refused in words to a user; `SEEDS` are files to begin with. atheris mutates them, watches which
lines of ours they reach, and stops at the first one that raises.
"""

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TARGETS = sorted(
    path.stem
    for path in Path(__file__).parent.glob("[a-z]*.py")
    if not path.stem.startswith("test")
)

INSTRUMENTED = ["sweeps", "thesis", "gin"]


@dataclass(frozen=True)
class Outcome:
    """What became of a target: inputs that it was given, seconds, and what it raised, if it did."""

    target: str
    inputs: int
    seconds: int
    raised: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzzes targets, so many at a time, and prints a table; returns 1 if any raised."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=900, help="of each target; default: 900")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time; default: 2")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.alone:
        _fuzz(options.alone, options.seconds)
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(
            pool.map(lambda name: _watched(name, options.seconds), options.targets or TARGETS)
        )
    print(f"{'target':<16} {'inputs':>12} {'seconds':>8}  raised")
    for outcome in outcomes:
        print(
            f"{outcome.target:<16} {outcome.inputs:>12,} {outcome.seconds:>8}  "
            f"{outcome.raised or 'nothing'}"
        )
    return int(any(outcome.raised for outcome in outcomes))


def _watched(target: str, seconds: int) -> Outcome:
    """Fuzzes a target in a process of its own, which a crash or a lack of memory may end."""
    command = [sys.executable, "-m", "tests.fuzz", "--alone", target, "--seconds", str(seconds)]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    found = {key: int(n) for key, n in re.findall(r"stat::(\w+):\s+(\d+)", ran.stderr)}
    took = re.search(r"in (\d+) second", ran.stderr)
    raised = ""
    if ran.returncode or "number_of_executed_units" not in found:
        log = Path(tempfile.gettempdir()) / f"fuzz-{target}.log"
        log.write_text(ran.stdout + ran.stderr)
        lines = [
            line for line in ran.stderr.splitlines() if re.match(r"\w+(\.\w+)*(Error|:)", line)
        ]
        raised = f"{(lines or ['no word'])[0][:100]} (status {ran.returncode}, {log})"
    print(f"{target}: {raised or 'done'}", file=sys.stderr, flush=True)
    inputs = found.get("number_of_executed_units", 0)
    return Outcome(target, inputs, int(took[1]) if took else 0, raised)


def _fuzz(target: str, seconds: int) -> None:
    """Fuzzes a target, and ends the process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        module = importlib.import_module(f"tests.fuzz.{target}")
    corpus = Path(tempfile.mkdtemp(prefix=f"fuzz-{target}-"))
    for number, seed in enumerate(module.SEEDS):
        (corpus / str(number)).write_bytes(seed)
    longest = max(map(len, module.SEEDS))
    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            f"-max_total_time={seconds}",
            f"-max_len={2 * longest + 64}",
            "-len_control=0",
            "-timeout=60",
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
            f"-artifact_prefix={corpus}-",
        ],
        module.check,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
