"""Training: clips in, a trained model and its losses out. Needs TensorFlow."""

import contextlib
import errno
import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thesis._ddsp import tf, tf_keras
from thesis.batches import Batch, Batches
from thesis.build import Model
from thesis.checked_files import read_bytes
from thesis.config import TrainConfig
from thesis.controls import absolute_levels, decoder_inputs, white_noise
from thesis.data import Clips
from thesis.errors import UserError
from thesis.losses import TrainingLoss, spectral_loss, training_loss
from thesis.synthesis import Synthesizer

REPORT_EVERY = 10
"""Steps between two progress reports."""
EXPLODED = 10.0
"""Training ends when the reported loss is this many times the first reported one."""


class DivergedError(Exception):
    """The loss or its gradient stopped being a finite number, or the loss grew out of hand.

    Attributes:
      step: The step at which training ended.
      last_finite: The last finite loss; None when there was none. Where the loss grew out of hand,
        that loss.
    """

    def __init__(self, step: int, last_finite: float | None, what: str = ""):
        last = "no finite loss" if last_finite is None else f"last finite loss {last_finite:.4g}"
        super().__init__(f"step {step}; {what or last + ' before'}")
        self.step = step
        self.last_finite = last_finite


@dataclass(frozen=True)
class Report:
    """How far training is: steps done and the mean loss of the last `REPORT_EVERY` steps."""

    step: int
    loss: float


def train(
    model: Model,
    clips: Clips,
    config: TrainConfig,
    *,
    checkpoints: Path | None = None,
    save_at: Collection[int] = (),
    summaries: Path | None = None,
) -> Iterator[Report]:
    """Trains a model in place and reports every few steps.

    What a step sees depends on the seed and on its number only, so a run that resumes from a
    checkpoint continues as if it had never stopped.

    Args:
      model: The model to train.
      clips: Training clips.
      config: Steps, batch size, learning rate.
      checkpoints: Folder for checkpoints, made if need be, but not what it is in; training resumes
        from the newest one in it, unless that is of a model with other weights.
      save_at: Steps at which a checkpoint is saved, besides each `config.checkpoint_every`.
      summaries: Folder for TensorBoard: loss, norm of the gradient before clipping and learning
        rate at every report.

    Yields:
      A report every `REPORT_EVERY` steps and after the last one, also when that one is in the
      checkpoint.

    Raises:
      DivergedError: The loss or its gradient became NaN or infinite, or the reported loss is
        `EXPLODED` times the first reported one.
      ValueError: The clips have other frames than those that the model decodes.
      FileNotFoundError: The folder of checkpoints, or what it is to be made in, is gone.
    """
    optimizer = tf_keras.optimizers.legacy.Adam(learning_rate(config))
    done = tf.Variable(0, dtype=tf.int64)
    recent = tf.Variable(np.full(REPORT_EVERY, np.nan))
    first = tf.Variable(np.nan)
    state = {
        "model": model, "optimizer": optimizer, "done": done, "recent": recent, "first": first,
    }  # fmt: skip
    manager, newest = _checkpoint_manager(checkpoints, **state)
    if newest and _is_of(newest, config.steps):
        manager.checkpoint.restore(newest)
        if done == config.steps:
            yield Report(int(done), _mean(recent.numpy()))
    decode = tf.function(
        functools.partial(model.decoder, training=True, keep_moments=False), jit_compile=True
    )
    update = _update(model, optimizer, config.clip_norm)
    synthesizer = model.synthesizer
    _require_same_frames(clips, synthesizer)
    batches = Batches(
        clips, config, sample_rate=synthesizer.sample_rate, hop_size=synthesizer.hop_size
    )
    budget = config.cache_megabytes * 2**20
    minimised = training_loss(config.losses)
    loss_and_slopes = _loss_and_slopes(synthesizer, minimised)
    # A crop is seen once.
    keep = budget and not batches.cropped
    kept = _KeptClips(clips, synthesizer, minimised, budget=budget)
    clips_of = kept.of if keep else _crops
    losses = recent.numpy()
    with _summary_log(summaries) as log:
        for step in range(int(done), config.steps):
            batch = batches[step]
            inputs = tf.constant(decoder_inputs(batch.f0_hz, batch.loudness_db))
            seed = tf.constant([config.seed, step])
            loss, *slopes = loss_and_slopes(
                decode(inputs), inputs, model.impulse_response, clips_of(batch), seed,
                batches.n_samples,
            )  # fmt: skip
            norm = update(inputs, slopes, tf.convert_to_tensor(loss))
            value = float(loss)
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise DivergedError(step + 1, float(losses[-1]) if step else None)
            _prune(model, pruned_share(config, step + 1))
            losses = np.append(losses[1:], value)
            report = Report(step + 1, _mean(losses))
            due = report.step % REPORT_EVERY == 0 or report.step == config.steps
            if due and np.isnan(first):
                first.assign(report.loss)
            if due:
                rate = optimizer.lr(optimizer.iterations)
                log(report.step, loss=report.loss, gradient_norm=norm, learning_rate=rate)
                if report.loss > EXPLODED * float(first):
                    first_loss = f"{EXPLODED:g} times the first, {float(first):.4g}"
                    what = f"loss {report.loss:.4g} is over {first_loss}"
                    raise DivergedError(report.step, report.loss, what)
            # What has exploded is not kept: it would pass for sound when it is resumed.
            if manager and (report.step % config.checkpoint_every == 0 or report.step in save_at):
                recent.assign(losses)
                done.assign(report.step)
                _save(manager)
            if due:
                yield report


