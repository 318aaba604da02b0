"""What runs in a worker: one attempt after another, in a process that imports TensorFlow once.

One of the helpers of `sweeps.launch` that import Ray.
"""

import contextlib
import math
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import ray
from ray import tune
from ray.exceptions import OutOfMemoryError, RayActorError, TaskUnschedulableError
from ray.tune import PlacementGroupFactory
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.attempt import Shared, evaluate_and_record, load
from sweeps.cluster import alive_nodes
from sweeps.errors import LedgerError
from sweeps.meter import MAX_DRIFT, Meter
from sweeps.trial import Attempt, Candidate
from thesis.config import MeasureConfig
from thesis.errors import UserError
from thesis.measure import RtfMeasurement

_NAMESPACE = "ddsp-sweeps"
"""Where measuring actors are known by name, to all sweeps of a cluster."""

_ELSEWHERE = 2
"""Other nodes that a measurement is tried on when this one's reference drifts."""

_METER_ATTEMPTS = 5
"""How often a measurement is tried when the measuring actor goes away."""


class Worker(tune.Trainable):
    """Evaluates candidates one after another, in a process that imports TensorFlow once."""

    shared: ClassVar[Shared]

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """Returns what a trial asks of its node."""
        # Tune lets a worker go on with another trial only where both ask for the same. So trials
        # of the next generation ask for the same in other words, and get new workers. (Where
        # there is one bundle only, either strategy means nothing else.)
        strategy = ("PACK", "SPREAD")[config["generation"] % 2]
        return PlacementGroupFactory([cls.shared.resources], strategy=strategy)

    def setup(self, config: dict[str, Any]) -> None:
        """Begins the first candidate of this process."""
        # Thread pools are sized when libraries are loaded, which is later, in the evaluator.
        threads = str(math.ceil(self.shared.cpus_per_trial))
        os.environ.update(OMP_NUM_THREADS=threads, SWEEPS_THREADS=threads)
        self._meter = _Meters(self.shared.measurer)
        self._first_bytes: int | None = None
        self._left = set[Candidate]()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins another one. What the driver has put off goes on later, here or elsewhere."""
        self._leave()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Goes on to what is next worth reporting: at a rung the driver decides."""
        due = time.monotonic() + self._report_seconds
        try:
            progress = next(self._stages)
            while progress.reached is None and time.monotonic() < due:
                progress = next(self._stages)
            return {"progress": progress}
        except StopIteration as end:
            return {"done": True, "trial": end.value, "grown_bytes": self._grown_bytes()}
        except UserError as error:
            return {"done": True, "error": error}

    def cleanup(self) -> None:
        """Ends what runs; its checkpoints stay, and those of all that is not on record."""
        self._leave()
        with contextlib.suppress(LedgerError):
            for candidate in self._left:
                if self.shared.ledger.holds(candidate.id):
                    self._remove(candidate)

    def _leave(self) -> None:
        """Ends what runs, and removes what is here of it if the driver has stopped it for good."""
        self._stages.close()
        if not self.shared.workdir(self._candidate).exists():
            return
        with contextlib.suppress(LedgerError):
            if self.shared.ledger.holds(self._candidate.id):
                self._remove(self._candidate)
                return
        self._left.add(self._candidate)

    def _remove(self, candidate: Candidate) -> None:
        shutil.rmtree(self.shared.workdir(candidate), ignore_errors=True)

    def _grown_bytes(self) -> int:
        """Returns how much more memory this process takes than after its first trial."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        now = pages * os.sysconf("SC_PAGESIZE")
        if self._first_bytes is None:
            self._first_bytes = now
        return now - self._first_bytes

    def _begin(self, config: Mapping[str, Any]) -> None:
        attempt = Attempt.from_json(config["attempt"])
        self._report_seconds = config["report_seconds"]
        self._candidate = attempt.candidate
        self._stages = evaluate_and_record(self.shared, attempt, self._meter)


class _MeterActor:
    """Measures on its node, one model at a time, with a `Meter` for each measurer."""

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}

    def measure(
        self, measurer: str, model: bytes, audio_seconds: float, config: MeasureConfig
    ) -> RtfMeasurement:
        """Measures a model; see `Meter`."""
        if measurer not in self._meters:
            self._meters[measurer] = Meter(load(measurer))
        return self._meters[measurer](model, audio_seconds, config)


class _Meters:
    """Measures through the one `_MeterActor` of a node, whoever made it: this node's as a rule.

    What was measured while the node's reference drifted is measured again on other nodes: ratios
    compare across hosts. An actor is found by name and tied to its node by affinity: that needs no
    resource which the cluster's owner would have had to declare.
    """

    def __init__(self, measurer: str) -> None:
        self._measurer = measurer
        self._actors: dict[str, Any] = {}

    def __call__(self, model: bytes, audio_seconds: float, config: MeasureConfig) -> RtfMeasurement:
        """Measures, see `Meter`; returns the calmest of what was measured."""
        here = ray.get_runtime_context().get_node_id()
        work = (model, audio_seconds, config)
        found = [self._measure(here, *work)]
        for node in self._others(here):
            if found[-1].reference_drift <= MAX_DRIFT:
                break
            with contextlib.suppress(RayActorError, OutOfMemoryError, TaskUnschedulableError):
                found.append(self._measure(node, *work))
        return min(found, key=lambda measurement: measurement.reference_drift)

    def _others(self, here: str) -> Iterator[str]:
        nodes = [node for node in alive_nodes() if node != here]
        yield from random.sample(nodes, min(len(nodes), _ELSEWHERE))

    def _measure(
        self, node: str, model: bytes, audio_seconds: float, config: MeasureConfig
    ) -> RtfMeasurement:
        def ask() -> RtfMeasurement:
            call = self._actor(node).measure.remote(self._measurer, model, audio_seconds, config)
            return cast(RtfMeasurement, ray.get(call))

        for _ in range(_METER_ATTEMPTS - 1):
            try:
                return ask()
            except (RayActorError, OutOfMemoryError):
                # It went with the worker that had made it, or for memory that others took.
                del self._actors[node]
        return ask()

    def _actor(self, node: str) -> Any:
        if node not in self._actors:
            self._actors[node] = (
                ray.remote(_MeterActor)
                .options(
                    name=f"meter-{node}",
                    namespace=_NAMESPACE,
                    get_if_exists=True,
                    num_cpus=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                )
                .remote()
            )
        return self._actors[node]
