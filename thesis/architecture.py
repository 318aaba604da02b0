"""A decoder as a plan: a small graph of layers, in the order of the forward pass.

No framework is attached. A node names the nodes whose outputs it takes; `INPUTS` are the decoder's
inputs, and the last node's output is the decoder's. TensorFlow trains the plan, ONNX export lays it
out, NumPy checks both, and sizes, costs and receptive fields are walks over it. So they cannot
disagree about the network.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

INPUTS = "inputs"
"""What the first nodes take: the decoder's inputs."""

Norm = Literal["none", "frame", "batch", "time"]
"""'none'; 'frame', layer norm over the channels of each frame; 'batch', batch norm (Ioffe & Szegedy
2015); 'time', moments over all frames and channels of a clip, ddsp's 'layer'."""

NORM_EPSILON: Mapping[Norm, float] = {"frame": 1e-5, "batch": 1e-3, "time": 1e-5}
"""Added to the variance. The thesis has 1e-3 for its batch norm, ddsp 1e-5 for its own."""

Activation = Literal["none", "relu6", "leaky_relu"]
"""'none'; 'relu6', a ReLU clipped at 6; 'leaky_relu', times `LEAK` below zero."""

LEAK = 0.2
"""Slope of a leaky ReLU below zero, TensorFlow's default."""

OUTPUT_GAIN = 0.1
"""The kernel of the output layer starts that much smaller than others. The residual sums before it
grow with width and depth, and outputs of several units saturate the synthesiser's sigmoids: noise
is learnt first then, and pitch late or never."""

Weights = Mapping[str, npt.NDArray[np.float32]]
Interval = tuple[float, float]
"""First and last of a range of frames; infinite for a layer that sees all there are."""


