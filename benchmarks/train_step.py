"""Training step: stock ddsp 3.7 against this library, same weights, same batch, same process.

Stock is one tf.function of a decoder with TensorFlow's dilated convolutions, ddsp.synths.Harmonic,
FilteredNoise, effects.Reverb, losses.SpectralLoss, clipping and Adam. Ours is `thesis.train.train`
itself. Batch 8, 4 s at 16 kHz, 60 harmonics, 65 noise bands, 1 s reverb. Then both losses of the
trained weights are compared with what float64 synthesis and float64 spectrograms give.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks import _harness as harness
from sweeps.tables import print_table
from thesis.config import DecoderConfig, MeasureConfig, ModelConfig, SynthConfig, TrainConfig
from thesis.controls import decoder_inputs
from thesis.data import Clips, Dataset

if TYPE_CHECKING:
    from benchmarks._stock import StockModel
    from thesis.build import Model

NAME = "train_step"
BATCH = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    quick = harness.is_quick(NAME, __doc__, arguments)
    rounds = {8: 3} if quick else {8: 12, 32: 6, 128: 6}
    with harness.scratch_folder() as folder:
        from thesis.prepare import prepare_demo

        dataset = prepare_demo(folder / "data", n_train=BATCH, n_validation=1)
        found = {channels: _compare(dataset, channels, n) for channels, n in rounds.items()}
    columns = ["channels", "stock s", "ours s", "stock / ours [95%]", "of CPU time"]
    errors = ["loss (float64)", "rel. error, ours", "rel. error, stock"]
    print_table(columns + errors, [[str(ch), *c.row()] for ch, c in found.items()])
    result = harness.Result(
        NAME,
        found[8].ratio.value,
        "x",
        "higher",
        "stock ddsp 3.7, one tf.function, ch=8, batch 8, 4 s, 60 harmonics",
        {f"channels_{channels}": vars(c) for channels, c in found.items()},
    )
    harness.emit(result, quick=quick)


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """Step times in seconds; errors relative to the float64 loss."""

    stock_seconds: float
    our_seconds: float
    ratio: harness.Interval
    cpu_ratio: harness.Interval
    loss: float
    our_loss_error: float
    stock_loss_error: float

    def row(self) -> list[str]:
        return [
            f"{self.stock_seconds:.2f}",
            f"{self.our_seconds:.3f}",
            str(self.ratio),
            str(self.cpu_ratio),
            f"{self.loss:.5f}",
            f"{self.our_loss_error:.1e}",
            f"{self.stock_loss_error:.1e}",
        ]


def _compare(dataset: Dataset, channels: int, rounds: int) -> _Comparison:
    """Times a stock step and as many of ours as there are between two reports, in turn."""
    from benchmarks._stock import StockModel
    from thesis.build import build
    from thesis.train import REPORT_EVERY, train

    config = ModelConfig(
        DecoderConfig(channels=channels),
        SynthConfig(),
        TrainConfig(steps=(rounds + 1) * REPORT_EVERY, batch_size=BATCH),
        MeasureConfig(),
    )
    facts, clips = dataset.facts, dataset.clips("train")
    model = build(config, sample_rate=facts.sample_rate, hop_size=facts.hop_size)
    stock = StockModel(config, model, n_samples=facts.n_samples)
    batch = decoder_inputs(clips.f0_hz, clips.loudness_db), clips.f0_hz, clips.audio
    reports = train(model, clips, config.train)
    calls = [lambda: float(stock.train_step(*batch)), lambda: next(reports)]
    harness.say(f"{channels} channels: tracing, then {rounds} rounds")
    for call in calls:
        call()
    times = harness.interleaved(calls, rounds)
    wall, cpu = times.wall / [1, REPORT_EVERY], times.cpu / [1, REPORT_EVERY]
    exact, ours, theirs = _losses(
        model, StockModel(config, model, n_samples=facts.n_samples), clips
    )
    return _Comparison(
        *map(float, harness.floors(wall)),
        ratio=harness.ratio_interval(*wall.T),
        cpu_ratio=harness.ratio_interval(*cpu.T),
        loss=exact,
        our_loss_error=abs(ours / exact - 1),
        stock_loss_error=abs(theirs / exact - 1),
    )


def _losses(model: "Model", stock: "StockModel", clips: Clips) -> tuple[float, float, float]:
    """Returns the mean loss of the clips in float64, by our synthesis, and by stock ddsp's."""
    from thesis._ddsp import tf
    from thesis.losses import spectral_loss

    tf.random.set_seed(0)
    noise = tf.random.uniform(clips.audio.shape, -1.0, 1.0)
    inputs = decoder_inputs(clips.f0_hz, clips.loudness_db)
    response = tf.convert_to_tensor(model.impulse_response)

    @tf.function(jit_compile=True)
    def loss_of(outputs: Any) -> Any:
        audio = model.synthesizer(outputs, clips.f0_hz, noise, response)
        return tf.reduce_mean(spectral_loss(clips.audio, audio))

    ours = loss_of(model.decoder(inputs))
    tf.random.set_seed(0)  # Stock ddsp draws its noise itself: the same.
    theirs = stock.loss(inputs, clips.f0_hz, clips.audio)
    return _float64_loss(model, clips, noise.numpy()), float(ours), float(theirs)


def _float64_loss(model: "Model", clips: Clips, noise: npt.NDArray[np.float32]) -> float:
    from thesis.reference import decode, spectral_loss, synthesize

    weights, response = model.decoder.named_weights(), model.impulse_response.numpy()
    synth = model.synthesizer
    losses = []
    for f0_hz, loudness_db, target, white in zip(
        clips.f0_hz, clips.loudness_db, clips.audio, noise, strict=True
    ):
        outputs = decode(decoder_inputs(f0_hz, loudness_db), weights, model.decoder.config)
        audio = synthesize(
            outputs,
            f0_hz,
            white,
            response,
            config=synth.config,
            sample_rate=synth.sample_rate,
            hop_size=synth.hop_size,
        )
        losses.append(spectral_loss(target, audio))
    return float(np.mean(losses))


if __name__ == "__main__":
    main()
