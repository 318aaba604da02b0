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
    LEAK,
    Activation,
    Add,
    Concat,
    Conv,
    Film,
    Gru,
    Layer,
    Node,
    Take,
    TransposedConv,
    Weights,
    fold_batch_norm,
    initial_weights,
)
from thesis.config import N_INPUTS, REFERENCE_DECODER, DecoderConfig, SynthConfig, gin_name

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
    layers: dict[type[Node], Callable[..., str]] = {
        Conv: graph.conv,
        TransposedConv: graph.transposed_conv,
        Film: graph.film,
        Gru: graph.gru,
        Add: graph.add,
        Take: graph.take,
        Concat: graph.concat,
    }
    values = {INPUTS: INPUTS}
    for node in plan:
        sources = [values[source] for source in node.sources]
        values[node.name] = layers[type(node)](node, *sources)
    metadata = {
        "decoder_type": gin_name(config),
        "decoder": asdict(config),
        "synth": asdict(synth),
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

    @property
    def _names(self) -> set[str]:
        return {node.name for node in self._nodes}

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        array = np.asarray(value, dtype)
        self._constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def add(self, add: Add, *sources: str) -> str:
        return self.node("Add", sources, add.name)

    def take(self, take: Take, x: str) -> str:
        bounds = [
            self.constant(f"channel_{take.first}", [take.first], np.int64),
            self.constant(
                f"channel_{take.first + take.ch_out}", [take.first + take.ch_out], np.int64
            ),
            self.constant("channels", [1], np.int64),
        ]
        return self.node("Slice", [x, *bounds], take.name)

    def concat(self, concat: Concat, *sources: str) -> str:
        return self.node("Concat", sources, concat.name, axis=1)

    def gru(self, gru: Gru, x: str) -> str:
        name, weight = gru.name, {k: self._weights[k] for k in gru.weight_shapes}
        # Frames come first here, and each weight has an axis of directions, of which there is one.
        x = self.node("Transpose", [x], f"{name}/frames_first", perm=[2, 0, 1])
        weights = [
            self.constant(f"{name}/W", weight[f"{name}/kernel"].T[None]),
            self.constant(f"{name}/R", weight[f"{name}/recurrent_kernel"].T[None]),
            self.constant(f"{name}/B", weight[f"{name}/bias"].reshape(1, -1)),
        ]
        states = self.node(
            "GRU", [x, *weights], f"{name}/states", hidden_size=gru.ch_out, linear_before_reset=1
        )
        one = self.constant("direction", [1], np.int64)
        states = self.node("Squeeze", [states, one], f"{name}/squeezed")
        return self.node("Transpose", [states], f"{name}/channels_first", perm=[1, 2, 0])

    def conv(self, conv: Conv, x: str) -> str:
        kernel, bias = self._affine_map(conv)
        y = self.node(
            "Conv",
            # [taps, in, out] -> [out, in, taps]
            [x, self.constant(f"{conv.name}/W", kernel.transpose(2, 1, 0)), bias],
            f"{conv.name}/conv",
            dilations=[conv.dilation],
            group=conv.ch_in if conv.depthwise else 1,
            kernel_shape=[conv.kernel_size],
            pads=list(conv.padding),
            strides=[conv.stride],
        )
        return self._normed(conv, y)

    def transposed_conv(self, conv: TransposedConv, x: str) -> str:
        kernel, bias = self._affine_map(conv)
        y = self.node(
            "ConvTranspose",
            # [taps, in, out] -> [in, out, taps]
            [x, self.constant(f"{conv.name}/W", kernel.transpose(1, 2, 0)), bias],
            f"{conv.name}/conv",
            kernel_shape=[2 * conv.stride],
            pads=[conv.lookahead, conv.stride - conv.lookahead],
            strides=[conv.stride],
        )
        zero, axis = self.constant("first", [0], np.int64), self.constant("axis", [2], np.int64)
        cropped = [y, zero, self._n_frames(conv.period), axis]
        y = self.node("Slice", cropped, f"{conv.name}/cropped")
        return self._normed(conv, y)

    def film(self, film: Film, x: str, conditions: str) -> str:
        seen = self._every(film.period, conditions)
        if film.scaled:
            scale = self._linear(film, "scale", seen)
            x = self.node("Mul", [x, scale], f"{film.name}/scaled")
        x = self.node("Add", [x, self._linear(film, "shift", seen)], f"{film.name}/shifted")
        return self._activated(film.name, film.activation, x)

    def _linear(self, film: Film, name: str, conditions: str) -> str:
        kernel = self._weights[f"{film.name}/{name}_kernel"].T[:, :, None]
        weights = [
            self.constant(f"{film.name}/{name}/W", kernel),
            self.constant(f"{film.name}/{name}/B", self._weights[f"{film.name}/{name}"]),
        ]
        return self.node("Conv", [conditions, *weights], f"{film.name}/{name}")

    def _affine_map(self, layer: Layer) -> tuple[npt.NDArray[np.float64], str]:
        """Returns a convolution's kernel, [taps, in, out], and the name of its bias."""
        kernel = self._weights[f"{layer.name}/kernel"].astype(np.float64)
        bias = np.zeros(layer.ch_out)
        if layer.biased:
            bias += self._weights[f"{layer.name}/bias"]
        if layer.norm == "frame" and _mixes_channels(layer):
            # The norm subtracts the mean over channels. A kernel without that mean saves it the
            # work; a depthwise one cannot be centred across channels, see `_frame_norm`.
            kernel -= kernel.mean(axis=2, keepdims=True)
            bias -= bias.mean()
        return kernel, self.constant(f"{layer.name}/B", bias)

    def _normed(self, layer: Layer, y: str) -> str:
        """Adds norm and activation of a convolution."""
        if layer.norm == "frame":
            y = self._frame_norm(layer, y)
        elif layer.norm == "time":
            y = self._time_norm(layer, y)
        if layer.rescaled:
            scale, shift = (
                self.constant(
                    f"{layer.name}/{name}", self._weights[f"{layer.name}/{name}"][None, :, None]
                )
                for name in ("scale", "shift")
            )
            y = self.node("Mul", [y, scale], f"{layer.name}/scaled")
            y = self.node("Add", [y, shift], f"{layer.name}/shifted")
        return self._activated(layer.name, layer.activation, y)

    def _activated(self, name: str, activation: Activation, y: str) -> str:
        if activation == "relu6":
            limits = [self.constant("zero", 0.0), self.constant("six", 6.0)]
            return self.node("Clip", [y, *limits], f"{name}/relu6")
        if activation == "leaky_relu":
            return self.node("LeakyRelu", [y], f"{name}/leaky_relu", alpha=LEAK)
        return y

    def _frame_norm(self, layer: Layer, y: str) -> str:
        """Layer norm over channels. The moments are 1x1 convolutions, the fastest way there is."""
        name, ch = layer.name, layer.ch_out
        average = self.constant(f"{name}/M", np.full((1, ch, 1), 1.0 / ch))
        if not _mixes_channels(layer):
            mean = self.node("Conv", [y, average], f"{name}/mean")
            y = self.node("Sub", [y, mean], f"{name}/centred")
        squared = self.node("Mul", [y, y], f"{name}/squared")
        epsilon = self.constant(f"epsilon_{layer.epsilon:g}", [layer.epsilon])
        variance = self.node("Conv", [squared, average, epsilon], f"{name}/variance")
        deviation = self.node("Sqrt", [variance], f"{name}/deviation")
        return self.node("Div", [y, deviation], f"{name}/normalized")

    def _time_norm(self, layer: Layer, y: str) -> str:
        """Norm over the whole clip: to ONNX the norm of an instance that has one channel."""
        one, none = self.constant("one", [1.0]), self.constant("none", [0.0])
        flat = self.constant("flat", [1, 1, -1], np.int64)
        shape = self.constant(f"{layer.name}/shape", [1, layer.ch_out, -1], np.int64)
        y = self.node("Reshape", [y, flat], f"{layer.name}/flat")
        y = self.node(
            "InstanceNormalization",
            [y, one, none],
            f"{layer.name}/instance",
            epsilon=layer.epsilon,
        )
        return self.node("Reshape", [y, shape], f"{layer.name}/normalized")

    def _n_frames(self, period: int) -> str:
        """Returns how many frames there are at a period, [1]; counted once in a graph."""
        name = f"{INPUTS}/frames_{period}"
        if name in self._names:
            return name
        if period == 1:
            return self.node("Shape", [INPUTS], name, start=2, end=3)
        rest = self.constant(f"period_{period}/rest", [period - 1], np.int64)
        rounded = self.node("Add", [self._n_frames(1), rest], f"{name}/rounded")
        return self.node(
            "Div", [rounded, self.constant(f"period_{period}", [period], np.int64)], name
        )

    def _every(self, period: int, x: str) -> str:
        """Returns every `period`-th frame."""
        name = f"{x}/every_{period}"
        if period == 1 or name in self._names:
            return x if period == 1 else name
        bounds = [
            self.constant("first", [0], np.int64),
            self.constant("end", [np.iinfo(np.int64).max], np.int64),
            self.constant("axis", [2], np.int64),
            self.constant(f"period_{period}", [period], np.int64),
        ]
        return self.node("Slice", [x, *bounds], name)

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
        helper.set_model_props(model, {k: json.dumps(v) for k, v in metadata.items()})
        onnx.checker.check_model(model, full_check=True)
        serialized: bytes = model.SerializeToString()
        return serialized


def _mixes_channels(layer: Layer) -> bool:
    return not (isinstance(layer, Conv) and layer.depthwise)
