"""A decoder's ONNX graph in 8-bit integers, by ONNX Runtime's quantiser."""

import io
import json
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from thesis.architecture import INPUTS, Layer
from thesis.config import ExportConfig
from thesis.controls import decoder_inputs
from thesis.data import Clips
from thesis.runtimes.contract import Floats, Quantisation, TrainedDecoder

_OF_A_NORM = (
    *("mean", "centred", "squared", "variance", "deviation", "normalized"),
    *("flat", "instance", "scaled", "shifted"),
)
"""What `thesis.onnx_decoder` calls the nodes of a norm, after the name of its layer."""

QUANTISATION = "quantisation"
"""Metadata of a decoder that is not in floats: the name of its quantisation."""

PERCENTILE = 99.99
"""Of the values of an activation, those that a range of 'percentile' reaches."""

ENTROPY_BINS = 512
"""Of the histogram of an activation, of which 'entropy' cuts off some; it merges them to 128."""


def quantised_onnx(model: TrainedDecoder, how: Quantisation, inputs: Floats) -> bytes:
    """Returns a decoder's ONNX graph with weights, and most activations, of 8 bits.

    Weights are signed and have a scale for each output channel, activations are unsigned; inputs,
    outputs and metadata are as they were. With dynamic ranges weights are unsigned and have one
    scale: the other kernels of ONNX Runtime take four times as long (638 us against 163 for 1,000
    frames of DDSP-CNN-Tiny).

    Args:
      model: The decoder.
      how: Any.
      inputs: [n_clips, frames, 2], for ranges that are not 'dynamic'.
    """
    quantization = _quantiser()
    floats = onnx.load_from_string(model.onnx)
    in_floats = nodes_of_norms(model) if how.float_norm else []
    # It prints on standard output, which is for data.
    with tempfile.TemporaryDirectory() as name, redirect_stdout(io.StringIO()):
        folder = Path(name)
        source, path, ranges = (folder / x for x in ("floats.onnx", "integers.onnx", "ranges.json"))
        # Symbolic shapes would take a package that is not needed otherwise.
        quantization.shape_inference.quant_pre_process(
            floats, source, skip_optimization=True, skip_symbolic_shape=True
        )
        if how.ranges == "dynamic":
            quantization.quantize_dynamic(
                source,
                path,
                nodes_to_exclude=in_floats,
                weight_type=quantization.QuantType.QUInt8,
            )
        else:
            method = _calibrate(source, how.ranges, inputs, ranges)
            forms = {"operators": "QOperator", "qdq": "QDQ"}
            quantization.quantize_static(
                source,
                path,
                calibration_cache_path=ranges,
                calibrate_method=method,
                quant_format=quantization.QuantFormat[forms[how.form]],
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=in_floats,
            )
        integers = onnx.load(path)
    return _as_ours(integers, floats, how)


def shipped_onnx(model: TrainedDecoder, export: ExportConfig, clips: Clips) -> bytes:
    """Returns the decoder's ONNX graph as it ships: in floats, or in integers.

    Args:
      model: The decoder.
      export: What ships.
      clips: Training clips with the decoder's frames, some of which ranges are taken from.
    """
    if export.quantisation == "none":
        return model.onnx
    count = min(export.calibration_clips, len(clips))
    chosen = np.linspace(0, len(clips) - 1, count).round().astype(int)
    inputs = decoder_inputs(clips.f0_hz[chosen], clips.loudness_db[chosen])
    return quantised_onnx(model, Quantisation(export.quantisation), inputs)


def nodes_of_norms(model: TrainedDecoder) -> list[str]:
    """Returns the names of a decoder's ONNX nodes that belong to norms, and some of none."""
    return [
        f"{node.name}/{kind}"
        for node in model.folded[0]
        if isinstance(node, Layer) and node.norm != "none"
        for kind in _OF_A_NORM
    ]


def _calibrate(source: Path, ranges: str, inputs: Floats, path: Path) -> Any:
    """Writes the ranges of all activations to a file; returns the method that found them.

    Not left to the quantiser: its entropy method has 128 bins by default and merges them to 128,
    which leaves the whole range as the only one to choose.
    """
    calibrate = _quantiser().calibrate

    method, options = {
        "minmax": (calibrate.CalibrationMethod.MinMax, {}),
        "entropy": (calibrate.CalibrationMethod.Entropy, {"num_bins": ENTROPY_BINS}),
        "percentile": (calibrate.CalibrationMethod.Percentile, {"percentile": PERCENTILE}),
    }[ranges]
    calibrator = calibrate.create_calibrator(
        source,
        augmented_model_path=path.with_suffix(".onnx"),
        calibrate_method=method,
        extra_options=options,
    )
    calibrator.collect_data(_Clips(inputs))
    calibrate.save_tensors_data(calibrator.compute_data(), path)
    return method


class _Clips:
    """Gives the quantiser one clip after another, [1, 2, frames], and then None."""

    def __init__(self, inputs: Floats):
        self._clips = iter(np.ascontiguousarray(inputs.transpose(0, 2, 1)))

    def get_next(self) -> dict[str, Floats] | None:
        clip = next(self._clips, None)
        return None if clip is None else {INPUTS: clip[None]}


def _quantiser() -> Any:
    """Imports ONNX Runtime's quantiser and leaves Python's path as it was.

    It appends a folder that has a folder `models`, which gin would then find in place of ours.
    """
    path = list(sys.path)
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization import calibrate, shape_inference  # noqa: F401
    finally:
        sys.path[:] = path
    return quantization


def _as_ours(integers: onnx.ModelProto, floats: onnx.ModelProto, how: Quantisation) -> bytes:
    """Returns a model with the metadata of ours, and no versions of operators it does not use."""
    used = {node.domain for node in integers.graph.node} | {""}
    versions = [opset for opset in integers.opset_import if opset.domain in used]
    del integers.opset_import[:]
    integers.opset_import.extend(versions)
    del integers.metadata_props[:]
    integers.metadata_props.extend(floats.metadata_props)
    integers.metadata_props.add(key=QUANTISATION, value=json.dumps(how.name))
    serialized: bytes = integers.SerializeToString()
    return serialized
