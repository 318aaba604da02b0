"""Decoder, synthesiser and loss in plain float64 NumPy.

The slow, obvious version: it is the oracle that the TensorFlow and ONNX versions are tested
against, and it renders bundles on machines without TensorFlow.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, special

from thesis.architecture import (
    INPUTS,
    LEAK,
    Activation,
    Add,
    Concat,
    Conv,
    Film,
    Gru,
    Layer,
    Node,
    Take,
    TransposedConv,
)
from thesis.config import DecoderConfig, SynthConfig
from thesis.controls import Outputs

Array = npt.NDArray[np.float64]

NOISE_BIAS = -5.0
"""Added to the noise magnitudes so that a new network starts quiet, as in ddsp."""

FFT_SIZES = (2048, 1024, 512, 256, 128, 64)
"""Frames of the spectral loss, in samples. The hop is a quarter of the frame."""


def decode(
    inputs: npt.NDArray[Any], weights: Mapping[str, npt.NDArray[Any]], config: DecoderConfig
) -> Array:
    """Returns the decoder's output.

    Args:
      inputs: [frames, 2], see `thesis.controls.decoder_inputs`.
      weights: Every weight of the plan by name.
      config: The architecture.

    Returns:
      [frames, n_outputs].
    """
    return run(config.plan(weights["output/bias"].shape[0]), weights, inputs)


def run(
    plan: Sequence[Node], weights: Mapping[str, npt.NDArray[Any]], inputs: npt.NDArray[Any]
) -> Array:
    """Returns the output of a plan, [frames, channels], as after training."""
    network = _Network(weights, inputs.shape[0])
    values = {INPUTS: inputs.astype(np.float64)}
    for node in plan:
        values[node.name] = network(node, *(values[source] for source in node.sources))
    return values[plan[-1].name]


class _Network:
    """The nodes of a plan, a method a kind."""

    def __init__(self, weights: Mapping[str, npt.NDArray[Any]], n_frames: int):
        self._weights = weights
        self._n_frames = n_frames

    def __call__(self, node: Any, *sources: Array) -> Array:
        layers: dict[type[Node], Callable[..., Array]] = {
            Conv: self._conv,
            TransposedConv: self._transposed_conv,
            Film: self._film,
            Gru: self._gru,
            Add: self._add,
            Take: self._take,
            Concat: self._concat,
        }
        return layers[type(node)](node, *sources)

    def _weight(self, node: Node, name: str) -> Array:
        return self._weights[f"{node.name}/{name}"].astype(np.float64)

    def _conv(self, conv: Conv, x: Array) -> Array:
        kernel = self._weight(conv, "kernel")
        padded = np.pad(x, (conv.padding, (0, 0)))
        y = np.zeros((-(-len(x) // conv.stride), conv.ch_out))
        for tap in range(conv.kernel_size):
            seen = padded[tap * conv.dilation :][: len(x) : conv.stride]
            y += seen * kernel[tap, 0] if conv.depthwise else seen @ kernel[tap]
        return self._normed(conv, y)

    def _transposed_conv(self, conv: TransposedConv, x: Array) -> Array:
        kernel = self._weight(conv, "kernel")
        y = np.zeros(((len(x) + 1) * conv.stride, conv.ch_out))
        for tap, weight in enumerate(kernel):
            y[tap:][: len(x) * conv.stride : conv.stride] += x @ weight
        return self._normed(conv, y[conv.lookahead :][: -(-self._n_frames // conv.period)])

    def _normed(self, layer: Layer, y: Array) -> Array:
        """Returns what a convolution has computed, through its norm and its activation."""
        if layer.biased:
            y = y + self._weight(layer, "bias")
        if layer.norm != "none":
            mean, variance = self._moments(layer, y)
            y = (y - mean) / np.sqrt(variance + layer.epsilon)
        if layer.rescaled:
            y = y * self._weight(layer, "scale") + self._weight(layer, "shift")
        return _activated(layer.activation, y)

    def _moments(self, layer: Layer, y: Array) -> tuple[Array, Array]:
        """Returns the mean and the variance that a norm takes out."""
        if layer.norm == "batch":
            return self._weight(layer, "mean"), self._weight(layer, "variance")
        over = {"frame": -1, "time": None}[layer.norm]
        return y.mean(over, keepdims=True), y.var(over, keepdims=True)

    def _film(self, film: Film, x: Array, conditions: Array) -> Array:
        seen = conditions[:: film.period]
        if film.scaled:
            x = x * (self._weight(film, "scale") + seen @ self._weight(film, "scale_kernel"))
        y = x + self._weight(film, "shift") + seen @ self._weight(film, "shift_kernel")
        return _activated(film.activation, y)

    def _gru(self, gru: Gru, x: Array) -> Array:
        from_input, from_state = self._weight(gru, "bias")
        x = x @ self._weight(gru, "kernel") + from_input
        states = np.zeros((len(x) + 1, gru.ch_out))
        for t, (zx, rx, cx) in enumerate(x.reshape(len(x), 3, gru.ch_out)):
            h = states[t]
            recurrent = h @ self._weight(gru, "recurrent_kernel") + from_state
            zh, rh, ch = np.split(recurrent, 3)
            z, r = special.expit(zx + zh), special.expit(rx + rh)
            states[t + 1] = z * h + (1.0 - z) * np.tanh(cx + r * ch)
        return states[1:]

    def _add(self, _: Add, *sources: Array) -> Array:
        return np.asarray(sum(sources))

    def _take(self, take: Take, x: Array) -> Array:
        return x[:, take.first :][:, : take.ch_out]

    def _concat(self, _: Concat, *sources: Array) -> Array:
        return np.concatenate(sources, axis=-1)


def _activated(activation: Activation, y: Array) -> Array:
    if activation == "relu6":
        return np.asarray(np.clip(y, 0.0, 6.0))
    return np.where(y < 0.0, LEAK * y, y) if activation == "leaky_relu" else y


def exp_sigmoid(x: npt.NDArray[Any]) -> Array:
    """Returns `2 * sigmoid(x) ** ln(10) + 1e-7`, elementwise.

    How raw network outputs become amplitudes, from 1e-7 to 2 (Engel et al. 2020).
    Not a softmax: nothing is normalised.

    Args:
      x: Of any shape.
    """
    return np.asarray(2.0 * special.expit(x.astype(np.float64)) ** np.log(10.0) + 1e-7)


def harmonic_amplitudes(outputs: Outputs, f0_hz: npt.NDArray[Any], sample_rate: int) -> Array:
    """Returns the linear amplitude of each harmonic (Engel et al. 2020, section 3.2).

    The distribution is normalised over the harmonics below Nyquist; the rest are silent, as all
    are in a frame without pitch.

    Args:
      outputs: Raw network outputs, [frames, 1] and [frames, n_harmonics].
      f0_hz: [frames], Hz; 0 or less means none.
      sample_rate: In Hz.

    Returns:
      [frames, n_harmonics]: 0 or more, 2 at most in sum over a frame's harmonics. NaN where an
      argument is.
    """
    distribution = exp_sigmoid(outputs.harmonic_distribution)
    number = np.arange(1, distribution.shape[-1] + 1)
    distribution = distribution * _audible(f0_hz.astype(np.float64)[:, None], number, sample_rate)
    total = distribution.sum(-1, keepdims=True)
    distribution = distribution / np.where(total == 0.0, 1e-7, total)
    return exp_sigmoid(outputs.amplitude) * distribution


def harmonic(
    amplitudes: Array, f0_hz: npt.NDArray[Any], *, sample_rate: int, hop_size: int
) -> Array:
    """Returns a bank of sinusoids at the multiples of f0 (Engel et al. 2020, section 3.2).

    As ddsp defines it: f0 is interpolated linearly, amplitudes are crossfaded with a Hann window,
    the phase is the running sum of the frequency. The phase is kept as a fraction of a cycle, so
    that it does not lose precision with time.

    Args:
      amplitudes: Linear, [frames, n_harmonics].
      f0_hz: [frames], Hz; 0 or less is silent.
      sample_rate: In Hz.
      hop_size: Samples a frame.

    Returns:
      [frames * hop_size]. The first sample is one sample's step into the first cycle. NaN in f0
      makes everything after it NaN, as the phase is lost.
    """
    f0 = f0_hz.astype(np.float64)
    up = np.arange(hop_size) / hop_size
    f0_next = np.append(f0[1:], f0[-1])
    f0_frames = f0[:, None] * (1 - up) + f0_next[:, None] * up
    within = np.cumsum(f0_frames / sample_rate, axis=1)
    before = np.cumsum(np.append(0.0, within[:-1, -1] % 1.0))
    cycles = ((before[:, None] + within) % 1.0).ravel()
    f0_samples = f0_frames.ravel()
    hann = 0.5 - 0.5 * np.cos(np.pi * up)
    amplitudes_next = np.concatenate([amplitudes[1:], amplitudes[-1:]])
    audio = np.zeros(f0_samples.size)
    for k in range(1, amplitudes.shape[-1] + 1):
        envelope = amplitudes[:, k - 1, None] * (1 - hann) + amplitudes_next[:, k - 1, None] * hann
        audible = _audible(f0_samples, k, sample_rate)
        audio += audible * envelope.ravel() * np.sin(2 * np.pi * k * cycles)
    return audio


def _audible(f0_hz: Array, number: Any, sample_rate: int) -> npt.NDArray[np.bool_]:
    """Returns whether a harmonic sounds: its fundamental is a pitch, itself is below Nyquist."""
    return np.asarray((f0_hz > 0.0) & (number * f0_hz < sample_rate / 2))


def noise_impulse_responses(noise_magnitudes: npt.NDArray[Any]) -> Array:
    """Returns the FIR filter of each frame (Engel et al. 2020, section 3.4).

    Frequency sampling method, as in ddsp's `frequency_impulse_response`: the inverse transform of
    the magnitudes, with zero phase, centred, times a periodic Hann window.

    Args:
      noise_magnitudes: Raw network outputs, [frames, bands]; evenly spaced from 0 Hz to Nyquist.

    Returns:
      [frames, 2 * (bands - 1)], symmetric about tap `bands - 1`.
    """
    magnitudes = exp_sigmoid(noise_magnitudes + NOISE_BIAS)
    response = np.fft.fftshift(np.fft.irfft(magnitudes), axes=-1)
    size = response.shape[-1]
    return np.asarray(response * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)))


def filtered_noise(noise_magnitudes: npt.NDArray[Any], noise: npt.NDArray[Any]) -> Array:
    """Returns noise that is filtered frame by frame (Engel et al. 2020, section 3.5).

    Args:
      noise_magnitudes: Raw network outputs, [frames, bands].
      noise: [frames * hop_size], in [-1, 1), see `thesis.controls.white_noise`.

    Returns:
      [frames * hop_size]. The filters' group delay is taken out, as ddsp does: all but 2 samples
      of it.

    Raises:
      ValueError: The noise is not a whole number of samples for each frame.
    """
    responses = noise_impulse_responses(noise_magnitudes)
    n_frames, size = responses.shape
    blocks = noise.astype(np.float64).reshape(n_frames, -1)
    hop_size = blocks.shape[1]
    audio = np.zeros(noise.size + size - 1)
    for t in range(n_frames):
        audio[t * hop_size :][: hop_size + size - 1] += np.convolve(blocks[t], responses[t])
    delay = (size - 1) // 2 - 1
    return audio[delay : delay + noise.size]


def reverb_envelope(config: SynthConfig, sample_rate: int) -> Array:
    """Returns what a trained impulse response is multiplied with to be heard, [taps].

    `10 ** (-3 t / reverb_decay_seconds)` at t seconds: it falls by 60 dB in that time, which makes
    it a reverberation time (RT60, ISO 3382). Training moves every tap by about as much, also those
    of the tail, which hardly matter to the loss; the envelope lets them die out. Without a decay
    it is 1.

    Args:
      config: Length and decay of the reverb.
      sample_rate: In Hz.

    Returns:
      [taps], above 0 to 1; empty without a reverb.
    """
    t = np.arange(config.reverb_length(sample_rate)) / sample_rate
    if not config.reverb_decay_seconds:
        return np.ones_like(t)
    return np.asarray(10.0 ** (-3.0 * t / config.reverb_decay_seconds))


def reverb(audio: Array, impulse_response: npt.NDArray[Any]) -> Array:
    """Returns the dry signal plus its convolution with a room's response.

    A linear convolution, of a response of any length (Engel et al. 2020, section 3.6); what rings
    on after the end is cut off.

    Args:
      audio: [samples].
      impulse_response: [taps], as it is heard (see `reverb_envelope`). The first is taken as zero,
        it is the dry signal's place. Empty for no reverb.

    Returns:
      [samples].
    """
    if impulse_response.size == 0:
        return audio
    response = np.concatenate([[0.0], impulse_response[1:]])
    size = fft.next_fast_len(audio.size + response.size - 1, real=True)
    wet: Array = fft.irfft(fft.rfft(audio, size) * fft.rfft(response, size), size)
    return audio + wet[: audio.size]


def synthesize(
    outputs: npt.NDArray[Any],
    f0_hz: npt.NDArray[Any],
    noise: npt.NDArray[Any],
    impulse_response: npt.NDArray[Any],
    *,
    config: SynthConfig,
    sample_rate: int,
    hop_size: int,
) -> Array:
    """Returns the audio that a decoder's output describes.

    Args:
      outputs: [frames, n_outputs], the decoder's, raw.
      f0_hz: [frames], Hz; 0 or less means none.
      noise: [frames * hop_size] or more, in [-1, 1).
      impulse_response: [taps], as it is heard; empty for no reverb.
      config: Harmonics and noise bands.
      sample_rate: In Hz.
      hop_size: Samples a frame of the decoder.

    Returns:
      [frames * hop_size]. Nothing clips it to [-1, 1]. NaN in an argument comes out as NaN.

    Raises:
      ValueError: There is too little noise, or the shapes do not go together.
    """
    split = Outputs.split(outputs, config)
    amplitudes = harmonic_amplitudes(split, f0_hz, sample_rate)
    dry = harmonic(amplitudes, f0_hz, sample_rate=sample_rate, hop_size=hop_size)
    dry = dry + filtered_noise(split.noise_magnitudes, noise[: dry.size])
    return reverb(dry, impulse_response)


def spectral_loss(target: npt.NDArray[Any], audio: npt.NDArray[Any]) -> float:
    """Returns ddsp's multi-scale spectral loss (Engel et al. 2020, section 4.2.1) of one clip.

    The mean absolute difference of the magnitudes plus that of their logarithms, summed over six
    FFT sizes, both with weight 1. A bare number, 0 for equal clips; it depends on the level, so it
    compares models on the same clips only. A magnitude of zero has the logarithm of 1e-5.

    Args:
      target: [samples].
      audio: [samples].
    """
    loss = 0.0
    for size in FFT_SIZES:
        a, b = _magnitudes(target, size), _magnitudes(audio, size)
        log_a, log_b = (np.log(np.where(m <= 0.0, 1e-5, m)) for m in (a, b))
        loss += float(np.abs(a - b).mean() + np.abs(log_a - log_b).mean())
    return loss


def _magnitudes(audio: npt.NDArray[Any], size: int) -> Array:
    """Returns the magnitudes of frames of `size` samples, [frames, size // 2 + 1]."""
    hop = size // 4
    n_frames = -(-audio.size // hop)
    padded = np.pad(audio.astype(np.float64), (0, (n_frames - 1) * hop + size - audio.size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    return np.asarray(np.abs(fft.rfft(frames * np.hanning(size + 1)[:-1])))
