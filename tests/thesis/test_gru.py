"""The GRU that trains: Keras's own, in outputs and gradients."""

import numpy as np
import pytest

from thesis._ddsp import tf, tf_keras
from thesis.gru import gru


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize(("n_frames", "ch_in", "ch_out"), [(40, 3, 5), (7, 1, 1), (1, 2, 4)])
def test_states_and_gradients_are_those_of_the_keras_layer(n_frames, ch_in, ch_out, compiled):
    rng = np.random.default_rng(0)
    layer = tf_keras.layers.GRU(ch_out, return_sequences=True)
    layer.build((None, None, ch_in))
    layer.set_weights([rng.normal(0, 0.7, weight.shape) for weight in layer.get_weights()])
    x, slopes = (
        tf.constant(rng.normal(size=(2, n_frames, ch)), tf.float32) for ch in (ch_in, ch_out)
    )

    def with_gradients(states_of, x, weights):
        with tf.GradientTape() as tape:
            tape.watch(x)
            states = states_of(x)
        return states, *tape.gradient(states, [x, *weights], output_gradients=slopes)

    expected = with_gradients(layer, x, layer.trainable_variables)
    weights = [tf.Variable(weight) for weight in layer.trainable_variables]
    ours = tf.function(
        lambda x: with_gradients(lambda x: gru(x, *weights), x, weights), jit_compile=compiled
    )(x)
    for value, wanted in zip(ours, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5 * abs(wanted).numpy().max())
        assert n_frames == 1 or abs(wanted).numpy().max() > 0.01  # without a state before
