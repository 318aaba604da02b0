"""Where the time of a training step goes: its stages, and the parts of synthesis and loss.

DDSP-CNN-Tiny at 16 kHz, 60 harmonics, 65 noise bands: eight whole clips of 4 s with 1 s of reverb,
and four crops of 1 s, as in the runs that ship. Stages are the functions that `thesis.train.train`
calls, timed one by one in turn with whole steps; what no stage accounts for, as a share of its CPU
time, is the step's own overhead: calls and reports. Parts are compiled each by itself, forward and
gradient, so their sum is more than they take together. `value` is of whole clips.
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
from thesis.controls import Outputs, absolute_levels, decoder_inputs
from thesis.data import Dataset

NAME = "step_profile"
RECIPES = {
    "8 x 4 s": (SynthConfig(), TrainConfig(steps=1000, batch_size=8)),
    "4 x 1 s": (
        SynthConfig(reverb_seconds=0.3, reverb_decay_seconds=0.15),
        TrainConfig(steps=1000, batch_size=4, crop_seconds=1.0),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    quick = harness.is_quick(NAME, __doc__, arguments)
    with harness.scratch_folder() as folder:
        from thesis.prepare import prepare_demo

        dataset = prepare_demo(folder / "data", n_train=8, n_validation=1)
        profiles = {
            recipe: _profile(recipe, *_calls(dataset, *configs), rounds=3 if quick else 20)
            for recipe, configs in RECIPES.items()
        }
    whole, *_ = profiles.values()
    result = harness.Result(
        NAME,
        whole["overhead"],
        "of the step",
        "lower",
        "whole steps of thesis.train.train in the same run",
        profiles,
    )
    harness.emit(result, quick=quick)


Calls = dict[str, Callable[[], object]]


def _profile(recipe: str, stages: Calls, parts: Calls, *, rounds: int) -> dict[str, Any]:
    """Times calls in turn and prints what they take."""
    calls = {**stages, **parts}
    harness.say(f"{recipe}: tracing, then {rounds} rounds")
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
    for title, names in ((f"{recipe}: stage", stages), ("part", parts)):
        rows = [
            [name, f"{1e3 * wall[name]:.1f}", f"{1e3 * cpu[name]:.1f}", f"{cpu[name] / step:.0%}"]
            for name in names
        ]
        print_table([title, *columns], rows)
    return {"overhead": overhead, "seconds": wall, "cpu_seconds": cpu}


def _calls(dataset: Dataset, synth_config: SynthConfig, train: TrainConfig) -> tuple[Calls, Calls]:
    """Returns the stages of a step, and the parts of synthesis and loss, by name."""
    from thesis import train as stage
    from thesis._ddsp import tf, tf_keras
    from thesis.batches import Batches
    from thesis.build import build
    from thesis.losses import training_loss
    from thesis.synthesis import _reverberated

    config = ModelConfig(DilatedConvStackConfig(), synth_config, train, MeasureConfig())
    facts, clips = dataset.facts, dataset.clips("train")
    rates = {"sample_rate": facts.sample_rate, "hop_size": facts.hop_size}
    model = build(config, **rates)
    reports = stage.train(build(config, **rates), clips, train)
    synth, minimised = model.synthesizer, training_loss(())
    batches = Batches(clips, train, **rates)
    kept = stage._KeptClips(clips, synth, minimised, budget=2**30)
    clips_of = stage._crops if batches.cropped else kept.of
    batch, seed = batches[0], tf.constant([0, 0])
    inputs = tf.constant(decoder_inputs(batch.f0_hz, batch.loudness_db))
    in_training = functools.partial(model.decoder, training=True, keep_moments=False)
    decode = tf.function(in_training, jit_compile=True)
    loss_and_slopes = stage._loss_and_slopes(synth, minimised)
    update = stage._update(model, tf_keras.optimizers.legacy.Adam(), train.clip_norm)
    raw, of_batch = decode(inputs), clips_of(batch)
    response, n_samples = model.impulse_response, batches.n_samples
    loss, *slopes = loss_and_slopes(raw, inputs, response, of_batch, seed, n_samples)
    loss = tf.convert_to_tensor(loss)
    stages: Calls = {
        "step": lambda: next(reports),
        "batch": lambda: clips_of(batches[1]),
        "decoder": lambda: decode(inputs).numpy(),
        "synthesis and loss": lambda: float(
            loss_and_slopes(raw, inputs, response, of_batch, seed, n_samples)[0]
        ),
        "decoder again, gradient, Adam": lambda: float(update(inputs, slopes, loss)),
    }

    clip = stage._KeptClips(clips, synth, minimised, budget=0).of(batch)[0]
    n_rendered, n_clips = raw.shape[1] * synth.hop_size, len(batch.rows)
    noise = tf.random.uniform([1, n_rendered], -1.0, 1.0)
    split = Outputs.split(absolute_levels(raw, inputs, config.synth)[:1], config.synth)
    audio = synth.additive(split.harmonic_distribution, clip.sine_bank)[:, :n_samples]
    spectrum = synth.response_spectrum(response, n_samples)

    def part(of: Callable[..., Any], *at: Any) -> Callable[[], object]:
        """Returns a call that takes a function's value and gradient, for one clip."""

        @tf.function(jit_compile=True)  # type: ignore[untyped-decorator]
        def both(*at: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(at)
                value = of(*at)
            return tape.gradient(value, at, output_gradients=tf.stop_gradient(value))

        return lambda: both(*at)[0].numpy()

    parts: Calls = {
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
    phase_of, sines = (tf.function(f, jit_compile=True) for f in (synth.phase, synth.sines))
    spectrogram = tf.function(minimised.of_target, jit_compile=True)
    one = parts | {
        "sinusoids, unless kept": lambda: sines(*phase_of(clip.f0_hz)).numpy(),
        "spectrograms, unless kept": lambda: spectrogram(audio)[0].numpy(),
    }
    return stages, {name: _times(call, n_clips) for name, call in one.items()}


def _times(call: Callable[[], object], n: int) -> Callable[[], object]:
    return lambda: [call() for _ in range(n)]


if __name__ == "__main__":
    main()
