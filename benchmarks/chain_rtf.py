"""Speed of the whole chain, decoder to reverb, block by block on one thread.

DDSP-CNN-Tiny with its synthesiser and a second of reverb at 16 kHz, at a pitch at which all 60
harmonics sound: as generated C, timed inside a C program; as one ONNX graph in ONNX Runtime, timed
around a call from Python. Blocks of 64 to 2048 samples; block sizes take turns. The reference, on
whole clips, is the float64 twin in NumPy.
"""

import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.chain_figure import draw_chain
from benchmarks import _harness as harness
from sweeps.tables import print_table
from thesis import reference
from thesis.architecture import initial_weights
from thesis.c_code import c_header
from thesis.c_stream import FLAGS, compiler
from thesis.config import REFERENCE_DECODER, SynthConfig
from thesis.controls import decoder_inputs, white_noise
from thesis.export import decoder_stream_onnx, synth_stream_onnx
from thesis.measure import pinned_to_one_core
from thesis.stream import DecoderStream, SynthStream

NAME = "chain_rtf"
RATE, HOP = 16_000, 64
BLOCKS = (64, 128, 256, 512, 1024, 2048)
"""Samples; as in `_chain.c`."""
STAGES = ("decoder", "harmonics", "noise", "reverb")
"""Timed in blocks of `BLOCK` samples, each apart."""
BLOCK = 1024
N_CONTROLS = 4096
_WARM_UP = 200

Floats = npt.NDArray[np.float32]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = harness.parser(NAME, __doc__)
    parser.add_argument("--figure", type=Path, help="also draw it")
    options = parser.parse_args(arguments)
    quick = options.quick
    synth, rates = SynthConfig(), {"sample_rate": RATE, "hop_size": HOP}
    weights = initial_weights(REFERENCE_DECODER.plan(synth.n_outputs), seed=0)
    taps = np.arange(synth.reverb_length(RATE))
    room = np.random.default_rng(0).normal(0.0, 0.02, taps.size) * 10.0 ** (-3.0 * taps / RATE)
    model = REFERENCE_DECODER, synth, weights, room.astype(np.float32)
    t = np.arange(N_CONTROLS) * HOP / RATE
    f0_hz = (110.0 * 2.0 ** (np.sin(2 * np.pi * 5 * t) / 40)).astype(np.float32)
    loudness_db = (-40.0 + 20.0 * np.sin(2 * np.pi * t / 4)).astype(np.float32)

    with pinned_to_one_core():
        harness.say("C")
        header = c_header(*model, **rates)
        c = _seconds_of_c(header, f0_hz, loudness_db, 4000 if quick else 40_000)
        harness.say("ONNX Runtime")
        stream = synth_stream_onnx(*model, **rates)
        onnx = _seconds_of_onnx(stream, f0_hz, loudness_db, 200 if quick else 2000)
        onnx_stages = _stages_of_onnx(model, f0_hz, loudness_db, 200 if quick else 2000)
        harness.say("NumPy")
        numpy = _seconds_of_numpy(model, f0_hz, loudness_db)
    targets = {"C": c[:, : len(BLOCKS)], "ONNX Runtime": onnx}
    stages = harness.floors(c[:, len(BLOCKS) :])
    found = {name: _blocks(seconds) for name, seconds in targets.items()}
    columns = ["us", "x real time", "p50 us", "p99 us", "of the deadline", "max us"]
    for name, blocks in found.items():
        print_table([f"{name}, samples", *columns], [_row(size, blocks[size]) for size in blocks])
        print()
    by_stage = {
        "C": dict(zip(STAGES, map(float, stages), strict=True)),
        "ONNX Runtime": onnx_stages,
    }
    for name, seconds in by_stage.items():
        total = sum(seconds.values())
        print_table(
            [f"{name}, stages of {BLOCK} samples", "us", "share", "x real time"],
            [
                [stage, f"{1e6 * s:.2f}", f"{s / total:.0%}", f"{BLOCK / RATE / s:,.0f}"]
                for stage, s in seconds.items()
            ],
        )
        print()
    if options.figure:
        speeds = {
            name: {size: block["x_real_time"] for size, block in blocks.items()}
            for name, blocks in found.items()
        }
        draw_chain(speeds, by_stage, options.figure, block=BLOCK)
    chain = harness.floor_interval(targets["C"][:, BLOCKS.index(BLOCK)])
    value = BLOCK / RATE / chain.value
    interval = harness.Interval(value, BLOCK / RATE / chain.high, BLOCK / RATE / chain.low)
    details = {
        "interval": interval,
        "blocks": {name: {str(k): v for k, v in blocks.items()} for name, blocks in found.items()},
        "stages_seconds": by_stage,
        "numpy_x_real_time": numpy,
        "compiler": " ".join([_version(), *FLAGS]),
    }
    print(f"float64 NumPy on whole clips: {numpy:.1f} x real time")
    reference_text = f"the float64 twin in NumPy on whole clips: {numpy:.1f} x real time"
    harness.emit(
        harness.Result(NAME, value, "x real time", "higher", reference_text, details), quick=quick
    )


