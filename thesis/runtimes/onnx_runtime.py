"""ONNX Runtime on one CPU thread: the runtime that is measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product, starmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thesis.checked_files import ARRAY_BYTES, read_bytes
from thesis.config import DecoderConfig
from thesis.environ import environment
from thesis.errors import ExportError, first_line
from thesis.onnx_facts import ModelFacts, OtherArtifactError, check_arguments, check_graph
from thesis.runtimes import contract
from thesis.runtimes.contract import Quantisation
from thesis.typed_json import parse_json

# Its import starts to send usage data, names of models among them, and writes a number for this
# machine into the home folder.
with environment(ORT_DISABLE_TELEMETRY="1"):
    import onnxruntime as ort

VERSION: str = ort.__version__


MEMORY_BYTES = 4 * 2**30
"""The most that models may take for their values, all together: a graph of few bytes may ask for
any amount."""


def session_options() -> ort.SessionOptions:
    """Returns options for one thread, no spinning, denormals flushed to zero.

    The conditions of an audio callback, and those under which real-time factors are measured.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised; the log would repeat a stranger's names
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    _bound_memory()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


@cache
def _bound_memory() -> None:
    """Gives all sessions of this process one allocator that has so much and no more."""
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    # -1: how it grows is left to ONNX Runtime.
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(MEMORY_BYTES, -1, -1, -1))


def load(model: bytes | Path, artifact: str) -> "LoadedModel":
    """Loads a model for inference.

    It may be a stranger's: nothing but arithmetic on what it holds can be in it.

    Args:
      model: Its bytes or its file.
      artifact: What it is to be: 'decoder', 'decoder_stream' or 'synth_stream'.

    Raises:
      ExportError: It cannot be read, or is not one of this project's.
    """
    name, hint = model.name if isinstance(model, Path) else "model", "export or promote it again"
    try:
        data = read_bytes(model, ARRAY_BYTES, ExportError) if isinstance(model, Path) else model
        check_graph(data)
        session = ort.InferenceSession(
            data,
            session_options(),
            providers=["CPUExecutionProvider"],
            enable_fallback=False,  # it would try the same again, and print on standard output
        )
        texts = session.get_modelmeta().custom_metadata_map
        metadata = {key: parse_json(text) for key, text in texts.items()}
        facts = ModelFacts.of(metadata, artifact)
        check_arguments(facts, session.get_inputs(), session.get_outputs())
    except OtherArtifactError as error:
        raise ExportError(f"{name} is no {artifact}, but {error}", hint=hint) from error
    except Exception as error:  # ONNX Runtime raises a family of its own, without a base
        raise ExportError(
            f"{name} is no {artifact} that ONNX Runtime can load: {first_line(error)}", hint=hint
        ) from error
    return LoadedModel(name, session, facts, metadata)


@dataclass(frozen=True)
class LoadedModel:
    """A model that is loaded.

    Attributes:
      name: Of its file.
      session: What runs it.
      facts: What it says of itself.
      metadata: The same as JSON values by name.
    """

    name: str
    session: ort.InferenceSession
    facts: ModelFacts
    metadata: Mapping[str, Any]

    def __call__(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Returns its outputs, in their order.

        Raises:
          ExportError: It fails, which no exported model does.
        """
        try:
            outputs: list[Any] = self.session.run(None, inputs)
        except Exception as error:  # as when it is loaded
            raise ExportError(
                f"{self.name} cannot be run: {first_line(error)}",
                hint="export or promote it again",
            ) from error
        return outputs


def require_shape(name: str, output: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raises ExportError where a model gives another shape than its frames ask for."""
    if output.shape != shape:
        raise ExportError(
            f"{name} gives {list(output.shape)} values, not {list(shape)}",
            hint="export or promote it again",
        )


class Session(contract.Session):
    """A decoder loaded for inference, see `load`.

    Attributes:
      facts: What the model says of itself.
      metadata: The same as JSON values by name.
      sample_rate: Of the audio that the decoder was trained for, in Hz.
      hop_size: Samples a frame of the decoder.
      synth: What its outputs mean; says how many hops of the dataset such a frame is.
    """

    channels_first = True

    def __init__(self, model: bytes | Path):
        """Loads a model from its bytes or its file.

        Raises:
          ExportError: As `load`.
        """
        self._model = load(model, "decoder")
        self._session = self._model.session
        self.facts = self._model.facts
        self.metadata = self._model.metadata
        self.sample_rate: int = self.facts.sample_rate
        self.hop_size: int = self.facts.hop_size
        self.synth = self.facts.synth

    @property
    def decoder_config(self) -> DecoderConfig:
        """The architecture."""
        return self.facts.decoder

    def decode(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `contract.Session`.

        Raises:
          ExportError: The model fails, or gives as many frames as it likes.
        """
        outputs = super().decode(inputs)
        require_shape(self._model.name, outputs, (1, inputs.shape[1], self.synth.n_outputs))
        return outputs

    def __call__(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns the decoder's output, [1, n_outputs, frames], for inputs [1, 2, frames]."""
        outputs: npt.NDArray[np.float32] = self._model({"inputs": inputs})[0]
        return outputs


class OnnxRuntime(contract.Runtime):
    """ONNX Runtime: the runtime that is measured."""

    title = "ONNX Runtime"
    distribution = "onnxruntime"
    install = "pip install ddsp-sweeps"
    quantisations = (
        *(Quantisation("dynamic", "operators", norm) for norm in (True, False)),
        *starmap(
            Quantisation,
            product(("minmax", "entropy", "percentile"), ("operators", "qdq"), (True, False)),
        ),
    )

    def _convert(self, model: contract.TrainedDecoder, folder: Path) -> Path:
        path = folder / "decoder.onnx"
        path.write_bytes(model.onnx)
        return path

    def _quantise(
        self,
        model: contract.TrainedDecoder,
        folder: Path,
        how: Quantisation,
        inputs: contract.Floats,
    ) -> Path:
        from thesis.quantise import quantised_onnx

        path = folder / f"decoder-{how.name}.onnx"
        path.write_bytes(quantised_onnx(model, how, inputs))
        return path

    def _load(self, path: Path) -> Session:
        return Session(path)


RUNTIME = OnnxRuntime()
