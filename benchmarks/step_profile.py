"""Where the time of a training step goes: its stages, and the parts of synthesis and loss.

DDSP-CNN-Tiny, batch 8, 4 s at 16 kHz, 60 harmonics, 65 noise bands, 1 s reverb. Stages are the
functions that `thesis.train.train` calls, timed one by one in turn with whole steps; what no stage
accounts for, as a share of its CPU time, is the step's own overhead: batches, calls, reports. Parts
are compiled each by itself, forward and gradient, so their sum is more than they take together.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import _harness as harness
from sweeps.tables import print_table
from thesis.config import (
    DilatedConvStackConfig,
    MeasureConfig,
    ModelConfig,
    SynthConfig,
    TrainConfig,
)
from thesis.controls import Outputs, decoder_inputs
from thesis.data import Dataset

NAME = "step_profile"
BATCH = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    quick = harness.is_quick(NAME, __doc__, arguments)
    rounds = 3 if quick else 20
    with harness.scratch_folder() as folder:
        from thesis.prepare import prepare_demo

        dataset = prepare_demo(folder / "data", n_train=BATCH, n_validation=1)
        stages, parts = _calls(dataset, steps=1000)
    calls = {**stages, **parts}
    harness.say(f"tracing, then {rounds} rounds")
    for call in calls.values():
        call()
    times = harness.interleaved([*calls.values()], rounds)
    from thesis.train import REPORT_EVERY

    scale = [REPORT_EVERY if name == "step" else 1 for name in calls]
    wall = dict(zip(calls, harness.floors(times.wall / scale), strict=True))
    cpu = dict(zip(calls, harness.floors(times.cpu / scale), strict=True))
    # Shares are of CPU time: stages use the cores as they can, and others use them too.
    step = cpu["step"]
    overhead = 1 - sum(cpu[name] for name in stages if name != "step") / step
    columns = ["ms", "CPU ms", "of the step's"]
    for title, names in (("stage", stages), ("part", parts)):
        rows = [
            [name, f"{1e3 * wall[name]:.1f}", f"{1e3 * cpu[name]:.1f}", f"{cpu[name] / step:.0%}"]
            for name in names
        ]
        print_table([title, *columns], rows)
    result = harness.Result(
        NAME,
        overhead,
        "of the step",
        "lower",
        "whole steps of thesis.train.train in the same run",
        {"seconds": wall, "cpu_seconds": cpu},
    )
    harness.emit(result, quick=quick)


def _calls(dataset: Dataset, *, steps: int) -> tuple[dict[str, Callable[[], object]], ...]:
    """Returns the stages of a step, and the parts of synthesis and loss, by name."""
    from thesis import train as stage
    from thesis._ddsp import tf, tf_keras
    from thesis.batches import Batches
    from thesis.build import build
    from thesis.losses import training_loss
    from thesis.synthesis import _reverberated

    config = ModelConfig(
        DilatedConvStackConfig(),
        SynthConfig(),
        TrainConfig(steps=steps, batch_size=BATCH),
        MeasureConfig(),
    )
    facts, clips = dataset.facts, dataset.clips("train")
    rates = {"sample_rate": facts.sample_rate, "hop_size": facts.hop_size}
    model = build(config, **rates)
    reports = stage.train(build(config, **rates), clips, config.train)
    synth, minimised = model.synthesizer, training_loss(())
    batches = Batches(clips, config.train, **rates)
    kept = stage._KeptClips(clips, synth, minimised, budget=2**30)
    inputs = tf.constant(decoder_inputs(clips.f0_hz, clips.loudness_db))
    in_training = functools.partial(model.decoder, training=True, keep_moments=False)
    decode = tf.function(in_training, jit_compile=True)
    loss_and_slopes = stage._loss_and_slopes(synth, minimised)
    optimizer = tf_keras.optimizers.legacy.Adam()
    gradients_of, apply = stage._optimization(model, optimizer, config.train.clip_norm)
    outputs, batch, seed = decode(inputs), kept.of(batches[0]), tf.constant([0, 0])
    response, n_samples = model.impulse_response, batches.n_samples
    slopes = loss_and_slopes(outputs, response, batch, seed, n_samples)[1:]
    gradients, _ = gradients_of(inputs, slopes)
    stages = {
        "step": lambda: next(reports),
        "batch": lambda: kept.of(batches[1]),
        "decoder": lambda: decode(inputs).numpy(),
        "synthesis and loss": lambda: float(
            loss_and_slopes(outputs, response, batch, seed, n_samples)[0]
        ),
        "decoder again, with gradient": lambda: float(gradients_of(inputs, slopes)[1]),
        "Adam": lambda: apply(gradients),
    }

    clip, noise = batch[0], tf.random.uniform([1, n_samples], -1.0, 1.0)
    split = Outputs.split(outputs[:1], config.synth)
    audio = synth.additive(split.harmonic_distribution, clip.sine_bank)
    spectrum = synth.response_spectrum(response, n_samples)

    def part(of: Callable[..., Any], *at: Any) -> Callable[[], object]:
        """Returns a call that takes a function's value and gradient, for each clip of a batch."""

        @tf.function(jit_compile=True)  # type: ignore[untyped-decorator]
        def both(*at: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(at)
                value = of(*at)
            return tape.gradient(value, at, output_gradients=tf.stop_gradient(value))

        return lambda: [both(*at) for _ in range(BATCH)][-1][0].numpy()

    parts = {
        "amplitudes": part(
            lambda *raw: synth.harmonic_amplitudes(Outputs(*raw, None), clip.f0_hz),
            split.amplitude,
            split.harmonic_distribution,
        ),
        "harmonics": part(
            lambda amplitudes: synth.additive(amplitudes, clip.sine_bank),
            split.harmonic_distribution,
        ),
        "filtered noise": part(
            lambda raw: synth.filtered_noise(raw, noise), split.noise_magnitudes
        ),
        "reverb": part(_reverberated, audio, spectrum),
        "spectral loss": part(lambda audio: minimised.distance(clip.target, audio), audio),
    }
    bank = tf.function(synth.sine_bank, jit_compile=True)
    spectrogram = tf.function(minimised.of_target, jit_compile=True)
    unless_kept = {
        "sinusoids, unless kept": lambda: [bank(c.f0_hz) for c in batch][-1].numpy(),
        "spectrograms, unless kept": lambda: [spectrogram(audio) for _ in batch][-1][0].numpy(),
    }
    return stages, parts | unless_kept


if __name__ == "__main__":
    main()
