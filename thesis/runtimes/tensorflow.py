"""TensorFlow: the decoder that is trained, as a SavedModel.

TensorFlow's threads belong to the process. `SWEEPS_THREADS=1` before it is first imported leaves it
one, see `thesis._ddsp`.
"""

from pathlib import Path
from typing import Any

from thesis.config import N_INPUTS
from thesis.runtimes import contract
from thesis.runtimes.contract import Floats, TrainedDecoder


class Session(contract.Session):
    """A decoder loaded for inference."""

    def __init__(self, module: Any):
        """Runs the `decode` of a loaded SavedModel."""
        self._module = module  # its function does not keep its weights alive

    def __call__(self, inputs: Floats) -> Floats:
        """See `contract.Session`."""
        outputs: Floats = self._module.decode(inputs).numpy()
        return outputs


class TensorFlow(contract.Runtime):
    """TensorFlow on a CPU, a compiled graph."""

    title = "TensorFlow"
    distribution = "tensorflow-cpu"
    install = "pip install ddsp-sweeps"

    def _convert(self, model: TrainedDecoder, folder: Path) -> Path:
        from thesis._ddsp import tf
        from thesis.decoder import Decoder

        decoder = Decoder(model.config, model.synth.n_outputs)
        for name, value in model.weights.items():
            decoder.weights[name].assign(value)
        module, path = tf.Module(), folder / "decoder.savedmodel"
        module.decoder = decoder
        signature = [tf.TensorSpec([1, None, N_INPUTS], tf.float32)]
        module.decode = tf.function(lambda inputs: decoder(inputs), input_signature=signature)
        tf.saved_model.save(module, str(path))
        return path

    def _load(self, path: Path) -> Session:
        from thesis._ddsp import tf

        return Session(tf.saved_model.load(str(path)))


RUNTIME = TensorFlow()
