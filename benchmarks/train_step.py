"""Training step: stock ddsp 3.7 against this library, same weights, same batch, same process.

Stock is one tf.function of a decoder with TensorFlow's dilated convolutions, ddsp.synths.Harmonic,
FilteredNoise, effects.Reverb, losses.SpectralLoss, clipping and Adam. Ours is `thesis.train.train`
itself, as it is by default and with nothing kept from step to step. Batch 8, 4 s at 16 kHz, 60
harmonics, 65 noise bands, 1 s reverb. Then both losses of the trained weights are compared with
what float64 synthesis and float64 spectrograms give. Memory is the peak of a process that trains a
few steps, each in its own, less what it holds before.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks import _harness as harness
from sweeps.tables import print_table
from thesis.config import (
    DilatedConvStackConfig,
    MeasureConfig,
    ModelConfig,
    SynthConfig,
    TrainConfig,
)
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
    more = ["nothing kept", "memory, stock", "ours", "nothing kept"]
    print_table(columns + more, [[str(ch), *c.row()] for ch, c in found.items()])
    errors = ["channels", "loss (float64)", "relative error, ours", "stock"]
    print_table(errors, [[str(ch), *c.errors()] for ch, c in found.items()])
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
    """Step times in seconds; peak memory in bytes; errors relative to the float64 loss."""

    stock_seconds: float
    our_seconds: float
    ratio: harness.Interval
    cpu_ratio: harness.Interval
    ratio_with_nothing_kept: harness.Interval
    memory: dict[str, int]
    loss: float
    our_loss_error: float
    stock_loss_error: float

    def row(self) -> list[str]:
        return [
            f"{self.stock_seconds:.2f}",
            f"{self.our_seconds:.3f}",
            str(self.ratio),
            str(self.cpu_ratio),
            str(self.ratio_with_nothing_kept),
            *(f"{size / 2**20:,.0f} MiB" for size in self.memory.values()),
        ]

    def errors(self) -> list[str]:
        return [f"{self.loss:.5f}", f"{self.our_loss_error:.1e}", f"{self.stock_loss_error:.1e}"]


def _config(channels: int, **train: int) -> ModelConfig:
    return ModelConfig(
        DilatedConvStackConfig(channels=channels),
        SynthConfig(),
        TrainConfig(batch_size=BATCH, **train),
        MeasureConfig(),
    )


def _compare(dataset: Dataset, channels: int, rounds: int) -> _Comparison:
    """Times a stock step and as many of ours as there are between two reports, in turn."""
    from benchmarks._stock import StockModel
    from thesis.build import build
    from thesis.train import REPORT_EVERY, train

    config = _config(channels, steps=(rounds + 1) * REPORT_EVERY)
    facts, clips = dataset.facts, dataset.clips("train")
    rates = {"sample_rate": facts.sample_rate, "hop_size": facts.hop_size}
    model, other = build(config, **rates), build(config, **rates)
    stock = StockModel(config, model, n_samples=facts.n_samples)
    batch = decoder_inputs(clips.f0_hz, clips.loudness_db), clips.f0_hz, clips.audio
    reports = train(model, clips, config.train)
    nothing_kept = train(other, clips, dataclasses.replace(config.train, cache_megabytes=0))
    calls = [
        lambda: float(stock.train_step(*batch)),
        lambda: next(reports),
        lambda: next(nothing_kept),
    ]
    harness.say(f"{channels} channels: tracing, then {rounds} rounds")
    for call in calls:
        call()
    times = harness.interleaved(calls, rounds)
    steps = [1, REPORT_EVERY, REPORT_EVERY]
    (stock_wall, wall, bare_wall), (stock_cpu, cpu, _) = (
        (t / steps).T for t in (times.wall, times.cpu)
    )
    trained = StockModel(config, model, n_samples=facts.n_samples)
    exact, ours, theirs = _losses(model, trained, clips)
    return _Comparison(
        *map(float, harness.floors(np.stack([stock_wall, wall], axis=1))),
        ratio=harness.ratio_interval(stock_wall, wall),
        cpu_ratio=harness.ratio_interval(stock_cpu, cpu),
        ratio_with_nothing_kept=harness.ratio_interval(stock_wall, bare_wall),
        memory={which: _in_a_process(which, dataset.path, channels) for which in _MEMORY_OF},
        loss=exact,
        our_loss_error=abs(ours / exact - 1),
        stock_loss_error=abs(theirs / exact - 1),
    )


_MEMORY_OF = ("stock", "ours", "nothing kept")


def _in_a_process(which: str, dataset: Path, channels: int) -> int:
    harness.say(f"{channels} channels: memory, {which}")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak_memory, which, dataset, channels).result()


def _peak_memory(which: str, dataset: Path, channels: int) -> int:
    """Returns the bytes that training takes at its peak, beyond those of what is imported."""
    from benchmarks._stock import StockModel
    from thesis.build import build
    from thesis.data import load_dataset
    from thesis.train import train

    facts, clips = load_dataset(dataset).facts, load_dataset(dataset).clips("train")
    config = _config(channels, steps=3, cache_megabytes=1024 if which == "ours" else 0)
    before = _resident("VmRSS")
    model = build(config, sample_rate=facts.sample_rate, hop_size=facts.hop_size)
    if which == "stock":
        stock = StockModel(config, model, n_samples=facts.n_samples)
        inputs = decoder_inputs(clips.f0_hz, clips.loudness_db)
        for _ in range(config.train.steps):
            stock.train_step(inputs, clips.f0_hz, clips.audio)
    else:
        list(train(model, clips, config.train))
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Returns a size of this process's memory in bytes, as Linux tells it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


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
