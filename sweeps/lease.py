"""A lease on a sweep: one launch of it at a time, wherever its drivers run.

The lease is a file beside the records. Its holder counts it up while it lives; whoever wants it
watches it for `EXPIRY_SECONDS` and takes it over if nothing moves. Only elapsed time on one machine
is looked at, so no two clocks need to agree, and one that is set back does no harm.

Object stores can neither write nor remove a file only if it is still the one that was read, so two
takers may both succeed for a moment. The one whose name stays keeps the lease; the other finds out
within `RENEWAL_SECONDS`. Until then some work is done twice, and recorded once: that is the
ledger's promise, whoever drives.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from sweeps.errors import LedgerError, SweepError
from sweeps.storage import Location
from thesis.typed_json import fields_of, parse_object

RENEWAL_SECONDS = 5.0
"""Time between two renewals by the holder."""

EXPIRY_SECONDS = 30.0
"""A lease that was not renewed for so long belongs to nobody: five renewals have failed."""

_POLL_SECONDS = 0.5

_held_here: set[str] = set()
"""Holders that this process is."""


def _machine() -> str:
    """Returns what tells this machine, or container, since it was started, from others."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{platform.node()}/{boot}"


def _started(pid: int) -> str:
    """Returns when the machine started a process, in its ticks; '' for one that is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


@dataclass(frozen=True)
class _Lease:
    """What the file holds.

    Attributes:
      holder: Names the holder among all that ever were.
      host: The host's name, for messages.
      machine: See `_machine`.
      pid: The holder's process there.
      started: See `_started`; process ids are used again.
      renewals: Counted up while the holder lives.
    """

    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    host: str = field(default_factory=platform.node)
    machine: str = field(default_factory=_machine)
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: _started(os.getpid()))
    renewals: int = 0

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "_Lease":
        values = fields_of(cls, parse_object(data))
        if missing := [f.name for f in fields(cls) if f.name not in values]:
            raise ValueError(f"'{missing[0]}' is missing")  # this process's own would stand in
        return cls(**values)

    @property
    def alive(self) -> bool | None:
        """Whether the holder lives; None where this cannot be seen from here."""
        if self.machine != _machine():
            return None
        here = self.pid == os.getpid() and self.holder not in _held_here
        return not here and _started(self.pid) == self.started


@contextmanager
def leased(
    location: Location,
    sweep: str,
    *,
    waiting: Callable[[str], None] = lambda line: None,
) -> Iterator[Callable[[], SweepError | None]]:
    """Holds the lease on a sweep while the block runs.

    Args:
      location: The storage that the sweep is kept in.
      sweep: Name of the sweep.
      waiting: Is told, in a line, that and for whom the lease is watched.

    Yields:
      What tells, when called, that the lease has gone to another launch; None while it has not.

    Raises:
      SweepError: Another launch holds the lease and is alive.
      LedgerError: The storage cannot be used.
    """
    name, mine = f"{sweep}/lease.json", _Lease()
    _held_here.add(mine.holder)
    try:
        _acquire(location, name, sweep, mine, waiting)
        ended, errors = threading.Event(), list[SweepError]()
        arguments = (location, name, sweep, mine, ended, errors.append)
        keeper = threading.Thread(target=_keep, args=arguments, daemon=True)
        keeper.start()
        try:
            yield lambda: errors[0] if errors else None
        finally:
            ended.set()
            keeper.join()
            with contextlib.suppress(LedgerError):  # it expires
                if _holder(location, name) == mine.holder:
                    location.delete(name)
    finally:
        _held_here.discard(mine.holder)


class LeaseWatch:
    """Tells from any machine which host a sweep is launched on."""

    def __init__(self, location: Location, sweep: str) -> None:
        """Watches the lease on a sweep."""
        self._location = location
        self._name = f"{sweep}/lease.json"
        self._seen: _Lease | None = None
        self._seen_at = time.monotonic()

    def host(self) -> str:
        """Returns the host whose launch holds the lease; '' where there is none, or it is dead.

        Raises:
          LedgerError: The storage cannot be read.
        """
        lease = _read(self._location, self._name)
        if lease != self._seen:
            self._seen, self._seen_at = lease, time.monotonic()
        expired = time.monotonic() - self._seen_at >= EXPIRY_SECONDS
        return "" if lease is None or lease.alive is False or expired else lease.host


def _acquire(
    location: Location, name: str, sweep: str, mine: _Lease, waiting: Callable[[str], None]
) -> None:
    while not location.put(name, mine.to_json()):
        other = _read(location, name)
        if other is None:
            continue  # given back meanwhile
        if other.alive:
            raise _refused(sweep, other)
        if other.alive is None:
            waiting(f"'{sweep}' was launched on {other.host}: looking if that launch is alive")
            if not _expires(location, name, sweep, other):
                continue
        location.put(name, mine.to_json(), replace=True)
        time.sleep(2 * _POLL_SECONDS)  # for others who saw it expire at the same time
        if _holder(location, name) == mine.holder:
            return


def _expires(location: Location, name: str, sweep: str, seen: _Lease) -> bool:
    """Waits until a lease has expired (True) or is given back (False).

    Raises:
      SweepError: It is renewed: its holder is alive.
    """
    began = time.monotonic()
    while time.monotonic() - began < EXPIRY_SECONDS:
        time.sleep(_POLL_SECONDS)
        now = _read(location, name)
        if now is None:
            return False
        if now != seen:
            raise _refused(sweep, now)
    return True


def _refused(sweep: str, other: _Lease) -> SweepError:
    return SweepError(
        f"sweep '{sweep}' is being launched already, by process {other.pid} of {other.host}",
        hint=f"'sweeps status {sweep}' shows how far it is",
    )


def _keep(
    location: Location,
    name: str,
    sweep: str,
    mine: _Lease,
    ended: threading.Event,
    lost: Callable[[SweepError], None],
) -> None:
    """Renews a lease until it ends or is lost. Storage that fails meanwhile is asked again."""
    while not ended.wait(RENEWAL_SECONDS):
        with contextlib.suppress(LedgerError):
            holder = _read(location, name)
            if holder is not None and holder.holder != mine.holder:
                lost(
                    SweepError(
                        f"sweep '{sweep}' was taken over by a launch on {holder.host}",
                        hint="this one was not heard of for too long; the other one continues it",
                    )
                )
                return
            mine = replace(mine, renewals=mine.renewals + 1)
            location.put(name, mine.to_json(), replace=True)


def _holder(location: Location, name: str) -> str:
    lease = _read(location, name)
    return lease.holder if lease else ""


def _read(location: Location, name: str) -> _Lease | None:
    """Returns the lease; None where nobody holds it."""
    try:
        return location.load(
            name,
            _Lease.from_json,
            hint="if no launch of this sweep is running, delete it",
        )
    except FileNotFoundError:
        return None
