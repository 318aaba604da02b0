"""Sweeps as SLURM jobs: writes the script that `sbatch` takes. See docs/cluster.md."""

import math
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from sweeps.errors import SweepError
from sweeps.ledger import check_name
from sweeps.storage import check_no_credentials
from thesis.checked_files import TEXT_BYTES, read_bytes
from thesis.errors import printable
from thesis.files import written_file

DRAIN_SECONDS = 120
"""How long before its time limit a job begins to end. SLURM may be a minute early."""

JOIN_SECONDS = 300
"""How long a job waits for all of its nodes to join before it goes on with those that have."""

TRIAL_GB = 3.5
"""Memory of a trial that runs, see docs/concepts/sweep.md."""

NODE_GB = 2.0
"""What a node takes beside its trials: the driver, and the processes of Ray."""

_TEMPLATE = Path(__file__).with_suffix(".sh")

_TIME_LIMIT = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}", re.ASCII)
"""Minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes[:seconds]."""

_OPTION = re.compile(r"([a-z][a-z-]*)(=[^\s\"'#\\`]+)?", re.ASCII)
"""Without what SLURM takes for quotes or comments: a value is what it looks like."""

_MEMORY_OPTIONS = frozenset({"mem", "mem-per-cpu", "mem-per-gpu"})


@dataclass(frozen=True)
class SlurmJob:
    """A sweep as a SLURM job.

    Attributes:
      name: Name of the sweep.
      command: The launch as the words of a command; the script adds ` --address HOST:PORT`.
      folder: Where the command runs, on every node. Relative paths in it are relative to this.
      storage: What the environment variable SWEEPS_STORAGE shall be.
      nodes: Nodes to ask for.
      cpus_per_node: CPUs of each that the sweep may use.
      time_limit: As SLURM writes it, such as '8:00:00' or '2-12'; empty for the partition's own.
      memory_gb: Memory to ask for on each node, see `memory_of`; 0 asks for none. An option that
        asks for memory takes its place.
      options: More options for sbatch, without dashes: 'partition=long', 'exclusive'.
      setup: Shell commands that make `sweeps`, `ray` and `python` available, run on the first node;
        the others take over its environment.

    Raises:
      SweepError: A value that SLURM would not take.
      LedgerError: A storage that is given with a key.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    storage: str
    nodes: int
    cpus_per_node: int
    time_limit: str = ""
    memory_gb: int = 0
    options: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        for word in (self.storage, *self.command):  # the script is there for all to read
            check_no_credentials(word)
        for what, count in (("nodes", self.nodes), ("CPUs of a node", self.cpus_per_node)):
            if count < 1:
                raise SweepError(f"{count} {what}", hint="a job has 1 or more")
        for command in self.setup:
            _check_line("setup", command)
        if self.time_limit and not _TIME_LIMIT.fullmatch(self.time_limit):
            raise SweepError(
                f"'{self.time_limit}' is not a time limit",
                hint="write minutes, hours:minutes:seconds or days-hours, such as 8:00:00",
            )
        ours = {option.partition("=")[0] for option in self._own_options()}
        for option in self.options:
            match = _OPTION.fullmatch(option)
            if not match:
                raise SweepError(
                    f"'{option}' is not an option for sbatch",
                    hint="write it without dashes and quotes, such as partition=long or exclusive",
                )
            if match[1] in ours:
                raise SweepError(
                    f"the job's script has an option '{match[1]}' already",
                    hint="'sbatch --OPTION=VALUE SCRIPT' overrides what is in a script",
                )

    def _own_options(self) -> list[str]:
        asked = {option.partition("=")[0] for option in self.options}
        return [
            f"job-name=sweep-{self.name}",
            "output=%x-%j.log",
            "open-mode=append",  # when it is requeued
            f"nodes={self.nodes}",
            "ntasks-per-node=1",
            f"cpus-per-task={self.cpus_per_node}",
            *([f"mem={self.memory_gb}G"] if self.memory_gb and not asked & _MEMORY_OPTIONS else []),
            *([f"time={self.time_limit}"] if self.time_limit else []),
            f"signal=B:TERM@{DRAIN_SECONDS}",
            "requeue",
            "no-kill",  # the sweep goes on when it loses a node
            "dependency=singleton",  # one job at a time for a sweep
        ]

    def directives(self) -> str:
        """Returns the lines that SLURM reads."""
        return "\n".join(f"#SBATCH --{option}" for option in (*self._own_options(), *self.options))


def memory_of(
    cpus_per_node: int,
    cpus_per_trial: float,
    max_concurrent: int | None = None,
    gb_per_trial: float = TRIAL_GB,
) -> int:
    """Returns the memory that a node needs for as many trials as run there at a time, in GB.

    Args:
      cpus_per_node: CPUs of the node that the sweep may use.
      cpus_per_trial: CPUs that a trial asks for, no more than those; 0 counts as 1.
      max_concurrent: Trials at a time at the most, on all nodes together.
      gb_per_trial: Memory of a trial.
    """
    trials = math.floor(cpus_per_node / (cpus_per_trial if cpus_per_trial > 0 else 1.0))
    return math.ceil(min(trials, max_concurrent or trials) * gb_per_trial + NODE_GB)


def sbatch_script(job: SlurmJob, *, script: str) -> str:
    """Returns a script for `sbatch`, complete in itself.

    It starts a Ray head on the job's first node and workers on the others, waits until they have
    joined, runs the job's command on the first node, and takes everything down again however it
    ends.

    Args:
      job: What to run, and on what.
      script: Name of the script's file, for its comments.

    Raises:
      SweepError: The name has line breaks or the like: a comment would end there.
    """
    _check_line("script", script)
    values = {
        "NAME": job.name,
        "SCRIPT": shlex.quote(script),
        "SBATCH": job.directives(),
        "FOLDER": shlex.quote(str(job.folder)),
        "SETUP": "\n".join(job.setup),
        "STORAGE": shlex.quote(job.storage),
        "WAIT_SECONDS": str(JOIN_SECONDS),
        "COMMAND": shlex.join(job.command),
    }
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], _TEMPLATE.read_text())


_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")


def _check_line(what: str, text: str) -> None:
    """Raises SweepError for what is no single line that can be read."""
    if _CONTROL.search(text):
        raise SweepError(
            f"the {what} '{printable(text)}' holds a line break or another control character",
            hint="a job's script has it in a line of its own",
        )


def write_script(path: Path, text: str) -> None:
    """Writes a script; does nothing where it is there already.

    Raises:
      SweepError: Another file has this name, or the script cannot be written.
    """
    content = text.encode(errors="surrogateescape")  # names of folders may be no text
    if path.is_file() and read_bytes(path, TEXT_BYTES, SweepError) == content:
        return
    if os.path.lexists(path):
        raise SweepError(
            f"'{path}' is there already, and differs", hint="choose another name, or remove it"
        )
    with written_file(path, SweepError) as temporary:
        temporary.write_bytes(content)
