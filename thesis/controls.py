"""What goes into a decoder and how its output is split: shared by training, export and rendering.

NumPy only.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thesis.config import SynthConfig

DB_RANGE = 80.0
"""Loudness runs from -DB_RANGE to 0 dB, as in ddsp."""
MIDI_RANGE = 127.0
MAX_PEAK = 10.0
"""Of audio that controls are taken of. A mix may go beyond 1; numbers as large as 16-bit integers
are no audio."""


def decoder_inputs(f0_hz: npt.NDArray[Any], loudness_db: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns loudness and pitch scaled to about [0, 1], as ddsp scales them.

    Args:
      f0_hz: Fundamental frequency in Hz, [..., frames]; 0 or less means none.
      loudness_db: Loudness in dB from -80 to 0, [..., frames].

    Returns:
      [..., frames, 2], float32: scaled loudness, then f0 as a MIDI note over 127.
    """
    midi = 12.0 * np.log2(np.maximum(f0_hz, 1e-5) / 440.0) + 69.0
    # NaN is no pitch of 0: it goes through, for whoever checks the result.
    f0_scaled = np.where(f0_hz <= 0.0, 0.0, midi) / MIDI_RANGE
    loudness_scaled = loudness_db / DB_RANGE + 1.0
    return np.stack([loudness_scaled, f0_scaled], axis=-1).astype(np.float32)


def white_noise(seed: int, n_clips: int, n_samples: int) -> npt.NDArray[np.float32]:
    """Returns the noise that is filtered, uniform in [-1, 1), [n_clips, n_samples].

    The noise is an input of the synthesiser, not a part of it: with the same seed a validation
    loss is a fixed number and all that renders renders the same audio. A sample is a hash of its
    number, so that a stream, in whatever blocks, has the noise of the whole clip, and generated
    code needs four lines for it: `(hash(number ^ key) >> 8) / 2 ** 23 - 1`.

    Args:
      seed: 0 to 2 ** 32 - 1.
      n_clips: How many.
      n_samples: Of each, up to 2 ** 32.
    """
    number = np.arange(n_samples, dtype=np.uint32)
    keys = np.array([noise_key(seed, clip) for clip in range(n_clips)], np.uint32)
    bits = _hash(number ^ keys[:, None]) >> np.uint32(8)
    return bits.astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)


def noise_key(seed: int, clip: int = 0) -> int:
    """Returns what the noise of a clip is told from others by, 0 to 2 ** 32 - 1."""
    return int(_hash(_hash(np.array([seed], np.uint32)) + np.uint32(clip))[0])


def _hash(x: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Mixes 32 bits: 'lowbias32', Wellons' low-bias xorshift-multiply hash."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


LOUDNESS_SLOPE = 4.0
"""Of raw amplitude and noise magnitudes over scaled loudness. `exp_sigmoid` tends to `2 * 10**raw`,
and scaled loudness spans 80 dB: a slope of 4 is one dB a dB."""


def absolute_levels(outputs: Any, inputs: Any, config: SynthConfig) -> Any:
    """Returns a decoder's output with its amplitude and noise as what is synthesised.

    A decoder that has learnt nothing yet then follows the loudness that it is given, and what it
    learns is a deviation from that. Starting at one level for all frames, most small decoders lose
    their harmonics in the first hundred steps and never find them again.

    Args:
      outputs: The decoder's, [..., frames, n_outputs], an array or a tensor.
      inputs: Its inputs at those frames, [..., frames, 2], see `decoder_inputs`.
      config: Says what the levels are relative to.
    """
    if config.levels == "absolute":
        return outputs
    return outputs + inputs[..., :1] * loudness_slopes(config)


def loudness_slopes(config: SynthConfig) -> npt.NDArray[np.float32]:
    """Returns what each output gains with scaled loudness, [n_outputs]; zeros for none."""
    relative = LOUDNESS_SLOPE if config.levels == "loudness" else 0.0
    return _by_kind(config, amplitude=relative, distribution=0.0, noise=relative)


def initial_outputs(config: SynthConfig) -> npt.NDArray[np.float32]:
    """Returns what a new decoder is to give for all inputs, [n_outputs]: its output layer's bias.

    Where levels are relative to loudness, a sound of about that loudness whose harmonics fall by
    some 8 dB an octave, with noise 40 dB below; else zeros.
    """
    if config.levels == "absolute":
        return np.zeros(config.n_outputs, np.float32)
    falling = -1.5 * np.log10(np.arange(1, config.n_harmonics + 1))
    return _by_kind(config, amplitude=-5.3, distribution=falling, noise=-2.3)


def _by_kind(
    config: SynthConfig, *, amplitude: float, distribution: npt.ArrayLike, noise: float
) -> npt.NDArray[np.float32]:
    parts = [amplitude], np.broadcast_to(distribution, config.n_harmonics)
    return np.concatenate([*parts, np.full(config.n_noise_bands, noise)]).astype(np.float32)


@dataclass(frozen=True)
class Outputs:
    """The decoder's output, split: raw values of absolute levels, before any scaling.

    Attributes:
      amplitude: [..., frames, 1].
      harmonic_distribution: [..., frames, n_harmonics].
      noise_magnitudes: [..., frames, n_noise_bands].
    """

    amplitude: Any
    harmonic_distribution: Any
    noise_magnitudes: Any

    @classmethod
    def split(cls, outputs: Any, config: SynthConfig) -> "Outputs":
        """Splits [..., frames, n_outputs], an array or a tensor, along its channels."""
        end = 1 + config.n_harmonics
        return cls(outputs[..., :1], outputs[..., 1:end], outputs[..., end:])