def _seconds_of_c(
    header: str, f0_hz: Floats, loudness_db: Floats, rounds: int
) -> npt.NDArray[np.float64]:
    """Returns what blocks and stages took, [rounds, blocks + stages]."""
    driver = Path(__file__).with_name("_chain.c")
    with harness.scratch_folder() as folder:
        (folder / "ddsp.h").write_text(header)
        build = [*compiler(), *FLAGS, f"-I{folder}", driver, "-o", folder / "chain", "-lm"]
        subprocess.run(build, check=True)
        controls = np.stack([f0_hz, loudness_db], axis=-1).tobytes()
        command = [folder / "chain", str(rounds + _WARM_UP)]
        printed = subprocess.run(command, input=controls, stdout=subprocess.PIPE, check=True)
    return np.frombuffer(printed.stdout).reshape(-1, len(BLOCKS) + len(STAGES))[_WARM_UP:]


def _seconds_of_onnx(
    model: bytes, f0_hz: Floats, loudness_db: Floats, rounds: int
) -> npt.NDArray[np.float64]:
    """Returns what blocks took, [rounds, blocks]."""

    def call(size: int) -> Any:
        stream, n = SynthStream(model), size // HOP
        blocks = np.arange(N_CONTROLS).reshape(-1, n)
        turn = iter(range(rounds + _WARM_UP))

        def play() -> None:
            block = blocks[next(turn) % len(blocks)]
            stream(f0_hz[block], loudness_db[block])

        return play

    return harness.interleaved([call(size) for size in BLOCKS], rounds + _WARM_UP).wall[_WARM_UP:]


def _stages_of_onnx(
    model: Any, f0_hz: Floats, loudness_db: Floats, rounds: int
) -> dict[str, float]:
    """Returns what stages take in blocks of `BLOCK` samples: what a graph without them saves.

    The noise's is what is left, and so holds what all stages share. A profile of the runtime would
    not do: it takes longer for a node than most nodes do.
    """
    config, synth, weights, room = model
    rates: dict[str, Any] = {"sample_rate": RATE, "hop_size": HOP}
    nothing = np.zeros(0, np.float32)
    one = SynthConfig(n_harmonics=1)
    decoder = DecoderStream(decoder_stream_onnx(config, synth, weights, **rates))
    of_one = initial_weights(config.plan(one.n_outputs), seed=0)
    streams = [
        SynthStream(synth_stream_onnx(config, synth, weights, room, **rates)),
        SynthStream(synth_stream_onnx(config, synth, weights, nothing, **rates)),
        SynthStream(synth_stream_onnx(config, one, of_one, nothing, **rates)),
    ]
    n = BLOCK // HOP
    inputs = decoder_inputs(f0_hz[:n], loudness_db[:n])[None]
    calls: list[Callable[[], object]] = [
        partial(stream, f0_hz[:n], loudness_db[:n]) for stream in streams
    ]
    times = harness.interleaved([*calls, partial(decoder, inputs)], rounds + _WARM_UP)
    whole, dry, of_one_harmonic, decoded = map(float, harness.floors(times.wall[_WARM_UP:]))
    return {
        "decoder": decoded,
        "harmonics": dry - of_one_harmonic,
        "noise": of_one_harmonic - decoded,
        "reverb": whole - dry,
    }


def _seconds_of_numpy(model: Any, f0_hz: Floats, loudness_db: Floats) -> float:
    """Returns the x real time of whole clips."""
    config, synth, weights, room = model
    noise = white_noise(0, 1, f0_hz.size * HOP)[0]

    def render() -> None:
        outputs = reference.decode(decoder_inputs(f0_hz, loudness_db), weights, config)
        rates = {"config": synth, "sample_rate": RATE, "hop_size": HOP}
        reference.synthesize(outputs, f0_hz, noise, room, **rates)

    seconds = float(harness.floors(harness.interleaved([render], 3).wall)[0])
    return f0_hz.size * HOP / RATE / seconds


def _blocks(seconds: npt.NDArray[np.float64]) -> dict[int, dict[str, float]]:
    """Returns what is known of each size of block."""
    return {
        size: {
            "seconds": float(harness.floors(column)),
            "x_real_time": size / RATE / float(harness.floors(column)),
            "p50_seconds": float(np.quantile(column, 0.5)),
            "p99_seconds": float(np.quantile(column, 0.99)),
            "p99_of_deadline": float(np.quantile(column, 0.99)) / (size / RATE),
            "max_seconds": float(column.max()),
        }
        for size, column in zip(BLOCKS, seconds.T, strict=True)
    }


def _row(size: int, block: dict[str, float]) -> list[str]:
    us = {name: f"{1e6 * block[f'{name}seconds']:.1f}" for name in ("", "p50_", "p99_", "max_")}
    share = f"{block['p99_of_deadline']:.2%}"
    return [
        str(size),
        us[""],
        f"{block['x_real_time']:,.0f}",
        us["p50_"],
        us["p99_"],
        share,
        us["max_"],
    ]


def _version() -> str:
    command = [*compiler(), "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return ran.stdout.partition("\n")[0]


if __name__ == "__main__":
    main()
