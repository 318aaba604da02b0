"""The dilated convolution decoder in TensorFlow. Needs TensorFlow."""

from typing import Any

import numpy as np
import numpy.typing as npt

from thesis._ddsp import tf
from thesis.architecture import Conv, initial_weights
from thesis.config import DecoderConfig
from thesis.reference import NORM_EPSILON


class DilatedConvStack(tf.Module):  # type: ignore[misc]
    """The decoder of DDSP-CNN: dilated convolutions over time, see `DecoderConfig`.

    TensorFlow's CPU kernels for dilated convolution are slow. With few channels it is faster to
    lay the shifted inputs side by side and multiply once.
    """

    def __init__(self, config: DecoderConfig, n_outputs: int, *, seed: int = 0):
        """Makes the decoder with weights drawn from `seed` ."""
        super().__init__(name="decoder")
        self.config = config
        self.blocks = config.blocks(n_outputs)
        self.weights = {
            name: tf.Variable(value, name=name)
            for name, value in initial_weights(self.blocks, seed=seed).items()
        }

    def __call__(self, inputs: Any) -> Any:
        """Returns the raw synthesiser parameters.

        Args:
          inputs: [batch, frames, 2], see `thesis.controls.decoder_inputs`.

        Returns:
          [batch, frames, n_outputs].
        """
        x = inputs
        for block in self.blocks:
            y = x
            for conv in block.convs:
                y = self._conv(y, conv)
            x = x + y if block.residual else y
        return x

    def _conv(self, x: Any, conv: Conv) -> Any:
        kernel = self.weights[f"{conv.name}/kernel"]
        taps = self._taps(x, conv)
        if conv.depthwise:
            y = tf.add_n([tap * kernel[i, 0] for i, tap in enumerate(taps)])
        else:
            seen = tf.concat(taps, axis=-1) if len(taps) > 1 else taps[0]
            y = tf.matmul(seen, tf.reshape(kernel, [-1, conv.ch_out]))
        if conv.norm:
            mean, variance = tf.nn.moments(y, axes=[-1], keepdims=True)
            scale, shift = self.weights[f"{conv.name}/scale"], self.weights[f"{conv.name}/shift"]
            y = (y - mean) * (tf.math.rsqrt(variance + NORM_EPSILON) * scale) + shift
        else:
            y = y + self.weights[f"{conv.name}/bias"]
        return tf.nn.relu6(y) if conv.relu6 else y

    def _taps(self, x: Any, conv: Conv) -> list[Any]:
        """Returns the input as each tap of the kernel sees it, first tap first."""
        if conv.kernel_size == 1:
            return [x]
        n_frames = tf.shape(x)[1]
        padded = tf.pad(x, [[0, 0], list(conv.padding(self.config.causal)), [0, 0]])
        starts = range(0, conv.reach + 1, conv.dilation)
        return [padded[:, start : start + n_frames] for start in starts]

    def named_weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Returns a copy of every weight by its name in the plan."""
        return {name: weight.numpy() for name, weight in self.weights.items()}
