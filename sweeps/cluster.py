"""The Ray cluster that a sweep runs on: the one that there is, or one of this machine alone."""

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import auto_init_hook, ray_constants, worker
from ray.exceptions import NodeDiedError, RayError, TaskUnschedulableError, WorkerCrashedError
from ray.util.client import logsclient
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.connection import connect, job_config
from sweeps.errors import SweepError
from sweeps.reaper import reaping
from sweeps.resources import CLIENT, cpus_here, too_large
from sweeps.watch import ClientServer, OtherCluster, OwnCluster, Watch
from thesis.environ import SAFE_PATH, environment
from thesis.errors import first_line

_OBJECT_STORE_BYTES = 128 * 2**20
"""Ray's shared memory on this machine. What is sent are small records and models of some KB."""


class Slots:
    """How many trials may run at a time. Nodes may come and go."""

    _FRESH_SECONDS = 5.0

    def __init__(self, cpus_per_trial: float, gpus_per_trial: float, most: int | None) -> None:
        self._trial = {"CPU": cpus_per_trial, "GPU": gpus_per_trial}
        self._most = most
        self._count = 0
        self._counted_at = -math.inf

    def count(self) -> int:
        """Returns the trials that fit on the nodes that are alive, within the user's limit."""
        if time.monotonic() - self._counted_at > self._FRESH_SECONDS:
            self._count = sum(_fitting(self._trial, node["Resources"]) for node in _nodes())
            self._counted_at = time.monotonic()
        return self._count if self._most is None else min(self._count, self._most)


def check_fits(cpus_per_trial: float, gpus_per_trial: float) -> None:
    """Raises SweepError where no node has so many CPUs and GPUs."""
    for kind, asked in (("CPU", cpus_per_trial), ("GPU", gpus_per_trial)):
        most = max((node["Resources"].get(kind, 0.0) for node in _nodes()), default=0.0)
        if asked > most:
            raise too_large(kind, asked, "the largest node", most)


def check_nodes(see: Callable[[], str]) -> None:
    """Has every node look at what a trial will need there.

    Args:
      see: Runs on each node, at once; returns what is wrong there, in a line, or ''.

    Raises:
      SweepError: Something is wrong on a node.
    """

    @ray.remote(num_cpus=0, max_retries=0)
    def look() -> str:
        return see()

    answers = {}
    for node in _nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answers[look.options(scheduling_strategy=there).remote()] = node["NodeManagerHostname"]
    for answer, host in answers.items():
        try:
            wrong = ray.get(answer)
        except (NodeDiedError, WorkerCrashedError, TaskUnschedulableError):
            continue  # It is gone, or overloaded: no reason to keep the others waiting.
        except RayError as error:
            # What cannot even be loaded there: this project, in this version.
            wrong = str(error).strip().splitlines()[-1]
        if wrong:
            raise SweepError(
                f"node {host} cannot run trials: {wrong}",
                hint="a cluster's nodes need this project, the dataset's path and the storage in "
                "common; --ship sends code and dataset along",
            )


def alive_nodes() -> list[str]:
    """Returns the ids of the nodes that are alive."""
    return [node["NodeID"] for node in _nodes()]


def _nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def _fitting(trial: Mapping[str, float], node: Mapping[str, float]) -> int:
    return min(int(node.get(kind, 0.0) / asked) for kind, asked in trial.items() if asked)


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


_CLIENT_GRACE = "RAY_CLIENT_RECONNECT_GRACE_PERIOD"
_CLIENT_GRACE_SECONDS = "15"
"""How long a client may be away, or its server, before Ray ends what the client has begun."""


