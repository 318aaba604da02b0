"""The thesis's kinds of models in every runtime that is installed: dense, CNN, dilated, and others.

The thesis compared runtimes on dense layers, a CNN, MobileNet's inverted bottleneck and stacks of
dilated convolutions with and without it, each in several sizes. Here they are of one dimension: a
position of an image is a frame, a kernel of 3 x 3 has 9 taps, and images that are W wide are W * W
frames. Activations are relu6, there is no norm, and a layer of two inputs and one of five outputs
stand at the ends. One thread; each runtime takes turns with ONNX Runtime on floats, the reference
of the ratio. Where a runtime quantises to 8 bits, dynamic and static forms are measured, too.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks import _harness as harness
from sweeps.tables import print_table
from thesis.architecture import INPUTS, Conv, Node, initial_weights, macs_per_frame
from thesis.config import N_INPUTS, DecoderConfig, DilatedConvStackConfig, SynthConfig
from thesis.environ import environment
from thesis.errors import UserError
from thesis.measure import pinned_to_one_core
from thesis.runtimes import NAMES, runtime
from thesis.runtimes.contract import Quantisation, Session, TrainedDecoder

NAME = "model_kinds"
REFERENCE = NAMES[0]
SYNTH = SynthConfig(n_harmonics=1, n_noise_bands=3, reverb_seconds=0)
CLIP_FRAMES = 1000
"""Of dilated stacks: a clip of 4 s. The thesis gave them 64,000 samples."""
_SECONDS = 0.5
"""For which a runtime and the reference take turns."""
_MIN_ROUNDS = 12
_MAX_ERROR = 1e-3
"""By which a runtime on floats may differ from ONNX Runtime, of the largest output."""
_COLOURS = ("#0b6e8f", "#6c757d", "#66a182", "#d1495b", "#8d5a97", "#edae49", "#2e4057")
_STROKES = {"float": "-", "dynamic": ":", "minmax": "--"}


@dataclass(frozen=True)
class Layers(DilatedConvStackConfig):
    """Any layers, and then the output.

    It stands in for a decoder, since runtimes convert decoders; all fields but its own are without
    effect.
    """

    layers: InitVar[tuple[Conv, ...]] = ()

    def __post_init__(self, layers: tuple[Conv, ...]) -> None:
        super().__post_init__()
        # No field: what a model's file says of its configuration is what every decoder has.
        object.__setattr__(self, "_layers", layers)

    def plan(self, n_outputs: int) -> tuple[Node, ...]:
        """Returns the layers and the output."""
        last = self._layers[-1]
        return *self._layers, Conv("output", (last.name,), n_outputs, ch_in=last.ch_out)


@dataclass(frozen=True)
class Model:
    """One model of a kind.

    Attributes:
      size: What is varied.
      n_frames: Of a call.
      config: The network.
    """

    size: str
    n_frames: int
    config: DecoderConfig

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a call."""
        return self.n_frames * macs_per_frame(self.config.plan(SYNTH.n_outputs))


