"""Harmonic synthesis, forward and gradient: stock ddsp 3.7 against this library.

Batch 8, 4 s at 16 kHz, 60 harmonics, the pitch of a synthetic bowed string with slides and vibrato.
Both are a tf.function from the decoder's raw outputs to audio and back. Errors are the largest
differences from float64 synthesis of the same controls.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import _harness as harness
from sweeps.tables import print_table
from thesis.config import SynthConfig
from thesis.controls import Outputs
from thesis.data import DatasetFacts

NAME = "synthesis"
BATCH = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    quick = harness.is_quick(NAME, __doc__, arguments)
    with harness.scratch_folder() as folder:
        from thesis.prepare import prepare_demo

        dataset = prepare_demo(folder / "data", n_train=BATCH, n_validation=1)
        f0_hz = np.array(dataset.clips("train").f0_hz)
    outputs = _smooth_outputs(*f0_hz.shape)
    synths = _synths(dataset.facts, f0_hz)
    exact = _float64(outputs, f0_hz, dataset.facts)
    errors = [float(np.abs(synth(outputs).numpy() - exact).max()) for synth in synths.values()]
    steps = [_forward_and_gradient(synth, outputs) for synth in synths.values()]
    harness.say("tracing")
    for step in steps:
        step()
    times = harness.interleaved(steps, 3 if quick else 15)
    wall, cpu = times.wall.T, times.cpu.T
    ratios = [harness.ratio_interval(column, wall[-1]) for column in wall]
    cpu_ratios = [harness.ratio_interval(column, cpu[-1]) for column in cpu]
    floors = harness.floors(times.wall)
    print_table(
        ["synthesis", "s", "x ours [95%]", "of CPU time", "largest error"],
        [
            [name, f"{seconds:.3f}", str(ratio), str(cpu_ratio), f"{error:.1e}"]
            for name, seconds, ratio, cpu_ratio, error in zip(
                synths, floors, ratios, cpu_ratios, errors, strict=True
            )
        ],
    )
    details = {
        "ratio": ratios[0],
        "cpu_ratio": cpu_ratios[0],
        "seconds": dict(zip(synths, map(float, floors), strict=True)),
        "errors": dict(zip(synths, errors, strict=True)),
    }
    reference = "ddsp.synths.Harmonic 3.7, tf.function, batch 8, 4 s, 60 harmonics"
    result = harness.Result(NAME, ratios[0].value, "x", "higher", reference, details)
    harness.emit(result, quick=quick)


def _smooth_outputs(batch: int, n_frames: int) -> npt.NDArray[np.float32]:
    """Returns raw decoder outputs that move slowly, as a network's do."""
    rng = np.random.default_rng(0)
    knots = rng.normal(0.0, 1.0, (batch, SynthConfig().n_outputs, 16))
    at, places = np.linspace(0, 15, n_frames), np.arange(16)
    curves = [[np.interp(at, places, channel) for channel in clip] for clip in knots]
    return np.array(curves, np.float32).transpose(0, 2, 1)


def _synths(facts: DatasetFacts, f0_hz: npt.NDArray[np.float32]) -> dict[str, Callable[[Any], Any]]:
    """Returns the synthesisers by name, raw outputs in, audio out; stock first, ours last."""
    from thesis._ddsp import ddsp, tf
    from thesis.synthesis import Synthesizer

    config, rate = SynthConfig(), facts.sample_rate
    mine = Synthesizer(config, rate, facts.hop_size)
    f0 = tf.constant(f0_hz)

    def stock(**options: bool) -> Callable[[Any], Any]:
        synth = ddsp.synths.Harmonic(facts.n_samples, rate, **options)

        def play(outputs: Any) -> Any:
            split = Outputs.split(outputs, config)
            return synth(split.amplitude, split.harmonic_distribution, f0[..., None])

        return play

    @tf.function(jit_compile=True)
    def ours(outputs: Any) -> Any:
        return mine.harmonic(mine.harmonic_amplitudes(Outputs.split(outputs, config), f0), f0)

    return {
        "stock": stock(),
        "stock, angular cumsum": stock(use_angular_cumsum=True),
        "ours": ours,
    }


def _float64(
    outputs: npt.NDArray[np.float32], f0_hz: npt.NDArray[np.float32], facts: DatasetFacts
) -> npt.NDArray[np.float64]:
    from thesis.reference import harmonic, harmonic_amplitudes

    rate, hop_size = facts.sample_rate, facts.hop_size
    audio = []
    for clip, f0 in zip(outputs, f0_hz, strict=True):
        amplitudes = harmonic_amplitudes(Outputs.split(clip, SynthConfig()), f0, rate)
        audio.append(harmonic(amplitudes, f0, sample_rate=rate, hop_size=hop_size))
    return np.array(audio)


def _forward_and_gradient(
    synth: Callable[[Any], Any], outputs: npt.NDArray[np.float32]
) -> Callable[[], Any]:
    from thesis._ddsp import tf

    @tf.function
    def step(outputs: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            audio = synth(outputs)
        # Any gradient will do that is not the same for every sample.
        return tape.gradient(audio, outputs, output_gradients=tf.stop_gradient(audio))

    controls = tf.constant(outputs)
    return lambda: step(controls).numpy()


if __name__ == "__main__":
    main()