def learning_rate(config: TrainConfig) -> Any:
    """Returns the learning rate as a function of the number of steps that have been made."""
    schedules = tf_keras.optimizers.schedules
    if config.schedule == "exponential":
        return schedules.ExponentialDecay(
            config.learning_rate, config.decay_steps, config.decay_rate
        )
    warmup = min(config.warmup_steps, config.steps // 10)
    cosine = functools.partial(schedules.CosineDecay, decay_steps=max(config.steps - warmup, 1))
    if not warmup:
        return cosine(config.learning_rate)
    first = config.learning_rate / warmup  # a step at a rate of zero would be none
    return cosine(first, warmup_target=config.learning_rate, warmup_steps=warmup)


@contextlib.contextmanager
def _summary_log(folder: Path | None) -> Iterator[Callable[..., None]]:
    """Gives what writes the values of a step for TensorBoard."""
    if folder is None:
        yield lambda step, **values: None
        return
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def log(step: int, **values: Any) -> None:
            for name, value in values.items():
                writer.add_scalar(f"train/{name}", float(value), step)
            writer.flush()

        yield log


def pruned_share(config: TrainConfig, step: int) -> float:
    """Returns the share of each kernel's weights that are zero after so many steps.

    It rises steeply at first, while there is much to choose from, and stays for the last quarter,
    in which the other weights make up for what is gone (Zhu & Gupta 2017, equation 1).
    """
    to_go = max(0.0, 1.0 - step / (0.75 * config.steps))
    return config.sparsity * (1.0 - to_go**3)


def _prune(model: Model, share: float) -> None:
    """Sets the smallest weights of each kernel to zero, this share of them, rounded down.

    Which ones is found anew in each step: a weight that the gradient has brought back may stay.
    """
    for name, variable in model.decoder.weights.items() if share else ():
        count = int(share * np.prod(variable.shape))
        if count and name.endswith("kernel"):
            weights = np.array(variable.numpy())
            smallest = np.argpartition(np.abs(weights), count - 1, axis=None)[:count]
            weights.ravel()[smallest] = 0.0
            variable.assign(weights)


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

    Raises:
      ValueError: The clips have other frames than those that the model decodes.
    """
    _require_same_frames(clips, model.synthesizer)
    render = _rendering_and_loss(model.synthesizer)
    impulse_response = model.impulse_response
    noise = white_noise(seed, len(clips), clips.f0_hz.shape[1] * model.synthesizer.hop_size)
    renderings, losses = np.empty_like(clips.audio), np.empty(len(clips), np.float32)
    for i in range(len(clips)):
        clip = slice(i, i + 1)
        inputs = decoder_inputs(clips.f0_hz[clip], clips.loudness_db[clip])
        outputs = absolute_levels(outputs_of(inputs), inputs, model.synthesizer.config)
        renderings[clip], losses[clip] = render(
            outputs, impulse_response, clips.f0_hz[clip], clips.audio[clip], noise[clip]
        )
    return Validation(renderings, losses)


def _require_same_frames(clips: Clips, synthesizer: Synthesizer) -> None:
    """Raises ValueError for clips whose frames are not those that the model decodes."""
    n_samples, n_frames = clips.audio.shape[1], clips.f0_hz.shape[1]
    if n_frames != -(-n_samples // synthesizer.hop_size):
        raise ValueError(
            f"{n_frames} frames of {synthesizer.hop_size} samples for a clip of {n_samples}; "
            "see Clips.subsampled"
        )


def _mean(losses: npt.NDArray[np.float64]) -> float:
    return float(np.nanmean(losses))


def _checkpoint_manager(
    folder: Path | None, *, model: Model, **state: Any
) -> tuple[Any, str | None]:
    """Returns what saves and restores, and the newest checkpoint that it may restore.

    TensorFlow restores what it finds and leaves the rest as it is: from a checkpoint of another
    release, whose weights have other names, would come a mixture of old and new. So a checkpoint's
    name says which weights it holds.
    """
    if folder is None:
        return None, None
    folder.mkdir(exist_ok=True)
    _check_list(folder / "checkpoint")
    weights = sorted((name, *weight.shape) for name, weight in model.decoder.weights.items())
    held = repr((weights, *model.reverb.shape))
    name = f"{hashlib.sha256(held.encode()).hexdigest()[:8]}-step"
    checkpoint = tf.train.Checkpoint(model=model, **state)
    manager = tf.train.CheckpointManager(
        checkpoint, str(folder), max_to_keep=1, checkpoint_name=name
    )
    newest = manager.latest_checkpoint
    return manager, newest if newest and Path(newest).name.startswith(name) else None


_LIST = re.compile(
    rb'(?:(?:model_checkpoint_path|all_model_checkpoint_paths): "[0-9a-f]{8}-step-[0-9]{1,18}"\n'
    rb"|(?:all_model_checkpoint|last_preserved)_timestamps?: [0-9.e+]{1,32}\n)*"
)
"""The list of a folder's checkpoints, as TensorFlow writes it of names that are ours."""
_MAX_LIST_BYTES = 1 << 16


def _check_list(file: Path) -> None:
    """Removes a list of checkpoints that we have not written.

    A trial may go on in a folder that was a stranger's. TensorFlow restores the newest checkpoint
    on the list and deletes older ones, wherever they are, by patterns such as '../*'.
    """
    if not os.path.lexists(file):
        return
    with contextlib.suppress(UserError):
        if _LIST.fullmatch(read_bytes(file, _MAX_LIST_BYTES, UserError)):
            return
    file.unlink()


def _is_of(checkpoint: str, steps: int) -> bool:
    """Returns whether a checkpoint is whole, and of a run of so many steps."""
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        # Each is compared with its checksum: a restored half could not be taken back.
        values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        return 0 <= int(values["done/.ATTRIBUTES/VARIABLE_VALUE"]) <= steps
    except Exception:  # TensorFlow raises many kinds for a damaged file
        return False


def _save(manager: Any) -> None:
    """Saves a checkpoint, unless its folder is gone: TensorFlow would make it and all above it."""
    if not Path(manager.directory).is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), manager.directory)
    manager.save()


