import socket
import threading
from concurrent import futures

import grpc
import pytest

from sweeps import connection
from sweeps.connection import connect
from sweeps.errors import SweepError


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(connection, "_ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(connection, "_ASK_SECONDS", 20.0)
    # 127.0.0.1 is 127.0.0.1; otherwise Ray makes an outward address of it.
    monkeypatch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)


@pytest.fixture(params=["", "ray://"], ids=["head", "client server"])
def scheme(request):
    return request.param


def refused(address, capfd):
    """The message; nothing else may have been said, by no library."""
    with pytest.raises(SweepError, match=f"no Ray cluster at '{address}': ") as caught:
        connect(address)
    assert "host:port" in caught.value.hint
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")
    return caught.value.message


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no.such.host:6379"])
def test_a_cluster_that_is_not_there_is_an_error_at_once(scheme, host, capfd):
    assert "[Errno" in refused(scheme + host, capfd)


def test_what_listens_and_never_answers_is_no_cluster(scheme, capfd):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        assert refused(address, capfd).endswith("does not answer")


def test_another_service_is_no_cluster(scheme, capfd):
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert refused(f"{scheme}127.0.0.1:{port}", capfd).endswith("is something else")
    finally:
        server.stop(None)


def test_a_host_name_that_takes_for_ever_is_not_waited_for(scheme, capfd, monkeypatch):
    monkeypatch.setattr(connection, "_ASK_SECONDS", 0.2)
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait(60) and [])
    try:
        assert "no answer within" in refused(f"{scheme}slow.example:6379", capfd)
    finally:
        ended.set()
