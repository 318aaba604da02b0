"""Connects to a Ray cluster that runs, or says within ten seconds why there is none.

Ray itself tries for minutes, and its C++ parts write what they meet on stderr. So whoever listens
is asked first, by the question that Ray's own parts begin with. One of the helpers of
`sweeps.launch` that import Ray.
"""

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from typing import Any, TypeVar

import grpc
import ray
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import (  # type: ignore[attr-defined]
    gcs_pb2,
    gcs_service_pb2,
    gcs_service_pb2_grpc,
    ray_client_pb2,
    ray_client_pb2_grpc,
)
from ray.exceptions import AuthenticationError
from ray.job_config import JobConfig

import sweeps
import thesis
from sweeps.errors import SweepError
from sweeps.resources import ADDRESS_HINT, CLIENT
from thesis.errors import first_line

T = TypeVar("T")

_ANSWER_SECONDS = 4.0
"""How long a cluster may take to answer one question."""

_ASK_SECONDS = 6.0
"""How long all questions may take, and finding out by a host's name where it is."""

_CLIENT_ATTEMPTS = 3

_PACKAGES = [path for package in (sweeps, thesis) for path in package.__path__]

_TOKEN_HINT = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's"


def connect(address: str, *, ship: bool = False) -> None:
    """Connects to a running cluster.

    Args:
      address: 'auto', host:port of its head, or ray://host:port of its client server.
      ship: Send this project's code along.

    Raises:
      SweepError: None answers at the address, or not to us; or no node of it is on this machine,
        which all but clients need.
    """
    client = address.startswith(CLIENT)
    try:
        _within(_ASK_SECONDS, lambda: _ask_client_server(address) if client else _ask_head(address))
        # A client's own server, which is forked for it, is stillborn now and then.
        _trying(_CLIENT_ATTEMPTS if client else 1, lambda: _init(address, ship))
    except Late:
        raise _nobody(address, f"no answer within {_ASK_SECONDS:g} s") from None
    except AuthenticationError as error:
        raise _nobody(address, error.message, _TOKEN_HINT) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise _nobody(address, first_line(error)) from error


def _nobody(address: str, why: str, hint: str = ADDRESS_HINT) -> SweepError:
    return SweepError(f"no Ray cluster at '{address}': {why}", hint=hint)


def _init(address: str, ship: bool) -> None:
    # A client has no path of its own: its server's folders are looked into.
    own: dict[str, Any] = {} if address.startswith(CLIENT) else {"job_config": job_config()}
    ray.init(
        address=address,
        runtime_env={"py_modules": _PACKAGES} if ship else None,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        **own,
    )


def _trying(times: int, action: Callable[[], None]) -> None:
    for _ in range(times - 1):
        with contextlib.suppress(ConnectionError):
            return action()
    return action()


def _within(seconds: float, action: Callable[[], T]) -> T:
    """Returns what an action returns, or raises `Late`; the action may then go on for ever."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(timeout=seconds)


def _ask_client_server(address: str) -> None:
    host_and_port = address.removeprefix(CLIENT)
    _listens(host_and_port)
    ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
    with _channel(host_and_port) as channel:
        _answer(ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo, ping)


def _ask_head(address: str) -> None:
    head = services.canonicalize_bootstrap_address(address)
    if head is None:
        raise ConnectionError("none runs on this machine")
    _listens(head)
    with _channel(head) as channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        _answer(stub.CheckAlive, gcs_service_pb2.CheckAliveRequest())
        until = time.monotonic() + _ANSWER_SECONDS / 2  # one may have been started just now
        while not _is_here(stub):
            if time.monotonic() > until:
                raise ConnectionError("no node of it is on this machine; ray:// needs none")
            time.sleep(0.2)


def _is_here(stub: gcs_service_pb2_grpc.NodeInfoGcsServiceStub) -> bool:
    """Whether a node of this cluster is on this machine."""
    here = services.find_node_ids()  # type: ignore[no-untyped-call]
    nodes = _answer(stub.GetAllNodeInfo, gcs_service_pb2.GetAllNodeInfoRequest()).node_info_list
    alive = (node for node in nodes if node.state == gcs_pb2.GcsNodeInfo.ALIVE)
    return any(node.node_id.hex() in here for node in alive)


def _listens(host_and_port: str) -> None:
    host, _, port = host_and_port.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()


def _channel(host_and_port: str) -> grpc.Channel:
    return init_grpc_channel(host_and_port, options=[("grpc.enable_http_proxy", 0)])


def _answer(method: Callable[..., T], question: object) -> T:
    """Returns an answer, or raises ConnectionError or AuthenticationError."""
    try:
        return method(question, timeout=_ANSWER_SECONDS)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise AuthenticationError("it asks for a token") from None
        late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        what = "does not answer" if late else "is something else"
        raise ConnectionError(f"what listens there {what}") from None


def job_config() -> JobConfig:
    """Returns what has workers look for modules where this process does, and nowhere else.

    Ray puts the current folder in front of all, whether it is on our path or not. What is called
    `sweeps`, `ray` or `json` in the folder of a launch would then run in place of the real one.
    """
    config = JobConfig()
    config._py_driver_sys_path = _OwnPath()
    return config


class _OwnPath(list[str]):
    """Folders that workers look into: of those that Ray adds, the ones that are on our own path."""

    def extend(self, folders: Iterable[str]) -> None:
        ours = {os.path.realpath(folder or ".") for folder in sys.path}
        super().extend(folder for folder in folders if os.path.realpath(folder) in ours)
