"""ONNX Runtime on one CPU thread: the runtime that is measured."""

import json
from itertools import product, starmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thesis.config import DECODERS, DecoderConfig, SynthConfig
from thesis.environ import environment
from thesis.errors import ExportError
from thesis.runtimes import contract
from thesis.runtimes.contract import Quantisation

# Its import starts to send usage data, names of models among them, and writes a number for this
# machine into the home folder.
with environment(ORT_DISABLE_TELEMETRY="1"):
    import onnxruntime as ort

VERSION: str = ort.__version__


def session_options() -> ort.SessionOptions:
    """Returns options for one thread, no spinning, denormals flushed to zero.

    The conditions of an audio callback, and those under which real-time factors are measured.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return options


def load(model: bytes | Path, artifact: str) -> tuple[ort.InferenceSession, dict[str, Any]]:
    """Loads a model for inference; returns it with its metadata.

    Args:
      model: Its bytes or its file.
      artifact: What it is to be: 'decoder', 'decoder_stream' or 'synth_stream'.

    Raises:
      ExportError: It cannot be read, or is not one of this project's.
    """
    name, hint = model.name if isinstance(model, Path) else "model", "export or promote it again"
    try:
        data = model.read_bytes() if isinstance(model, Path) else model
        session = ort.InferenceSession(data, session_options(), providers=["CPUExecutionProvider"])
        described = session.get_modelmeta().custom_metadata_map
        metadata = {key: json.loads(value) for key, value in described.items()}
    except Exception as error:  # ONNX Runtime raises a family of its own, without a base
        said = str(error).partition("\n")[0]
        raise ExportError(
            f"{name} is no {artifact} that ONNX Runtime can load: {said}", hint=hint
        ) from error
    # Decoders of 0.1 do not say what they are.
    found = metadata.get("artifact", "decoder" if "synth" in metadata else "something else")
    if found != artifact:
        raise ExportError(f"{name} is no {artifact}, but {found}", hint=hint)
    return session, metadata


class Session(contract.Session):
    """A decoder loaded for inference, see `load`.

    Attributes:
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
        self._session, self.metadata = load(model, "decoder")
        self.sample_rate: int = self.metadata["sample_rate"]
        self.hop_size: int = self.metadata["hop_size"]
        self.synth = SynthConfig(**self.metadata["synth"])

    @property
    def decoder_config(self) -> DecoderConfig:
        """The architecture."""
        kind = self.metadata.get("decoder_type", "DilatedConvStack")
        return DECODERS[kind](**self.metadata["decoder"])

    def __call__(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns the decoder's output, [1, n_outputs, frames], for inputs [1, 2, frames]."""
        outputs: list[npt.NDArray[np.float32]] = self._session.run(None, {"inputs": inputs})
        return outputs[0]


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