def _update(model: Model, optimizer: Any, clip_norm: float) -> Any:
    """Returns what takes slopes along outputs and response to gradients, and applies those.

    It returns their norm before clipping. Where that or the loss is not finite, no weight changes.

    For its gradient the decoder runs a second time: compiled as one, that takes less time than
    keeping what the gradient needs of the first.
    """
    weights = model.trainable_variables
    optimizer._create_all_weights(weights)  # a compiled function makes no variables

    @tf.function(jit_compile=True)  # type: ignore[untyped-decorator]
    def update(inputs: Any, slopes: list[Any], loss: Any) -> Any:
        with tf.GradientTape() as tape:
            heard = [model.decoder(inputs, training=True), model.impulse_response]
        gradients = tape.gradient(heard, weights, output_gradients=slopes)
        gradients, norm = tf.clip_by_global_norm(gradients, clip_norm)

        def apply() -> None:
            # There are no replicas to add up over, and what would do so leaves graphs behind.
            optimizer.apply_gradients(
                zip(gradients, weights, strict=True), experimental_aggregate_gradients=False
            )

        tf.cond(tf.math.is_finite(loss) & tf.math.is_finite(norm), apply, lambda: None)
        return norm

    return update


@functools.cache
def _loss_and_slopes(synthesizer: Synthesizer, minimised: TrainingLoss) -> Any:
    """Returns synthesis, loss and their gradients as one graph.

    Its shapes do not depend on the decoder, so a worker traces and compiles it once for each number
    of harmonics and noise bands, hop and length of the reverb, which takes seconds; a later trial
    does that for its decoder only. TensorFlow frees no compiled graph, so none is dropped here.
    Clip by clip, what is between two passes stays in the processor's cache, and the clips of a
    batch run side by side.
    """

    def of_clip(
        clip: _Clip, outputs: Any, noise: Any, response_spectrum: Any, n_samples: int
    ) -> tuple[Any, Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch([outputs, response_spectrum])
            rendered = synthesizer.render(
                outputs, clip.f0_hz, clip.sine_bank, noise, response_spectrum
            )
            loss = tf.reduce_sum(minimised.distance(clip.target, rendered[:, :n_samples]))
        # Without a reverb the loss does not depend on its (empty) spectrum.
        none = tf.UnconnectedGradients.ZERO
        return loss, *tape.gradient(loss, [outputs, response_spectrum], unconnected_gradients=none)

    def of_crop(f0_hz: Any, phase: list[Any], audio: Any, *heard: Any) -> tuple[Any, Any, Any]:
        clip = _Clip(f0_hz, synthesizer.sines(*phase), minimised.of_target(audio))
        return of_clip(clip, *heard)

    phase_of, of_known, of_unknown = (
        tf.function(f, jit_compile=True) for f in (synthesizer.phase, of_clip, of_crop)
    )

    @tf.function  # type: ignore[untyped-decorator]
    def of_batch(
        raw: Any,
        inputs: Any,
        impulse_response: Any,
        clips: list[_Clip] | _Crops,
        seed: Any,
        n_samples: int,
    ) -> tuple[Any, Any, Any]:
        # What is added has no weights: the slopes along both are the same.
        outputs = absolute_levels(raw, inputs, synthesizer.config)
        n_clips, n_rendered = outputs.shape[0], outputs.shape[1] * synthesizer.hop_size
        noise = tf.random.stateless_uniform([n_clips, n_rendered], seed, minval=-1.0, maxval=1.0)
        with tf.GradientTape() as tape:
            tape.watch(impulse_response)
            spectrum = synthesizer.response_spectrum(impulse_response, n_rendered)
        heard = [
            (outputs[i : i + 1], noise[i : i + 1], spectrum, n_samples) for i in range(n_clips)
        ]
        if isinstance(clips, _Crops):
            arrays = [clips.f0_hz, *phase_of(clips.f0_hz), clips.audio]
            crops = zip(*(tf.split(array, n_clips) for array in arrays), strict=True)
            found = [
                of_unknown(f0_hz, phase, audio, *each)
                for (f0_hz, *phase, audio), each in zip(crops, heard, strict=True)
            ]
        else:
            found = [of_known(clip, *each) for clip, each in zip(clips, heard, strict=True)]
        losses, slopes, spectrum_slopes = zip(*found, strict=True)
        response_slope = tape.gradient(
            spectrum,
            impulse_response,
            output_gradients=tf.add_n(spectrum_slopes) / n_clips,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return tf.add_n(losses) / n_clips, tf.concat(slopes, axis=0) / n_clips, response_slope

    return of_batch


@functools.cache
def _rendering_and_loss(synthesizer: Synthesizer) -> Any:
    @tf.function(jit_compile=True)  # type: ignore[untyped-decorator]
    def render(
        outputs: Any, impulse_response: Any, f0_hz: Any, target: Any, noise: Any
    ) -> tuple[Any, Any]:
        audio = synthesizer(outputs, f0_hz, noise, impulse_response)[:, : target.shape[1]]
        return audio, spectral_loss(target, audio)

    return render


class _Clip(NamedTuple):
    """What a step needs of one clip besides the decoder's inputs: a batch of one."""

    f0_hz: Any
    sine_bank: Any
    target: Any


class _Crops(NamedTuple):
    """What a step is told of clips of which nothing is kept: that is computed where it is needed.

    Sinusoids and spectrograms then need not be written and read, and calls are few.
    """

    f0_hz: Any
    audio: Any


def _crops(batch: Batch) -> _Crops:
    return _Crops(tf.constant(batch.f0_hz), tf.constant(batch.audio))


class _KeptClips:
    """What a step needs of each of its clips.

    What the loss compares of a whole clip, spectrograms, and its sinusoids never change. They are
    kept once computed, as far as the budget goes; spectrograms first, they save more time for a
    byte.
    """

    def __init__(
        self, clips: Clips, synthesizer: Synthesizer, minimised: TrainingLoss, *, budget: int
    ):
        self._sine_bank, self._of_target = _compiled(synthesizer, minimised)
        target_bytes = minimised.target_bytes(clips.audio.shape[1])
        n_rendered = clips.f0_hz.shape[1] * synthesizer.hop_size
        self._targets = _Kept(budget // target_bytes)
        left = max(budget - len(clips) * target_bytes, 0)
        self._banks = _Kept(left // (4 * n_rendered * synthesizer.config.n_harmonics))

    def of(self, batch: Batch) -> list[_Clip]:
        return [
            self._clip(row, *arrays)
            for row, *arrays in zip(
                batch.rows, batch.f0_hz[:, None], batch.audio[:, None], strict=True
            )
        ]

    def _clip(self, row: int, f0_hz: Any, audio: Any) -> _Clip:
        return _Clip(
            f0_hz=tf.constant(f0_hz),
            sine_bank=self._banks.get(row, lambda: self._sine_bank(f0_hz)),
            target=self._targets.get(row, lambda: self._of_target(audio)),
        )


class _Kept:
    """Values by key, computed when first asked for and kept while there is room for so many."""

    def __init__(self, room: int):
        self._room = room
        self._values: dict[int, Any] = {}

    def get(self, key: int, compute: Callable[[], Any]) -> Any:
        if key in self._values:
            return self._values[key]
        value = compute()
        if len(self._values) < self._room:
            self._values[key] = value
        return value


@functools.cache
def _compiled(synthesizer: Synthesizer, minimised: TrainingLoss) -> tuple[Any, Any]:
    """Returns `sine_bank` and `of_target`, compiled."""
    phase = tf.function(synthesizer.phase, jit_compile=True)
    sines = tf.function(synthesizer.sines, jit_compile=True)
    of_target = tf.function(minimised.of_target, jit_compile=True)
    return lambda f0_hz: sines(*phase(f0_hz)), of_target
