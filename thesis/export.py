"""A trained decoder as an ONNX graph, laid out for speed.

The graph is written by hand rather than converted: channels first, so that a convolution is one
node and nothing is transposed, and the norm folded as far as it goes. At this size the layout and
the number of nodes matter more than the arithmetic.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from thesis.architecture import (
    INPUTS,
    NORM_EPSILON,
    Add,
    Conv,
    Node,
    Weights,
    fold_batch_norm,
    initial_weights,
)
from thesis.config import N_INPUTS, REFERENCE_DECODER, DecoderConfig, SynthConfig

OPSET = 18
IR_VERSION = 9
MAX_ERROR = 1e-4
"""An exported decoder may differ from the trained one by this much and no more."""


def decoder_onnx(
    config: DecoderConfig,
    synth: SynthConfig,
    weights: Weights,
    *,
    sample_rate: int,
    hop_size: int,
) -> bytes:
    """Returns the decoder as a serialised ONNX model.

    Input `inputs`, [1, 2, frames]: scaled loudness and f0 (see `thesis.controls.decoder_inputs`).
    Output `outputs`, [1, n_outputs, frames]: raw synthesiser parameters. `frames` is free. The
    metadata holds configuration, rates and how the channels are split.

    Args:
      config: The architecture.
      synth: How many outputs there are and what they mean.
      weights: Every weight of the plan by name.
      sample_rate: Of the audio, in Hz.
      hop_size: Samples a frame.
    """
    plan, folded = fold_batch_norm(config.plan(synth.n_outputs), weights)
    graph = _Graph(folded)
    layers: dict[type[Node], Callable[..., str]] = {Conv: graph.conv, Add: graph.add}
    values = {INPUTS: INPUTS}
    for node in plan:
        sources = [values[source] for source in node.sources]
        values[node.name] = layers[type(node)](node, *sources)
    metadata = {
        "decoder": config,
        "synth": synth,
        "sample_rate": sample_rate,
        "hop_size": hop_size,
        "receptive_field_frames": config.receptive_field_frames,
        "inputs": ["loudness_db / 80 + 1", "midi(f0_hz) / 127"],
        "outputs": {
            "amplitude": 1,
            "harmonic_distribution": synth.n_harmonics,
            "noise_magnitudes": synth.n_noise_bands,
        },
    }
    return graph.serialize(synth.n_outputs, metadata)


def reference_onnx(*, sample_rate: int, hop_size: int) -> bytes:
    """Returns DDSP-CNN-Tiny exported the same way, with new weights: speed does not need more."""
    synth = SynthConfig()
    weights = initial_weights(REFERENCE_DECODER.plan(synth.n_outputs), seed=0)
    return decoder_onnx(
        REFERENCE_DECODER, synth, weights, sample_rate=sample_rate, hop_size=hop_size
    )


class _Graph:
    """Collects nodes and constants; each method adds some and returns the output's name."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        array = np.asarray(value, dtype)
        self._constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def add(self, add: Add, *sources: str) -> str:
        return self.node("Add", sources, add.name)

    def conv(self, conv: Conv, x: str) -> str:
        # [taps, in, out] -> [out, in, taps]
        kernel = self._weights[f"{conv.name}/kernel"].transpose(2, 1, 0).astype(np.float64)
        bias = np.zeros(conv.ch_out)
        if conv.norm == "none":
            bias += self._weights[f"{conv.name}/bias"]
        elif conv.norm == "frame" and not conv.depthwise:
            # The norm subtracts the mean over channels. A kernel without that mean saves it the
            # work; a depthwise one cannot be centred across channels, see `_frame_norm`.
            kernel -= kernel.mean(axis=0, keepdims=True)
        y = self.node(
            "Conv",
            [x, self.constant(f"{conv.name}/W", kernel), self.constant(f"{conv.name}/B", bias)],
            f"{conv.name}/conv",
            dilations=[conv.dilation],
            group=conv.ch_in if conv.depthwise else 1,
            kernel_shape=[conv.kernel_size],
            pads=list(conv.padding),
        )
        if conv.norm != "none":
            y = self._frame_norm(y, conv) if conv.norm == "frame" else self._time_norm(y, conv)
            scale, shift = (
                self.constant(
                    f"{conv.name}/{name}", self._weights[f"{conv.name}/{name}"][None, :, None]
                )
                for name in ("scale", "shift")
            )
            y = self.node("Mul", [y, scale], f"{conv.name}/scaled")
            y = self.node("Add", [y, shift], conv.name)
        if conv.relu6:
            limits = [self.constant("zero", 0.0), self.constant("six", 6.0)]
            y = self.node("Clip", [y, *limits], f"{conv.name}/relu6")
        return y

    def _frame_norm(self, y: str, conv: Conv) -> str:
        """Layer norm over channels. The moments are 1x1 convolutions, the fastest way there is."""
        name, ch = conv.name, conv.ch_out
        if conv.depthwise:
            centring = (np.eye(ch) - 1.0 / ch)[:, :, None]
            y = self.node("Conv", [y, self.constant(f"{name}/C", centring)], f"{name}/centred")
        squared = self.node("Mul", [y, y], f"{name}/squared")
        mean = self.constant(f"{name}/M", np.full((1, ch, 1), 1.0 / ch))
        epsilon = self.constant("epsilon", [NORM_EPSILON["frame"]])
        variance = self.node("Conv", [squared, mean, epsilon], f"{name}/variance")
        deviation = self.node("Sqrt", [variance], f"{name}/deviation")
        return self.node("Div", [y, deviation], f"{name}/normalized")

    def _time_norm(self, y: str, conv: Conv) -> str:
        """Norm over the whole clip: to ONNX the norm of an instance that has one channel."""
        one, none = self.constant("one", [1.0]), self.constant("none", [0.0])
        flat = self.constant("flat", [1, 1, -1], np.int64)
        shape = self.constant(f"{conv.name}/shape", [1, conv.ch_out, -1], np.int64)
        y = self.node("Reshape", [y, flat], f"{conv.name}/flat")
        epsilon = NORM_EPSILON["time"]
        y = self.node(
            "InstanceNormalization", [y, one, none], f"{conv.name}/instance", epsilon=epsilon
        )
        return self.node("Reshape", [y, shape], f"{conv.name}/normalized")

    def serialize(self, n_outputs: int, metadata: Mapping[str, Any]) -> bytes:
        self._nodes[-1].output[0] = "outputs"
        float32 = TensorProto.FLOAT
        graph = helper.make_graph(
            self._nodes,
            "decoder",
            [helper.make_tensor_value_info("inputs", float32, [1, N_INPUTS, "frames"])],
            [helper.make_tensor_value_info("outputs", float32, [1, n_outputs, "frames"])],
            list(self._constants.values()),
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        helper.set_model_props(model, {k: _json(v) for k, v in metadata.items()})
        onnx.checker.check_model(model, full_check=True)
        serialized: bytes = model.SerializeToString()
        return serialized


def _json(value: Any) -> str:
    if isinstance(value, DecoderConfig | SynthConfig):
        value = asdict(value)
    return json.dumps(value)