def stacked(*layers: Mapping[str, Any]) -> Layers:
    """Returns layers one after the other; each has `ch_out`, and what else a `Conv` takes."""
    made: list[Conv] = []
    source, channels = INPUTS, N_INPUTS
    for i, layer in enumerate(layers):
        taps = layer.get("kernel_size", 1)
        made.append(Conv(f"layer_{i}", (source,), ch_in=channels, lookahead=taps // 2, **layer))
        source, channels = made[-1].name, made[-1].ch_out
    return Layers(layers=tuple(made))


def dense() -> Iterator[Model]:
    """Yields two dense layers with four times the width between them, on one frame."""
    for width in (256, 512, 1024):
        layers = {"ch_out": width}, {"ch_out": 4 * width, "activation": "relu6"}, {"ch_out": width}
        yield Model(f"{width} wide", 1, stacked(*layers))


def cnn() -> Iterator[Model]:
    """Yields a convolution of 64 channels on images that are 8 to 32 wide."""
    for width in (8, 16, 32):
        kernel = {"ch_out": 64, "kernel_size": 9, "activation": "relu6"}
        yield Model(f"{width} x {width}", width**2, stacked({"ch_out": 64}, kernel))


def inverted_bottleneck() -> Iterator[Model]:
    """Yields MobileNet's block, grown like EfficientNet, without its residual connection."""
    for step in (0, 3, 6):
        channels = 4 * math.ceil(math.ceil(160 * 1.1**step) / 4)
        width = math.ceil(14 * 1.15**step)
        inner = {"ch_out": 6 * channels, "activation": "relu6"}
        block = inner, {**inner, "kernel_size": 9, "depthwise": True}, {"ch_out": channels}
        size = f"{channels} ch, {width} x {width}"
        yield Model(size, width**2, stacked({"ch_out": channels}, *block))


def dilated_cnn() -> Iterator[Model]:
    """Yields a stack of three dilated convolutions of 64 to 256 channels."""
    return _dilated("plain", 64)


def dilated_cnn_ib() -> Iterator[Model]:
    """Yields a stack of three dilated inverted bottlenecks of 32 to 128 channels."""
    return _dilated("inverted_bottleneck", 32)


def _dilated(block: Any, channels: int) -> Iterator[Model]:
    for i in (1, 2, 4):
        config = DilatedConvStackConfig(
            channels=i * channels, layers_per_stack=3, stacks=1, kernel_size=3, dilation_base=2,
            block=block, norm="none",
        )  # fmt: skip
        yield Model(f"{i * channels} ch", CLIP_FRAMES, config)


KINDS: dict[str, Callable[[], Iterator[Model]]] = {
    "dense": dense,
    "cnn": cnn,
    "inverted_bottleneck": inverted_bottleneck,
    "dilated_cnn": dilated_cnn,
    "dilated_cnn_ib": dilated_cnn_ib,
}


@dataclass(frozen=True)
class Row:
    """One model in one runtime.

    Attributes:
      kind: Its kind.
      size: Its size.
      macs: Multiply-accumulates of a call.
      runtime: Name of the runtime.
      form: 'float', or where the ranges of integers come from.
      seconds: Of a call.
      ratio: Over that of ONNX Runtime on floats.
    """

    kind: str
    size: str
    macs: int
    runtime: str
    form: str
    seconds: float
    ratio: harness.Interval


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = harness.parser(NAME, __doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], metavar="KIND")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="also draw it")
    options = parser.parse_args(arguments)
    found = [runtime(name) for name in NAMES]
    for each in found:
        if each.version is None:
            harness.say(f"{each.title} is not installed: {each.install}")
    rows = []
    # TensorFlow reads it when it is imported.
    with environment(SWEEPS_THREADS="1"), harness.scratch_folder() as folder:
        for kind in options.kinds:
            models = [*KINDS[kind]()]
            for i, model in enumerate(models[:2] if options.quick else models):
                harness.say(f"{kind}, {model.size}")
                seconds = _SECONDS / 10 if options.quick else _SECONDS
                rows += rows_of(kind, model, folder / f"{kind}{i}", seconds)
    print_table(
        ["kind", "size", "MMAC", "runtime", "form", "us", "GMAC/s", "x ONNX Runtime [95%]"],
        [
            [
                row.kind, row.size, f"{row.macs / 1e6:,.1f}", row.runtime, row.form,
                f"{1e6 * row.seconds:,.1f}", f"{row.macs / row.seconds / 1e9:.3g}", str(row.ratio),
            ]
            for row in rows
        ],
    )  # fmt: skip
    if options.figure:
        draw(rows, options.figure)
        harness.say(f"wrote {options.figure}")
    result = harness.Result(
        NAME,
        behind_the_fastest(rows),
        "x",
        "lower",
        "the fastest runtime of each model on floats, same run",
        {
            "versions": {each.title: each.version for each in found},
            "rows": [vars(row) for row in rows],
        },
    )
    harness.emit(result, quick=options.quick, options=f"--kinds {' '.join(options.kinds)}")


