"""Harmonic oscillators, filtered noise, reverb and spectral loss in TensorFlow. Needs TensorFlow.

Exact and fast. f0 is data, not a weight: the bank of sinusoids does not depend on the network, and
a frame of audio is that bank times the amplitudes of two neighbouring frames, one batched matrix
product. `thesis.reference` is the float64 oracle.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from thesis._ddsp import ddsp, tf
from thesis.config import SynthConfig
from thesis.controls import Outputs
from thesis.reference import NOISE_BIAS

FFT_SIZES = (2048, 1024, 512, 256, 128, 64)


def exp_sigmoid(x: Any) -> Any:
    """Returns `2 * sigmoid(x) ** ln(10) + 1e-7`, ddsp's scaling of amplitudes to (1e-7, 2)."""
    return 2.0 * tf.exp(math.log(10.0) * tf.math.log_sigmoid(x)) + 1e-7


@dataclass(frozen=True)
class Synthesizer:
    """Turns a decoder's output into audio, for clips of one sample rate and hop size.

    Attributes:
      config: Harmonics and noise bands.
      sample_rate: In Hz.
      hop_size: Samples a frame.
    """

    config: SynthConfig
    sample_rate: int
    hop_size: int

    def __call__(self, outputs: Any, f0_hz: Any, noise: Any, impulse_response: Any) -> Any:
        """Returns audio, [batch, frames * hop_size].

        Args:
          outputs: The decoder's, [batch, frames, n_outputs].
          f0_hz: [batch, frames].
          noise: [batch, frames * hop_size], see `thesis.controls.white_noise`.
          impulse_response: [taps]; empty for no reverb.
        """
        split = Outputs.split(outputs, self.config)
        dry = self.harmonic(self.harmonic_amplitudes(split, f0_hz), f0_hz)
        dry += self.filtered_noise(split.noise_magnitudes, noise)
        return self.reverb(dry, impulse_response)

    def harmonic_amplitudes(self, outputs: Outputs, f0_hz: Any) -> Any:
        """Returns the amplitude of each harmonic, [batch, frames, n_harmonics]."""
        distribution = exp_sigmoid(outputs.harmonic_distribution)
        distribution *= self._audible(tf.cast(f0_hz, tf.float64))
        total = tf.reduce_sum(distribution, axis=-1, keepdims=True)
        return distribution * (exp_sigmoid(outputs.amplitude) / tf.where(total == 0.0, 1e-7, total))

    def harmonic(self, amplitudes: Any, f0_hz: Any) -> Any:
        """Returns a bank of sinusoids at the multiples of f0 (Engel et al. 2020, section 3.2).

        ddsp upsamples amplitudes with Hann windows that overlap by half, which is a crossfade of
        two frames: `audio[t] = (1 - w) * (S[t] @ a[t]) + w * (S[t] @ a[t + 1])`.

        Args:
          amplitudes: [batch, frames, n_harmonics].
          f0_hz: [batch, frames].

        Returns:
          [batch, frames * hop_size].
        """
        ahead = tf.concat([amplitudes[:, 1:], amplitudes[:, -1:]], axis=1)
        frames = tf.matmul(self.sine_bank(f0_hz), tf.stack([amplitudes, ahead], axis=-1))
        up = 0.5 - 0.5 * np.cos(np.pi * np.arange(self.hop_size) / self.hop_size)
        crossfade = np.stack([1.0 - up, up], axis=-1).astype(np.float32)
        return _flatten(tf.reduce_sum(frames * crossfade, axis=-1))

    def sine_bank(self, f0_hz: Any) -> Any:
        """Returns the sinusoids, [batch, frames, hop_size, n_harmonics]; silent above Nyquist.

        Phase is accumulated in float64 and kept as a fraction of a cycle. ddsp's float32 running
        sum drifts: it is off by a full swing after four seconds of the higher harmonics.
        """
        f0 = tf.cast(f0_hz, tf.float64)[..., None]
        ahead = tf.concat([f0[:, 1:], f0[:, -1:]], axis=1)
        h = np.arange(self.hop_size) / self.hop_size
        f0_samples = f0 * (1.0 - h) + ahead * h
        # Within a frame the running sum of a linear ramp is a polynomial; across frames, a sum.
        n = np.arange(1, self.hop_size + 1)
        within = f0 * n + (ahead - f0) * (n * (n - 1) / (2 * self.hop_size))
        before = tf.cumsum(within[..., -1:], axis=1, exclusive=True)
        cycles = (before + within) / self.sample_rate
        cycles = tf.cast(cycles - tf.floor(cycles), tf.float32)[..., None]
        number = tf.range(1, self.config.n_harmonics + 1, dtype=tf.float32)
        return tf.sin(2.0 * np.pi * cycles * number) * self._audible(f0_samples)

    def _audible(self, f0_hz: Any) -> Any:
        """Returns 1 for each harmonic below Nyquist and 0 for the others, [..., n_harmonics].

        The limit is found in float64: in float32 the product of number and pitch rounds across it.
        """
        first_inaudible = tf.math.ceil(self.sample_rate / 2 / f0_hz)
        number = tf.range(1, self.config.n_harmonics + 1, dtype=tf.float32)
        below_nyquist = number < tf.cast(first_inaudible, tf.float32)[..., None]
        return tf.cast(below_nyquist, tf.float32)

    def filtered_noise(self, noise_magnitudes: Any, noise: Any) -> Any:
        """Returns noise that is filtered frame by frame (Engel et al. 2020, section 3.3).

        Args:
          noise_magnitudes: Raw network outputs, [batch, frames, n_noise_bands].
          noise: [batch, frames * hop_size].
        """
        magnitudes = exp_sigmoid(noise_magnitudes + NOISE_BIAS)
        return ddsp.core.frequency_filter(noise, magnitudes, window_size=0)

    def reverb(self, audio: Any, impulse_response: Any) -> Any:
        """Returns the dry signal and its convolution with a room's response, same length.

        The response's first tap is the dry signal's place and is taken as zero.
        """
        taps, n_samples = impulse_response.shape[0], audio.shape[1]
        if taps == 0:
            return audio
        size = 2 ** math.ceil(math.log2(taps + n_samples - 1))
        response = tf.concat([[0.0], impulse_response[1:]], axis=0)
        # ddsp transforms a copy of the response for every clip of the batch; one is enough.
        spectrum = tf.signal.rfft(audio, [size]) * tf.signal.rfft(response, [size])
        return audio + tf.signal.irfft(spectrum, [size])[:, :n_samples]


def _flatten(frames: Any) -> Any:
    """[batch, frames, hop_size] -> [batch, frames * hop_size], shape known when it is traced."""
    batch, n_frames, hop_size = frames.shape
    return tf.reshape(frames, [batch, n_frames * hop_size])


def spectral_loss(target_audio: Any, audio: Any) -> Any:
    """Returns ddsp's multi-scale spectral loss of each clip, [batch].

    The L1 distance of magnitudes and of log magnitudes, summed over six FFT sizes (Engel et al.
    2020, section 4.2.1). Its mean over the batch equals `ddsp.losses.SpectralLoss` with
    `mag_weight = logmag_weight = 1`.
    """
    loss = 0.0
    for size in FFT_SIZES:
        target, value = _magnitudes(target_audio, size), _magnitudes(audio, size)
        distance = tf.abs(target - value) + tf.abs(_safe_log(target) - _safe_log(value))
        loss += tf.reduce_mean(distance, axis=[1, 2])
    return loss


def _magnitudes(audio: Any, fft_size: int) -> Any:
    return tf.abs(tf.signal.stft(audio, fft_size, fft_size // 4, pad_end=True))


def _safe_log(x: Any) -> Any:
    return tf.math.log(tf.where(x <= 0.0, 1e-5, x))
