"""The dilated convolution decoder in TensorFlow. Needs TensorFlow."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from thesis._ddsp import tf
from thesis.architecture import INPUTS, NORM_EPSILON, Add, Conv, Node, initial_weights
from thesis.config import DecoderConfig

MOMENTUM = 0.99
"""Of the running moments of batch norms, in the long run."""


class DilatedConvStack(tf.Module):  # type: ignore[misc]
    """The decoder of DDSP-CNN: dilated convolutions over time, see `DecoderConfig`.

    TensorFlow's CPU kernels for dilated convolution are slow. With few channels it is faster to
    lay the shifted inputs side by side and multiply once.
    """

    def __init__(self, config: DecoderConfig, n_outputs: int, *, seed: int = 0):
        """Makes the decoder with weights drawn from `seed` ."""
        super().__init__(name="decoder")
        self.config = config
        self.plan = config.plan(n_outputs)
        trained = {name for node in self.plan for name in node.weight_shapes}
        self.weights = {
            name: tf.Variable(value, name=name, trainable=name in trained)
            for name, value in initial_weights(self.plan, seed=seed).items()
        }
        self._updates = tf.Variable(0.0, name="updates", trainable=False)

    def __call__(self, inputs: Any, training: bool = False) -> Any:
        """Returns the raw synthesiser parameters.

        Args:
          inputs: [batch, frames, 2], see `thesis.controls.decoder_inputs`.
          training: Batch norms use the moments of this batch and keep a running average of them,
            which they use otherwise.

        Returns:
          [batch, frames, n_outputs].
        """
        layers: dict[type[Node], Callable[..., Any]] = {Conv: self._conv, Add: self._add}
        values = {INPUTS: inputs}
        for node in self.plan:
            sources = [values[source] for source in node.sources]
            values[node.name] = layers[type(node)](node, *sources, training=training)
        if training:
            self._updates.assign_add(1.0)
        return values[self.plan[-1].name]

    def _conv(self, conv: Conv, x: Any, *, training: bool) -> Any:
        kernel = self.weights[f"{conv.name}/kernel"]
        taps = self._taps(x, conv)
        if conv.depthwise:
            y = tf.add_n([tap * kernel[i, 0] for i, tap in enumerate(taps)])
        else:
            seen = tf.concat(taps, axis=-1) if len(taps) > 1 else taps[0]
            y = tf.matmul(seen, tf.reshape(kernel, [-1, conv.ch_out]))
        if conv.norm == "none":
            y = y + self.weights[f"{conv.name}/bias"]
        else:
            mean, variance = self._moments(conv, y, training)
            scale, shift = self.weights[f"{conv.name}/scale"], self.weights[f"{conv.name}/shift"]
            epsilon = NORM_EPSILON[conv.norm]
            y = (y - mean) * (tf.math.rsqrt(variance + epsilon) * scale) + shift
        return tf.nn.relu6(y) if conv.relu6 else y

    def _add(self, _: Add, *sources: Any, training: bool) -> Any:
        return tf.add_n(sources)

    def _moments(self, conv: Conv, y: Any, training: bool) -> tuple[Any, Any]:
        """Returns the mean and the variance that a norm takes out."""
        if conv.norm != "batch":
            over = {"frame": [2], "time": [1, 2]}[conv.norm]
            mean, variance = tf.nn.moments(y, over, keepdims=True)
            return mean, variance
        running = [self.weights[f"{conv.name}/{name}"] for name in ("mean", "variance")]
        if not training:
            return running[0], running[1]
        moments = tf.nn.moments(y, [0, 1])
        # The plain mean of all batches until that is as long a memory as the momentum's. An
        # average that starts from zeros and ones, as Keras has it, holds on to 5% of them after
        # 300 steps, and with the thesis's momentum of 0.999 to 74%.
        share = tf.maximum(1.0 / (self._updates + 1.0), 1.0 - MOMENTUM)
        for average, moment in zip(running, moments, strict=True):
            average.assign_add(share * (moment - average))
        return moments[0], moments[1]

    def _taps(self, x: Any, conv: Conv) -> list[Any]:
        """Returns the input as each tap of the kernel sees it, first tap first."""
        if conv.kernel_size == 1:
            return [x]
        n_frames = tf.shape(x)[1]
        padded = tf.pad(x, [[0, 0], list(conv.padding), [0, 0]])
        starts = range(0, conv.reach + 1, conv.dilation)
        return [padded[:, start : start + n_frames] for start in starts]

    def named_weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Returns a copy of every weight by its name in the plan."""
        return {name: weight.numpy() for name, weight in self.weights.items()}
