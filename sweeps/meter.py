"""Measures models on one machine: repeats what drifted, and knows what it has measured before."""

import math
from dataclasses import replace

from sweeps.evaluate import Measure
from thesis.config import MeasureConfig
from thesis.measure import RtfMeasurement, graph_hash

MAX_DRIFT = 0.1
"""How far the reference may move, within a measurement or from its best on this machine. The ratio
stands more; but times of a machine that has changed do not compare with those before. See
`docs/concepts/measurement.md` for how far it moves as a rule."""

ATTEMPTS = 3
"""Measurements of a model until one is recorded whose `reference_drift` is over `MAX_DRIFT`."""


class Meter:
    """Measures as `thesis.measure.measure_rtf` does, for as long as a machine is at hand.

    Speed depends on the architecture and not on the weights, so a model is measured once for all
    that have its graph. What was measured while the reference drifted is put aside, and measured
    again up to `ATTEMPTS` times; then the calmest is returned, and not remembered.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._known: dict[object, RtfMeasurement] = {}
        self._best: dict[object, float] = {}

    def __call__(self, model: bytes, audio_seconds: float, config: MeasureConfig) -> RtfMeasurement:
        """Returns what was measured, or what had been of an equal graph; `measured_at` tells.

        Its `reference_drift` is the larger one of that within the measurement and that from the
        best `reference_rtf` so far.

        Raises:
          ExportError: The model cannot be loaded.
        """
        key = (graph_hash(model), audio_seconds, config)
        if key in self._known:
            return self._known[key]
        attempts = [self._attempt(model, audio_seconds, config)]
        while attempts[-1].reference_drift > MAX_DRIFT and len(attempts) < ATTEMPTS:
            attempts.append(self._attempt(model, audio_seconds, config))
        calmest = min(attempts, key=lambda found: found.reference_drift)
        calmest = replace(calmest, measure_attempts=len(attempts))
        if calmest.reference_drift <= MAX_DRIFT:
            self._known[key] = calmest
        return calmest

    def _attempt(self, model: bytes, audio_seconds: float, config: MeasureConfig) -> RtfMeasurement:
        found = self._measure(model, audio_seconds, config)
        work = (found.reference_frames, audio_seconds)
        best = self._best[work] = min(found.reference_rtf, self._best.get(work, math.inf))
        from_best = found.reference_rtf / best - 1.0
        return replace(found, reference_drift=max(found.reference_drift, from_best))
