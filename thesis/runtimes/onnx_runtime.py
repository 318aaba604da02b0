"""ONNX Runtime on one CPU thread: the runtime that is measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from thesis.config import SynthConfig
from thesis.errors import ExportError


class Session:
    """A decoder loaded for inference.

    One thread, no spinning, denormals flushed to zero: the conditions of an audio callback, and
    the ones under which real-time factors are measured.

    Attributes:
      sample_rate: Of the audio that the decoder was trained for, in Hz.
      hop_size: Samples a frame of the decoder.
      synth: What its outputs mean; says how many hops of the dataset such a frame is.
    """

    def __init__(self, model: bytes | Path):
        """Loads a model from its bytes or its file.

        Raises:
          ExportError: The model cannot be read, or is not one of this project's decoders.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        try:
            data = model.read_bytes() if isinstance(model, Path) else model
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            self.metadata: dict[str, Any] = {
                key: json.loads(value)
                for key, value in self._session.get_modelmeta().custom_metadata_map.items()
            }
            self.sample_rate: int = self.metadata["sample_rate"]
            self.hop_size: int = self.metadata["hop_size"]
            self.synth = SynthConfig(**self.metadata["synth"])
        except Exception as error:  # ONNX Runtime raises a family of its own, without a base
            name = model.name if isinstance(model, Path) else "model"
            said = str(error).partition("\n")[0]
            raise ExportError(
                f"{name} is no decoder that ONNX Runtime can load: {said}",
                hint="export or promote the trial again",
            ) from error

    def __call__(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns the decoder's output, [1, n_outputs, frames], for inputs [1, 2, frames]."""
        outputs: list[npt.NDArray[np.float32]] = self._session.run(None, {"inputs": inputs})
        return outputs[0]

    def decode(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """As `__call__`, with channels last: [1, frames, 2] -> [1, frames, n_outputs]."""
        return self(np.ascontiguousarray(inputs.transpose(0, 2, 1))).transpose(0, 2, 1)
