"""A trained decoder and its synthesiser as C: one header for one model, for plugins.

What differs from model to model is written here: constants, tables, the state, and the decoder
layer by layer, from the same plan and schedule as all other targets. What does not is C in
`thesis/c/`.
"""

import math
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from thesis.architecture import (
    INPUTS,
    LEAK,
    Activation,
    Add,
    Concat,
    Conv,
    Film,
    Gru,
    Layer,
    Node,
    Take,
    TransposedConv,
    Weights,
    for_inference,
)
from thesis.config import N_INPUTS, DecoderConfig, SynthConfig, gin_name
from thesis.controls import DB_RANGE, MIDI_RANGE, loudness_slopes
from thesis.errors import ExportError
from thesis.reference import NOISE_BIAS
from thesis.streaming import Schedule, Source, Step, noise_delay, schedule, synthesis_delay

CHUNK = 16
"""Frames that the decoder takes at a time, if there are so many: layers of few channels keep a
processor busy only with several frames in flight."""
GROUP = 8
"""Harmonics from one exact sine to the next."""
TILE = 64
"""Samples of the noise's convolution that are kept in registers."""
_LINE = 100


def c_header(
    config: DecoderConfig,
    synth: SynthConfig,
    weights: Weights,
    impulse_response: npt.NDArray[Any],
    *,
    sample_rate: int,
    hop_size: int,
    name: str = "ddsp",
) -> str:
    """Returns a C99 header that plays one model: decoder, harmonics, noise and reverb.

    It needs math.h, stdint.h and string.h, allocates nothing, and is C++, too. What is played is
    what `thesis.reference` renders, later by a constant latency, in blocks of any number of frames
    that is a multiple of the schedule's `cycle`. The header's first comment is its manual.

    Args:
      config: The architecture.
      synth: Harmonics and noise bands.
      weights: Every weight of the plan by name.
      impulse_response: [taps], as it is heard (see `thesis.reference.reverb_envelope`); empty for
        no reverb.
      sample_rate: In Hz.
      hop_size: Samples a frame of the decoder.
      name: What the names in the header begin with.

    Raises:
      ExportError: The decoder cannot stream, a weight is not finite, or the name is no name in C.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise ExportError(
            f"{name!r} cannot begin a name in C", hint="use letters, digits and underscores"
        )
    plan, ready = for_inference(config.plan(synth.n_outputs), weights)
    steps = schedule(plan)
    decoder = _Decoder(steps, ready)
    for step in steps.steps:
        decoder.add(step)
    room = _Room.of(impulse_response, hop_size)
    synthesis_frames = synthesis_delay(synth, hop_size)
    taps = 2 * synth.n_noise_bands - 3
    filtered = -(-(hop_size + taps - 1) // TILE) * TILE
    noise_offset = synthesis_frames * hop_size - noise_delay(synth) + 1
    latency = (steps.delay + synthesis_frames) * hop_size
    facts = {
        "SAMPLE_RATE": (sample_rate, "Hz"),
        "HOP": (hop_size, "samples a frame"),
        "CYCLE": (steps.cycle, "a block has a multiple of so many frames"),
        "LATENCY": (latency, "samples from a control to the sound of it"),
        "DECODER_DELAY": (steps.delay, "frames of them are the decoder's"),
        "SYNTHESIS_DELAY": (synthesis_frames, "frames of them are the synthesiser's"),
        "OUTPUTS": (synth.n_outputs, "of the decoder: amplitude, harmonics, noise bands"),
        "HARMONICS": (synth.n_harmonics, ""),
        "BANDS": (synth.n_noise_bands, "of noise"),
        "CHUNK": (decoder.chunk, "frames that are decoded at a time"),
        "GROUP": (GROUP, "harmonics that follow from one exact sine"),
        "GROUPS": (-(-synth.n_harmonics // GROUP), ""),
        "TAPS": (taps, "of the noise filter"),
        "TILE": (TILE, "samples of the convolution that stay in registers"),
        "FILTERED": (filtered, "samples of a frame of noise, filtered"),
        "NOISE_OFFSET": (noise_offset, "where it begins in the dry signal"),
        **room.facts,
    }
    constants: dict[str, npt.NDArray[Any]] = {
        "crossfade": 0.5 - 0.5 * np.cos(np.pi * np.arange(hop_size) / hop_size),
        "filter": _filter_matrix(synth.n_noise_bands),
        "slopes": loudness_slopes(synth),
        **room.tables,
        **decoder.tables,
    }
    state = [
        "int64_t frame; /* the next one */",
        "uint32_t key; /* of the noise */",
        "double cycles; /* the phase at the start of the last frame, a fraction of a cycle */",
        "double f0_hz; /* of the last frame */",
        "int audible; /* harmonics of it */",
        "float amplitudes[DDSP_GROUPS * DDSP_GROUP];",
        f"float dry[{max(noise_offset + filtered, synthesis_frames * hop_size + hop_size)}];",
        *room.state,
        f"float f0[{_power_of_two(steps.delay + decoder.chunk)}];",
        f"float loudness[{_power_of_two(steps.delay + decoder.chunk)}]; /* 0 dB are 1 */",
        *decoder.state,
    ]
    parts = [
        _manual(config, synth, steps.cycle, latency, sample_rate, hop_size),
        _GUARD,
        *_defines(facts),
        "\n" + _part("loops"),
        "typedef struct {",
        *(f"    {line}" for line in state),
        "} ddsp_state;\n",
        *(_array(key, value) for key, value in constants.items()),
        _part("numbers").replace("@SINE@", _sine_polynomial()),
        _part("decoder").replace("DDSP_LEAK", f"{LEAK}f"),
        decoder.code,
        _part("synthesis").replace("DDSP_NOISE_BIAS", f"{NOISE_BIAS}f"),
        *([_part("reverb")] if impulse_response.size else []),
        _part("chain"),
        "#endif",
    ]
    text = "\n".join(parts) + "\n"
    return re.sub(r"\bDDSP_", f"{name.upper()}_", re.sub(r"\bddsp_", f"{name}_", text))


_GUARD = """
#ifndef DDSP_H
#define DDSP_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
"""


def _manual(
    config: DecoderConfig,
    synth: SynthConfig,
    cycle: int,
    latency: int,
    sample_rate: int,
    hop_size: int,
) -> str:
    facts = {
        "DECODER": _settings(config),
        "SYNTH": _settings(synth),
        "HOP": str(hop_size),
        "MS": f"{1000 * hop_size / sample_rate:.3g}",
        "CYCLE": "any number" if cycle == 1 else f"any multiple of {cycle}",
        "LATENCY": str(latency),
    }
    return re.sub("@([A-Z]+)@", lambda key: facts[key[1]], _part("manual"))


def _settings(config: DecoderConfig | SynthConfig) -> str:
    settings = ", ".join(f"{key}={value!r}" for key, value in asdict(config).items())
    return "\n *     ".join(textwrap.wrap(f"{gin_name(config)}({settings})", _LINE - 10))


def _part(name: str) -> str:
    return resources.files("thesis").joinpath("c", f"{name}.h").read_text()


def _defines(facts: dict[str, tuple[int, str]]) -> list[str]:
    return [
        f"#define DDSP_{key} {value}" + (f" /* {comment} */" if comment else "")
        for key, (value, comment) in facts.items()
    ]


def _array(name: str, values: npt.NDArray[Any]) -> str:
    """Returns a table in C, rows of a matrix one after the other."""
    table = values.astype(np.float32)
    if not np.isfinite(table).all():
        raise ExportError(f"'{name}' has values that are not finite", hint="train the model again")
    lines, line = [], "   "
    for value in map(str, table.ravel()):
        if len(line) + len(value) + 3 > _LINE:
            lines.append(line)
            line = "   "
        line += f" {value}f,"
    shape = "][".join(map(str, table.shape))
    head = f"static const float ddsp_{name}[{table.size}] = {{ /* [{shape}] */"
    return "\n".join([head, *lines, line, "};"])


def _power_of_two(at_least: int) -> int:
    return 1 << max(0, at_least - 1).bit_length()


def _sine_polynomial() -> str:
    """Returns sin(2 pi x) / x for -1/2 <= x <= 1/2 as nested C, `square` being x * x.

    Least squares at Chebyshev nodes spread the error evenly.
    """
    x = 0.5 * np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    powers = x[:, None] ** (2 * np.arange(7) + 1)
    fit, *_ = np.linalg.lstsq(powers, np.sin(2 * np.pi * x), rcond=None)
    *lower, nested = (f"{np.float32(coefficient)!s}f" for coefficient in fit)
    for coefficient in reversed(lower):
        nested = f"({coefficient} + square * {nested})"
    return nested


def _filter_matrix(n_bands: int) -> npt.NDArray[np.float64]:
    """Returns what takes magnitudes to the filter's taps from its middle on, [bands, bands - 1].

    See `thesis.reference.noise_impulse_responses`. The tap that the window makes zero is left out.
    """
    size = 2 * (n_bands - 1)
    distance = np.arange(n_bands - 1)
    window = 0.5 + 0.5 * np.cos(2 * np.pi * distance / size)
    return np.fft.irfft(np.eye(n_bands))[:, : n_bands - 1] * window


# --- The room ---


@dataclass(frozen=True)
class _Room:
    """A response cut into partitions: short ones at its head, long ones for the rest."""

    facts: dict[str, tuple[int, str]]
    tables: dict[str, npt.NDArray[Any]]
    state: tuple[str, ...]

    @classmethod
    def of(cls, impulse_response: npt.NDArray[Any], hop_size: int) -> "_Room":
        if impulse_response.size == 0:
            return cls({"HEAD_PARTITIONS": (0, "no reverb")}, {}, ())
        response = impulse_response.astype(np.float64)
        response[0] = 0.0
        frames = _tail_frames(response.size, hop_size)
        n_head = 2 * frames * hop_size if frames else response.size
        head = _partitions(response[:n_head], hop_size)
        tail = _partitions(response[n_head:], frames * hop_size)
        head_size, tail_size = _fft_size(hop_size), _fft_size(frames * hop_size)
        facts = {
            "HEAD_SIZE": (head_size, "complex values of a spectrum"),
            "HEAD_PARTITIONS": (len(head), "of a frame"),
            "TAIL_PARTITIONS": (len(tail), "of several frames"),
        }
        tables = {"head": head, "head_twist": _twist(head_size)}
        tables["head_twiddles"] = _twiddles(head_size)
        state = [
            "int head_newest;",
            "float head_dry[DDSP_HOP];",
            "float head_spectra[DDSP_HEAD_PARTITIONS][2 * DDSP_HEAD_SIZE];",
            f"float work[{2 * max(head_size, tail_size)}];",
        ]
        if frames:
            facts["TAIL_FRAMES"] = (frames, "of a partition of the tail")
            facts["TAIL_SIZE"] = (tail_size, "complex values of its spectrum")
            tables |= {"tail": tail, "tail_twist": _twist(tail_size)}
            tables["tail_twiddles"] = _twiddles(tail_size)
            state += [
                "int64_t tail_frame;",
                "float tail_dry[2][DDSP_TAIL_FRAMES * DDSP_HOP];",
                "float tail_audio[DDSP_TAIL_FRAMES * DDSP_HOP];",
                "float tail_sum[2 * DDSP_TAIL_SIZE];",
                "float tail_spectra[DDSP_TAIL_PARTITIONS][2 * DDSP_TAIL_SIZE];",
            ]
        return cls(facts, tables, tuple(state))


def _tail_frames(n_taps: int, hop_size: int) -> int:
    """Returns how long the tail's partitions are for the least arithmetic; 0 for no tail."""

    def cost(frames: int) -> float:
        """Operations of a frame: two transforms, and a complex product for each partition."""
        n_head = min(n_taps, 2 * frames * hop_size) if frames else n_taps
        head = _operations(hop_size, n_head)
        if n_head == n_taps:
            return head if frames == 0 else math.inf
        return head + _operations(frames * hop_size, n_taps - n_head) / frames

    return min([0, 2, 4, 8, 16, 32, 64, 128, 256], key=cost)


