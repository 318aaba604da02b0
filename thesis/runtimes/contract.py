"""What every runtime does: converts a trained decoder, loads what it wrote, and runs it.

The guarantees are written here and tested for all runtimes by one suite,
`tests/thesis/runtimes/test_contract.py`.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from thesis.architecture import (
    Add,
    Concat,
    Conv,
    Film,
    Gru,
    Node,
    Take,
    TransposedConv,
    Weights,
    for_inference,
)
from thesis.config import N_INPUTS, DecoderConfig, SynthConfig
from thesis.errors import ExportError, MissingRuntimeError, UserError, first_line
from thesis.export import decoder_onnx

Floats = npt.NDArray[np.float32]

EVERY_NODE: frozenset[type[Node]] = frozenset({Conv, TransposedConv, Film, Gru, Add, Take, Concat})


@dataclass(frozen=True, eq=False)
class TrainedDecoder:
    """A decoder with its weights: what all runtimes convert from.

    Attributes:
      config: The architecture.
      synth: How many outputs there are and what they mean.
      weights: Every weight of the plan by name.
      sample_rate: Of the audio, in Hz.
      hop_size: Samples a frame.
    """

    config: DecoderConfig
    synth: SynthConfig
    weights: Weights
    sample_rate: int
    hop_size: int

    @cached_property
    def onnx(self) -> bytes:
        """The decoder as `thesis.export.decoder_onnx` writes it."""
        return decoder_onnx(
            self.config,
            self.synth,
            self.weights,
            sample_rate=self.sample_rate,
            hop_size=self.hop_size,
        )

    @cached_property
    def folded(self) -> tuple[tuple[Node, ...], Weights]:
        """Plan and weights without batch norm, and with no mean left for frame norms."""
        return for_inference(self.config.plan(self.synth.n_outputs), self.weights)


@dataclass(frozen=True)
class Quantisation:
    """How a decoder of floats becomes one of 8-bit integers.

    Attributes:
      ranges: Where the ranges of the activations come from. 'dynamic': they are found anew in each
        call, and only the weights are integers beforehand. The others find them once, on
        calibration inputs: 'minmax' takes the largest, 'entropy' those that lose least by the
        Kullback-Leibler divergence, 'percentile' leaves out 0.01% of the values.
      form: 'operators', nodes that compute with integers; 'qdq', nodes of floats between others
        that quantise and dequantise, which the runtime fuses where it can.
      float_norm: The norm is left in floats. It divides by a root, which no runtime fuses.
    """

    ranges: Literal["dynamic", "minmax", "entropy", "percentile"] = "minmax"
    form: Literal["operators", "qdq"] = "operators"
    float_norm: bool = True

    @property
    def name(self) -> str:
        """A word for it, as in file names."""
        return "-".join([self.ranges, self.form] + ["float_norm"] * self.float_norm)


class Session(ABC):
    """A decoder loaded for inference, on one thread.

    Attributes:
      channels_first: Arrays of this runtime are [1, channels, frames], not [1, frames, channels].
    """

    channels_first: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, inputs: Floats) -> Floats:
        """Returns the outputs for inputs that `arranged` returned, in the runtime's layout.

        This is what a real-time factor is measured on: nothing is checked, and the outputs may be
        memory that the next call writes to.
        """

    def arranged(self, inputs: Floats) -> Floats:
        """Returns inputs in the runtime's layout.

        Args:
          inputs: [1, frames, 2], see `thesis.controls.decoder_inputs`. Any number of frames.

        Raises:
          ValueError: They have another shape, or are no float32.
        """
        shape = inputs.shape
        if len(shape) != 3 or shape[0] != 1 or shape[1] < 1 or shape[2] != N_INPUTS:
            raise ValueError(f"a decoder's inputs are [1, frames, {N_INPUTS}], not {list(shape)}")
        if inputs.dtype != np.float32:
            raise ValueError(f"a decoder's inputs are float32, not {inputs.dtype}")
        return np.ascontiguousarray(inputs.transpose(0, 2, 1) if self.channels_first else inputs)

    def decode(self, inputs: Floats) -> Floats:
        """Returns the decoder's output, [1, frames, n_outputs]; the same for the same inputs.

        Args:
          inputs: [1, frames, 2].

        Raises:
          ValueError: As `arranged`.
        """
        outputs = self(self.arranged(inputs))
        return np.array(outputs.transpose(0, 2, 1) if self.channels_first else outputs, order="C")

    def seconds(self, arranged: Floats) -> float:
        """Returns how long one call takes, for inputs that `arranged` returned."""
        start = time.perf_counter()
        self(arranged)
        return time.perf_counter() - start


class Runtime(ABC):
    """Converts trained decoders and loads what it wrote.

    Attributes:
      title: What it calls itself.
      distribution: The package that holds it.
      install: The command that installs it.
      takes: The kinds of nodes that it has.
      quantisations: What `quantise` can do.
    """

    title: ClassVar[str]
    distribution: ClassVar[str]
    install: ClassVar[str]
    takes: ClassVar[frozenset[type[Node]]] = EVERY_NODE
    quantisations: ClassVar[Sequence[Quantisation]] = ()

    @property
    def version(self) -> str | None:
        """The version that is installed; None for none."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None

    def convert(self, model: TrainedDecoder, folder: Path) -> Path:
        """Writes a decoder for this runtime and returns the file, or folder, to load.

        Its outputs are those of the trained decoder to 1e-5 of the largest, with any number of
        frames.

        Args:
          model: The decoder.
          folder: Where to; made if it is not there.

        Raises:
          MissingRuntimeError: The runtime is not installed.
          ExportError: It cannot take this decoder.
        """
        self._check(model)
        folder.mkdir(parents=True, exist_ok=True)
        with self._failing_as(f"{self.title} cannot take this decoder", "use another runtime"):
            return self._convert(model, folder)

    def quantise(
        self, model: TrainedDecoder, folder: Path, how: Quantisation, inputs: Floats
    ) -> Path:
        """As `convert`, with 8-bit integers.

        Args:
          model: The decoder.
          folder: Where to; made if it is not there.
          how: One of `quantisations`.
          inputs: Of clips to calibrate on, [n_clips, frames, 2]. Not used for ranges that are
            'dynamic'.

        Raises:
          MissingRuntimeError: The runtime is not installed.
          ExportError: It cannot take this decoder, or quantise like this.
        """
        if how not in self.quantisations:
            can = ", ".join(x.name for x in self.quantisations)
            raise ExportError(
                f"{self.title} has no quantisation '{how.name}'",
                hint=f"it has {can}" if can else "it has none",
            )
        self._check(model)
        folder.mkdir(parents=True, exist_ok=True)
        with self._failing_as(f"{self.title} cannot quantise this decoder", "use another runtime"):
            return self._quantise(model, folder, how, inputs)

    def load(self, path: Path) -> Session:
        """Loads what `convert` or `quantise` wrote.

        Raises:
          MissingRuntimeError: The runtime is not installed.
          ExportError: The file is not there, or not such a decoder.
        """
        self._check_installed()
        if not path.exists():
            raise ExportError(f"'{path}' is not there", hint="convert the decoder again")
        said = f"{path.name} is no decoder that {self.title} can load"
        with self._failing_as(said, "convert the decoder again"):
            return self._load(path)

    @abstractmethod
    def _convert(self, model: TrainedDecoder, folder: Path) -> Path: ...

    @abstractmethod
    def _load(self, path: Path) -> Session: ...

    def _quantise(
        self, model: TrainedDecoder, folder: Path, how: Quantisation, inputs: Floats
    ) -> Path:
        raise NotImplementedError

    def _check_installed(self) -> None:
        if self.version is None:
            raise MissingRuntimeError(f"{self.title} is not installed", hint=self.install)

    def _check(self, model: TrainedDecoder) -> None:
        self._check_installed()
        for node in model.folded[0]:
            if type(node) not in self.takes:
                raise ExportError(
                    f"{self.title} cannot run '{node.name}', a {type(node).__name__}",
                    hint=f"it has {', '.join(sorted(kind.__name__ for kind in self.takes))}",
                )

    @contextmanager
    def _failing_as(self, said: str, hint: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each runtime raises a family of its own, without a base
            first = first_line(error)
            raise ExportError(f"{said}: {first}", hint=hint) from error
