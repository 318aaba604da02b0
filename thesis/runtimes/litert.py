"""LiteRT, once TensorFlow Lite, on one CPU thread. To convert takes TensorFlow, to run does not.

Layout decides its speed: where all arrays are [1, 1, frames, channels] and convolutions are of two
dimensions, XNNPACK takes the whole graph. Convolutions of one dimension come with two reshapes
each, and a slice between them leaves XNNPACK: 159 us and 740 us against 97 for 1,000 frames of
DDSP-CNN-Tiny.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

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
)
from thesis.config import N_INPUTS
from thesis.runtimes import contract
from thesis.runtimes.contract import EVERY_NODE, Floats, Quantisation, TrainedDecoder

_IN_A_NORM = ["MUL", "MEAN", "RSQRT", "ADD", "SUB"]
"""Operators that norms are made of. Sums of residual blocks are left in floats with them."""


class Session(contract.Session):
    """A decoder loaded for inference; its memory is laid out anew for another number of frames."""

    def __init__(self, path: Path):
        """Loads a flatbuffer."""
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(path), num_threads=1)
        (inputs,) = self._interpreter.get_input_details()
        (outputs,) = self._interpreter.get_output_details()
        self._input, self._output = inputs["index"], outputs["index"]
        self._shape: tuple[int, ...] = ()

    def __call__(self, inputs: Floats) -> Floats:
        """See `contract.Session`."""
        if inputs.shape != self._shape:
            self._interpreter.resize_tensor_input(self._input, inputs.shape)
            self._interpreter.allocate_tensors()
            self._shape = inputs.shape
        self._interpreter.set_tensor(self._input, inputs)
        self._interpreter.invoke()
        outputs: Floats = self._interpreter.get_tensor(self._output)
        return outputs


class LiteRt(contract.Runtime):
    """LiteRT with XNNPACK, from the plan."""

    title = "LiteRT"
    distribution = "ai-edge-litert"
    install = 'pip install "ddsp-sweeps[litert]"'
    takes = EVERY_NODE - {Gru}
    # Dynamic ranges leave all but convolutions in floats.
    quantisations = (
        Quantisation("dynamic", "operators"),
        *(Quantisation("minmax", "operators", norm) for norm in (True, False)),
    )

    def _convert(self, model: TrainedDecoder, folder: Path) -> Path:
        path = folder / "decoder.tflite"
        path.write_bytes(_converter(model).convert())
        return path

    def _quantise(
        self, model: TrainedDecoder, folder: Path, how: Quantisation, inputs: Floats
    ) -> Path:
        converter = _converter(model)
        path = folder / f"decoder-{how.name}.tflite"
        path.write_bytes(_quantised(converter, how, inputs))
        return path

    def _load(self, path: Path) -> Session:
        return Session(path)


RUNTIME = LiteRt()


def _converter(model: TrainedDecoder) -> Any:
    """Returns TensorFlow's converter for a decoder, [1, frames, 2] -> [1, frames, n_outputs]."""
    from thesis._ddsp import tf

    network = _network(tf, *model.folded)
    signature = [tf.TensorSpec([1, None, N_INPUTS], tf.float32, INPUTS)]
    function = tf.function(network, input_signature=signature).get_concrete_function()
    return tf.lite.TFLiteConverter.from_concrete_functions([function])


def _quantised(converter: Any, how: Quantisation, inputs: Floats) -> bytes:
    from thesis._ddsp import tf

    def clips() -> Iterator[list[Floats]]:
        for clip in inputs:
            yield [clip[None]]

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if how.ranges != "dynamic":
        converter.representative_dataset = clips
    with warnings.catch_warnings():
        # The statistics come from the clips, later on.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        # Which the debugger runs in an interpreter that LiteRT's own has replaced.
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated", UserWarning)
        if how.ranges == "dynamic" or not how.float_norm:
            return bytes(converter.convert())
        debug = tf.lite.experimental
        options = debug.QuantizationDebugOptions(denylisted_ops=_IN_A_NORM)
        debugger = debug.QuantizationDebugger(
            converter=converter, debug_dataset=clips, debug_options=options
        )
        return bytes(debugger.get_nondebug_quantized_model())


