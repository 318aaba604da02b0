"""What a user of ddsp 3.7 runs, put together from ddsp's own parts. Needs TensorFlow."""

from typing import Any

from thesis._ddsp import ddsp, tf, tf_keras
from thesis.architecture import INPUTS, NORM_EPSILON, Conv
from thesis.build import Model
from thesis.config import ModelConfig
from thesis.controls import Outputs
from thesis.decoder import Decoder


class StockDecoder(tf.Module):
    """The same decoder with TensorFlow's own dilated convolutions.

    Plain blocks only, without a norm or with one over channels: what DDSP-CNN-Tiny is made of.
    """

    def __init__(self, ours: Decoder):
        super().__init__(name="decoder")
        self._plan = ours.plan
        convs = [node for node in self._plan if isinstance(node, Conv)]
        if any(conv.depthwise or conv.norm not in ("none", "frame") for conv in convs):
            raise ValueError("only plain blocks, norm 'none' or 'frame'")
        self.weights = {name: tf.Variable(value) for name, value in ours.named_weights().items()}

    def __call__(self, inputs: Any) -> Any:
        """Returns the raw synthesiser parameters, [batch, frames, n_outputs]."""
        values = {INPUTS: inputs}
        for node in self._plan:
            sources = [values[source] for source in node.sources]
            values[node.name] = (
                self._conv(*sources, node) if isinstance(node, Conv) else tf.add_n(sources)
            )
        return values[self._plan[-1].name]

    def _conv(self, x: Any, conv: Conv) -> Any:
        padded = tf.pad(x, [[0, 0], list(conv.padding), [0, 0]])
        kernel = self.weights[f"{conv.name}/kernel"]
        y = tf.nn.conv1d(padded, kernel, 1, "VALID", dilations=conv.dilation)
        if conv.norm == "frame":
            mean, variance = tf.nn.moments(y, axes=[-1], keepdims=True)
            scale, shift = self.weights[f"{conv.name}/scale"], self.weights[f"{conv.name}/shift"]
            epsilon = NORM_EPSILON["frame"]
            y = tf.nn.batch_normalization(y, mean, variance, shift, scale, epsilon)
        else:
            y = y + self.weights[f"{conv.name}/bias"]
        return tf.nn.relu6(y) if conv.activation == "relu6" else y


class StockModel:
    """Decoder, `ddsp.synths`, `ddsp.effects` and `ddsp.losses`, as in ddsp's solo instrument."""

    def __init__(self, config: ModelConfig, ours: Model, *, n_samples: int):
        """Starts from the weights that our model has now."""
        response = ours.impulse_response.numpy()
        self._config = config
        self._decoder = StockDecoder(ours.decoder)
        self._harmonic = ddsp.synths.Harmonic(n_samples, ours.synthesizer.sample_rate)
        self._noise = ddsp.synths.FilteredNoise(n_samples, window_size=0)
        self._reverb = ddsp.effects.Reverb(trainable=True, reverb_length=response.size)
        self._reverb.build(None)
        self._reverb.set_weights([response])
        self._loss = ddsp.losses.SpectralLoss(logmag_weight=1.0)
        self._optimizer = tf_keras.optimizers.legacy.Adam(config.train.learning_rate)
        self.train_step = tf.function(self._train_step)

    def loss(self, inputs: Any, f0_hz: Any, audio: Any) -> Any:
        """Returns the mean spectral loss of a batch; the noise is TensorFlow's global stream."""
        split = Outputs.split(self._decoder(inputs), self._config.synth)
        harmonic = self._harmonic(split.amplitude, split.harmonic_distribution, f0_hz[..., None])
        dry = harmonic + self._noise(split.noise_magnitudes)
        return self._loss(audio, self._reverb(dry))

    def _train_step(self, inputs: Any, f0_hz: Any, audio: Any) -> Any:
        """One step, as in `ddsp.training.trainers.Trainer.step_fn`."""
        with tf.GradientTape() as tape:
            loss = self.loss(inputs, f0_hz, audio)
        variables = [*self._decoder.trainable_variables, *self._reverb.trainable_variables]
        gradients, _ = tf.clip_by_global_norm(
            tape.gradient(loss, variables), self._config.train.clip_norm
        )
        self._optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss
