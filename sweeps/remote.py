"""Launches from afar: through a Ray client (`ray://`), the driver itself runs on the cluster.

Ray Tune's driver talks to its workers all the time, so it should be near them, and a laptop that
goes to sleep should not hold the trials up. What crosses the network is what happens, twice a
second, and what the user wants. Where the client is gone for good, Ray ends the driver; the next
launch continues. One of the helpers of `sweeps.launch` that import Ray.
"""

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from sweeps.driver import Wishes
from sweeps.errors import SweepError
from sweeps.progress import Event, Listener
from sweeps.watch import CLIENT_SERVER_GONE, HINT, Watch

Report = TypeVar("Report")

_POLL_SECONDS = 0.5


class _Launcher:
    """Launches, in a process of the cluster; its other thread answers meanwhile."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._wishes = Wishes()

    def launch(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        return function(**arguments, on_event=self._events.append, wishes=self._wishes)

    def events(self, wishes: Wishes) -> list[Event]:
        """Passes on the user's wishes, and returns what has happened since the last call."""
        self._wishes.draining, self._wishes.stopping = wishes.draining, wishes.stopping
        return [self._events.popleft() for _ in range(len(self._events))]


def launch_there(
    function: Callable[..., Report],
    *,
    on_event: Listener,
    wishes: Wishes,
    watch: Watch,
    **arguments: Any,
) -> Report:
    """Calls `launch` on the cluster that this process is connected to, and listens to it.

    Raises:
      UserError: What `launch` has raised.
      SweepError: The driver there has died, or could not be started; or the cluster is gone.
    """
    launcher: Any = None
    try:
        launcher = ray.remote(_Launcher).options(num_cpus=0, max_concurrency=2).remote()
        running = launcher.launch.remote(function, arguments)
        ended: list[Any] = []
        events = ray.get(launcher.events.remote(wishes))  # takes as long as it takes to start
        while True:
            for event in events:
                on_event(event)
            if ended:
                break
            if gone := watch.error():
                raise gone
            with watch.asking():
                ended, _ = ray.wait([running], timeout=_POLL_SECONDS)
                events = ray.get(launcher.events.remote(wishes))
        return cast(Report, ray.get(running))
    except RayTaskError as error:
        raise error.cause from error
    except (RayActorError, OutOfMemoryError) as error:
        said = str(error).strip()
        killed = isinstance(error, OutOfMemoryError)
        cause = said.partition("\n")[0] if killed else said.rpartition("\n")[2]
        raise SweepError(
            f"the launch on the cluster has gone: {cause}",
            hint="launch again to continue, what was finished is on record; the cluster's nodes "
            "need this project, or --ship",
        ) from error
    except ConnectionError as error:
        raise watch.error() or SweepError(CLIENT_SERVER_GONE, hint=HINT) from error
    finally:
        if watch.error() is None:
            with contextlib.suppress(Exception):
                ray.kill(launcher)
