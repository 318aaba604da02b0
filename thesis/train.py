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
    weights = [*model.decoder.trainable_variables]
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
            outputs = decode(batch.inputs, training=True)
        # As a tensor: a variable would have the graph traced anew for every model.
        response = tf.convert_to_tensor(model.impulse_response)
        loss, slope, response_gradient = loss_and_slopes(
            outputs, response, batch.f0_hz, batch.target, batch.seed
        )
        gradients = [*tape.gradient(outputs, weights, output_gradients=slope), response_gradient]
        gradients, norm = tf.clip_by_global_norm(gradients, config.clip_norm)
        value = float(loss)
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise DivergedError(step + 1, float(recent[-1]) if step else None)
        optimizer.apply_gradients(zip(gradients, [*weights, model.impulse_response], strict=True))
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
    render = _rendering_and_loss(model.synthesizer)
    impulse_response = tf.convert_to_tensor(model.impulse_response)
    noise = white_noise(seed, *clips.audio.shape)
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
        outputs: Any, impulse_response: Any, f0_hz: Any, target: list[Any], seed: Any
    ) -> tuple[Any, Any, Any]:
        batch, n_frames = f0_hz.shape
        shape = [batch, n_frames * synthesizer.hop_size]
        noise = tf.random.stateless_uniform(shape, seed, minval=-1.0, maxval=1.0)
        with tf.GradientTape() as tape:
            tape.watch([outputs, impulse_response])
            rendered = synthesizer(outputs, f0_hz, noise, impulse_response)
            loss = tf.reduce_mean(spectral_distance(target, rendered))
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
        audio = synthesizer(outputs, f0_hz, noise, impulse_response)
        return audio, spectral_loss(target, audio)

    return render


@dataclass(frozen=True)
class _Batch:
    inputs: Any
    f0_hz: Any
    target: list[Any]
    seed: Any


class _Batches:
    """The batch of each step, by the step's number."""

    def __init__(self, clips: Clips, config: TrainConfig, synthesizer: Synthesizer):
        self._clips = clips
        self._config = config
        self._hop_size = synthesizer.hop_size
        n_frames = clips.f0_hz.shape[1]
        crop = round(config.crop_seconds * synthesizer.sample_rate / synthesizer.hop_size)
        self._n_frames = min(crop, n_frames) if crop else n_frames
        self._last_start = n_frames - self._n_frames
        size = magnitude_bytes(clips.audio.shape[1]) * len(clips)
        self._known = self._all_magnitudes() if not crop and size <= CACHE_BYTES else None

    def __getitem__(self, step: int) -> _Batch:
        rows = self._rows(step)
        rng = np.random.default_rng([self._config.seed, 2, step])
        starts = rng.integers(0, self._last_start + 1, rows.size)
        f0_hz = self._crop(self._clips.f0_hz, rows, starts, 1)
        loudness_db = self._crop(self._clips.loudness_db, rows, starts, 1)
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
        crops = self._crop(self._clips.audio, rows, starts, self._hop_size)
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

    def _crop(
        self, values: npt.NDArray[np.float32], rows: Any, starts: Any, samples_per_frame: int
    ) -> npt.NDArray[np.float32]:
        size = self._n_frames * samples_per_frame
        offsets = starts * samples_per_frame
        return np.stack(
            [values[row, at : at + size] for row, at in zip(rows, offsets, strict=True)]
        )
