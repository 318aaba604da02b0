"""What a launch may ask of machines: checked before anything is started, without Ray."""

import math
import os
import re

from sweeps.errors import SweepError

LEAST = 0.01
"""Smallest share of a CPU or GPU that a trial may ask for. Ray counts in ten-thousandths."""

CLIENT = "ray://"
"""Addresses of Ray client servers begin so."""

_ADDRESS = re.compile(rf"(?:{CLIENT})?(?P<host>[^\s/@?#]+):(?P<port>\d{{1,5}})", re.ASCII)
ADDRESS_HINT = (
    "give host:port of its head, ray://host:port of its client server, or 'auto' on one of its "
    "machines"
)


def check_resources(
    cpus_per_trial: float,
    gpus_per_trial: float,
    max_concurrent: int | None,
    address: str | None,
    *,
    cpus: int | None,
) -> None:
    """Returns if what a launch asks for makes sense.

    Args:
      cpus_per_trial: CPUs that a trial claims, from 0.01. Fractions are fine.
      gpus_per_trial: GPUs that it claims: none, a share of one from 0.01, or whole ones.
      max_concurrent: Trials at a time at the most, 1 or more; None is no limit.
      address: Of a Ray cluster; None is a cluster of this machine, or one that the caller is in.
      cpus: Of this machine, if all trials run on it; None for a cluster, which is asked later.

    Raises:
      SweepError: It does not.
    """
    if (address := resolved(address)) is not None:
        _check_address(address)
    if not LEAST <= cpus_per_trial < math.inf:
        raise SweepError(
            f"a trial cannot ask for {cpus_per_trial:g} CPUs",
            hint=f"--cpus-per-trial is a number from {LEAST:g}; by default it is 1",
        )
    share = LEAST <= gpus_per_trial <= 1
    whole = 0 <= gpus_per_trial < math.inf and gpus_per_trial == int(gpus_per_trial)
    if not (share or whole):
        raise SweepError(
            f"a trial cannot ask for {gpus_per_trial:g} GPUs",
            hint=f"--gpus-per-trial is 0, a share of one from {LEAST:g}, or a whole number",
        )
    if max_concurrent is not None and max_concurrent < 1:
        raise SweepError(
            f"no trial runs where {max_concurrent} may run at a time",
            hint="--max-concurrent is 1 or more",
        )
    if cpus is not None and cpus_per_trial > cpus:
        raise too_large("CPU", cpus_per_trial, "this machine", cpus)


def too_large(kind: str, asked: float, where: str, there: float) -> SweepError:
    """Returns the error of a trial that fits nowhere."""
    return SweepError(
        f"a trial asks for {asked:g} {kind}s, {where} has {there:g}",
        hint=f"lower the {kind}s of a trial",
    )


def resolved(address: str | None) -> str | None:
    """Returns an address as Ray takes it: 'auto' means what RAY_ADDRESS says, where it is set."""
    return (os.environ.get("RAY_ADDRESS") or address) if address == "auto" else address


def cpus_here() -> int:
    """Returns how many CPUs this process may use: those of a cluster of this machine alone."""
    return len(os.sched_getaffinity(0))


def _check_address(address: str) -> None:
    found = _ADDRESS.fullmatch(address)
    if address != "auto" and not (found and 0 < int(found["port"]) < 2**16):
        raise SweepError(f"'{address}' is no address of a Ray cluster", hint=ADDRESS_HINT)
