"""ddsp's multi-scale spectral loss, with its gradient in closed form. Needs TensorFlow."""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from thesis._ddsp import ddsp, tf
from thesis.config import SpectralLoss
from thesis.reference import FFT_SIZES

_OVERLAP = 4
"""Frames that a sample is in: the hop is a quarter of the frame."""


@dataclass(frozen=True)
class TrainingLoss:
    """What is minimised, in two parts, so that what is known of a target need not be found twice.

    Attributes:
      of_target: What is compared of the target's audio, [batch, samples] -> a tensor or a list.
      distance: That, and audio [batch, samples] -> loss of each clip, [batch].
      target_bytes: Samples of a clip -> memory that `of_target` takes.
    """

    of_target: Callable[[Any], Any]
    distance: Callable[[Any, Any], Any]
    target_bytes: Callable[[int], int]


@functools.lru_cache(maxsize=8)
def training_loss(losses: tuple[SpectralLoss, ...]) -> TrainingLoss:
    """Returns the sum of ddsp's losses with these settings, or, of none, the project's own.

    ddsp's, where its settings are those of the project's, is computed as that: equal, faster.
    """
    if losses in ((), (SpectralLoss(logmag_weight=1.0),)):
        return TrainingLoss(magnitudes, spectral_distance, magnitude_bytes)
    parts = [ddsp.losses.SpectralLoss(**asdict(loss)) for loss in losses]

    def distance(target: Any, audio: Any) -> Any:
        clips = [(target[i : i + 1], audio[i : i + 1]) for i in range(audio.shape[0])]
        return tf.stack([tf.add_n([part(*clip) for part in parts]) for clip in clips])

    return TrainingLoss(tf.identity, distance, lambda n_samples: 4 * n_samples)


def spectral_loss(target_audio: Any, audio: Any) -> Any:
    """Returns the spectral loss of each clip, [batch].

    The L1 distance of magnitudes and of log magnitudes, summed over six FFT sizes (Engel et al.
    2020, section 4.2.1). Its mean over the batch equals `ddsp.losses.SpectralLoss` with
    `mag_weight = logmag_weight = 1`.

    Args:
      target_audio: [batch, samples].
      audio: [batch, samples]. The gradient is with respect to this.
    """
    return spectral_distance(magnitudes(tf.convert_to_tensor(target_audio)), audio)


def spectral_distance(target: list[Any], audio: Any) -> Any:
    """As `spectral_loss`, for a target whose magnitudes are known.

    For a magnitude V and its target T the gradient is `sign(V - T) + sign(log V - log T) / V` along
    the spectrum: one inverse FFT for each size, where differentiating step by step takes several
    passes over every spectrogram.

    Args:
      target: What `magnitudes` returns for the target.
      audio: [batch, samples].
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def loss(audio: Any) -> Any:
        distance, gradients = _compare(target, _spectra(audio))

        def gradient(upstream: Any) -> Any:
            frames = [tf.signal.irfft(spectrum) for spectrum in gradients]
            return upstream[:, None] * _overlap_added(frames)[:, : audio.shape[1]]

        return distance, gradient

    return loss(tf.convert_to_tensor(audio))


def magnitudes(audio: Any) -> list[Any]:
    """Returns the magnitude spectrogram of each FFT size, [batch, frames, size // 2 + 1]."""
    return [_magnitude(spectrum)[0] for spectrum in _spectra(audio)]


def magnitude_bytes(n_samples: int) -> int:
    """Returns the memory that the magnitudes of one clip take: about 12 times its audio's."""
    frames = [-(-n_samples // (size // _OVERLAP)) for size in FFT_SIZES]
    return 4 * sum(n * (size // 2 + 1) for n, size in zip(frames, FFT_SIZES, strict=True))


def _spectra(audio: Any) -> list[Any]:
    """Returns the windowed spectra of each size, complex [batch, frames, size // 2 + 1]."""
    return [tf.signal.rfft(frames) for frames in _framed(audio)]


def _framed(audio: Any) -> list[Any]:
    """Returns the windowed frames of each size, [batch, frames, size], zeros after the end."""
    framed = []
    for size in FFT_SIZES:
        hop = size // _OVERLAP
        n_frames = -(-audio.shape[1] // hop)
        after = (n_frames + _OVERLAP - 1) * hop - audio.shape[1]
        blocks = tf.reshape(tf.pad(audio, [[0, 0], [0, after]]), [audio.shape[0], -1, hop])
        quarters = [blocks[:, i : i + n_frames] for i in range(_OVERLAP)]
        framed.append(tf.concat(quarters, axis=-1) * _window(size))
    return framed


def _overlap_added(framed: list[Any]) -> Any:
    """Returns the sum over sizes of the windowed, overlapping frames: `_framed` transposed."""
    sums = []
    for size, frames in zip(FFT_SIZES, framed, strict=True):
        batch, n_frames, _ = frames.shape
        quarters = tf.reshape(frames * _window(size), [batch, n_frames, _OVERLAP, -1])
        blocks = [
            tf.pad(quarters[:, :, i], [[0, 0], [i, _OVERLAP - 1 - i], [0, 0]])
            for i in range(_OVERLAP)
        ]
        sums.append(tf.reshape(tf.add_n(blocks), [batch, -1]))
    shortest = min(audio.shape[1] for audio in sums)
    return tf.add_n([audio[:, :shortest] for audio in sums])


def _compare(target: list[Any], spectra: list[Any]) -> tuple[Any, list[Any]]:
    """Returns the loss, [batch], and its gradient as spectra, which irfft takes to frames."""
    loss, gradients = 0.0, []
    for size, wanted, spectrum in zip(FFT_SIZES, target, spectra, strict=True):
        magnitude, inverse = _magnitude(spectrum)
        safe, safe_wanted = _nonzero(magnitude), _nonzero(wanted)
        logs = tf.abs(tf.math.log(safe / safe_wanted))
        loss += tf.reduce_mean(tf.abs(magnitude - wanted) + logs, axis=[1, 2])
        # The sign of a difference of logarithms needs none. It is not that of the difference of
        # magnitudes where the target is silent: its logarithm is that of 1e-5.
        slope = (tf.sign(magnitude - wanted) + tf.sign(safe - safe_wanted) * inverse) * inverse
        # irfft divides by the size, and counts all bins twice but the first and the last.
        weights = np.full(size // 2 + 1, size / 2, np.float32)
        weights[[0, -1]] = size
        slope *= weights / (wanted.shape[1] * wanted.shape[2])
        gradients.append(tf.complex(slope * tf.math.real(spectrum), slope * tf.math.imag(spectrum)))
    return loss, gradients


def _magnitude(spectrum: Any) -> tuple[Any, Any]:
    """Returns the magnitude of each bin and its inverse, zero for zero."""
    power = tf.square(tf.math.real(spectrum)) + tf.square(tf.math.imag(spectrum))
    inverse = tf.where(power > 0.0, tf.math.rsqrt(power), 0.0)
    return power * inverse, inverse


def _window(size: int) -> Any:
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(size) / size)).astype(np.float32)


def _nonzero(x: Any) -> Any:
    return tf.where(x <= 0.0, 1e-5, x)
