"""What 8-bit integers do to the loss, and which choice does it.

The thesis lost 5 to 10% of the loss to static int8. Its settings for ONNX Runtime were signed
activations, weights of 7 bits (`reduce_range`) and ranges that are a moving average over ten
batches. Here the trained models are quantised with this project's settings and with one of them
changed at a time; the loss is that of the quantised decoder, rendered over the validation clips of
the cello.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks import _harness as harness
from benchmarks._trained import MODELS, Trained, dataset_of, trained
from sweeps.tables import print_table
from thesis.controls import decoder_inputs
from thesis.data import Dataset
from thesis.quantise import nodes_of_norms
from thesis.runtimes.contract import TrainedDecoder
from thesis.runtimes.onnx_runtime import Session

NAME = "int8_loss"
_BESIDE = Path(__file__).parents[2] / "shared" / "data"
_CLIPS = 32

Inputs = npt.NDArray[np.float32]

OURS: Mapping[str, Any] = {
    "signed_activations": False,
    "reduce_range": False,
    "per_channel": True,
    "moving_average": False,
    "float_norm": True,
    "clips": _CLIPS,
    "of_training": True,
    "int8_inputs": False,
}
"""This project's settings."""

CHANGES: Mapping[str, Mapping[str, Any]] = {
    "as this project does": {},
    "the norm in integers, too": {"float_norm": False},
    "one scale for all channels": {"per_channel": False},
    "signed activations": {"signed_activations": True},
    "weights of 7 bits": {"reduce_range": True},
    "ranges from a moving average": {"moving_average": True},
    "calibrated on 2 clips": {"clips": 2},
    "calibrated on random inputs": {"of_training": False},
    "inputs of 8 bits, cut off": {"int8_inputs": True},
    "as the thesis did": {
        "signed_activations": True, "reduce_range": True, "moving_average": True, "clips": 10,
    },
    "that, and inputs of 8 bits": {
        "signed_activations": True, "reduce_range": True, "moving_average": True, "clips": 10,
        "int8_inputs": True,
    },
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = harness.parser(NAME, __doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SWEEPS_DATA", _BESIDE)),
        help="folder that holds cello/; default: $SWEEPS_DATA, or shared/data beside the checkout",
    )
    parser.add_argument("--models", type=Path, help="keeps the dataset and the trained models")
    parser.add_argument("--steps", type=int, help="of training; default: 1000, with --quick 20")
    parser.add_argument(
        "--only", nargs="+", choices=MODELS, default=["DDSP-CNN-Tiny", "DDSP-CNN"], metavar="MODEL"
    )
    options = parser.parse_args(arguments)
    recordings = options.data / "cello"
    if not recordings.is_dir():
        harness.say(f"skipped: no cello/ in '{options.data}'; name a folder with --data")
        return
    steps = options.steps or (20 if options.quick else 1000)
    with TemporaryDirectory() as scratch:
        folder = options.models or Path(scratch)
        dataset = dataset_of(recordings, folder / "cello")
        models = trained(dataset, folder, steps=steps, names=options.only)
        losses = {model.name: _losses(model, dataset, Path(scratch)) for model in models}
    changes = {
        name: {change: loss / of_model["floats"] - 1 for change, loss in of_model.items()}
        for name, of_model in losses.items()
    }
    print_table(
        ["static int8, ONNX Runtime", *(f"{name}: loss" for name in losses)],
        [
            [
                change,
                *(f"{losses[m][change]:.3f} ({100 * changes[m][change]:+.2f}%)" for m in losses),
            ]
            for change in ("floats", *CHANGES)
        ],
    )
    worst = max(abs(of_model["as this project does"]) for of_model in changes.values())
    result = harness.Result(
        NAME, worst, "relative change of the loss", "lower", "the same decoder in floats",
        {"steps": steps, "losses": losses},
    )  # fmt: skip
    harness.emit(result, quick=options.quick, options=f"--steps {steps}")


def _losses(model: Trained, dataset: Dataset, folder: Path) -> dict[str, float]:
    """Returns the validation loss of a model in floats and with each change of settings."""
    decoder = TrainedDecoder(
        model.config.decoder,
        model.config.synth,
        model.weights,
        dataset.facts.sample_rate,
        dataset.facts.hop_size,
    )
    clips = dataset.clips("train")
    losses = {"floats": _loss(model, dataset, Session(decoder.onnx).decode)}
    for name, change in CHANGES.items():
        harness.say(f"{model.name}: {name}")
        settings = {**OURS, **change}
        chosen = np.linspace(0, len(clips) - 1, settings["clips"]).astype(int)
        inputs = decoder_inputs(clips.f0_hz[chosen], clips.loudness_db[chosen])
        if not settings["of_training"]:
            inputs = np.random.default_rng(0).normal(size=inputs.shape).astype(np.float32)
        session = Session(_quantised(decoder, inputs, folder, settings))
        decode = session.decode
        if settings["int8_inputs"]:
            decode = _with_int8_inputs(decode, inputs)
        losses[name] = _loss(model, dataset, decode)
    return losses


def _loss(model: Trained, dataset: Dataset, decode: Callable[[Inputs], Inputs]) -> float:
    from thesis.train import validate

    return validate(model.model, dataset.clips("validation"), decode).loss


def _with_int8_inputs(
    decode: Callable[[Inputs], Inputs], inputs: Inputs
) -> Callable[[Inputs], Inputs]:
    """Returns what decodes inputs of 8 bits over the range of others, rounded down."""
    low, high = inputs.min(), inputs.max()
    step = (high - low) / 255

    def coarse(x: Inputs) -> Inputs:
        codes = np.clip(np.floor((x - low) / step), 0, 255)
        return decode((low + step * codes).astype(np.float32))

    return coarse


def _quantised(
    decoder: TrainedDecoder, inputs: Inputs, folder: Path, settings: Mapping[str, Any]
) -> bytes:
    from onnxruntime import quantization as q

    class Clips(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._clips = iter(np.ascontiguousarray(inputs.transpose(0, 2, 1)))

        def get_next(self) -> dict[str, Inputs] | None:
            clip = next(self._clips, None)
            return None if clip is None else {"inputs": clip[None]}

    source, path = folder / "floats.onnx", folder / "integers.onnx"
    source.write_bytes(decoder.onnx)
    signed = settings["signed_activations"]
    q.quantize_static(
        source,
        path,
        Clips(),
        quant_format=q.QuantFormat.QDQ,
        activation_type=q.QuantType.QInt8 if signed else q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
        per_channel=settings["per_channel"],
        reduce_range=settings["reduce_range"],
        nodes_to_exclude=nodes_of_norms(decoder) if settings["float_norm"] else [],
        extra_options={"CalibMovingAverage": settings["moving_average"]},
    )
    model = onnx.load(path)
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load_from_string(decoder.onnx).metadata_props)
    quantised: bytes = model.SerializeToString()
    return quantised


if __name__ == "__main__":
    main()
