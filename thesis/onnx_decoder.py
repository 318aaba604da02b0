"""Lays a decoder's plan into an ONNX graph, for whole clips and for streams."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

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
from thesis.onnx_graph import NEXT, STATE, Graph
from thesis.streaming import Schedule, Source, Step

POSITION = "position"
"""State of a stream: how many frames there were before the block, [1], int64."""
N_FRAMES = f"{INPUTS}/frames_1"
"""How many frames there are in a block or a clip, [1], int64."""


def lay(
    graph: Graph, plan: Sequence[Node], weights: Weights, scheduled: Schedule | None = None
) -> str:
    """Adds a decoder to a graph that has the value `INPUTS`; returns the name of its output.

    Args:
      graph: What it is added to. On a stream whose output is late it has the state `POSITION`.
      plan: The network, as `thesis.architecture.for_inference` returns it.
      weights: Its weights by name.
      scheduled: The plan on a stream; None for a whole clip.
    """
    return _Layers(graph, plan, weights, scheduled).output


def count_frames(graph: Graph, inputs: str, *, axis: int) -> None:
    """Adds the state `POSITION`; frames are counted along an axis of the inputs."""
    position = graph.state(POSITION, [1], TensorProto.INT64)
    n_frames = graph.node("Shape", [inputs], N_FRAMES, start=axis, end=axis + 1)
    graph.node("Add", [position, n_frames], NEXT + POSITION)


def begun(graph: Graph, first: str, n_frames: str, name: str, *, period: int = 1) -> str:
    """Returns 1 for each frame from number 0 on, and 0 for those before it, float32.

    Args:
      graph: What it is added to.
      first: Number of the first frame, [1], int64.
      n_frames: How many frames of the inputs there are, [1].
      name: Prefix of what is added.
      period: Input frames for each of the frames that are looked at.
    """
    end = graph.node("Add", [first, n_frames], f"{name}/end")
    scalars = [
        graph.node("Squeeze", [x], f"{name}/{part}") for part, x in (("from", first), ("to", end))
    ]
    numbers = graph.node("Range", [*scalars, graph.number(period, np.int64)], f"{name}/numbers")
    reached = graph.node("GreaterOrEqual", [numbers, graph.integers(0)], f"{name}/reached")
    return graph.node("Cast", [reached], name, to=TensorProto.FLOAT)


class _Layers:
    """Each method adds a node of the plan and returns its output's name.

    With a schedule what a node needs of the past is a state.
    """

    def __init__(
        self, graph: Graph, plan: Sequence[Node], weights: Weights, scheduled: Schedule | None
    ) -> None:
        self._graph = graph
        self._weights = weights
        self._steps = {step.node.name: step for step in scheduled.steps} if scheduled else {}
        self._channels = {INPUTS: N_INPUTS} | {node.name: node.ch_out for node in plan}
        layers: dict[type[Node], Callable[..., str]] = {
            Conv: self._conv,
            TransposedConv: self._transposed_conv,
            Film: self._film,
            Gru: self._gru,
            Add: self._add,
            Take: self._take,
            Concat: self._concat,
        }
        # What is late has values for frames before the first, where a kernel is to see padding.
        remembered = {s.name for step in self._steps.values() for s in step.sources if s.past}
        values = {INPUTS: INPUTS}
        for node in plan:
            sources = [values[source] for source in node.sources]
            step = self._steps.get(node.name)
            if step:
                sources = [
                    self._seen(node, x, s) for x, s in zip(sources, step.sources, strict=True)
                ]
            values[node.name] = layers[type(node)](node, *sources)
            if step and step.delay and node.name in remembered:
                values[node.name] = self._from_the_first(step, values[node.name])
        self.output = values[plan[-1].name]

    def _add(self, add: Add, *sources: str) -> str:
        return self._graph.node("Add", sources, add.name)

    def _take(self, take: Take, x: str) -> str:
        return self._graph.slice(
            x, take.name, axis=1, first=take.first, end=take.first + take.ch_out
        )

    def _concat(self, concat: Concat, *sources: str) -> str:
        return self._graph.node("Concat", sources, concat.name, axis=1)

    def _gru(self, gru: Gru, x: str) -> str:
        name, weight = gru.name, {k: self._weights[k] for k in gru.weight_shapes}
        # Frames come first here, and each weight has an axis of directions, of which there is one.
        x = self._graph.node("Transpose", [x], f"{name}/frames_first", perm=[2, 0, 1])
        inputs = [
            x,
            self._graph.constant(f"{name}/W", weight[f"{name}/kernel"].T[None]),
            self._graph.constant(f"{name}/R", weight[f"{name}/recurrent_kernel"].T[None]),
            self._graph.constant(f"{name}/B", weight[f"{name}/bias"].reshape(1, -1)),
        ]
        outputs = [f"{name}/states"]
        if self._steps:
            inputs += ["", self._graph.state(name, [1, 1, gru.ch_out])]
            outputs.append(NEXT + name)
        sizes = {"hidden_size": gru.ch_out, "linear_before_reset": 1}
        states, *_ = self._graph.nodes("GRU", inputs, outputs, **sizes)
        states = self._graph.node("Squeeze", [states, self._graph.integers(1)], f"{name}/squeezed")
        return self._graph.node("Transpose", [states], f"{name}/channels_first", perm=[1, 2, 0])

    def _conv(self, conv: Conv, x: str) -> str:
        kernel, bias = self._affine_map(conv)
        y = self._graph.node(
            "Conv",
            # [taps, in, out] -> [out, in, taps]
            [x, self._graph.constant(f"{conv.name}/W", kernel.transpose(2, 1, 0)), bias],
            f"{conv.name}/conv",
            dilations=[conv.dilation],
            group=conv.ch_in if conv.depthwise else 1,
            kernel_shape=[conv.kernel_size],
            # On a stream the past takes the place of padding.
            pads=[0, 0] if self._steps else list(conv.padding),
            strides=[conv.stride],
        )
        return self._normed(conv, y)

    def _transposed_conv(self, conv: TransposedConv, x: str) -> str:
        kernel, bias = self._affine_map(conv)
        # A stream remembers the input frame before the block, and begins with what follows it.
        pads = [conv.lookahead, conv.stride - conv.lookahead]
        y = self._graph.node(
            "ConvTranspose",
            # [taps, in, out] -> [in, out, taps]
            [x, self._graph.constant(f"{conv.name}/W", kernel.transpose(1, 2, 0)), bias],
            f"{conv.name}/conv",
            kernel_shape=[2 * conv.stride],
            pads=[conv.stride, conv.stride] if self._steps else pads,
            strides=[conv.stride],
        )
        if not self._steps:
            n_frames = self._n_frames(conv.period)
            y = self._graph.slice(y, f"{conv.name}/cropped", axis=2, end=n_frames)
        return self._normed(conv, y)

    def _film(self, film: Film, x: str, conditions: str) -> str:
        seen = self._every(film.period, conditions)
        if film.scaled:
            scale = self._linear(film, "scale", seen)
            x = self._graph.node("Mul", [x, scale], f"{film.name}/scaled")
        x = self._graph.node("Add", [x, self._linear(film, "shift", seen)], f"{film.name}/shifted")
        return self._activated(film.name, film.activation, x)

    def _linear(self, film: Film, name: str, conditions: str) -> str:
        kernel = self._weights[f"{film.name}/{name}_kernel"].T[:, :, None]
        weights = [
            self._graph.constant(f"{film.name}/{name}/W", kernel),
            self._graph.constant(f"{film.name}/{name}/B", self._weights[f"{film.name}/{name}"]),
        ]
        return self._graph.node("Conv", [conditions, *weights], f"{film.name}/{name}")

    def _affine_map(self, layer: Layer) -> tuple[npt.NDArray[np.float32], str]:
        """Returns a convolution's kernel, [taps, in, out], and the name of its bias."""
        bias = self._weights[f"{layer.name}/bias"] if layer.biased else np.zeros(layer.ch_out)
        return self._weights[f"{layer.name}/kernel"], self._graph.constant(f"{layer.name}/B", bias)

    def _normed(self, layer: Layer, y: str) -> str:
        """Adds norm and activation of a convolution."""
        if layer.norm == "frame":
            y = self._frame_norm(layer, y)
        elif layer.norm == "time":
            y = self._time_norm(layer, y)
        if layer.rescaled:
            scale, shift = (
                self._graph.constant(
                    f"{layer.name}/{name}", self._weights[f"{layer.name}/{name}"][None, :, None]
                )
                for name in ("scale", "shift")
            )
            y = self._graph.node("Mul", [y, scale], f"{layer.name}/scaled")
            y = self._graph.node("Add", [y, shift], f"{layer.name}/shifted")
        return self._activated(layer.name, layer.activation, y)

    def _activated(self, name: str, activation: Activation, y: str) -> str:
        if activation == "relu6":
            limits = [self._graph.constant("zero", 0.0), self._graph.constant("six", 6.0)]
            return self._graph.node("Clip", [y, *limits], f"{name}/relu6")
        if activation == "leaky_relu":
            return self._graph.node("LeakyRelu", [y], f"{name}/leaky_relu", alpha=LEAK)
        return y

    def _frame_norm(self, layer: Layer, y: str) -> str:
        """Layer norm over channels. The moments are 1x1 convolutions, the fastest way there is."""
        name, ch = layer.name, layer.ch_out
        average = self._graph.constant(f"{name}/M", np.full((1, ch, 1), 1.0 / ch))
        if not layer.centred:
            mean = self._graph.node("Conv", [y, average], f"{name}/mean")
            y = self._graph.node("Sub", [y, mean], f"{name}/centred")
        squared = self._graph.node("Mul", [y, y], f"{name}/squared")
        epsilon = self._graph.constant(f"epsilon_{layer.epsilon:g}", [layer.epsilon])
        variance = self._graph.node("Conv", [squared, average, epsilon], f"{name}/variance")
        deviation = self._graph.node("Sqrt", [variance], f"{name}/deviation")
        return self._graph.node("Div", [y, deviation], f"{name}/normalized")

    def _time_norm(self, layer: Layer, y: str) -> str:
        """Norm over the whole clip: to ONNX the norm of an instance that has one channel."""
        one, none = self._graph.constant("one", [1.0]), self._graph.constant("none", [0.0])
        flat = self._graph.constant("flat", [1, 1, -1], np.int64)
        shape = self._graph.constant(f"{layer.name}/shape", [1, layer.ch_out, -1], np.int64)
        y = self._graph.node("Reshape", [y, flat], f"{layer.name}/flat")
        y = self._graph.node(
            "InstanceNormalization",
            [y, one, none],
            f"{layer.name}/instance",
            epsilon=layer.epsilon,
        )
        return self._graph.node("Reshape", [y, shape], f"{layer.name}/normalized")

    def _n_frames(self, period: int) -> str:
        """Returns how many frames there are at a period, [1]; counted once in a graph."""
        name = f"{INPUTS}/frames_{period}"
        if name in self._graph:
            return name
        if period == 1:
            return self._graph.node("Shape", [INPUTS], name, start=2, end=3)
        rest = [self._n_frames(1), self._graph.integers(period - 1)]
        rounded = self._graph.node("Add", rest, f"{name}/rounded")
        return self._graph.node("Div", [rounded, self._graph.integers(period)], name)

    def _every(self, period: int, x: str) -> str:
        """Returns every `period`-th frame."""
        name = f"{x}/every_{period}"
        if period == 1 or name in self._graph:
            return x if period == 1 else name
        return self._graph.slice(x, name, axis=2, step=period)

    def _seen(self, node: Node, x: str, source: Source) -> str:
        """Returns what a node sees of a source on a stream."""
        if not source.past:
            return x
        name = f"{node.name}/{source.name}" if len(node.sources) > 1 else node.name
        shape = [1, self._channels[source.name], source.past]
        x = self._graph.remembered(name, x, source.past, shape=shape, axis=2)
        if source.ahead:
            x = self._graph.slice(x, f"{name}/seen", axis=2, end=-source.ahead)
        return x

    def _from_the_first(self, step: Step, x: str) -> str:
        """Returns a late output, zero in frames before the first: as what pads it in a clip."""
        name, period = step.node.name, step.node.period
        mask = f"begun_{step.delay}_{period}"
        if mask not in self._graph:
            delay = self._graph.integers(step.delay)
            first = self._graph.node("Sub", [STATE + POSITION, delay], f"{mask}/first")
            begun(self._graph, first, self._n_frames(1), mask, period=period)
        return self._graph.node("Mul", [x, mask], f"{name}/from_the_first")
