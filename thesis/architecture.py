"""A decoder as a plan: the convolutions that it is made of, in order, with no framework attached.

TensorFlow trains the plan, ONNX export lays it out, NumPy checks both, and parameter and operation
counts are sums over it. So they cannot disagree about the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Conv:
    """One convolution over time, what comes before it and what follows it.

    Attributes:
      name: Prefix of its weights' names.
      kernel_size: Frames that it sees.
      ch_in: Input channels.
      ch_out: Output channels.
      dilation: Frames between two taps.
      depthwise: Each channel is filtered on its own; `ch_in` equals `ch_out`.
      norm: Layer norm over the channels of each frame follows; there is no bias then, the norm's
        scale and shift do its work.
      relu6: A ReLU clipped at 6 comes last.
    """

    name: str
    kernel_size: int
    ch_in: int
    ch_out: int
    dilation: int = 1
    depthwise: bool = False
    norm: bool = False
    relu6: bool = False

    @property
    def kernel_shape(self) -> tuple[int, int, int]:
        """[kernel_size, input channels of one group, ch_out]."""
        return self.kernel_size, 1 if self.depthwise else self.ch_in, self.ch_out

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Weight name -> shape."""
        per_channel = ("scale", "shift") if self.norm else ("bias",)
        shapes: dict[str, tuple[int, ...]] = {f"{self.name}/kernel": self.kernel_shape}
        return shapes | {f"{self.name}/{name}": (self.ch_out,) for name in per_channel}

    @property
    def parameter_count(self) -> int:
        """Trainable weights."""
        k, ch_in, ch_out = self.kernel_shape
        return k * ch_in * ch_out + ch_out * (2 if self.norm else 1)

    @property
    def macs_per_frame(self) -> int:
        """Multiply-accumulates of one output frame, norm and activation left out."""
        k, ch_in, ch_out = self.kernel_shape
        return k * ch_in * ch_out

    @property
    def reach(self) -> int:
        """Frames between the first and the last tap."""
        return (self.kernel_size - 1) * self.dilation

    def padding(self, causal: bool) -> tuple[int, int]:
        """Returns the zero frames before and after that keep the length."""
        return (self.reach, 0) if causal else (self.reach - self.reach // 2, self.reach // 2)


@dataclass(frozen=True)
class Block:
    """Convolutions in a row; a residual block adds its input to its output."""

    convs: tuple[Conv, ...]
    residual: bool = False


def convs_of(blocks: Sequence[Block]) -> tuple[Conv, ...]:
    """Returns every convolution of a plan, in the order of the forward pass."""
    return tuple(conv for block in blocks for conv in block.convs)


def initial_weights(blocks: Sequence[Block], *, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Returns new weights by name: Glorot uniform kernels, unit scales, zero shifts and biases."""
    rng = np.random.default_rng(seed)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for conv in convs_of(blocks):
        for name, shape in conv.weight_shapes.items():
            if name.endswith("/kernel"):
                fan_in, fan_out = shape[0] * shape[1], shape[0] * shape[2]
                limit = np.sqrt(6.0 / (fan_in + fan_out))
                weights[name] = rng.uniform(-limit, limit, shape).astype(np.float32)
            else:
                weights[name] = np.full(shape, float(name.endswith("/scale")), np.float32)
    return weights
