"""Sweeps as SLURM jobs: writes the script that `sbatch` takes. See docs/cluster.md."""

import re
import shlex
import uuid
from dataclasses import dataclass
from pathlib import Path

from sweeps.errors import SweepError
from sweeps.ledger import check_name
from sweeps.storage import check_no_credentials

DRAIN_SECONDS = 120
"""How long before its time limit a job begins to end. SLURM may be a minute early."""

JOIN_SECONDS = 300
"""How long a job waits for all of its nodes to join before it goes on with those that have."""

_TEMPLATE = Path(__file__).with_suffix(".sh")

_TIME_LIMIT = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")
"""Minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes[:seconds]."""

_OPTION = re.compile(r"([a-z][a-z-]*)(=\S+)?")


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
    options: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        for word in (self.storage, *self.command):  # the script is there for all to read
            check_no_credentials(word)
        for what, count in (("nodes", self.nodes), ("CPUs of a node", self.cpus_per_node)):
            if count < 1:
                raise SweepError(f"{count} {what}", hint="a job has 1 or more")
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
                    hint="write it without dashes, such as partition=long or exclusive",
                )
            if match[1] in ours:
                raise SweepError(
                    f"the job's script has an option '{match[1]}' already",
                    hint="'sbatch --OPTION=VALUE SCRIPT' overrides what is in a script",
                )

    def _own_options(self) -> list[str]:
        return [
            f"job-name=sweep-{self.name}",
            "output=%x-%j.log",
            "open-mode=append",  # when it is requeued
            f"nodes={self.nodes}",
            "ntasks-per-node=1",
            f"cpus-per-task={self.cpus_per_node}",
            *([f"time={self.time_limit}"] if self.time_limit else []),
            f"signal=B:TERM@{DRAIN_SECONDS}",
            "requeue",
            "no-kill",  # the sweep goes on when it loses a node
            "dependency=singleton",  # one job at a time for a sweep
        ]

    def directives(self) -> str:
        """Returns the lines that SLURM reads."""
        return "\n".join(f"#SBATCH --{option}" for option in (*self._own_options(), *self.options))


def sbatch_script(job: SlurmJob, *, script: str) -> str:
    """Returns a script for `sbatch`, complete in itself.

    It starts a Ray head on the job's first node and workers on the others, waits until they have
    joined, runs the job's command on the first node, and takes everything down again however it
    ends.

    Args:
      job: What to run, and on what.
      script: Name of the script's file, for its comments.
    """
    values = {
        "NAME": job.name,
        "SCRIPT": script,
        "SBATCH": job.directives(),
        "FOLDER": shlex.quote(str(job.folder)),
        "SETUP": "\n".join(job.setup),
        "STORAGE": shlex.quote(job.storage),
        "WAIT_SECONDS": str(JOIN_SECONDS),
        "COMMAND": shlex.join(job.command),
    }
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], _TEMPLATE.read_text())


def write_script(path: Path, text: str) -> None:
    """Writes a script; does nothing where it is there already.

    Raises:
      SweepError: Another file has this name, or the script cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        if path.exists():
            if path.read_text() == text:
                return
            raise SweepError(
                f"'{path}' is there already, and differs",
                hint="choose another name, or remove it",
            )
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise SweepError(
            f"cannot write '{path}': {error.strerror}", hint="choose a place that can be written to"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