@contextmanager
def cluster(
    address: str | None, folder: Path, watch: Watch, *, ship: bool = False
) -> Iterator[str]:
    """Connects to a Ray cluster, or starts one here; leaves the one that the caller is in.

    Args:
      address: Of a running cluster; None for one here.
      folder: Of the launch, where one here keeps its sessions, and nobody else anything. A client
        has none.
      watch: Looks after it.
      ship: Send this project's code along.

    Yields:
      Where the dashboard of one here is; '' where there is none.

    Raises:
      SweepError: There is no cluster at the address.
    """
    url = ""
    with ExitStack() as stack:
        grace = os.environ.get(_CLIENT_GRACE, _CLIENT_GRACE_SECONDS)
        stack.enter_context(environment(**_QUIET, **{_CLIENT_GRACE: grace}))
        stack.enter_context(_quiet_logs())
        # Whatever asks Ray for something after a cluster is gone would start another one.
        stack.enter_context(changed(auto_init_hook, enable_auto_connect=False))
        stack.callback(watch.end)
        other: OtherCluster | None = None
        if ray.is_initialized():
            stack.callback(watch.close)
            if not _is_client():
                other = OtherCluster()
                watch.begin(other, None)
        else:
            is_client = address is not None and address.startswith(CLIENT)
            reap = stack.enter_context(reaping(None if is_client else folder))
            stack.callback(ray.shutdown)
            stack.callback(watch.close)
            with _kept_handler(signal.SIGTERM):
                if address is None:
                    watch.begin(OwnCluster(), partial(_give_up, reap))
                    url = _start_here(folder)
                elif address.startswith(CLIENT):
                    watch.begin(ClientServer(address.removeprefix(CLIENT)), partial(_give_up, reap))
                    connect(address, ship=ship)
                else:
                    other = OtherCluster()
                    watch.begin(other, partial(_give_up, reap))
                    connect(address, ship=ship)
        if other is not None:
            node: Any = worker.global_worker.node
            other.connected(node.raylet_socket_name, node.gcs_address)
        yield url


@contextmanager
def _kept_handler(number: signal.Signals) -> Iterator[None]:
    """Has a signal do after the block what it did before.

    Ray, once connected, leaves the process at SIGTERM, without a word and in the middle of things.
    """
    before = signal.getsignal(number)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, before)


def _is_client() -> bool:
    """Whether the driver is elsewhere: this process is a client of the cluster's client server."""
    return ray.is_initialized() and not worker.global_worker.connected


def _give_up(reap: Callable[[], None], error: SweepError) -> None:
    """Ends this process, which waits for a cluster that is gone and cannot be interrupted."""
    print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr, flush=True)
    reap()
    os._exit(1)


def _start_here(folder: Path) -> str:
    """Starts a cluster on this machine, which listens to this machine only.

    Its processes are killed in the end. What they have made for a while goes with their folder.
    """
    try:
        # It uses 127.0.0.1; asked for it by argument, it takes an outward address all the same.
        with (
            changed(ray_constants, ENABLE_RAY_CLUSTER=False),
            environment(**SAFE_PATH, TMPDIR=str(folder)),
        ):
            context = ray.init(
                address="local",  # whatever RAY_ADDRESS says
                num_cpus=cpus_here(),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=None,  # if it is installed
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                job_config=job_config(),
                _temp_dir=str(folder),
            )
    except Exception as error:  # Ray raises no less
        said = first_line(error)
        raise SweepError(
            f"Ray could not be started on this machine: {said}",
            hint="launch again; if that is no better, see if memory or disk space is short",
        ) from error
    return str(context.dashboard_url or "")


@contextmanager
def changed(part: Any, **values: Any) -> Iterator[None]:
    """Changes attributes of a part of Ray, where no option does, and changes them back."""
    before = {name: getattr(part, name) for name in values}
    try:
        for name, value in values.items():
            setattr(part, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(part, name, value)


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keeps Ray's own words from our user, whom the launch tells what matters of it."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            # It prints the state of a node that died, twenty lines, on stdout.
            changed(worker, print_to_stdstream=lambda *_, **__: None),
            changed(logsclient.logger, disabled=True),
        ):
            yield
    finally:
        logger.setLevel(level)
