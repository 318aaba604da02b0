"""A model: decoder, reverb and synthesiser, made from a configuration. Needs TensorFlow."""

from typing import Any

import numpy as np

from thesis._ddsp import tf
from thesis.config import ModelConfig
from thesis.dilated_conv import DilatedConvStack
from thesis.synthesis import Synthesizer

REVERB_STDDEV = 1e-6
"""Spread of a new impulse response, as in ddsp: next to silence."""


class Model(tf.Module):  # type: ignore[misc]
    """A DDSP decoder with the synthesiser that it drives.

    Attributes:
      decoder: The network.
      impulse_response: Trainable reverb, [taps]; empty for none.
      synthesizer: Turns the decoder's output into audio; holds no weights.
    """

    def __init__(self, decoder: DilatedConvStack, impulse_response: Any, synthesizer: Synthesizer):
        super().__init__(name="model")
        self.decoder = decoder
        self.impulse_response = impulse_response
        self.synthesizer = synthesizer


def build(config: ModelConfig, *, sample_rate: int, hop_size: int) -> Model:
    """Returns a new model for clips of this sample rate (Hz) and hop size (samples).

    The weights are drawn from `config.train.seed`.
    """
    seed = config.train.seed
    taps = config.synth.reverb_length(sample_rate)
    response = np.random.default_rng([seed, 1]).normal(0.0, REVERB_STDDEV, taps)
    return Model(
        DilatedConvStack(config.decoder, config.synth.n_outputs, seed=seed),
        tf.Variable(response.astype(np.float32), name="impulse_response"),
        Synthesizer(config.synth, sample_rate, hop_size),
    )
