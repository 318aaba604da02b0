"""Speed of the decoder's ONNX graph against the same model converted by tf2onnx.

DDSP-CNN-Tiny (ch=8), a clip of 4 s at 16 kHz, one thread, called in turn. Converted are the
TensorFlow decoder as this project trains it, and the same weights in Keras's layers (Conv1D,
LayerNormalization, ReLU), with a fixed number of frames; the value is against the faster of the
two. tf2onnx 1.17 writes a broken graph for opset 18, so it gets 17.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks import _harness as harness
from sweeps.tables import print_table
from thesis.architecture import NORM_EPSILON, Add, Conv, initial_weights
from thesis.config import N_INPUTS, REFERENCE_DECODER, SynthConfig
from thesis.controls import decoder_inputs
from thesis.export import decoder_onnx
from thesis.measure import pinned_to_one_core
from thesis.runtimes.onnx_runtime import Session, ort, session_options

NAME = "export_speed"
RATE, HOP, SECONDS = 16_000, 64, 4.0
N_FRAMES = round(SECONDS * RATE / HOP)
OPSET = 17

Weights = Mapping[str, npt.NDArray[np.float32]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    quick = harness.is_quick(NAME, __doc__, arguments)
    synth = SynthConfig()
    weights = initial_weights(REFERENCE_DECODER.plan(synth.n_outputs), seed=0)
    harness.say("converting with tf2onnx")
    models = {
        "by hand": decoder_onnx(REFERENCE_DECODER, synth, weights, sample_rate=RATE, hop_size=HOP),
        "tf2onnx, as trained": _converted(_as_trained(synth, weights)),
        "tf2onnx, Keras's layers": _converted(_of_keras(synth, weights)),
    }
    t = np.arange(N_FRAMES) * HOP / RATE
    f0_hz = 220.0 * 2.0 ** (np.sin(2 * np.pi * 5 * t) / 40)
    inputs = decoder_inputs(f0_hz, -40.0 + 20.0 * np.sin(2 * np.pi * t / 4))[None]
    expected = Session(models["by hand"]).decode(inputs)
    calls = [_call(name, model, inputs, expected) for name, model in models.items()]
    with pinned_to_one_core():
        for call in calls * 20:
            call()
        times = harness.interleaved(calls, 300 if quick else 4000).wall
    floors = harness.floors(times)
    ratios = [harness.ratio_interval(column, times[:, 0]) for column in times.T]
    nodes = [len(onnx.load_from_string(model).graph.node) for model in models.values()]
    print_table(
        ["decoder of DDSP-CNN-Tiny", "nodes", "us", "x real time", "x ours [95%]"],
        [
            [name, str(n), f"{1e6 * floor:.1f}", f"{SECONDS / floor:,.0f}", str(ratio)]
            for name, n, floor, ratio in zip(models, nodes, floors, ratios, strict=True)
        ],
    )
    best = min(ratios[1:], key=lambda ratio: ratio.value)
    details = {
        "ratios": dict(zip(models, ratios, strict=True)),
        "x_real_time": dict(zip(models, SECONDS / floors, strict=True)),
        "nodes": dict(zip(models, nodes, strict=True)),
    }
    reference = "the faster of two graphs by tf2onnx 1.17, same weights, same run"
    result = harness.Result(NAME, best.value, "x", "higher", reference, details)
    harness.emit(result, quick=quick)


def _call(
    name: str, model: bytes, inputs: npt.NDArray[Any], expected: npt.NDArray[Any]
) -> Callable[[], object]:
    """Returns a call of a model, which computes what it is to compute."""
    session = ort.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])
    (key,) = (value.name for value in session.get_inputs())
    ours = name == "by hand"
    feed = {key: np.ascontiguousarray(inputs.transpose(0, 2, 1)) if ours else inputs}
    (outputs,) = session.run(None, feed)
    error = float(abs((outputs.transpose(0, 2, 1) if ours else outputs) - expected).max())
    if not error < 1e-5:
        raise RuntimeError(f"{name}: differs by {error:.3g}")
    return lambda: session.run(None, feed)


def _converted(function: Callable[[Any], Any]) -> bytes:
    """Returns what tf2onnx makes of a function of inputs [1, N_FRAMES, 2]."""
    import tf2onnx

    from thesis._ddsp import tf

    signature = [tf.TensorSpec([1, N_FRAMES, N_INPUTS], tf.float32, name="inputs")]
    model, _ = tf2onnx.convert.from_function(
        tf.function(function, input_signature=signature), signature, opset=OPSET
    )
    converted: bytes = model.SerializeToString()
    return converted


def _as_trained(synth: SynthConfig, weights: Weights) -> Callable[[Any], Any]:
    from thesis.decoder import Decoder

    decoder = Decoder(REFERENCE_DECODER, synth.n_outputs)
    for name, value in weights.items():
        decoder.weights[name].assign(value)
    return lambda inputs: decoder(inputs)


def _of_keras(synth: SynthConfig, weights: Weights) -> Callable[[Any], Any]:
    """Returns the plan in Keras's layers."""
    from thesis._ddsp import tf_keras

    layers = tf_keras.layers
    inputs = layers.Input([N_FRAMES, N_INPUTS])
    values = {"inputs": inputs}
    for node in REFERENCE_DECODER.plan(synth.n_outputs):
        x = [values[source] for source in node.sources]
        if isinstance(node, Add):
            values[node.name] = layers.Add()(x)
            continue
        if not isinstance(node, Conv):
            raise TypeError(f"{type(node).__name__} in DDSP-CNN-Tiny")
        conv = layers.Conv1D(
            node.ch_out, node.kernel_size, dilation_rate=node.dilation, padding="causal",
            use_bias=node.biased,
        )  # fmt: skip
        y = conv(x[0])
        bias = [weights[f"{node.name}/bias"]] if node.biased else []
        conv.set_weights([weights[f"{node.name}/kernel"], *bias])
        if node.norm == "frame":
            norm = layers.LayerNormalization(epsilon=NORM_EPSILON["frame"])
            y = norm(y)
            norm.set_weights([weights[f"{node.name}/{name}"] for name in ("scale", "shift")])
        values[node.name] = layers.ReLU(6.0)(y) if node.activation == "relu6" else y
    model = tf_keras.Model(inputs, values["output"])
    return lambda x: model(x)


if __name__ == "__main__":
    main()