@dataclass(frozen=True)
class Node:
    """One step of a plan.

    Attributes:
      name: Names its output; prefix of its weights' names.
      sources: Names of what it takes.
      ch_out: Output channels.
      period: Input frames for each output frame. Of `n` input frames there come `ceil(n / period)`
        output frames; frame `m` belongs to input frame `m * period`.
    """

    name: str
    sources: tuple[str, ...]
    ch_out: int
    period: int = field(default=1, kw_only=True)

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight that is trained."""
        return {}

    @property
    def moment_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the running moments of a batch norm, kept rather than trained."""
        return {}

    @property
    def parameter_count(self) -> int:
        """Trained weights."""
        return sum(math.prod(shape) for shape in self.weight_shapes.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one output frame, norm and activation left out."""
        return 0

    def sees(self, first: float, last: float) -> tuple[Interval, ...]:
        """Returns, for each source, the frames that output frames `first` to `last` depend on."""
        return ((first, last),) * len(self.sources)


@dataclass(frozen=True)
class Layer(Node, ABC):
    """A convolution of some kind, with the norm and the activation that follow it.

    Attributes:
      norm: What follows.
      affine: The norm has a scale and a shift, which do the work of a bias; without a norm there
        is a bias. Not so where a node that follows has its own, see `Film`.
      bias: There is a bias before the norm, too. Keras's dense layers have one.
      norm_epsilon: What the norm adds to the variance; None for its usual, `NORM_EPSILON`.
      activation: What comes last.
    """

    norm: Norm = field(default="none", kw_only=True)
    affine: bool = field(default=True, kw_only=True)
    bias: bool = field(default=False, kw_only=True)
    norm_epsilon: float | None = field(default=None, kw_only=True)
    activation: Activation = field(default="none", kw_only=True)

    @property
    @abstractmethod
    def kernel_shape(self) -> tuple[int, int, int]:
        """[frames, input channels of one group, ch_out]."""

    @property
    def biased(self) -> bool:
        """Whether there is a bias."""
        return self.bias or (self.affine and self.norm == "none")

    @property
    def rescaled(self) -> bool:
        """Whether the norm has a scale and a shift."""
        return self.affine and self.norm != "none"

    @property
    def centred(self) -> bool:
        """Whether `centre_kernels` leaves the norm no mean to take out."""
        return self.norm == "frame"

    @property
    def epsilon(self) -> float:
        """What the norm adds to the variance."""
        return NORM_EPSILON[self.norm] if self.norm_epsilon is None else self.norm_epsilon

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight that is trained."""
        per_channel = ("bias",) * self.biased + ("scale", "shift") * self.rescaled
        shapes: dict[str, tuple[int, ...]] = {f"{self.name}/kernel": self.kernel_shape}
        return shapes | {f"{self.name}/{name}": (self.ch_out,) for name in per_channel}

    @property
    def moment_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the running moments of a batch norm, kept rather than trained."""
        kept = ("mean", "variance") if self.norm == "batch" else ()
        return {f"{self.name}/{name}": (self.ch_out,) for name in kept}

    def sees(self, first: float, last: float) -> tuple[Interval, ...]:
        """Returns the frames of the source that output frames `first` to `last` depend on."""
        if self.norm == "time":
            return ((-math.inf, math.inf),)
        return (self._span(first, last),)

    @abstractmethod
    def _span(self, first: float, last: float) -> Interval:
        """Returns the frames of the source that the kernel sees for `first` to `last`."""


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution over time.

    Attributes:
      ch_in: Input channels.
      kernel_size: Frames that it sees.
      dilation: Frames between two taps.
      lookahead: How many frames after its own the last tap sees; 0 is causal.
      stride: Input frames from one output frame to the next.
      depthwise: Each channel is filtered on its own; `ch_in` equals `ch_out`.
    """

    ch_in: int
    kernel_size: int = 1
    dilation: int = 1
    lookahead: int = 0
    stride: int = 1
    depthwise: bool = False

    @property
    def kernel_shape(self) -> tuple[int, int, int]:
        """[kernel_size, input channels of one group, ch_out]."""
        return self.kernel_size, 1 if self.depthwise else self.ch_in, self.ch_out

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one output frame, norm and activation left out."""
        return math.prod(self.kernel_shape)

    @property
    def centred(self) -> bool:
        """Whether `centre_kernels` leaves the norm no mean to take out."""
        return super().centred and not self.depthwise

    @property
    def reach(self) -> int:
        """Frames between the first and the last tap."""
        return (self.kernel_size - 1) * self.dilation

    @property
    def padding(self) -> tuple[int, int]:
        """The zero frames before and after: of n frames they make ceil(n / stride)."""
        return self.reach - self.lookahead, self.lookahead

    def _span(self, first: float, last: float) -> Interval:
        before, after = self.padding
        return first * self.stride - before, last * self.stride + after


@dataclass(frozen=True)
class TransposedConv(Layer):
    """A convolution that makes `stride` output frames of each input frame.

    Its kernel is two strides long, so that each output frame is made of two input frames: the
    transpose of a strided convolution, cropped to the number of frames that its period asks for.

    Attributes:
      ch_in: Input channels.
      stride: Output frames for each input frame.
      lookahead: Output frames that are cut off at the start; 0 is causal.
    """

    ch_in: int
    stride: int
    lookahead: int = 0

    @property
    def kernel_shape(self) -> tuple[int, int, int]:
        """[2 * stride, ch_in, ch_out]."""
        return 2 * self.stride, self.ch_in, self.ch_out

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one output frame, norm and activation left out."""
        return 2 * self.ch_in * self.ch_out

    def _span(self, first: float, last: float) -> Interval:
        # Infinity divided without rest is no number.
        begin, end = (
            frame if math.isinf(frame) else (frame + self.lookahead) // self.stride
            for frame in (first, last)
        )
        return begin - 1, end


@dataclass(frozen=True)
class Film(Node):
    """FiLM (Perez et al. 2018): a scale and a shift of each channel, linear in conditions.

    `x * (scale + conditions @ scale_kernel) + (shift + conditions @ shift_kernel)`. New kernels are
    zero and new scales one, so that it starts as the identity.

    Sources are what it changes, and the conditions at the rate of the inputs, of which it takes
    every `period`-th frame: those that its output frames belong to.

    Attributes:
      ch_in: Channels of the conditions.
      scaled: False leaves the scale out.
      activation: What comes last.
    """

    ch_in: int
    scaled: bool = True
    activation: Activation = "none"

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight that is trained."""
        return {
            f"{self.name}/{name}{suffix}": shape
            for name in (("scale", "shift") if self.scaled else ("shift",))
            for suffix, shape in (("_kernel", (self.ch_in, self.ch_out)), ("", (self.ch_out,)))
        }

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one output frame: the linear layers, not what they change."""
        return self.ch_in * self.ch_out * (2 if self.scaled else 1)

    def sees(self, first: float, last: float) -> tuple[Interval, ...]:
        """Returns, for each source, the frames that output frames `first` to `last` depend on."""
        return (first, last), (first * self.period, last * self.period)


@dataclass(frozen=True)
class Add(Node):
    """The sum of its sources: what closes a residual block."""


@dataclass(frozen=True)
class Take(Node):
    """`ch_out` of its source's channels.

    Attributes:
      first: The first of them.
    """

    first: int


@dataclass(frozen=True)
class Concat(Node):
    """The channels of its sources, one after the other."""


@dataclass(frozen=True)
class Gru(Node):
    """A gated recurrent unit (Cho et al. 2014) that starts from zeros.

    With the gates z, r and the candidate c, of an input frame x and the state h before it:

        z, r = sigmoid(x @ Kz + az + h @ Rz + bz), sigmoid(x @ Kr + ar + h @ Rr + br)
        c = tanh(x @ Kc + ac + r * (h @ Rc + bc))
        state = z * h + (1 - z) * c

    The reset comes after the product, as in Keras (`reset_after`), cuDNN and ONNX
    (`linear_before_reset`). Weights are as in Keras: kernel [ch_in, 3 * ch_out], recurrent_kernel
    [ch_out, 3 * ch_out] and bias [2, 3 * ch_out], a and b, each in the order z, r, c.

    Attributes:
      ch_in: Input channels.
    """

    ch_in: int

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight that is trained."""
        return {
            f"{self.name}/kernel": (self.ch_in, 3 * self.ch_out),
            f"{self.name}/recurrent_kernel": (self.ch_out, 3 * self.ch_out),
            f"{self.name}/bias": (2, 3 * self.ch_out),
        }

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one output frame: the products with the two kernels."""
        return (self.ch_in + self.ch_out) * 3 * self.ch_out

    def sees(self, first: float, last: float) -> tuple[Interval, ...]:
        """Returns the frames of the source that output frames `first` to `last` depend on."""
        return ((-math.inf, last),)


def initial_weights(
    plan: Sequence[Node], *, seed: int, outputs: npt.NDArray[np.float32] | None = None
) -> dict[str, npt.NDArray[np.float32]]:
    """Returns new weights by name, running moments included.

    Glorot uniform kernels, that of the last node times `OUTPUT_GAIN`, orthogonal recurrent ones,
    scales and variances of one, zero for all others.

    Args:
      plan: The network.
      seed: Of what is drawn.
      outputs: Bias of the last node, [ch_out]; None for zeros.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for node in plan:
        for name, shape in (node.weight_shapes | node.moment_shapes).items():
            kind = name.rpartition("/")[2]
            if kind == "kernel":
                *taps, ch_in, ch_out = shape
                limit = np.sqrt(6.0 / (math.prod(taps) * (ch_in + ch_out)))
                limit *= OUTPUT_GAIN if node is plan[-1] else 1.0
                weights[name] = rng.uniform(-limit, limit, shape).astype(np.float32)
            elif kind == "recurrent_kernel":
                q, r = np.linalg.qr(rng.normal(size=shape[::-1]))
                weights[name] = (q * np.sign(np.diag(r))).T.astype(np.float32)
            else:
                weights[name] = np.full(shape, kind in ("scale", "variance"), np.float32)
    if outputs is not None:
        weights[f"{plan[-1].name}/bias"] = outputs
    return weights


def fold_batch_norm(
    plan: Sequence[Node], weights: Mapping[str, npt.NDArray[Any]]
) -> tuple[tuple[Node, ...], dict[str, npt.NDArray[Any]]]:
    """Returns the plan and weights of the same function without batch norm.

    Once trained, a batch norm is a fixed scale and shift of each channel: the scale goes into the
    kernel, what is left becomes the bias.
    """
    folded, rest = [], dict(weights)
    for node in plan:
        if isinstance(node, Layer) and node.norm == "batch":
            mean, variance = (rest.pop(f"{node.name}/{name}") for name in ("mean", "variance"))
            scale = rest.pop(f"{node.name}/scale") if node.affine else np.ones(node.ch_out)
            shift = rest.pop(f"{node.name}/shift") if node.affine else np.zeros(node.ch_out)
            gain = scale / np.sqrt(variance.astype(np.float64) + node.epsilon)
            kernel, bias = f"{node.name}/kernel", f"{node.name}/bias"
            offset = rest[bias] - mean if node.biased else -mean
            rest |= {
                kernel: (rest[kernel] * gain).astype(np.float32),
                bias: (shift + offset * gain).astype(np.float32),
            }
            node = replace(node, norm="none", affine=True)
        folded.append(node)
    return tuple(folded), rest


def centre_kernels(
    plan: Sequence[Node], weights: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Returns the weights of the same function whose frame norms find a mean of zero.

    The norm takes out the mean over channels; a kernel and a bias without that mean save it the
    work. Not so a depthwise kernel: it does not mix channels, see `Layer.centred`.
    """
    centred = dict(weights)
    for node in plan:
        if isinstance(node, Layer) and node.centred:
            for name in ("kernel", "bias") if node.biased else ("kernel",):
                weight = weights[f"{node.name}/{name}"].astype(np.float64)
                weight -= weight.mean(-1, keepdims=True)
                centred[f"{node.name}/{name}"] = weight.astype(np.float32)
    return centred


def for_inference(
    plan: Sequence[Node], weights: Mapping[str, npt.NDArray[Any]]
) -> tuple[tuple[Node, ...], dict[str, npt.NDArray[Any]]]:
    """Returns the plan and weights of the same function, with no norm's work left to do twice."""
    plan, folded = fold_batch_norm(plan, weights)
    return plan, centre_kernels(plan, folded)


def macs_per_frame(plan: Sequence[Node]) -> int:
    """Returns the multiply-accumulates of one input frame on average, rounded up."""
    return math.ceil(sum(Fraction(node.macs, node.period) for node in plan))


def inputs_seen(plan: Sequence[Node], frame: int) -> Interval:
    """Returns the first and the last input frame that an output frame depends on.

    Frames before the first one count as any other; between the two there may be gaps.
    """
    wanted: dict[str, Interval] = {plan[-1].name: (frame, frame)}
    for node in reversed(plan):
        for source, seen in zip(node.sources, node.sees(*wanted[node.name]), strict=True):
            first, last = wanted.get(source, seen)
            wanted[source] = min(first, seen[0]), max(last, seen[1])
    return wanted[INPUTS]


def receptive_field(plan: Sequence[Node]) -> tuple[int | None, int | None]:
    """Returns how many input frames an output frame depends on, and how many of its future.

    With resampling both differ from frame to frame; these are the largest. Either is None where
    there is no bound.
    """
    cycle = max(node.period for node in plan)
    seen = [inputs_seen(plan, frame) for frame in range(cycle)]
    field = max(last - first + 1 for first, last in seen)
    ahead = max(last - frame for frame, (_, last) in enumerate(seen))
    return (
        None if math.isinf(field) else int(field),
        None if math.isinf(ahead) else int(ahead),
    )
