"""Harmonic oscillators, filtered noise and reverb in TensorFlow. Needs TensorFlow.

Exact and fast. f0 is data, not a weight: the bank of sinusoids does not depend on the network, and
a frame of audio is that bank times the amplitudes of two neighbouring frames, one batched matrix
product. Everything here compiles (XLA), and is meant to be called one clip at a time from a
compiled function: a clip's intermediates then stay in the processor's cache.
`thesis.reference` is the float64 oracle.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import next_fast_len

from thesis._ddsp import tf
from thesis.config import SynthConfig
from thesis.controls import Outputs
from thesis.reference import NOISE_BIAS

_SINE_TERMS = 7
"""Odd powers of the polynomial for a sine; seven are exact to float32."""


def exp_sigmoid(x: Any) -> Any:
    """Returns `2 * sigmoid(x) ** ln(10) + 1e-7`, elementwise: 1e-7 to 2 (Engel et al. 2020)."""
    return 2.0 * tf.exp(math.log(10.0) * tf.math.log_sigmoid(x)) + 1e-7


@dataclass(frozen=True)
class Synthesizer:
    """Turns a decoder's output into audio, for clips of one sample rate and hop size.

    Tensors are float32 and of a known shape. Where f0, in Hz, is 0 or less there is no pitch and
    no harmonic. NaN comes out where NaN goes in. Shapes that do not go together raise ValueError
    or TensorFlow's InvalidArgumentError.

    Attributes:
      config: Harmonics and noise bands; nothing else of it is read, see `SynthConfig.oscillators`.
      sample_rate: In Hz.
      hop_size: Samples a frame of the decoder: `config.hop_multiple` times the dataset's.
    """

    config: SynthConfig
    sample_rate: int
    hop_size: int

    def __call__(self, outputs: Any, f0_hz: Any, noise: Any, impulse_response: Any) -> Any:
        """Returns audio, [batch, frames * hop_size].

        Args:
          outputs: The decoder's, raw, [batch, frames, n_outputs].
          f0_hz: [batch, frames].
          noise: [batch, frames * hop_size] in [-1, 1), see `thesis.controls.white_noise`.
          impulse_response: The reverb as it is heard, [taps]; empty for none.
        """
        response = self.response_spectrum(impulse_response, noise.shape[1])
        return self.render(outputs, f0_hz, self.sine_bank(f0_hz), noise, response)

    def render(
        self, outputs: Any, f0_hz: Any, sine_bank: Any, noise: Any, response_spectrum: Any
    ) -> Any:
        """As a call, with what does not depend on the decoder already known.

        Args:
          outputs: The decoder's, [batch, frames, n_outputs].
          f0_hz: [batch, frames].
          sine_bank: What `sine_bank` returns for this f0.
          noise: [batch, frames * hop_size].
          response_spectrum: What `response_spectrum` returns for clips of this length.
        """
        split = Outputs.split(outputs, self.config)
        dry = self.additive(self.harmonic_amplitudes(split, f0_hz), sine_bank)
        dry += self.filtered_noise(split.noise_magnitudes, noise)
        return _reverberated(dry, response_spectrum)

    def harmonic_amplitudes(self, outputs: Outputs, f0_hz: Any) -> Any:
        """Returns the linear amplitude of each harmonic, [batch, frames, n_harmonics].

        The distribution is normalised over the audible harmonics (Engel et al. 2020, section 3.2).

        Args:
          outputs: Raw network outputs, [batch, frames, 1] and [batch, frames, n_harmonics].
          f0_hz: [batch, frames].
        """
        limit = self._first_inaudible(tf.cast(f0_hz, tf.float64))
        return _distribute(outputs.amplitude, outputs.harmonic_distribution, limit)

    def harmonic(self, amplitudes: Any, f0_hz: Any) -> Any:
        """Returns a bank of sinusoids at the multiples of f0 (Engel et al. 2020, section 3.2).

        ddsp upsamples amplitudes with Hann windows that overlap by half, which is a crossfade of
        two frames: `audio[t] = (1 - w) * (a[t] @ S[t]) + w * (a[t + 1] @ S[t])`.

        Args:
          amplitudes: [batch, frames, n_harmonics].
          f0_hz: [batch, frames].

        Returns:
          [batch, frames * hop_size].
        """
        return self.additive(amplitudes, self.sine_bank(f0_hz))

    def additive(self, amplitudes: Any, sine_bank: Any) -> Any:
        """As `harmonic`, of sinusoids that are known.

        Args:
          amplitudes: [batch, frames, n_harmonics].
          sine_bank: What `sine_bank` returns. It has no gradient.
        """
        ahead = tf.concat([amplitudes[:, 1:], amplitudes[:, -1:]], axis=1)
        frames = _product(tf.stack([amplitudes, ahead], axis=2), sine_bank)
        up = 0.5 - 0.5 * np.cos(np.pi * np.arange(self.hop_size) / self.hop_size)
        crossfade = np.stack([1.0 - up, up]).astype(np.float32)
        return _flatten(tf.reduce_sum(frames * crossfade, axis=2))

    def sine_bank(self, f0_hz: Any) -> Any:
        """Returns the sinusoids, [batch, frames, n_harmonics, hop_size]; silent from Nyquist on.

        `phase` and `sines` are better compiled one by one: in one piece every harmonic computes
        the phase anew, which takes twice as long.
        """
        return self.sines(*self.phase(f0_hz))

    def phase(self, f0_hz: Any) -> tuple[Any, Any]:
        """Returns the phase of each sample and the number of the first harmonic beyond Nyquist.

        f0 is interpolated linearly from frame to frame, and held after the last.
        Phase is accumulated in float64 and kept as a fraction of a cycle. ddsp's float32 running
        sum drifts: it is off by a full swing after four seconds of the higher harmonics.

        Args:
          f0_hz: [batch, frames].

        Returns:
          Both [batch, frames, hop_size].
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
        cycles = tf.cast(cycles - tf.floor(cycles), tf.float32)
        return cycles, self._first_inaudible(f0_samples)

    def sines(self, cycles: Any, first_inaudible: Any) -> Any:
        """Returns `sine_bank`, of what `phase` returns.

        Within 4e-7 of the sine of the same float32 phase.
        """
        number = tf.range(1, self.config.n_harmonics + 1, dtype=tf.float32)[:, None]
        x = cycles[..., None, :] * number
        x -= tf.round(x)
        square, sine = x * x, 0.0
        for coefficient in reversed(_sine_polynomial()):
            sine = sine * square + coefficient
        # Where NaN goes in, the phase is NaN as well.
        return sine * x * tf.where(number >= first_inaudible[..., None, :], 0.0, 1.0)

    def _first_inaudible(self, f0_hz: Any) -> Any:
        """Returns the number of the first harmonic at or above Nyquist, float32.

        It is found in float64: in float32 the product of number and pitch rounds across the limit.
        Without a pitch no harmonic is audible.
        """
        first = tf.cast(tf.math.ceil(self.sample_rate / 2 / f0_hz), tf.float32)
        return tf.where(f0_hz <= 0.0, 0.0, first)

    def filtered_noise(self, noise_magnitudes: Any, noise: Any) -> Any:
        """Returns noise that is filtered frame by frame (Engel et al. 2020, section 3.5).

        The frame's filter is symmetric, so its spectrum is real but for a delay, and linear in the
        magnitudes: a matrix product takes the place of two FFTs of ddsp's `frequency_filter`.

        Args:
          noise_magnitudes: Raw network outputs, [batch, frames, n_noise_bands], evenly spaced from
            0 Hz to Nyquist.
          noise: [batch, frames * hop_size].

        Returns:
          [batch, frames * hop_size]. As with ddsp, all but 2 samples of the delay are taken out.
        """
        taps = 2 * (self.config.n_noise_bands - 1)
        length = self.hop_size + taps - 1
        size = 2 * next_fast_len(-(-length // 2), real=True)
        frequency = np.arange(size // 2 + 1) / size
        delay = np.exp(-1j * np.pi * taps * frequency).astype(np.complex64)
        blocks = tf.reshape(noise, [noise.shape[0], -1, self.hop_size])
        spectrum = tf.signal.rfft(blocks, [size]) * delay
        filtered = _shape(spectrum, noise_magnitudes + NOISE_BIAS, _filter_matrix(taps, size))
        audio = _overlap_added(tf.signal.irfft(filtered)[..., :length], self.hop_size)
        group_delay = (taps - 1) // 2 - 1
        return audio[:, group_delay : group_delay + noise.shape[1]]

    def reverb(self, audio: Any, impulse_response: Any) -> Any:
        """Returns the dry signal plus its convolution with a room's response.

        A linear convolution (Engel et al. 2020, section 3.6); what rings on after the end is cut.

        Args:
          audio: [batch, samples].
          impulse_response: As it is heard, [taps]. The first tap is the dry signal's place and is
            taken as zero. Empty for no reverb.

        Returns:
          [batch, samples].
        """
        return _reverberated(audio, self.response_spectrum(impulse_response, audio.shape[1]))

    def response_spectrum(self, impulse_response: Any, n_samples: int) -> Any:
        """Returns the response's spectrum, padded for clips of `n_samples`: [bins], complex.

        One serves all clips of a batch; ddsp transforms a copy for each. Empty for no reverb.
        """
        taps = impulse_response.shape[0]
        if taps == 0:
            return tf.zeros(0, tf.complex64)
        # An even size follows from its number of bins.
        size = 2 * next_fast_len(-(-(taps + n_samples - 1) // 2), real=True)
        response = tf.concat([tf.zeros(1), impulse_response[1:]], axis=0)
        return tf.signal.rfft(response, [size])


def _reverberated(audio: Any, response_spectrum: Any) -> Any:
    """Returns the audio and, added to it, its convolution with a response."""
    bins = response_spectrum.shape[0]
    if bins == 0:
        return audio
    size = 2 * (bins - 1)
    wet = tf.signal.irfft(tf.signal.rfft(audio, [size]) * response_spectrum, [size])
    return audio + wet[:, : audio.shape[1]]


def _product(amplitudes: Any, sine_bank: Any) -> Any:
    """Returns `amplitudes @ sine_bank`.

    A harmonic's samples lie side by side, and its gradient takes the large factor as it lies in
    memory: this way round both products are fast, TensorFlow's own gradient is not.

    Args:
      amplitudes: [batch, frames, 2, n_harmonics].
      sine_bank: [batch, frames, n_harmonics, hop_size].

    Returns:
      [batch, frames, 2, hop_size].
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def product(amplitudes: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            by_harmonic = tf.matmul(sine_bank, upstream, transpose_b=True)
            return tf.linalg.matrix_transpose(by_harmonic)

        return tf.matmul(amplitudes, sine_bank), gradient

    return product(amplitudes)


def _flatten(frames: Any) -> Any:
    """[batch, frames, hop_size] -> [batch, frames * hop_size], shape known when it is traced."""
    batch, n_frames, hop_size = frames.shape
    return tf.reshape(frames, [batch, n_frames * hop_size])


def _distribute(amplitude: Any, distribution: Any, first_inaudible: Any) -> Any:
    """Returns the amplitude spread over the audible harmonics by their share."""
    shares = exp_sigmoid(distribution) * _audible(first_inaudible, distribution.shape[-1])
    total = tf.reduce_sum(shares, axis=-1, keepdims=True)
    return shares * (exp_sigmoid(amplitude) / tf.where(total == 0.0, 1e-7, total))


def _audible(first_inaudible: Any, n_harmonics: int) -> Any:
    """Returns 1 for each harmonic below Nyquist and 0 for the others, [..., n_harmonics]."""
    number = tf.range(1, n_harmonics + 1, dtype=tf.float32)
    # NaN counts as audible and so is heard: compiled, a product with 0 is 0 whatever the factor.
    return tf.where(number >= first_inaudible[..., None], 0.0, 1.0)


@functools.lru_cache(maxsize=1)
def _sine_polynomial() -> tuple[float, ...]:
    """Returns the coefficients of x, x^3, .. for sin(2 pi x), -1/2 <= x <= 1/2.

    A least-squares fit at Chebyshev nodes, which spreads the error evenly.
    """
    x = 0.5 * np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    powers = x[:, None] ** (2 * np.arange(_SINE_TERMS) + 1)
    fit, *_ = np.linalg.lstsq(powers, np.sin(2 * np.pi * x), rcond=None)
    return tuple(map(float, fit))


def _shape(spectrum: Any, magnitudes: Any, filter_matrix: Any) -> Any:
    """Returns the spectrum of each frame, shaped by the filter of its magnitudes."""
    response = exp_sigmoid(magnitudes) @ filter_matrix
    return tf.complex(tf.math.real(spectrum) * response, tf.math.imag(spectrum) * response)


@functools.lru_cache(maxsize=8)
def _filter_matrix(taps: int, size: int) -> npt.NDArray[np.float32]:
    """Returns what takes magnitudes to the real spectrum of their windowed, centred filter.

    [taps // 2 + 1, size // 2 + 1]; row i is the filter of band i alone.
    """
    responses = np.fft.fftshift(np.fft.irfft(np.eye(taps // 2 + 1)), axes=-1)
    responses *= 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(taps) / taps)
    padded = np.pad(responses, [(0, 0), (0, size - taps)])
    spectra = np.fft.rfft(np.roll(padded, -(taps // 2), axis=-1))
    return spectra.real.astype(np.float32)


def _overlap_added(frames: Any, hop_size: int) -> Any:
    """Adds up frames that begin `hop_size` apart, [batch, frames, length] -> [batch, samples]."""
    batch, n_frames, length = frames.shape
    overlap = -(-length // hop_size)
    frames = tf.pad(frames, [[0, 0], [0, 0], [0, overlap * hop_size - length]])
    parts = tf.reshape(frames, [batch, n_frames, overlap, hop_size])
    blocks = [
        tf.pad(parts[:, :, i], [[0, 0], [i, overlap - 1 - i], [0, 0]]) for i in range(overlap)
    ]
    return tf.reshape(tf.add_n(blocks), [batch, -1])
