"""A model: decoder, reverb and synthesiser, made from a configuration. Needs TensorFlow."""

from typing import Any

import numpy as np

from thesis._ddsp import tf
from thesis.config import ModelConfig
from thesis.controls import initial_outputs
from thesis.decoder import Decoder
from thesis.reference import reverb_envelope
from thesis.synthesis import Synthesizer

REVERB_STDDEV = 1e-6
"""Spread of a new impulse response, as in ddsp: next to silence."""


class Model(tf.Module):  # type: ignore[misc]
    """A DDSP decoder with the synthesiser that it drives.

    Attributes:
      decoder: The network.
      reverb: Trainable taps of the reverb, [taps], before their envelope; empty for none.
      synthesizer: Turns the decoder's output into audio; holds no weights.
    """

    def __init__(self, decoder: Decoder, reverb: Any, envelope: Any, synthesizer: Synthesizer):
        super().__init__(name="model")
        self.decoder = decoder
        self.reverb = reverb
        self.synthesizer = synthesizer
        self._envelope = tf.constant(envelope, tf.float32)

    @property
    def impulse_response(self) -> Any:
        """The reverb as it is heard, [taps]: what is synthesised with, and what ships."""
        return self.reverb * self._envelope


def build(config: ModelConfig, *, sample_rate: int, hop_size: int) -> Model:
    """Returns a new model for a dataset.

    The weights are drawn from `config.train.seed`.

    Args:
      config: The architecture and the seed.
      sample_rate: Of the dataset, in Hz.
      hop_size: Of the dataset, in samples. The model's own is `config.synth.hop_multiple` times
        that, and is what `synthesizer.hop_size` says.
    """
    seed, synth = config.train.seed, config.synth
    taps = synth.reverb_length(sample_rate)
    response = np.random.default_rng([seed, 1]).normal(0.0, REVERB_STDDEV, taps)
    return Model(
        Decoder(config.decoder, synth.n_outputs, seed=seed, outputs=initial_outputs(synth)),
        tf.Variable(response.astype(np.float32), name="reverb"),
        reverb_envelope(synth, sample_rate),
        Synthesizer(synth.oscillators, sample_rate, synth.hop_size(hop_size)),
    )