def _fft_size(block: int) -> int:
    return max(2, _power_of_two(block))


def _operations(block: int, n_taps: int) -> float:
    size = _fft_size(block)
    return 10.0 * size * math.log2(size) + 8.0 * size * -(-n_taps // block)


def _partitions(response: npt.NDArray[np.float64], block: int) -> npt.NDArray[np.float64]:
    """Returns the spectra of the partitions of a response, [partitions, 2 * size].

    Its values at every other root of -1, of which there are twice the size, in bit-reversed order.
    """
    if response.size == 0:
        return np.zeros((0, 0))
    size, count = _fft_size(block), -(-response.size // block)
    blocks = np.pad(response, (0, count * block - response.size)).reshape(count, block)
    padded = np.pad(blocks, [(0, 0), (0, size - block)])
    spectra = np.fft.ifft(padded * np.exp(0.5j * np.pi * np.arange(size) / size))
    spectra = spectra[:, _bit_reversed(size)]
    return np.concatenate([spectra.real, spectra.imag], axis=1)


def _bit_reversed(size: int) -> npt.NDArray[np.int64]:
    order = np.zeros(1, np.int64)
    while order.size < size:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


def _twist(size: int) -> npt.NDArray[np.float64]:
    turns = np.exp(0.5j * np.pi * np.arange(size) / size)
    return np.concatenate([turns.real, turns.imag])


def _twiddles(size: int) -> npt.NDArray[np.float64]:
    """Returns the factors of each pass of the transform, [passes, size]: real, then imaginary."""
    index, passes = np.arange(size // 2), size.bit_length() - 1
    turns = [np.exp(2j * np.pi * (index >> i << i) / size) for i in range(passes)]
    return np.array([np.concatenate([turn.real, turn.imag]) for turn in turns]).reshape(-1, size)


# --- The decoder ---


class _Decoder:
    """Writes the decoder's code, its tables and the state that it needs, a node at a time.

    The output of each node is a ring of frames, as many as its consumers look back at and one
    chunk, rounded up to a power of two.
    """

    def __init__(self, steps: Schedule, weights: Weights) -> None:
        self.chunk = -(-CHUNK // steps.cycle) * steps.cycle
        self.tables: dict[str, npt.NDArray[Any]] = {}
        self._weights = weights
        self._loops: list[str] = []
        rows = {INPUTS: self.chunk} | {
            step.node.name: self.chunk // step.node.period for step in steps.steps
        }
        past = dict.fromkeys(rows, 0)
        for step in steps.steps:
            for source in step.sources:
                past[source.name] = max(past[source.name], source.past)
            if isinstance(step.node, Gru):
                past[step.node.name] = max(past[step.node.name], 1)
        channels = {INPUTS: N_INPUTS} | {step.node.name: step.node.ch_out for step in steps.steps}
        self.state = [
            f"float {_identifier(name)}[{_power_of_two(rows[name] + past[name])}][{ch}];"
            for name, ch in channels.items()
        ]

    @property
    def code(self) -> str:
        """The function that decodes a chunk."""
        return "\n".join([_DECODE_HEAD, *self._loops, "}\n"])

    def add(self, step: Step) -> None:
        """Adds a node."""
        kinds: dict[type[Node], Callable[..., tuple[str, list[str]]]] = {
            Conv: self._conv,
            TransposedConv: self._transposed_conv,
            Film: self._film,
            Gru: self._gru,
            Add: self._add,
            Take: self._take,
            Concat: self._concat,
        }
        node = step.node
        about, lines = kinds[type(node)](node, *step.sources)
        frame = f"s->frame / {node.period} + m" if node.period > 1 else "s->frame + m"
        count = f"n / {node.period}" if node.period > 1 else "n"
        if step.delay:
            # What comes before the clip's first frame is padding to whatever follows.
            lines.append(f"if (t < {step.delay // node.period})")
            lines.append("    memset(y, 0, sizeof y);")
        body = [
            f"const int64_t t = {frame};",
            f"float y[{node.ch_out}];",
            *lines,
            f"memcpy(DDSP_ROW(s->{_identifier(node.name)}, t), y, sizeof y);",
        ]
        self._loops += [
            f"\n    /* {node.name}: {about}. */",
            f"    for (int m = 0; m < {count}; m++) {{",
            *(f"        {line}" for line in body),
            "    }",
        ]

    def _table(self, node: Node, name: str, values: npt.NDArray[Any] | None = None) -> str:
        key = f"{_identifier(node.name)}_{name}"
        self.tables[key] = self._weights[f"{node.name}/{name}"] if values is None else values
        return f"ddsp_{key}"

    def _conv(self, conv: Conv, x: Source) -> tuple[str, list[str]]:
        kernel, first = self._affine_map(conv)
        if conv.depthwise:
            apply, size, sizes = "ddsp_depthwise", conv.ch_out, f"{conv.ch_out}"
        else:
            apply, size = "ddsp_dense", conv.ch_in * conv.ch_out
            sizes = f"{conv.ch_in}, {conv.ch_out}"
        first_row = _times("t", conv.stride)
        if conv.kernel_size == 1:
            product = [f"{apply}(y, {_row(x, first_row)}, {kernel}, {sizes});"]
        else:
            row = _row(x, first_row, _times("k", conv.dilation))
            product = [
                f"for (int k = 0; k < {conv.kernel_size}; k++)",
                f"    {apply}(y, {row}, {kernel} + {_times('k', size)}, {sizes});",
            ]
        about = f"{'depthwise ' * conv.depthwise}convolution of {x.name}"
        return self._normed(conv, about, [first, *product])

    def _transposed_conv(self, conv: TransposedConv, x: Source) -> tuple[str, list[str]]:
        kernel, first = self._affine_map(conv)
        row = f"DDSP_ROW(s->{_identifier(x.name)}, t / {conv.stride} - k)"
        weights = f"{kernel} + (t % {conv.stride} + k * {conv.stride}) * {conv.ch_in * conv.ch_out}"
        product = [
            "for (int k = 0; k < 2; k++)",
            f"    ddsp_dense(y, {row}, {weights}, {conv.ch_in}, {conv.ch_out});",
        ]
        return self._normed(conv, f"transposed convolution of {x.name}", [first, *product])

    def _affine_map(self, layer: Layer) -> tuple[str, str]:
        """Returns the name of a convolution's kernel, and how its sum begins."""
        kernel = self._table(layer, "kernel")
        if not layer.biased:
            return kernel, "memset(y, 0, sizeof y);"
        return kernel, f"memcpy(y, {self._table(layer, 'bias')}, sizeof y);"

    def _normed(self, layer: Layer, about: str, lines: list[str]) -> tuple[str, list[str]]:
        """Adds norm and activation of a convolution."""
        ch = layer.ch_out
        if layer.norm == "frame":
            about += ", layer norm"
            if not layer.centred:
                lines.append(f"ddsp_centre(y, {ch});")
            lines.append(f"ddsp_normalize(y, {ch}, {layer.epsilon}f);")
        if layer.rescaled:
            scale, shift = self._table(layer, "scale"), self._table(layer, "shift")
            lines.append(f"ddsp_rescale(y, {scale}, {shift}, {ch});")
        return _activated(layer.activation, ch, about, lines)

    def _film(self, film: Film, x: Source, conditions: Source) -> tuple[str, list[str]]:
        ch = film.ch_out
        lines = [f"const float *seen = {_row(conditions, _times('t', film.period))};"]
        for part in ("scale", "shift") if film.scaled else ("shift",):
            kernel, constant = self._table(film, f"{part}_kernel"), self._table(film, part)
            lines.append(f"float {part}[{ch}];")
            lines.append(f"memcpy({part}, {constant}, sizeof {part});")
            lines.append(f"ddsp_dense({part}, seen, {kernel}, {film.ch_in}, {ch});")
        lines.append(f"memcpy(y, {_row(x, 't')}, sizeof y);")
        lines.append(
            f"ddsp_rescale(y, scale, shift, {ch});" if film.scaled else f"ddsp_add(y, shift, {ch});"
        )
        return _activated(film.activation, ch, f"FiLM of {x.name}", lines)

    def _gru(self, gru: Gru, x: Source) -> tuple[str, list[str]]:
        ch, name = gru.ch_out, _identifier(gru.name)
        from_input, from_state = self._weights[f"{gru.name}/bias"]
        before = f"DDSP_ROW(s->{name}, t - 1)"
        lines = [f"float from_input[{3 * ch}], from_state[{3 * ch}];"]
        for part, bias, kernel, seen, ch_in in (
            ("from_input", from_input, "kernel", _row(x, "t"), gru.ch_in),
            ("from_state", from_state, "recurrent_kernel", before, ch),
        ):
            lines.append(f"memcpy({part}, {self._table(gru, part, bias)}, sizeof {part});")
            lines.append(
                f"ddsp_dense({part}, {seen}, {self._table(gru, kernel)}, {ch_in}, {3 * ch});"
            )
        lines.append(f"ddsp_gru(y, {before}, from_input, from_state, {ch});")
        return f"GRU of {x.name}", lines

    def _add(self, add: Add, first: Source, *others: Source) -> tuple[str, list[str]]:
        lines = [f"memcpy(y, {_row(first, 't')}, sizeof y);"]
        lines += [f"ddsp_add(y, {_row(other, 't')}, {add.ch_out});" for other in others]
        return f"sum of {_and([first, *others])}", lines

    def _take(self, take: Take, x: Source) -> tuple[str, list[str]]:
        line = f"memcpy(y, {_row(x, 't')} + {take.first}, sizeof y);"
        return f"channels of {x.name}", [line]

    def _concat(self, concat: Concat, *sources: Source) -> tuple[str, list[str]]:
        lines, at = [], "y"
        for source in sources:
            row = _row(source, "t")
            lines.append(f"memcpy({at}, {row}, sizeof {row});")
            at += f" + sizeof {row} / sizeof *y"
        return f"channels of {_and(sources)}", lines


_DECODE_HEAD = f"""
/* Decodes n frames into the ring of the output, a multiple of DDSP_CYCLE, DDSP_CHUNK at most.
   Rings hold the last frames of each layer's output. */
static inline void ddsp_decode_chunk(ddsp_state *s, const float *f0_hz, const float *loudness_db,
                                     int n)
{{
    for (int m = 0; m < n; m++) {{
        /* What is no number is no pitch, and silence: it would stay in the state for good. */
        const float f0 = fabsf(f0_hz[m]) < 1e6f ? f0_hz[m] : 0.0f;
        const float loudness = fabsf(loudness_db[m]) < 1e6f ? loudness_db[m] : -{DB_RANGE}f;
        const float midi = f0 > 0.0f ? 12.0f * log2f(fmaxf(f0, 1e-5f) / 440.0f) + 69.0f : 0.0f;
        float *inputs = DDSP_ROW(s->{INPUTS}, s->frame + m);
        DDSP_ROW(s->f0, s->frame + m) = f0;
        DDSP_ROW(s->loudness, s->frame + m) = inputs[0] = loudness / {DB_RANGE}f + 1.0f;
        inputs[1] = midi / {MIDI_RANGE}f;
    }}"""


def _activated(
    activation: Activation, ch: int, about: str, lines: list[str]
) -> tuple[str, list[str]]:
    if activation == "none":
        return about, lines
    return f"{about}, {activation}", [*lines, f"ddsp_{activation}(y, {ch});"]


def _row(source: Source, *terms: str) -> str:
    """Returns C for the frame of a source that belongs to a node's frame t."""
    index = " + ".join(terms) + (f" - {source.past}" if source.past else "")
    return f"DDSP_ROW(s->{_identifier(source.name)}, {index})"


def _times(index: str, factor: int) -> str:
    return index if factor == 1 else f"{index} * {factor}"


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _and(sources: Iterable[Source]) -> str:
    return " and ".join(source.name for source in sources)
