"""A decoder in TensorFlow: runs the plan of a configuration. Needs TensorFlow."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thesis._ddsp import tf
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
    initial_weights,
)
from thesis.config import DecoderConfig
from thesis.gru import gru

MOMENTUM = 0.99
"""Of the running moments of batch norms, in the long run."""


@dataclass(frozen=True)
class _Call:
    """What all layers of a forward pass know.

    Attributes:
      n_frames: Of the decoder's inputs.
      moments: In training, the moments of the batch by the name of their running average, filled
        in as norms take them; None otherwise.
    """

    n_frames: Any
    moments: dict[str, Any] | None


class Decoder(tf.Module):  # type: ignore[misc]
    """A network of any architecture, see the configurations in `thesis.config`.

    TensorFlow's CPU kernels for dilated convolution are slow. With few channels it is faster to
    lay the shifted inputs side by side and multiply once.
    """

    def __init__(
        self,
        config: DecoderConfig,
        n_outputs: int,
        *,
        seed: int = 0,
        outputs: npt.NDArray[np.float32] | None = None,
    ):
        """Makes a decoder with new weights, see `thesis.architecture.initial_weights`.

        Args:
          config: The architecture.
          n_outputs: Channels of the output.
          seed: Of the weights.
          outputs: What it begins with for all inputs, about, [n_outputs]; None for zeros.
        """
        super().__init__(name="decoder")
        self.config = config
        self.plan = config.plan(n_outputs)
        trained = {name for node in self.plan for name in node.weight_shapes}
        self.weights = {
            name: tf.Variable(value, name=name, trainable=name in trained)
            for name, value in initial_weights(self.plan, seed=seed, outputs=outputs).items()
        }
        self._updates = tf.Variable(0.0, name="updates", trainable=False)

    def __call__(self, inputs: Any, training: bool = False, keep_moments: bool = True) -> Any:
        """Returns the raw synthesiser parameters.

        Args:
          inputs: [batch, frames, 2], see `thesis.controls.decoder_inputs`.
          training: Batch norms use the moments of this batch and keep a running average of them,
            which they use otherwise.
          keep_moments: Whether, in training, that average takes this batch in. A training step
            runs the decoder twice and wants it counted once.

        Returns:
          [batch, frames, n_outputs].
        """
        layers: dict[type[Node], Callable[..., Any]] = {
            Conv: self._conv,
            TransposedConv: self._transposed_conv,
            Film: self._film,
            Gru: self._gru,
            Add: self._add,
            Take: self._take,
            Concat: self._concat,
        }
        call = _Call(tf.shape(inputs)[1], {} if training else None)
        values = {INPUTS: inputs}
        for node in self.plan:
            sources = [values[source] for source in node.sources]
            values[node.name] = layers[type(node)](node, call, *sources)
        if call.moments is not None and keep_moments:
            self._keep(call.moments)
        return values[self.plan[-1].name]

    def _keep(self, moments: dict[str, Any]) -> None:
        """Takes the moments of a batch into the running averages."""
        # The plain mean of all batches until that is as long a memory as the momentum's. An
        # average that starts from zeros and ones, as Keras has it, holds on to 5% of them after
        # 300 steps, and with the thesis's momentum of 0.999 to 74%.
        share = tf.maximum(1.0 / (self._updates + 1.0), 1.0 - MOMENTUM)
        for name, moment in moments.items():
            average = self.weights[name]
            average.assign_add(share * (moment - average))
        self._updates.assign_add(1.0)

    def _weight(self, node: Node, name: str) -> Any:
        return self.weights[f"{node.name}/{name}"]

    def _conv(self, conv: Conv, call: _Call, x: Any) -> Any:
        kernel = self._weight(conv, "kernel")
        taps = self._taps(x, conv)
        if conv.depthwise:
            y = tf.add_n([tap * kernel[i, 0] for i, tap in enumerate(taps)])
        else:
            seen = tf.concat(taps, axis=-1) if len(taps) > 1 else taps[0]
            y = tf.matmul(seen, tf.reshape(kernel, [-1, conv.ch_out]))
        return self._normed(conv, call, y)

    def _transposed_conv(self, conv: TransposedConv, call: _Call, x: Any) -> Any:
        # Output frame m * stride + j is input frame m through tap j of the kernel, and the one
        # before it through tap stride + j: one product gives all of them.
        padded = tf.pad(x, [[0, 0], [1, 1], [0, 0]])
        pairs = tf.concat([padded[:, 1:], padded[:, :-1]], axis=-1)
        taps = tf.reshape(self._weight(conv, "kernel"), [2, conv.stride, conv.ch_in, conv.ch_out])
        kernel = tf.reshape(tf.transpose(taps, [0, 2, 1, 3]), [2 * conv.ch_in, -1])
        y = tf.matmul(pairs, kernel)
        y = tf.reshape(y, [tf.shape(y)[0], -1, conv.ch_out])
        n_frames = -(-call.n_frames // conv.period)
        return self._normed(conv, call, y[:, conv.lookahead : conv.lookahead + n_frames])

    def _film(self, film: Film, _: _Call, x: Any, conditions: Any) -> Any:
        seen = conditions[:, :: film.period]

        def of_conditions(name: str) -> Any:
            linear = tf.matmul(seen, self._weight(film, f"{name}_kernel"))
            return linear + self._weight(film, name)

        y = x * of_conditions("scale") if film.scaled else x
        y = y + of_conditions("shift")
        return _activated(film.activation, y)

    def _gru(self, layer: Gru, _: _Call, x: Any) -> Any:
        kinds = ("kernel", "recurrent_kernel", "bias")
        return gru(x, *(self._weight(layer, kind) for kind in kinds))

    def _add(self, _: Add, __: _Call, *sources: Any) -> Any:
        return tf.add_n(sources)

    def _take(self, take: Take, _: _Call, x: Any) -> Any:
        return x[:, :, take.first : take.first + take.ch_out]

    def _concat(self, _: Concat, __: _Call, *sources: Any) -> Any:
        return tf.concat(sources, axis=-1)

    def _normed(self, layer: Layer, call: _Call, y: Any) -> Any:
        """Returns what a convolution has computed, through its norm and its activation."""
        if layer.biased:
            y = y + self._weight(layer, "bias")
        if layer.norm != "none":
            mean, variance = self._moments(layer, call, y)
            gain = tf.math.rsqrt(variance + layer.epsilon)
            y = (y - mean) * (gain * self._weight(layer, "scale") if layer.rescaled else gain)
        if layer.rescaled:
            y = y + self._weight(layer, "shift")
        return _activated(layer.activation, y)

    def _moments(self, layer: Layer, call: _Call, y: Any) -> tuple[Any, Any]:
        """Returns the mean and the variance that a norm takes out."""
        if layer.norm != "batch":
            over = {"frame": [2], "time": [1, 2]}[layer.norm]
            mean, variance = tf.nn.moments(y, over, keepdims=True)
            return mean, variance
        if call.moments is None:
            return self._weight(layer, "mean"), self._weight(layer, "variance")
        mean, variance = tf.nn.moments(y, [0, 1])
        call.moments.update({f"{layer.name}/mean": mean, f"{layer.name}/variance": variance})
        return mean, variance

    def _taps(self, x: Any, conv: Conv) -> list[Any]:
        """Returns the input as each tap of the kernel sees it, first tap first."""
        if conv.kernel_size == 1:
            return [x]
        n_frames = tf.shape(x)[1]
        padded = tf.pad(x, [[0, 0], list(conv.padding), [0, 0]])
        starts = range(0, conv.reach + 1, conv.dilation)
        return [padded[:, start : start + n_frames : conv.stride] for start in starts]

    def named_weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Returns a copy of every weight by its name in the plan."""
        return {name: weight.numpy() for name, weight in self.weights.items()}


def _activated(activation: Activation, y: Any) -> Any:
    if activation == "relu6":
        return tf.nn.relu6(y)
    return tf.nn.leaky_relu(y, LEAK) if activation == "leaky_relu" else y
