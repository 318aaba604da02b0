"""Synthesis, forward and gradient: stock ddsp 3.7 against this library, part by part.

Batch 8, 4 s at 16 kHz, 60 harmonics, 65 noise bands, 1 s reverb; the pitch of a synthetic bowed
string with slides and vibrato. Stock is a tf.function of the batch, ours compiled as in training:
harmonics and noise clip by clip, the sinusoids computed each time. Errors are the largest
differences from float64 synthesis of the same controls. Gradients are along the controls, for an
upstream gradient that is the audio itself.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import _harness as harness
from sweeps.tables import print_table
from thesis import reference
from thesis.config import SynthConfig
from thesis.controls import Outputs, white_noise
from thesis.data import DatasetFacts

NAME = "synthesis"
BATCH = 8

Array = npt.NDArray[Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    quick = harness.is_quick(NAME, __doc__, arguments)
    with harness.scratch_folder() as folder:
        from thesis.prepare import prepare_demo

        dataset = prepare_demo(folder / "data", n_train=BATCH, n_validation=1)
        f0_hz = np.array(dataset.clips("train").f0_hz)
    rows, details = [], {}
    for part, synths in _synths(dataset.facts, f0_hz).items():
        harness.say(f"{part}: tracing, then timing")
        found = _compare(synths, 3 if quick else 15)
        rows += [[part, *result.row()] for result in found]
        details[part] = {result.name: vars(result) for result in found}
    columns = [
        "",
        "synthesis",
        "s",
        "with gradient",
        "x ours [95%]",
        "with gradient",
        "of CPU time",
    ]
    print_table([*columns, "largest error"], rows)
    value = details["harmonics"]["stock"]["with_gradient"].value
    reference_text = "ddsp.synths.Harmonic 3.7, tf.function, batch 8, 4 s, 60 harmonics"
    result = harness.Result(NAME, value, "x", "higher", reference_text, details)
    harness.emit(result, quick=quick)


@dataclasses.dataclass(frozen=True)
class _Synth:
    """One way to make audio.

    Attributes:
      name: Whose.
      play: Controls, and what else it takes, to audio; of a batch.
      controls: What gradients are taken along, [batch, ..].
      given: What else it takes.
      exact: The audio in float64.
      compiled: Whether it is compiled as a whole.
      clipwise: Whether it is called clip by clip.
    """

    name: str
    play: Callable[..., Any]
    controls: Array
    given: tuple[Array, ...]
    exact: Array
    compiled: bool = False
    clipwise: bool = False

    def calls(self) -> list[Callable[[], Array]]:
        """Returns what plays, and what plays and takes the gradient, once traced."""
        from thesis._ddsp import tf

        @tf.function(jit_compile=self.compiled)  # type: ignore[untyped-decorator]
        def forward(controls: Any, *given: Any) -> Any:
            return self.play(controls, *given)

        @tf.function(jit_compile=self.compiled)  # type: ignore[untyped-decorator]
        def gradient(controls: Any, *given: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(controls)
                audio = self.play(controls, *given)
            return tape.gradient(audio, controls, output_gradients=tf.stop_gradient(audio))

        arrays = [tf.constant(a) for a in (self.controls, *self.given)]
        clips = (
            [[a[i : i + 1] for a in arrays] for i in range(BATCH)] if self.clipwise else [arrays]
        )

        def call(function: Any) -> Callable[[], Array]:
            return lambda: np.concatenate([function(*clip).numpy() for clip in clips])

        return [call(forward), call(gradient)]


@dataclasses.dataclass(frozen=True)
class _Found:
    """Seconds a batch; ratios to ours; the largest difference from float64."""

    name: str
    seconds: float
    gradient_seconds: float
    forward: harness.Interval
    with_gradient: harness.Interval
    cpu: harness.Interval
    error: float

    def row(self) -> list[str]:
        times = [f"{self.seconds:.4f}", f"{self.gradient_seconds:.4f}"]
        ratios = [str(ratio) for ratio in (self.forward, self.with_gradient, self.cpu)]
        return [self.name, *times, *ratios, f"{self.error:.1e}"]


def _compare(synths: Sequence[_Synth], rounds: int) -> list[_Found]:
    """Times synthesisers in turn; the last one is ours."""
    calls = [call for synth in synths for call in synth.calls()]
    played = [call() for call in calls]
    times = harness.interleaved(calls, rounds)
    forward, gradient = times.wall[:, ::2].T, times.wall[:, 1::2].T
    cpu = times.cpu[:, 1::2].T
    return [
        _Found(
            synth.name,
            *map(float, harness.floors(np.stack([forward[i], gradient[i]], axis=-1))),
            forward=harness.ratio_interval(forward[i], forward[-1]),
            with_gradient=harness.ratio_interval(gradient[i], gradient[-1]),
            cpu=harness.ratio_interval(cpu[i], cpu[-1]),
            error=float(np.abs(played[2 * i] - synth.exact).max()),
        )
        for i, synth in enumerate(synths)
    ]


def _synths(facts: DatasetFacts, f0_hz: Array) -> dict[str, list[_Synth]]:
    """Returns the synthesisers of each part; stock first, ours last."""
    from thesis._ddsp import ddsp
    from thesis.synthesis import Synthesizer

    config, rates = SynthConfig(), {"sample_rate": facts.sample_rate, "hop_size": facts.hop_size}
    mine = Synthesizer(config, **rates)
    outputs, rng = _smooth_outputs(*f0_hz.shape), np.random.default_rng(0)
    noise = white_noise(0, BATCH, facts.n_samples)
    taps = config.reverb_length(facts.sample_rate)
    response = rng.normal(0.0, 0.01, taps) * np.exp(-6.0 * np.arange(taps) / taps)

    def stock_harmonic(**options: bool) -> Callable[..., Any]:
        synth = ddsp.synths.Harmonic(facts.n_samples, facts.sample_rate, **options)
        return lambda raw, f0: synth(raw[..., :1], raw[..., 1:61], f0[..., None])

    def stock_noise(raw: Any, noise: Any) -> Any:
        magnitudes = ddsp.core.exp_sigmoid(raw + reference.NOISE_BIAS)
        return ddsp.core.frequency_filter(noise, magnitudes, window_size=0)

    def harmonic(raw: Any, f0: Any) -> Any:
        return mine.harmonic(mine.harmonic_amplitudes(Outputs.split(raw, config), f0), f0)

    def exact_harmonic(raw: Array, f0: Array) -> Array:
        split = Outputs.split(raw, config)
        amplitudes = reference.harmonic_amplitudes(split, f0, facts.sample_rate)
        return reference.harmonic(amplitudes, f0, **rates)

    magnitudes = Outputs.split(outputs, config).noise_magnitudes
    played = _of_each(exact_harmonic, outputs, f0_hz)
    filtered = _of_each(reference.filtered_noise, magnitudes, noise)
    dry, heard = noise, _of_each(lambda audio: reference.reverb(audio, response), noise)
    ours = {"compiled": True, "clipwise": True}
    sung, hissed = (outputs, (f0_hz,), played), (magnitudes, (noise,), filtered)
    echoed = dry, (response.astype(np.float32),), heard
    return {
        "harmonics": [
            _Synth("stock", stock_harmonic(), *sung),
            _Synth("stock, angular cumsum", stock_harmonic(use_angular_cumsum=True), *sung),
            _Synth("ours", harmonic, *sung, **ours),
        ],
        "filtered noise": [
            _Synth("stock", stock_noise, *hissed),
            _Synth("ours", mine.filtered_noise, *hissed, **ours),
        ],
        "reverb": [
            _Synth("stock", ddsp.effects.Reverb(), *echoed),
            _Synth("ours", mine.reverb, *echoed, compiled=True),
        ],
    }


def _of_each(function: Callable[..., Array], *batches: Array) -> Array:
    return np.array([function(*clip) for clip in zip(*batches, strict=True)])


def _smooth_outputs(batch: int, n_frames: int) -> npt.NDArray[np.float32]:
    """Returns raw decoder outputs that move slowly, as a network's do."""
    rng = np.random.default_rng(0)
    knots = rng.normal(0.0, 1.0, (batch, SynthConfig().n_outputs, 16))
    at, places = np.linspace(0, 15, n_frames), np.arange(16)
    curves = [[np.interp(at, places, channel) for channel in clip] for clip in knots]
    return np.array(curves, np.float32).transpose(0, 2, 1)


if __name__ == "__main__":
    main()