def rows_of(kind: str, model: Model, folder: Path, seconds: float) -> list[Row]:
    """Measures a model in every runtime and form, ONNX Runtime on floats first."""
    weights = initial_weights(model.config.plan(SYNTH.n_outputs), seed=0)
    trained = TrainedDecoder(model.config, SYNTH, weights, sample_rate=16_000, hop_size=64)
    rng = np.random.default_rng(0)
    inputs = rng.uniform(0, 1, (1, model.n_frames, N_INPUTS)).astype(np.float32)
    sessions: dict[tuple[str, str], Session] = {}
    for name in NAMES:
        for how in forms(name):
            form = how.ranges if how else "float"
            try:
                made = _made(name, trained, how, inputs, folder / name / form)
                outputs = made.decode(inputs)
            except UserError as error:
                harness.say(f"  without {name}, {form}: {error.message}")
                continue
            if how is None and name == REFERENCE:
                expected = outputs
            elif (
                how is None and not abs(outputs - expected).max() < _MAX_ERROR * abs(expected).max()
            ):
                raise RuntimeError(f"{name} computes something else")
            sessions[name, form] = made
    reference = _call(sessions[REFERENCE, "float"], inputs)
    rows = []
    for names, session in sessions.items():
        # By twos: a runtime that takes a hundred times as long leaves others with cold caches.
        pair = [_call(session, inputs), reference]
        with pinned_to_one_core():
            once = harness.interleaved(pair, 2).wall[1].sum()
            times = harness.interleaved(
                pair, max(_MIN_ROUNDS, min(2000, round(seconds / once)))
            ).wall
        ratio = harness.ratio_interval(*times.T)
        rows.append(Row(kind, model.size, model.macs, *names, harness.floors(times)[0], ratio))
    return rows


def forms(name: str) -> list[Quantisation | None]:
    """Returns floats, and a runtime's first quantisations with dynamic and with static ranges."""
    found = runtime(name)
    if found.version is None:
        return []
    by_ranges = {how.ranges: how for how in reversed(found.quantisations)}
    return [None, *(by_ranges[ranges] for ranges in ("dynamic", "minmax") if ranges in by_ranges)]


def _made(
    name: str, model: TrainedDecoder, how: Quantisation | None, inputs: Any, folder: Path
) -> Session:
    found = runtime(name)
    if how is None:
        return found.load(found.convert(model, folder))
    return found.load(found.quantise(model, folder, how, inputs))


def _call(session: Session, inputs: Any) -> Callable[[], object]:
    arranged = session.arranged(inputs)
    return lambda: session(arranged)


def behind_the_fastest(rows: Sequence[Row]) -> float:
    """Returns the time of ONNX Runtime over that of the fastest, on floats, the geometric mean."""
    ratios: dict[tuple[str, str], float] = {}
    for row in rows:
        if row.form == "float":
            key = row.kind, row.size
            ratios[key] = min(ratios.get(key, math.inf), row.ratio.value)
    return float(np.exp(-np.mean(np.log([*ratios.values()]))))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG: arithmetic done in a second against that of a call, a panel for each kind."""
    kinds = [*dict.fromkeys(row.kind for row in rows)]
    figure = Figure(figsize=(2.4 + 2.7 * len(kinds), 4.6), dpi=105, layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    labelled: dict[str, Any] = {}
    for axes, kind in zip(panels, kinds, strict=True):
        for colour, name in zip(_COLOURS, NAMES, strict=False):
            for form, stroke in _STROKES.items():
                points = [
                    (row.macs / 1e6, row.macs / row.seconds / 1e9)
                    for row in rows
                    if (row.kind, row.runtime, row.form) == (kind, name, form)
                ]
                if points:
                    label = name if form == "float" else f"{name}, int8 {form}"
                    (labelled[label],) = axes.plot(
                        *zip(*points, strict=True), color=colour, linestyle=stroke, marker="o",
                        markersize=3.5, linewidth=1.3,
                    )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        sizes = sorted({row.macs / 1e6 for row in rows if row.kind == kind})
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_short))
        axes.set_title(kind, loc="left", fontsize=10)
        axes.set_xlabel("million multiply-adds a call", fontsize=9)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("billion multiply-adds a second, higher is better", fontsize=9)
    figure.legend(
        labelled.values(), labelled.keys(), loc="outside right upper", frameon=False, fontsize=8.5
    )
    figure.savefig(path)


def _short(value: float, _: object) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    main()