def _network(tf: Any, plan: tuple[Node, ...], weights: Weights) -> Callable[[Any], Any]:
    """Returns a function of a plan with constant weights, all of it [1, 1, frames, channels]."""

    def weight(node: Node, name: str) -> Any:
        return weights[f"{node.name}/{name}"].astype(np.float32)

    def conv(node: Conv, _: Any, x: Any) -> Any:
        if node.reach:
            x = tf.pad(x, [[0, 0], [0, 0], node.padding, [0, 0]])
        kernel, strides = weight(node, "kernel")[None], [1, 1, node.stride, 1]
        if node.depthwise:
            kernel = kernel.transpose(0, 1, 3, 2)  # [1, taps, channels, 1]
            y = tf.nn.depthwise_conv2d(x, kernel, strides, "VALID", dilations=[1, node.dilation])
        else:
            y = tf.nn.conv2d(x, kernel, strides, "VALID", dilations=[1, node.dilation])
        return normed(node, y)

    def transposed_conv(node: TransposedConv, n_frames: Any, x: Any) -> Any:
        # Output frame m * stride + j is input frame m through tap j, and the one before through
        # tap stride + j: a convolution with two taps that makes `stride` frames' channels at once.
        taps = weight(node, "kernel").reshape(2, node.stride, node.ch_in, node.ch_out)
        kernel = taps[::-1].transpose(0, 2, 1, 3).reshape(1, 2, node.ch_in, -1)
        y = tf.nn.conv2d(tf.pad(x, [[0, 0], [0, 0], [1, 1], [0, 0]]), kernel, 1, "VALID")
        y = tf.reshape(y, [1, 1, -1, node.ch_out])
        kept = -(-n_frames // node.period)
        return normed(node, y[:, :, node.lookahead : node.lookahead + kept])

    def normed(layer: Layer, y: Any) -> Any:
        if layer.biased:
            y = y + weight(layer, "bias")
        if layer.norm != "none":
            over = {"frame": [3], "time": [2, 3]}[layer.norm]
            if not layer.centred:
                y = y - tf.reduce_mean(y, over, keepdims=True)
            variance = tf.reduce_mean(y * y, over, keepdims=True)
            y = y * tf.math.rsqrt(variance + layer.epsilon)
        if layer.rescaled:
            y = y * weight(layer, "scale") + weight(layer, "shift")
        return activated(layer.activation, y)

    def activated(activation: Activation, y: Any) -> Any:
        if activation == "relu6":
            return tf.nn.relu6(y)
        return tf.nn.leaky_relu(y, LEAK) if activation == "leaky_relu" else y

    def film(node: Film, _: Any, x: Any, conditions: Any) -> Any:
        seen = conditions[:, :, :: node.period] if node.period > 1 else conditions

        def of_conditions(name: str) -> Any:
            kernel = weight(node, f"{name}_kernel")[None, None]
            return tf.nn.conv2d(seen, kernel, 1, "VALID") + weight(node, name)

        y = x * of_conditions("scale") if node.scaled else x
        return activated(node.activation, y + of_conditions("shift"))

    def add(_: Add, __: Any, *sources: Any) -> Any:
        return sum(sources[1:], sources[0])

    def take(node: Take, _: Any, x: Any) -> Any:
        return x[..., node.first : node.first + node.ch_out]

    def concat(_: Concat, __: Any, *sources: Any) -> Any:
        return tf.concat(sources, -1)

    layers: dict[type[Node], Callable[..., Any]] = {
        Conv: conv,
        TransposedConv: transposed_conv,
        Film: film,
        Add: add,
        Take: take,
        Concat: concat,
    }

    def network(inputs: Any) -> Any:
        values = {INPUTS: inputs[:, None]}
        for node in plan:
            sources = [values[source] for source in node.sources]
            values[node.name] = layers[type(node)](node, tf.shape(inputs)[1], *sources)
        return tf.reshape(values[plan[-1].name], [1, -1, plan[-1].ch_out])

    return network
