"""Training: clips in, a trained model and its losses out. Needs TensorFlow."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thesis._ddsp import tf, tf_keras
from thesis.build import Model
from thesis.config import TrainConfig
from thesis.controls import decoder_inputs, white_noise
from thesis.data import Clips
from thesis.losses import magnitude_bytes, magnitudes, spectral_distance, spectral_loss
from thesis.synthesis import Synthesizer

REPORT_EVERY = 10
"""Steps between two progress reports."""
VALIDATION_BATCH = 8
CACHE_BYTES = 2**30
"""Memory for the spectrograms of whole clips, 3 MB for one of 4 s at 16 kHz. A dataset that needs
more, or random crops, has them computed in every step, a tenth of its time."""


class DivergedError(Exception):
    """The loss or its gradient stopped being a finite number."""

    def __init__(self, step: int, last_finite: float | None):
        last = "no finite loss" if last_finite is None else f"last finite loss {last_finite:.4g}"
        super().__init__(f"step {step}; {last} before")
        self.step = step
        self.last_finite = last_finite


@dataclass(frozen=True)
class Report:
    """How far training is: steps done and the mean loss of the last `REPORT_EVERY` steps."""

    step: int
    loss: float


def train(
    model: Model, clips: Clips, config: TrainConfig, *, checkpoints: Path | None = None
) -> Iterator[Report]:
    """Trains a model in place and reports every few steps.

    What a step sees depends on the seed and on its number only, so a run that resumes from a
    checkpoint continues as if it had never stopped.

    Args:
      model: The model to train.
      clips: Training clips.
      config: Steps, batch size, learning rate.
      checkpoints: Folder for checkpoints; training resumes from the newest one in it.

    Yields:
      A report every `REPORT_EVERY` steps and after the last one, also when that one is in the
      checkpoint.

    Raises:
      DivergedError: The loss or its gradient became NaN or infinite.
    """
    optimizer = tf_keras.optimizers.legacy.Adam(
        tf_keras.optimizers.schedules.ExponentialDecay(
            config.learning_rate, config.decay_steps, config.decay_rate
        )
    )
    weights = model.trainable_variables
    done = tf.Variable(0, dtype=tf.int64)
    recent = tf.Variable(np.full(REPORT_EVERY, np.nan))
    state = {"model": model, "optimizer": optimizer, "done": done, "recent": recent}
    manager = _checkpoint_manager(checkpoints, **state)
    if manager and manager.latest_checkpoint:
        manager.checkpoint.restore(manager.latest_checkpoint)
        if done == config.steps:
            yield Report(int(done), _mean(recent))
    decode, loss_and_slopes = tf.function(model.decoder), _loss_and_slopes(model.synthesizer)
    batches = _Batches(clips, config, model.synthesizer)
    for step in range(int(done), config.steps):
        batch = batches[step]
        with tf.GradientTape() as tape:
            heard = [decode(batch.inputs, training=True), model.impulse_response]
        loss, *slopes = loss_and_slopes(
            *heard, batch.f0_hz, batch.target, batch.seed, batches.n_samples
        )
        gradients = tape.gradient(heard, weights, output_gradients=slopes)
        gradients, norm = tf.clip_by_global_norm(gradients, config.clip_norm)
        value = float(loss)
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise DivergedError(step + 1, float(recent[-1]) if step else None)
        optimizer.apply_gradients(zip(gradients, weights, strict=True))
        recent.assign([*recent.numpy()[1:], value])
        done.assign(step + 1)
        if manager and (step + 1) % config.checkpoint_every == 0:
            manager.save()
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == config.steps:
            yield Report(step + 1, _mean(recent))


@dataclass(frozen=True)
class Validation:
    """What a model makes of whole clips.

    Attributes:
      renderings: Its audio, [n, n_samples].
      losses: Spectral loss of each clip, [n].
    """

    renderings: npt.NDArray[np.float32]
    losses: npt.NDArray[np.float32]

    @property
    def loss(self) -> float:
        """The mean over the clips."""
        return float(self.losses.mean(dtype=np.float64))


def validate(
    model: Model,
    clips: Clips,
    outputs_of: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
    *,
    seed: int = 0,
) -> Validation:
    """Renders whole clips with fixed noise and takes their spectral losses.

    Args:
      model: Holds the reverb and the synthesiser.
      clips: Validation clips.
      outputs_of: The decoder to judge, [1, frames, 2] -> [1, frames, n_outputs]. Judging the
        exported decoder here is what makes the loss that of the model that ships.
      seed: Of the noise.
    """
    _require_same_frames(clips, model.synthesizer)
    render = _rendering_and_loss(model.synthesizer)
    impulse_response = model.impulse_response
    noise = white_noise(seed, len(clips), clips.f0_hz.shape[1] * model.synthesizer.hop_size)
    renderings, losses = np.empty_like(clips.audio), np.empty(len(clips), np.float32)
    for start in range(0, len(clips), VALIDATION_BATCH):
        # The last batch is filled up with its first clip, so that one trace serves all.
        rows = np.arange(start, start + VALIDATION_BATCH)
        present = rows < len(clips)
        rows = np.where(present, rows, start)
        inputs = decoder_inputs(clips.f0_hz[rows], clips.loudness_db[rows])
        outputs = np.concatenate([outputs_of(clip[None]) for clip in inputs])
        audio, loss = render(
            outputs, impulse_response, clips.f0_hz[rows], clips.audio[rows], noise[rows]
        )
        renderings[rows[present]] = audio.numpy()[present]
        losses[rows[present]] = loss.numpy()[present]
    return Validation(renderings, losses)


def _require_same_frames(clips: Clips, synthesizer: Synthesizer) -> None:
    """Raises ValueError for clips whose frames are not those that the model decodes."""
    n_samples, n_frames = clips.audio.shape[1], clips.f0_hz.shape[1]
    if n_frames != -(-n_samples // synthesizer.hop_size):
        raise ValueError(
            f"{n_frames} frames of {synthesizer.hop_size} samples for a clip of {n_samples}; "
            "see Clips.subsampled"
        )


def _mean(recent: Any) -> float:
    return float(np.nanmean(recent.numpy()))


def _checkpoint_manager(folder: Path | None, **state: Any) -> Any:
    if folder is None:
        return None
    return tf.train.CheckpointManager(
        tf.train.Checkpoint(**state), str(folder), max_to_keep=1, checkpoint_name="step"
    )


@functools.lru_cache(maxsize=8)
def _loss_and_slopes(synthesizer: Synthesizer) -> Any:
    """Returns synthesis, loss and their gradients as one graph.

    Its shapes do not depend on the decoder, so a worker traces it once, which takes seconds; a
    later trial traces its decoder only, in less than one. The gradients are taken inside: a tape
    around the graph would have it keep, and follow, much more than it needs.
    """

    @tf.function  # type: ignore[untyped-decorator]
    def loss_and_slopes(
        outputs: Any, impulse_response: Any, f0_hz: Any, target: Any, seed: Any, n_samples: int
    ) -> tuple[Any, Any, Any]:
        batch, n_frames = f0_hz.shape
        shape = [batch, n_frames * synthesizer.hop_size]
        noise = tf.random.stateless_uniform(shape, seed, minval=-1.0, maxval=1.0)
        with tf.GradientTape() as tape:
            tape.watch([outputs, impulse_response])
            rendered = synthesizer(outputs, f0_hz, noise, impulse_response)
            loss = tf.reduce_mean(spectral_distance(target, rendered[:, :n_samples]))
        # Without a reverb the loss does not depend on its (empty) response.
        none = tf.UnconnectedGradients.ZERO
        return loss, *tape.gradient(loss, [outputs, impulse_response], unconnected_gradients=none)

    return loss_and_slopes


@functools.lru_cache(maxsize=8)
def _rendering_and_loss(synthesizer: Synthesizer) -> Any:
    @tf.function  # type: ignore[untyped-decorator]
    def render(
        outputs: Any, impulse_response: Any, f0_hz: Any, target: Any, noise: Any
    ) -> tuple[Any, Any]:
        audio = synthesizer(outputs, f0_hz, noise, impulse_response)[:, : target.shape[1]]
        return audio, spectral_loss(target, audio)

    return render


@dataclass(frozen=True)
class _Batch:
    inputs: Any
    f0_hz: Any
    target: list[Any]
    seed: Any


class _Batches:
    """The batch of each step, by the step's number.

    Attributes:
      n_samples: Audio that a clip of a batch has. Its last frame may reach further.
    """

    def __init__(self, clips: Clips, config: TrainConfig, synthesizer: Synthesizer):
        self._clips = clips
        self._config = config
        self._hop_size = synthesizer.hop_size
        _require_same_frames(clips, synthesizer)
        whole, self._n_frames = clips.audio.shape[1], clips.f0_hz.shape[1]
        if config.crop_seconds:
            crop = round(config.crop_seconds * synthesizer.sample_rate / self._hop_size)
            self._n_frames = min(max(crop, 1), self._n_frames)
        self.n_samples = min(self._n_frames * self._hop_size, whole)
        self._last_start = (whole - self.n_samples) // self._hop_size
        known = self.n_samples == whole and magnitude_bytes(whole) * len(clips) <= CACHE_BYTES
        self._known = self._all_magnitudes() if known else None

    def __getitem__(self, step: int) -> _Batch:
        rows = self._rows(step)
        rng = np.random.default_rng([self._config.seed, 2, step])
        starts = rng.integers(0, self._last_start + 1, rows.size)
        f0_hz = _cut(self._clips.f0_hz, rows, starts, self._n_frames)
        loudness_db = _cut(self._clips.loudness_db, rows, starts, self._n_frames)
        return _Batch(
            inputs=tf.constant(decoder_inputs(f0_hz, loudness_db)),
            f0_hz=tf.constant(f0_hz),
            target=self._target(rows, starts),
            seed=tf.constant([self._config.seed, step], tf.int32),
        )

    def _target(self, rows: Any, starts: Any) -> list[Any]:
        """Returns the magnitudes of a step's clips, from memory where they are kept."""
        if self._known is not None:
            return [tf.gather(known, rows) for known in self._known]
        crops = _cut(self._clips.audio, rows, starts * self._hop_size, self.n_samples)
        return list(magnitudes(tf.constant(crops)))

    def _all_magnitudes(self) -> list[Any]:
        """Returns the magnitudes of every clip. They never change, and a step needs many."""
        each = [magnitudes(tf.constant(clip[None])) for clip in self._clips.audio]
        return [tf.concat(of_size, axis=0) for of_size in zip(*each, strict=True)]

    def _rows(self, step: int) -> npt.NDArray[np.int64]:
        """Returns the clips of a step: every clip once an epoch, in an order of its own."""
        n_clips, size = len(self._clips), self._config.batch_size
        positions = range(step * size, (step + 1) * size)
        rows = [self._order(p // n_clips)[p % n_clips] for p in positions]
        return np.array(rows)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self._config.seed, 1, epoch]).permutation(len(self._clips))


def _cut(
    values: npt.NDArray[np.float32], rows: Any, starts: Any, size: int
) -> npt.NDArray[np.float32]:
    """Returns `size` values of each of these rows, from where each starts, [rows, size]."""
    return np.stack([values[row, at : at + size] for row, at in zip(rows, starts, strict=True)])
