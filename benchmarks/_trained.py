"""The thesis's three models, trained on recordings and kept in a folder. Needs TensorFlow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import _harness as harness
from thesis.architecture import Weights
from thesis.build import Model, build
from thesis.config import ModelConfig, TrainConfig
from thesis.data import Dataset, load_dataset

MODELS = {
    "DDSP-CNN-Tiny": "ddsp-cnn-tiny",
    "DDSP-CNN": "ddsp-cnn",
    "DDSP-full": "ddsp-full",
}
"""Name -> the file of `gin/models/` that describes it."""


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
    return [_trained(name, dataset, folder / MODELS[name], steps) for name in names]


def _trained(name: str, dataset: Dataset, folder: Path, steps: int) -> Trained:
    from sweeps.config import gin_root, load_model
    from thesis.train import train

    config = load_model(gin_root() / "models" / f"{MODELS[name]}.gin")
    synth = replace(config.synth, reverb_seconds=1.0, reverb_decay_seconds=0.3)
    # A model of 6 million weights diverges at a rate that suits one of 2,000.
    rate = 3e-3 if config.decoder.parameter_count(synth.n_outputs) < 100_000 else 1e-3
    schedule: dict[str, Any] = {"steps": steps, "learning_rate": rate, "checkpoint_every": 100}
    config = replace(config, synth=synth, train=replace(TrainConfig(), **schedule))
    facts = dataset.facts
    model = build(config, sample_rate=facts.sample_rate, hop_size=facts.hop_size)
    for report in train(model, dataset.clips("train"), config.train, checkpoints=folder):
        if report.step % 100 == 0:
            harness.say(f"{name}: step {report.step} of {steps}, loss {report.loss:.3f}")
    return Trained(name, config, model)
