"""A gated recurrent unit that trains fast on a CPU. Needs TensorFlow."""

from typing import Any

from thesis._ddsp import tf


def gru(x: Any, kernel: Any, recurrent_kernel: Any, bias: Any) -> Any:
    """Returns the state after each frame, as `thesis.architecture.Gru` defines it.

    Args:
      x: [batch, frames, ch_in].
      kernel: [ch_in, 3 * ch_out].
      recurrent_kernel: [ch_out, 3 * ch_out].
      bias: [2, 3 * ch_out].

    Returns:
      [batch, frames, ch_out].
    """
    from_input = tf.matmul(x, kernel) + bias[0]
    states = _states(tf.transpose(from_input, [1, 0, 2]), recurrent_kernel, bias[1])
    return tf.transpose(states, [1, 0, 2])


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _states(x: Any, kernel: Any, bias: Any) -> Any:
    """Returns the states, [frames, batch, ch_out], for what the input gives to the gates.

    TensorFlow's own gradient of a loop adds up the kernel's gradient frame by frame. Only the slope
    of the state has to go through the frames one by one: gates and the kernel's gradient are one
    product over all frames each.
    """
    zero = tf.zeros_like(x[0, :, : kernel.shape[0]])

    def step(h: Any, x: Any) -> Any:
        z, _, c, _ = _gates(x, tf.matmul(h, kernel) + bias)
        return c + z * (h - c)

    states = tf.scan(step, x, zero)

    def gradient(slopes: Any) -> tuple[Any, Any, Any]:
        before = tf.concat([zero[None], states[:-1]], axis=0)
        z, r, c, from_state = _gates(x, tf.matmul(before, kernel) + bias)
        # Of the state after a frame along what the gates take, before they are squashed; through
        # the candidate to what comes from the input and from the state.
        along_z = (before - c) * z * (1.0 - z)
        along_c = (1.0 - z) * (1.0 - c * c)
        along_r = along_c * from_state * r * (1.0 - r)
        along_state = tf.concat([along_z, along_r, along_c * r], axis=-1)
        along_input = tf.concat([along_z, along_r, along_c], axis=-1)
        transposed = tf.transpose(kernel)

        def back(total: Any, frame: tuple[Any, Any, Any]) -> Any:
            slope, z, along = frame  # along those of the frame after this one
            return slope + total * z + tf.matmul(_thrice(total) * along, transposed)

        following = [tf.concat([of[1:], tf.zeros_like(of[:1])], axis=0) for of in (z, along_state)]
        totals = _thrice(tf.scan(back, (slopes, *following), zero, reverse=True))
        to_state = totals * along_state
        kernel_gradient = tf.tensordot(before, to_state, [[0, 1], [0, 1]])
        return totals * along_input, kernel_gradient, tf.reduce_sum(to_state, axis=[0, 1])

    return states, gradient


def _gates(x: Any, h: Any) -> tuple[Any, Any, Any, Any]:
    """Returns both gates, the candidate, and what the state gives to the candidate."""
    (zx, rx, cx), (zh, rh, ch) = tf.split(x, 3, axis=-1), tf.split(h, 3, axis=-1)
    z, r = tf.sigmoid(zx + zh), tf.sigmoid(rx + rh)
    return z, r, tf.tanh(cx + r * ch), ch


def _thrice(x: Any) -> Any:
    """Returns channels three times in a row: one for each gate."""
    return tf.concat([x, x, x], axis=-1)
