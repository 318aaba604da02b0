"""What gin files may name of ddsp, by `import thesis.from_ddsp`. Needs TensorFlow.

The import makes ddsp's gin names known: `@synths.Harmonic()`, `@losses.SpectralLoss()`. The objects
that they make become plain settings here. Only gin's text is ever sent to another process, which
makes them again.
"""

import math
from typing import Any

import numpy as np

from thesis._ddsp import ddsp
from thesis.config import SpectralLoss
from thesis.errors import ConfigError
from thesis.reference import NOISE_BIAS

Harmonic, FilteredNoise = ddsp.synths.Harmonic, ddsp.synths.FilteredNoise
Add, Reverb = ddsp.processors.Add, ddsp.effects.Reverb

MAX_FFT_SIZE, MAX_FFT_SIZES = 65_536, 32
"""Largest frame of a spectral loss, four seconds at 16 kHz, and number of them at the most."""

_CHAIN = (
    "a chain has one synths.Harmonic, one synths.FilteredNoise, processors.Add of their signals, "
    "and effects.Reverb of the sum or nothing"
)


def reverb_seconds(processor_group: Any, n_noise_bands: int) -> float:
    """Returns the length of the reverb in a chain that this project renders as ddsp does.

    Sample rate and length of the audio are the dataset's, whatever the chain says of them, but
    `Harmonic.sample_rate` is what gives the taps of the reverb a length in seconds.
    `use_angular_cumsum` may be either: both approximate the phase that is exact here.

    Args:
      processor_group: A `ddsp.processors.ProcessorGroup`.
      n_noise_bands: Bands of the noise filter. They give it `2 * (n_noise_bands - 1)` taps, of
        which a shorter window would leave some out.

    Returns:
      Seconds, 0 without a reverb.

    Raises:
      ConfigError: Something in the chain has no exact counterpart.
    """
    if not isinstance(processor_group, ddsp.processors.ProcessorGroup):
        raise ConfigError(
            f"Synth.processor_group = {processor_group!r} is no ProcessorGroup",
            hint="Synth.processor_group = @processors.ProcessorGroup()",
        )
    parts: dict[type, Any] = {}
    inputs: dict[type, list[str]] = {}
    for node in processor_group.dag:
        match node:
            case [str(name), [*keys], *_] if all(isinstance(key, str) for key in keys):
                part = getattr(processor_group, name, None)
            case _:
                raise ConfigError(f"{node!r} of the chain is no processor with inputs", hint=_CHAIN)
        if type(part) not in (Harmonic, FilteredNoise, Add, Reverb) or type(part) in parts:
            raise ConfigError(
                f"'{name}' of the chain, a ddsp {type(part).__name__}, has no counterpart here",
                hint=_CHAIN,
            )
        parts[type(part)] = part
        inputs[type(part)] = [key.removeprefix("inputs/") for key in keys]
    for kind in (Harmonic, FilteredNoise, Add):
        if kind not in parts:
            raise ConfigError(f"the chain has no {kind.__name__}", hint=_CHAIN)
    harmonic, noise, reverb = parts[Harmonic], parts[FilteredNoise], parts.get(Reverb)
    wired_alike = (
        inputs[Harmonic][2:] == ["f0_hz"]
        and len(inputs[FilteredNoise]) == 1
        and sorted(inputs[Add]) == sorted([f"{harmonic.name}/signal", f"{noise.name}/signal"])
        and inputs.get(Reverb, [f"{parts[Add].name}/signal"]) == [f"{parts[Add].name}/signal"]
    )
    if not wired_alike:
        raise ConfigError("the chain is wired in a way that has no counterpart here", hint=_CHAIN)
    _check(harmonic, "scale_fn", _is_exp_sigmoid(harmonic.scale_fn), "@core.exp_sigmoid")
    _check(harmonic, "normalize_below_nyquist", harmonic.normalize_below_nyquist is True, "True")
    _check(harmonic, "amp_resample_method", harmonic.amp_resample_method == "window", "'window'")
    _check(noise, "scale_fn", _is_exp_sigmoid(noise.scale_fn), "@core.exp_sigmoid")
    _check(noise, "initial_bias", noise.initial_bias == NOISE_BIAS, f"{NOISE_BIAS:g}")
    taps = 2 * (n_noise_bands - 1)
    size = noise.window_size
    whole = isinstance(size, int) and (size <= 0 or size >= taps)
    _check(noise, "window_size", whole, f"0, or {taps} and more for {n_noise_bands} bands")
    if reverb is None:
        return 0.0
    _check(reverb, "trainable", reverb.trainable is True, "True")
    _check(reverb, "add_dry", reverb._add_dry is True, "True")
    _check(reverb, "reverb_length", _is_count(reverb._reverb_length), "a whole number above 0")
    _check(harmonic, "sample_rate", _is_count(harmonic.sample_rate), "a whole number above 0")
    return float(reverb._reverb_length / harmonic.sample_rate)


def _check(processor: Any, setting: str, satisfied: bool, supported: str) -> None:
    if not satisfied:
        value = getattr(processor, setting, getattr(processor, f"_{setting}", None))
        raise ConfigError(
            f"{type(processor).__name__}.{setting} = {value!r} has no counterpart here",
            hint=f"supported is {supported}",
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_exp_sigmoid(scale_fn: Any) -> bool:
    """Whether a function of gin's, which may have settings of its own, is ddsp's default."""
    x = np.linspace(-10.0, 10.0, 41, dtype=np.float32)
    try:
        return np.allclose(scale_fn(x), ddsp.core.exp_sigmoid(x), rtol=1e-5)
    except Exception:  # whatever it is, it is no function of one tensor
        return False


def spectral_loss(loss: Any) -> SpectralLoss:
    """Returns the settings of a `ddsp.losses.SpectralLoss`.

    Raises:
      ConfigError: It is another loss, it compares nothing, or a setting has the wrong type.
    """
    if type(loss) is not ddsp.losses.SpectralLoss:
        raise ConfigError(
            f"train.losses = ({loss!r}) holds no SpectralLoss of ddsp",
            hint="train.losses = (@losses.SpectralLoss(),)",
        )
    weights = {name: getattr(loss, name) for name in SpectralLoss.WEIGHTS}
    for name, weight in weights.items():
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ConfigError(
                f"SpectralLoss.{name} = {weight!r} is no number", hint="weights are finite numbers"
            )
    if not max(weights.values()) > 0:
        raise ConfigError("a SpectralLoss compares nothing", hint="give it a weight above 0")
    sizes = loss.fft_sizes
    if not (
        isinstance(sizes, list | tuple)
        and 0 < len(sizes) <= MAX_FFT_SIZES
        and all(isinstance(size, int) and 4 <= size <= MAX_FFT_SIZE for size in sizes)
    ):
        raise ConfigError(
            f"SpectralLoss.fft_sizes = {sizes!r} are no sizes",
            hint=f"give one to {MAX_FFT_SIZES} whole numbers from 4 to {MAX_FFT_SIZE}",
        )
    kind = str(loss.loss_type).upper()
    if kind not in ("L1", "L2"):
        # ddsp 3.7 has 'COSINE' too, by a function that TensorFlow 2 has not.
        raise ConfigError(
            f"SpectralLoss.loss_type = {loss.loss_type!r} is not a choice",
            hint="loss_type must be 'L1' or 'L2'",
        )
    floats = {name: float(weight) for name, weight in weights.items()}
    return SpectralLoss(tuple(sizes), kind, **floats)
