"""OpenVINO on one CPU thread, in float32."""

import io
import logging
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from thesis.environ import environment
from thesis.quantise import nodes_of_norms
from thesis.runtimes import contract
from thesis.runtimes.contract import Floats, Quantisation, TrainedDecoder

_SETTINGS = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    # Otherwise processors that have bfloat16 compute in it, at 48 dB from float32.
    "INFERENCE_PRECISION_HINT": "f32",
}


def _openvino() -> Any:
    """Imports OpenVINO. Its import sends usage data, unless in what says to be a CI job."""
    with environment(CI="true"):
        import openvino

        return openvino


class Session(contract.Session):
    """A decoder loaded for inference, compiled for one number of frames.

    A model whose number of frames is free is two and a half times slower (290 us against 116 for
    1,000 frames of DDSP-CNN-Tiny), and to compile it takes 50 ms: so it is compiled for as many
    frames as there come, and again when there come others.
    """

    channels_first = True

    def __init__(self, path: Path):
        """Loads a model."""
        self._ov = _openvino()
        self._core = self._ov.Core()
        self._model = self._core.read_model(path)
        self._shape: tuple[int, ...] = ()

    def __call__(self, inputs: Floats) -> Floats:
        """See `contract.Session`."""
        if inputs.shape != self._shape:
            self._model.reshape(inputs.shape)
            compiled = self._core.compile_model(self._model, "CPU", _SETTINGS)
            # One request for all calls: to make one takes time.
            self._request = compiled.create_infer_request()
            self._shape = inputs.shape
        self._request.set_input_tensor(self._ov.Tensor(inputs, shared_memory=True))
        self._request.infer()
        outputs: Floats = self._request.get_output_tensor().data
        return outputs


class OpenVino(contract.Runtime):
    """OpenVINO, which reads ONNX itself."""

    title = "OpenVINO"
    distribution = "openvino"
    install = 'pip install "ddsp-sweeps[openvino]"'
    quantisations = tuple(Quantisation("minmax", "qdq", norm) for norm in (True, False))

    def _convert(self, model: TrainedDecoder, folder: Path) -> Path:
        ov = _openvino()
        path = folder / "decoder.xml"
        ov.save_model(ov.Core().read_model(model.onnx), path, compress_to_fp16=False)
        return path

    def _quantise(
        self, model: TrainedDecoder, folder: Path, how: Quantisation, inputs: Floats
    ) -> Path:
        ov = _openvino()
        # NNCF sends usage data, too, and has a variable of its own against it.
        with environment(NNCF_CI="1"):
            import nncf
        nncf.set_log_level(logging.ERROR)
        in_floats = nncf.IgnoredScope(
            names=nodes_of_norms(model) if how.float_norm else [], validate=False
        )
        clips = np.ascontiguousarray(inputs.transpose(0, 2, 1))
        with redirect_stdout(io.StringIO()):  # which is for data, not for progress
            integers = nncf.quantize(
                ov.Core().read_model(model.onnx),
                nncf.Dataset([clip[None] for clip in clips]),
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(clips),
                ignored_scope=in_floats,
            )
        path = folder / f"decoder-{how.name}.xml"
        ov.save_model(integers, path, compress_to_fp16=False)
        return path

    def _load(self, path: Path) -> Session:
        return Session(path)


RUNTIME = OpenVino()
