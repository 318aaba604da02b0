"""The Ray cluster that a sweep runs on: the one that there is, or one of this machine alone."""

import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from sweeps.errors import SweepError
from sweeps.reaper import reaping

_OBJECT_STORE_BYTES = 128 * 2**20
"""Ray's shared memory on this machine. What is sent are small records and models of some KB."""


class Slots:
    """How many trials may run at a time. Nodes may come and go."""

    _FRESH_SECONDS = 5.0

    def __init__(self, cpus_per_trial: float, most: int | None) -> None:
        self._cpus = cpus_per_trial
        self._most = most
        self._count = 0
        self._counted_at = -math.inf

    def count(self) -> int:
        """Returns the trials that fit on the nodes that are alive, within the user's limit."""
        if time.monotonic() - self._counted_at > self._FRESH_SECONDS:
            self._count = sum(int(cpus / self._cpus) for cpus in cpus_of_nodes())
            self._counted_at = time.monotonic()
        return self._count if self._most is None else min(self._count, self._most)


def cpus_of_nodes() -> list[float]:
    """Returns the CPUs of each node that is alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]]


def check_fits(cpus_per_trial: float) -> None:
    """Raises SweepError where no node has so many CPUs."""
    most = max(cpus_of_nodes(), default=0.0)
    if cpus_per_trial > most:
        raise SweepError(
            f"a trial asks for {cpus_per_trial:g} CPUs, the largest node has {most:g}",
            hint="lower the CPUs of a trial",
        )


_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Nothing of Tune's own state is worth saving.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    # The driver itself holds back what no slot is free for.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
}


@contextmanager
def cluster(address: str | None, folder: Path) -> Iterator[None]:
    """Connects to a Ray cluster, or starts one here; leaves the one that the caller is in.

    Args:
      address: Of a running cluster; None for one here.
      folder: Where one here keeps its sessions, and nobody else anything.

    Raises:
      SweepError: There is no cluster at the address.
    """
    with ExitStack() as stack:
        stack.enter_context(_environment(_QUIET))
        stack.enter_context(_quiet_logs())
        if not ray.is_initialized():
            stack.enter_context(reaping(folder if address is None else None))
            stack.callback(ray.shutdown)
            if address is None:
                _start_here(folder)
            else:
                connect(address)
        yield


def connect(address: str) -> None:
    """Connects to a running cluster, or raises SweepError."""
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for two minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        raise SweepError(
            f"no Ray cluster at '{address}'",
            hint="give host:port of its head, or 'auto' on one of its machines; "
            "if it asks for a token, set RAY_AUTH_MODE=token",
        ) from error


def _start_here(folder: Path) -> None:
    """Starts a cluster on this machine, which listens to this machine only."""
    with _loopback_only():
        ray.init(
            address="local",  # whatever RAY_ADDRESS says
            num_cpus=len(os.sched_getaffinity(0)),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
        )


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Has Ray use 127.0.0.1; asked for it by argument, it takes an outward address all the same."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet_logs() -> Iterator[None]:
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
