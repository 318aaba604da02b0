"""What each training step sees: which clips, and which moment of them. NumPy only."""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thesis.config import TrainConfig
from thesis.data import Clips

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """The clips of one step, whole or cropped.

    Attributes:
      rows: Which clips, [batch].
      f0_hz: [batch, frames].
      loudness_db: [batch, frames].
      audio: [batch, samples]. The last frame may reach further.
    """

    rows: npt.NDArray[np.int64]
    f0_hz: Array
    loudness_db: Array
    audio: Array


class Batches:
    """The batch of each step, by the step's number and the seed alone.

    Every clip is seen once an epoch, in an order of the epoch's own.

    Attributes:
      n_samples: Audio of a clip.
      cropped: Whether steps see a part of each clip, a new one each time.
    """

    def __init__(self, clips: Clips, config: TrainConfig, *, sample_rate: int, hop_size: int):
        """Prepares batches of `clips`, whose frames are `hop_size` samples apart."""
        self._clips, self._config, self._hop_size = clips, config, hop_size
        whole, self._n_frames = clips.audio.shape[1], clips.f0_hz.shape[1]
        if config.crop_seconds:
            crop = round(config.crop_seconds * sample_rate / hop_size)
            self._n_frames = min(max(crop, 1), self._n_frames)
        self.n_samples = min(self._n_frames * hop_size, whole)
        self._last_start = (whole - self.n_samples) // hop_size
        self.cropped = self.n_samples < whole

    def __getitem__(self, step: int) -> Batch:
        n_clips, size = len(self._clips), self._config.batch_size
        seed = self._config.seed
        positions = range(step * size, (step + 1) * size)
        rows = np.array([_order(seed, p // n_clips, n_clips)[p % n_clips] for p in positions])
        rng = np.random.default_rng([seed, 2, step])
        starts = rng.integers(0, self._last_start + 1, size)

        return Batch(
            rows,
            _cut(self._clips.f0_hz, rows, starts, self._n_frames),
            _cut(self._clips.loudness_db, rows, starts, self._n_frames),
            _cut(self._clips.audio, rows, starts * self._hop_size, self.n_samples),
        )


def _cut(
    values: Array, rows: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], size: int
) -> Array:
    """Returns `size` values of each of these rows, from where each starts, [rows, size]."""
    return np.stack([values[row, at : at + size] for row, at in zip(rows, starts, strict=True)])


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n_clips: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, 1, epoch]).permutation(n_clips)
