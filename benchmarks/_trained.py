"""The thesis's three models, trained on recordings and kept in a folder. Needs TensorFlow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import _harness as harness
from thesis.architecture import Norm, Weights
from thesis.build import Model, build
from thesis.config import DilatedConvStackConfig, ModelConfig, TrainConfig
from thesis.data import Dataset, load_dataset


@dataclass(frozen=True)
class Recipe:
    """How a model is made.

    Attributes:
      file: Of `gin/models/`, without its ending.
      norm: Of a convolutional decoder, where it is another than the file's.
      sparsity: Share of each kernel's weights that end up as zero.
    """

    file: str
    norm: Norm | None = None
    sparsity: float = 0.0


MODELS = {
    "DDSP-CNN-Tiny": Recipe("ddsp-cnn-tiny"),
    "DDSP-CNN": Recipe("ddsp-cnn"),
    "DDSP-full": Recipe("ddsp-full"),
}
"""The thesis's models."""

SPARSE = {
    "DDSP-CNN-Tiny, 80% zeros": Recipe("ddsp-cnn-tiny", sparsity=0.8),
    # A norm over channels takes their mean out of the kernels at export, and with it the zeros.
    "DDSP-CNN, batch norm": Recipe("ddsp-cnn", norm="batch"),
    "DDSP-CNN, batch norm, 80% zeros": Recipe("ddsp-cnn", norm="batch", sparsity=0.8),
}
"""What shows what pruning does."""


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
      name: Its name.
      config: Its configuration.
      model: It, in TensorFlow.
    """

    name: str
    config: ModelConfig
    model: Model

    @property
    def weights(self) -> Weights:
        """Every weight of the decoder by name."""
        weights: dict[str, npt.NDArray[np.float32]] = self.model.decoder.named_weights()
        return weights


def dataset_of(recordings: Path, folder: Path) -> Dataset:
    """Returns the dataset of recordings, prepared in a folder unless it is there."""
    from thesis.prepare import prepare

    if not folder.exists():
        harness.say(f"preparing {recordings.name}")
        prepare(recordings, folder)
    return load_dataset(folder)


def trained(
    dataset: Dataset, folder: Path, *, steps: int, names: Sequence[str] = tuple(MODELS)
) -> list[Trained]:
    """Returns the models, trained for so many steps as the runs that ship train.

    Checkpoints are kept in the folder: the same call again only loads them.
    """
    return [_trained(name, dataset, folder, steps) for name in names]


def _trained(name: str, dataset: Dataset, folder: Path, steps: int) -> Trained:
    from sweeps.config import gin_root, load_model
    from thesis.train import train

    recipe = {**MODELS, **SPARSE}[name]
    config = load_model(gin_root() / "models" / f"{recipe.file}.gin")
    if recipe.norm and isinstance(config.decoder, DilatedConvStackConfig):
        config = replace(config, decoder=replace(config.decoder, norm=recipe.norm))
    synth = replace(config.synth, reverb_seconds=1.0, reverb_decay_seconds=0.15)
    # A model of 6 million weights diverges at a rate that suits one of 2,000.
    rate = 3e-3 if config.decoder.parameter_count(synth.n_outputs) < 100_000 else 1e-3
    config = replace(
        config,
        synth=synth,
        train=TrainConfig(
            steps=steps, learning_rate=rate, checkpoint_every=100, sparsity=recipe.sparsity
        ),
    )
    kept = "-".join([recipe.file, *filter(None, [recipe.norm])])
    kept += f"-{recipe.sparsity:g}" * bool(recipe.sparsity)
    facts = dataset.facts
    model = build(config, sample_rate=facts.sample_rate, hop_size=facts.hop_size)
    folder.mkdir(parents=True, exist_ok=True)
    for report in train(model, dataset.clips("train"), config.train, checkpoints=folder / kept):
        if report.step % 100 == 0:
            harness.say(f"{name}: step {report.step} of {steps}, loss {report.loss:.3f}")
    return Trained(name, config, model)
