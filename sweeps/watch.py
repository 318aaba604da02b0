"""Whether the Ray cluster of a launch is there: its head, and the node that the driver is on.

Ray itself waits a minute for a head that has gone, and then aborts the driver. Without its own node
a driver waits for ever: its workers "die", and it asks a node for others that is not there.
"""

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from sweeps.errors import SweepError

HEAD_SECONDS = 15.0
"""How long a head may be away that somebody else has started, as it may be started anew; and how
long a part of an own cluster may be stopped."""

RECONNECT_VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's own patience with a head, in seconds. Where it is set, ours follows it, and ends before."""

GRACE_SECONDS = 10.0
"""How long a launch without a cluster may take to end in order: what it waits for may not come."""

SILENCE_SECONDS = 15.0
"""How long a launch on a cluster may not answer."""

CONNECT_SECONDS = 20.0
"""How long it may take to connect to a cluster whose head has answered."""

DISCONNECT_SECONDS = 18.0
"""How long it may take to let go of a cluster, or to stop one."""

_LOOK_SECONDS = 1.0

HINT = "launch again to continue; what was finished is on record"
_NODE_GONE = "the Ray node that this launch is on is gone"
_HEAD_GONE = "the head of the Ray cluster is gone"
_SILENT = "the launch on the Ray cluster does not answer"
CLIENT_SERVER_GONE = "the client server of the Ray cluster is gone"


class Look:
    """What looks at a cluster."""

    def __call__(self) -> str:
        """Returns what is gone, in a line; '' while all is there."""
        return ""

    def close(self) -> None:
        """Lets go of what it looks through."""


class Watch:
    """Looks after a cluster in a thread, from `begin` on.

    Where the launch waits for a cluster that is gone, and cannot be interrupted, this ends it.
    """

    def __init__(self) -> None:
        """Makes one that watches nothing yet."""
        self._closing, self._ended = threading.Event(), threading.Event()
        self._look = Look()
        self._looking = threading.Lock()
        self._error: SweepError | None = None
        self._asked = math.inf

    def begin(self, look: Look, give_up: Callable[[SweepError], None] | None) -> None:
        """Looks every second from now on.

        Args:
          look: What to look with.
          give_up: Ends this process, where it did not let go of the cluster in time; None where
            it is not ours to end.
        """
        self._look = look
        threading.Thread(target=self._run, args=(give_up,), daemon=True).start()

    def error(self) -> SweepError | None:
        """Returns what ends a launch on this cluster; None while it can go on."""
        return self._error

    def look(self) -> SweepError | None:
        """Looks now; see `error`."""
        with self._looking:
            if self._error is None and not self._closing.is_set():
                silent = time.monotonic() - self._asked > SILENCE_SECONDS
                if gone := self._look() or (_SILENT if silent else ""):
                    self._error = SweepError(gone, hint=HINT)
        return self._error

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Counts the cluster as gone if the block, which asks it for something, takes too long."""
        self._asked = time.monotonic()
        try:
            yield
        finally:
            self._asked = math.inf

    def close(self) -> None:
        """The launch lets go of the cluster: what goes away from now on is no matter."""
        with self._looking:
            self._closing.set()
            self._look.close()

    def end(self) -> None:
        """It has let go of it."""
        self.close()
        self._ended.set()

    def _run(self, give_up: Callable[[SweepError], None] | None) -> None:
        while not self.look() and not self._closing.wait(_LOOK_SECONDS):
            pass
        seconds = GRACE_SECONDS if self._error else DISCONNECT_SECONDS
        if not self._ended.wait(seconds) and give_up:
            late = SweepError("the Ray cluster could not be let go of", hint=HINT)
            give_up(self._error or late)


class OwnCluster(Look):
    """Looks at a cluster that this process has started, or is about to: its children."""

    _PARTS: ClassVar = {"raylet": _NODE_GONE, "gcs_server": _HEAD_GONE}

    def __init__(self) -> None:
        self._seen: dict[int, str] = {}
        self._ran: dict[int, float] = {}

    def __call__(self) -> str:
        """See `Look`."""
        alive, now = set(), time.monotonic()
        for pid, name, state in _children():
            if name in self._PARTS:
                self._seen[pid] = name
                if state not in _STOPPED:
                    self._ran[pid] = now
                # One that was stopped may go on; nothing in Ray misses it.
                if state not in _DEAD and now - self._ran.setdefault(pid, now) < HEAD_SECONDS:
                    alive.add(pid)
        return next((self._PARTS[self._seen[pid]] for pid in self._seen.keys() - alive), "")


_DEAD, _STOPPED = "ZX", "Tt"
"""States of a process, as the kernel writes them."""


def _children() -> Iterator[tuple[int, str, str]]:
    """Yields this process's children: id, name and state; a dead one may be left."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            before, _, after = (process / "stat").read_text().rpartition(")")
            state, parent, *_ = after.split()
            if int(parent) == os.getpid():
                yield int(process.name), before.partition("(")[2], state


class ClientServer(Look):
    """Looks at the server through which this process is a client of a cluster."""

    def __init__(self, address: str) -> None:
        """Looks at the server at host:port."""
        self._server = _Port(address, HEAD_SECONDS)

    def __call__(self) -> str:
        """See `Look`."""
        return "" if self._server.is_there() else CLIENT_SERVER_GONE


class OtherCluster(Look):
    """Looks at a cluster that somebody else has started."""

    def __init__(self) -> None:
        """Begins while this process is about to connect."""
        self._until = time.monotonic() + CONNECT_SECONDS
        self._parts: tuple[_Node, _Port] | None = None

    def connected(self, node: str, head: str) -> None:
        """Looks at the cluster's parts from now on.

        Args:
          node: Socket of the driver's own node (its raylet) in the file system.
          head: host:port of the cluster's head (its GCS).
        """
        theirs = os.environ.get(RECONNECT_VARIABLE)
        seconds = 0.75 * float(theirs) if theirs else HEAD_SECONDS
        self._parts = _Node(node), _Port(head, seconds)

    def __call__(self) -> str:
        """See `Look`."""
        if self._parts is None:
            late = time.monotonic() > self._until
            return "the Ray cluster does not let this launch connect" if late else ""
        node, head = self._parts
        if not node.is_there():
            return _NODE_GONE
        return "" if head.is_there() else _HEAD_GONE

    def close(self) -> None:
        """See `Look`."""
        if self._parts is not None:
            self._parts[0].close()


class _Node:
    """A node, told by a connection that the kernel closes when it dies, however it does."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: socket.socket | None = None

    def is_there(self) -> bool:
        if self._connection is not None:
            try:
                self._connection.recv(1)
            except BlockingIOError:
                return True
            except OSError:
                pass
            self.close()
        self._connection = self._connected()
        return self._connection is not None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            return None
        connection.setblocking(False)
        return connection


class _Port:
    """A server, told by its port. One that has gone may come back for so many seconds."""

    def __init__(self, address: str, seconds: float) -> None:
        host, _, port = address.rpartition(":")
        self._place = (host.strip("[]"), int(port))
        self._seen = time.monotonic()
        self._seconds = seconds

    def is_there(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(self._place, timeout=2 * _LOOK_SECONDS).close()
            self._seen = time.monotonic()
        return time.monotonic() - self._seen < self._seconds
