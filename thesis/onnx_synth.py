"""Adds the synthesiser to a decoder's ONNX graph: harmonics, filtered noise, reverb, on a stream.

Frames come in blocks of any size, so every part remembers what the next block needs
(docs/concepts/streaming.md), and what happens once in so many frames happens in a block any number
of times, none among them. Transforms are matrix products: at these sizes ONNX Runtime's own DFT
takes several times as long. Nodes are named by stage, so that a profile tells their shares.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from thesis.config import SynthConfig
from thesis.controls import DB_RANGE, MIDI_RANGE, loudness_slopes
from thesis.onnx_decoder import N_FRAMES, POSITION, begun
from thesis.onnx_graph import NEXT, STATE, Graph
from thesis.reference import NOISE_BIAS
from thesis.streaming import noise_delay, synthesis_delay

Array = npt.NDArray[np.float64]

F0, LOUDNESS, AUDIO = "f0_hz", "loudness_db", "audio"
_PARTITION = 1024
"""Samples of a part of the reverb's response, about: the first is applied at once, the others
once in so many samples."""
_SHORT_FRAME = 64
"""Samples of a short frame, about: what takes a matrix of so many rows and columns."""


def scaled_controls(graph: Graph, name: str) -> None:
    """Adds the decoder's inputs, [1, 2, frames], made of pitch and loudness, [frames].

    As `thesis.controls.decoder_inputs`.
    """
    per_octave = 12.0 / MIDI_RANGE
    audible = graph.node("Max", [F0, graph.number(1e-5)], "controls/audible")
    log = graph.node("Log", [audible], "controls/log")
    octaves = graph.node("Mul", [log, graph.number(per_octave / math.log(2.0))], "controls/octaves")
    offset = 69.0 / MIDI_RANGE - per_octave * math.log2(440.0)
    note = graph.node("Add", [octaves, graph.number(offset)], "controls/note")
    none = graph.node("LessOrEqual", [F0, graph.number(0.0)], "controls/no_pitch")
    note = graph.node("Where", [none, graph.number(0.0), note], "controls/f0")
    loudness = graph.node("Mul", [LOUDNESS, graph.number(1.0 / DB_RANGE)], "controls/share")
    loudness = graph.node("Add", [loudness, graph.number(1.0)], "controls/loudness")
    rows = [
        graph.node("Unsqueeze", [x, graph.integers(0, 1)], f"{x}/row") for x in (loudness, note)
    ]
    graph.node("Concat", rows, name, axis=1)


@dataclass(frozen=True)
class Synth:
    """What all parts of the synthesiser know.

    Attributes:
      graph: What it is added to. It has inputs `F0` and `LOUDNESS` and counts frames.
      config: Harmonics and noise bands.
      sample_rate: In Hz.
      hop_size: Samples a frame.
      late: Frames by which the decoder's output is late.
    """

    graph: Graph
    config: SynthConfig
    sample_rate: int
    hop_size: int
    late: int

    def lay(
        self,
        outputs: str,
        impulse_response: npt.NDArray[np.float32],
        *,
        loudness: str | None = None,
    ) -> None:
        """Adds the audio of a decoder's outputs, [1, n_outputs, frames], as the output `AUDIO`.

        Args:
          outputs: Name of the decoder's output.
          impulse_response: The reverb as it is heard, [taps]; empty for none.
          loudness: Name of the loudness in dB, [frames], that the outputs are of; None if their
            levels are absolute already.
        """
        sizes = self.graph.integers(1, self.config.n_harmonics, self.config.n_noise_bands)
        amplitude, distribution, magnitudes = self.graph.nodes(
            "Split", [self._scaled(outputs, loudness), sizes],
            ["outputs/amplitude", "outputs/distribution", "outputs/magnitudes"], axis=1,
        )  # fmt: skip
        dry = self.graph.node(
            "Add", [self._harmonic(amplitude, distribution), self._noise(magnitudes)], "dry/sum"
        )
        delay = self.late + synthesis_delay(self.config, self.hop_size)
        dry = self.graph.node("Mul", [dry, self._begun(delay, column=True)], "dry/begun")
        wet = _Reverb(self.graph, self.hop_size, impulse_response).lay(dry)
        audio = self.graph.node("Add", [dry, wet], "reverb/sum") if wet else dry
        self.graph.node("Reshape", [audio, self.graph.integers(-1)], AUDIO)
        self.graph.output(AUDIO, ["samples"])

    def _scaled(self, outputs: str, loudness: str | None) -> str:
        """Returns `exp_sigmoid` of all outputs, [frames, n_outputs]."""
        graph, config = self.graph, self.config
        rows = graph.node("Squeeze", [outputs, graph.integers(0)], "outputs/rows")
        rows = graph.node("Transpose", [rows], "outputs/frames_first", perm=[1, 0])
        bias = np.zeros(config.n_outputs)
        bias[1 + config.n_harmonics :] = NOISE_BIAS
        slopes = loudness_slopes(config)
        if loudness and slopes.any():
            # As `thesis.controls.absolute_levels`, with the scaling of loudness multiplied out.
            bias += slopes
            level = self._late("loudness", loudness)
            level = graph.node("Unsqueeze", [level, graph.integers(1)], "levels/loudness")
            by_db = graph.constant("levels/slopes", slopes[None] / DB_RANGE)
            level = graph.node("Mul", [level, by_db], "levels/relative")
            rows = graph.node("Add", [rows, level], "levels/absolute")
        x = graph.node("Add", [rows, graph.constant("outputs/bias", bias)], "outputs/biased")
        # 2 sigmoid(x) ** ln(10) + 1e-7
        x = graph.node("Log", [graph.node("Sigmoid", [x], "outputs/sigmoid")], "outputs/log")
        x = graph.node("Mul", [x, graph.number(math.log(10.0))], "outputs/power")
        x = graph.node("Add", [x, graph.number(math.log(2.0))], "outputs/doubled")
        x = graph.node("Exp", [x], "outputs/exp")
        return graph.node("Add", [x, graph.number(1e-7)], "outputs/scaled")

    def _late(self, name: str, control: str) -> str:
        """Returns a control as it was for the frames that come out of the decoder, [frames]."""
        if not self.late:
            return control
        whole = self.graph.remembered(name, control, self.late, shape=[self.late], axis=0)
        return self.graph.slice(whole, f"{name}/late", axis=0, end=-self.late)

    def _first(self, delay: int) -> str:
        """Returns the number of the block's first frame for what is late by so many, [1]."""
        name = f"first_{delay}"
        if not delay:
            return STATE + POSITION
        if name not in self.graph:
            self.graph.node("Sub", [STATE + POSITION, self.graph.integers(delay)], name)
        return name

    def _begun(self, delay: int, *, column: bool = False) -> str:
        """Returns 1 for each frame of the clip and 0 before it, [frames] or [frames, 1]."""
        name = f"frames_begun_{delay}"
        if name not in self.graph:
            begun(self.graph, self._first(delay), N_FRAMES, name)
        if column and f"{name}/column" not in self.graph:
            self.graph.node("Unsqueeze", [name, self.graph.integers(1)], f"{name}/column")
        return f"{name}/column" if column else name

    # --- Harmonics ---

    def _harmonic(self, amplitude: str, distribution: str) -> str:
        """Returns the harmonics, [frames, hop_size], late by `synthesis_delay`.

        As `thesis.synthesis.Synthesizer.harmonic`: the sound of a frame is a crossfade to the next.
        """
        graph, hop, n_harmonics = self.graph, self.hop_size, self.config.n_harmonics
        f0 = self._late("f0", F0)
        f0 = graph.remembered("f0_last", f0, 1, shape=[1], axis=0)
        f0 = graph.node("Cast", [f0], "harmonics/f0_exact", to=TensorProto.DOUBLE)
        first = self._first_inaudible(f0, "harmonics")
        first = graph.node("Unsqueeze", [first, graph.integers(1)], "harmonics/first_inaudible")
        here, there = self._neighbours(first, "harmonics/first_inaudible")

        number = graph.constant("harmonics/number", np.arange(1, n_harmonics + 1)[None])
        audible = graph.node("Less", [number, there], "harmonics/is_audible")
        audible = graph.node("Cast", [audible], "harmonics/audible", to=TensorProto.FLOAT)
        shares = graph.node("Mul", [distribution, audible], "harmonics/shares")
        total = graph.node("ReduceSum", [shares, graph.integers(1)], "harmonics/total", keepdims=1)
        total = graph.node("Max", [total, graph.number(1e-7)], "harmonics/total_above_0")
        gain = graph.node("Div", [amplitude, total], "harmonics/gain")
        amplitudes = graph.node("Mul", [shares, gain], "harmonics/amplitudes")
        amplitudes = graph.remembered("amplitudes", amplitudes, 1, shape=[1, n_harmonics], axis=0)
        one = graph.integers(1)
        pair = graph.node(
            "Concat",
            [
                graph.node("Unsqueeze", [x, one], f"{x}/row")
                for x in self._neighbours(amplitudes, "harmonics/amplitudes")
            ],
            "harmonics/pair",
            axis=1,
        )  # [frames, 2, n_harmonics]

        f0_here, f0_there = self._neighbours(f0, "harmonics/f0_exact")
        change = graph.node("Sub", [f0_there, f0_here], "harmonics/f0_difference")
        ramp = (
            graph.node("Unsqueeze", [f0_here, one], "harmonics/f0_here"),
            graph.node("Unsqueeze", [change, one], "harmonics/f0_change"),
        )
        cycles = self._cycles(*ramp)
        both = graph.node("Min", [here, there], "harmonics/audible_throughout_below")
        throughout = graph.node("Less", [number, both], "harmonics/is_audible_throughout")
        throughout = graph.node(
            "Cast", [throughout], "harmonics/audible_throughout", to=TensorProto.FLOAT
        )
        throughout = graph.node("Unsqueeze", [throughout, one], "harmonics/throughout")
        steady = graph.node("Mul", [pair, throughout], "harmonics/steady_amplitudes")
        audio = self._steady(steady, cycles)
        rest = graph.node("Sub", [pair, steady], "harmonics/other_amplitudes")
        audio = self._with_others(audio, rest, cycles, ramp)
        waits = synthesis_delay(self.config, hop) - 1
        if waits:
            whole = graph.remembered("harmonics", audio, waits, shape=[waits, hop], axis=0)
            audio = graph.slice(whole, "harmonics/waited", axis=0, end=-waits)
        return audio

    def _neighbours(self, x: str, name: str) -> tuple[str, str]:
        """Returns all entries but the last, and all but the first."""
        return (
            self.graph.slice(x, f"{name}/here", axis=0, end=-1),
            self.graph.slice(x, f"{name}/there", axis=0, first=1),
        )

    def _first_inaudible(self, f0: str, name: str) -> str:
        """Returns the number of the first harmonic at or above Nyquist, 0 without a pitch."""
        graph = self.graph
        nyquist = graph.number(self.sample_rate / 2, np.float64)
        ratio = graph.node("Div", [nyquist, f0], f"{name}/nyquist_over_f0")
        first = graph.node("Ceil", [ratio], f"{name}/ceil")
        zero = graph.number(0.0, np.float64)
        none = graph.node("LessOrEqual", [f0, zero], f"{name}/no_pitch")
        first = graph.node("Where", [none, zero, first], f"{name}/first_exact")
        return graph.node("Cast", [first], f"{name}/first", to=TensorProto.FLOAT)

    def _cycles(self, f0: str, change: str) -> str:
        """Returns the fundamental's phase as a fraction of a cycle, [frames, 1, hop_size].

        In float64, as long as it is a running sum.

        Args:
          f0: [frames, 1], float64.
          change: To the next frame, [frames, 1], float64.
        """
        graph, hop = self.graph, self.hop_size
        # What a ramp from `here` by `change` adds up to, after n samples.
        n = np.arange(1, hop + 1)
        ramp = np.stack([n, n * (n - 1) / (2 * hop)]) / self.sample_rate
        rows = [
            graph.constant(f"harmonics/{name}", row[None], np.float64)
            for name, row in zip(("sum", "sum_of_ramp"), ramp, strict=True)
        ]
        parts = [
            graph.node("Mul", [x, row], f"{x}/cycles")
            for x, row in zip((f0, change), rows, strict=True)
        ]
        within = graph.node("Add", parts, "harmonics/cycles_within")
        whole = graph.slice(within, "harmonics/cycles_of_frame", axis=1, first=-1)
        # Before the clip no phase goes by.
        begun = self._begun(self.late + 1, column=True)
        begun = graph.node("Cast", [begun], "harmonics/begun_exact", to=TensorProto.DOUBLE)
        whole = graph.node("Mul", [whole, begun], "harmonics/cycles_that_count")
        state = graph.state("phase", [1, 1], TensorProto.DOUBLE)
        ends = graph.node(
            "CumSum", [whole, graph.constant("axis_0", 0, np.int64)], "harmonics/sum_of_cycles"
        )
        ends = graph.node("Add", [ends, state], "harmonics/ends")
        starts = graph.node("Sub", [ends, whole], "harmonics/starts")
        last = graph.slice(ends, "harmonics/end", axis=0, first=-1)
        turns = graph.node("Floor", [last], "harmonics/turns")
        graph.node("Sub", [last, turns], NEXT + "phase")
        cycles = graph.node("Add", [starts, within], "harmonics/all_cycles")
        turns = graph.node("Floor", [cycles], "harmonics/all_turns")
        cycles = graph.node("Sub", [cycles, turns], "harmonics/fraction_exact")
        cycles = graph.node("Cast", [cycles], "harmonics/fraction", to=TensorProto.FLOAT)
        return graph.node("Unsqueeze", [cycles, graph.integers(1)], "harmonics/cycles")

    def _crossfaded(self, pair: str, name: str) -> str:
        """Returns a frame's sound from that of its own and of the next frame's amplitudes."""
        up = 0.5 - 0.5 * np.cos(np.pi * np.arange(self.hop_size) / self.hop_size)
        fade = self.graph.constant("harmonics/crossfade", np.stack([1.0 - up, up]))
        faded = self.graph.node("Mul", [pair, fade], f"{name}/faded")
        one = self.graph.integers(1)
        return self.graph.node("ReduceSum", [faded, one], f"{name}/audio", keepdims=0)

    def _steady(self, pair: str, cycles: str) -> str:
        """Returns the sound of amplitudes [frames, 2, n_harmonics], [frames, hop_size].

        Harmonics are taken in groups about a centre c: with `sin(c + b) = sin c cos b + cos c sin
        b`, 22 sines a sample do for 60 harmonics, and the rest is one matrix product.
        """
        graph, hop = self.graph, self.hop_size
        groups = _Groups.of(self.config.n_harmonics)
        multiples, quarters = groups.sines()
        turn = graph.constant("harmonics/turns_a_cycle", 2 * np.pi * multiples[:, None])
        start = graph.constant("harmonics/starts_at", 0.5 * np.pi * quarters[:, None])
        angles = graph.node("Mul", [cycles, turn], "harmonics/angles_from_0")
        angles = graph.node("Add", [angles, start], "harmonics/angles")
        sines = graph.node("Sin", [angles], "harmonics/sines")
        centres = graph.slice(sines, "harmonics/centres", axis=1, end=2 * groups.count)
        offsets = graph.slice(sines, "harmonics/offsets", axis=1, first=2 * groups.count)
        weights = graph.constant("harmonics/groups", groups.weights())
        coefficients = graph.node("MatMul", [pair, weights], "harmonics/coefficients_flat")
        rows, columns = 2 * groups.count, 2 * groups.reach + 1
        shape = graph.integers(0, 2 * rows, columns)
        coefficients = graph.node("Reshape", [coefficients, shape], "harmonics/coefficients")
        parts = graph.node("MatMul", [coefficients, offsets], "harmonics/parts_flat")
        parts = graph.node("Reshape", [parts, graph.integers(0, 2, rows, hop)], "harmonics/parts")
        centres = graph.node("Unsqueeze", [centres, graph.integers(1)], "harmonics/centres_of_both")
        parts = graph.node("Mul", [parts, centres], "harmonics/products")
        both = graph.node("ReduceSum", [parts, graph.integers(2)], "harmonics/both", keepdims=0)
        return self._crossfaded(both, "harmonics/steady")

    def _with_others(self, audio: str, pair: str, cycles: str, f0: tuple[str, str]) -> str:
        """Adds harmonics that cross Nyquist within a frame, sample by sample.

        There are few such frames; they are picked out. `f0` is that of each frame and its change to
        the next, [frames, 1], float64.
        """
        graph = self.graph
        loudest = graph.node(
            "ReduceMax", [pair, graph.integers(1, 2)], "others/loudest", keepdims=0
        )
        some = graph.node("Greater", [loudest, graph.number(0.0)], "others/some")
        index = graph.node("NonZero", [some], "others/index_row")
        index = graph.node("Squeeze", [index, graph.integers(0)], "others/index")
        pair, cycles, here, change = (
            graph.node("Gather", [x, index], f"others/{name}", axis=0)
            for name, x in (
                ("amplitudes", pair),
                ("cycles", cycles),
                ("f0", f0[0]),
                ("f0_change", f0[1]),
            )
        )
        ramp = graph.constant(
            "others/ramp", np.arange(self.hop_size)[None] / self.hop_size, np.float64
        )
        change = graph.node("Mul", [change, ramp], "others/f0_changed")
        samples = graph.node("Add", [here, change], "others/f0_samples")
        first = self._first_inaudible(samples, "others")
        first = graph.node("Unsqueeze", [first, graph.integers(1)], "others/first_inaudible")
        number = graph.constant("others/number", np.arange(1, self.config.n_harmonics + 1)[:, None])
        audible = graph.node("Less", [number, first], "others/is_audible")
        audible = graph.node("Cast", [audible], "others/audible", to=TensorProto.FLOAT)
        angles = graph.node("Mul", [cycles, number], "others/cycles_of_each")
        turn = graph.number(2.0 * math.pi)
        angles = graph.node("Mul", [angles, turn], "others/angles")
        sines = graph.node("Sin", [angles], "others/all_sines")
        sines = graph.node("Mul", [sines, audible], "others/sines")
        both = graph.node("MatMul", [pair, sines], "others/both")
        others = self._crossfaded(both, "others")
        rows = graph.node("Unsqueeze", [index, graph.integers(1)], "others/rows")
        return graph.node("ScatterND", [audio, rows, others], "others/added", reduction="add")

    # --- Noise ---

    def _noise(self, magnitudes: str) -> str:
        """Returns the filtered noise, [frames, hop_size], late by `synthesis_delay`.

        As `thesis.reference.filtered_noise`. A filter without its delay has a real spectrum, which
        is linear in the magnitudes.
        """
        graph, hop, size = self.graph, self.hop_size, _short_frame(self.hop_size)
        taps = 2 * (self.config.n_noise_bands - 1)
        overlap = -(-(size + taps - 1) // size)
        length = overlap * size
        bins = length // 2 + 1
        angle = 2 * np.pi * np.arange(bins)[None] * np.arange(length)[:, None] / length
        # Columns are real and imaginary parts; the filter is the same for both.
        forward = np.concatenate([np.cos(angle[:size]), -np.sin(angle[:size])], axis=1)
        filters = np.tile(_filter_spectra(self.config.n_noise_bands, length), 2)
        delayed = angle - 2 * np.pi * np.arange(bins)[None] * (taps // 2) / length
        single = (np.arange(bins) == 0) | (2 * np.arange(bins) == length)
        counts = np.where(single, 1.0, 2.0) / length
        inverse = np.concatenate([np.cos(delayed) * counts, -np.sin(delayed) * counts], axis=1).T

        white = graph.node("Reshape", [self._white(), graph.integers(-1, size)], "noise/white")
        spectrum = graph.node(
            "MatMul", [white, graph.constant("noise/forward", forward)], "noise/spectrum"
        )
        if self.late:
            begun = self._begun(self.late, column=True)
            magnitudes = graph.node("Mul", [magnitudes, begun], "noise/begun")
        of_bands = graph.constant("noise/filters_of_bands", filters)
        filters_of = graph.node("MatMul", [magnitudes, of_bands], "noise/filters")
        if size != hop:  # All short frames of a frame have its filter.
            shape = graph.integers(-1, hop // size, 2 * bins)
            spectrum = graph.node("Reshape", [spectrum, shape], "noise/spectra_of_frames")
            filters_of = graph.node("Unsqueeze", [filters_of, graph.integers(1)], "noise/filter")
        shaped = graph.node("Mul", [spectrum, filters_of], "noise/shaped")
        if size != hop:
            shaped = graph.node("Reshape", [shaped, graph.integers(-1, 2 * bins)], "noise/rows")
        frames = graph.node(
            "MatMul", [shaped, graph.constant("noise/inverse", inverse)], "noise/frames"
        )
        # Frames overlap; and the filters' delay is made up for by later samples.
        waits = synthesis_delay(self.config, hop) * hop
        past = overlap - 1 + waits // size
        frames = graph.remembered("noise", frames, past, shape=[past, length], axis=0)
        total = ""
        for part in range(overlap):
            first, end = overlap - 1 - part, -part or np.iinfo(np.int64).max
            bounds = [
                graph.integers(first, part * size), graph.integers(end, (part + 1) * size),
                graph.integers(0, 1),
            ]  # fmt: skip
            one = graph.node("Slice", [frames, *bounds], f"noise/part_{part}")
            total = graph.node("Add", [total, one], f"noise/sum_{part}") if part else one
        flat = graph.node("Reshape", [total, graph.integers(-1)], "noise/flat")
        begin = noise_delay(self.config)
        flat = graph.slice(flat, "noise/in_time", axis=0, first=begin, end=begin - waits or None)
        return graph.node("Reshape", [flat, graph.integers(-1, hop)], "noise/audio")

    def _white(self) -> str:
        """Returns the noise of the block's frames, [samples].

        As `thesis.controls.white_noise`: a hash of the number of a sample.
        """
        graph = self.graph
        key = graph.state("noise_key", [1], TensorProto.INT64)
        graph.node("Identity", [key], NEXT + "noise_key")
        hop = graph.integers(self.hop_size)
        first = graph.node("Mul", [self._first(self.late), hop], "noise/first")
        count = graph.node("Mul", [N_FRAMES, hop], "noise/count")
        end = graph.node("Add", [first, count], "noise/end")
        bounds = [graph.node("Squeeze", [x], f"{x}/scalar") for x in (first, end)]
        number = graph.node("Range", [*bounds, graph.number(1, np.int64)], "noise/number")
        number = graph.node("BitwiseXor", [number, key], "noise/keyed")
        x = graph.node("Cast", [number], "noise/bits", to=TensorProto.UINT32)

        def mixed(x: str, shift: int, factor: int | None, name: str) -> str:
            by = graph.number(shift, np.uint32)
            moved = graph.node("BitShift", [x, by], f"{name}/moved", direction="RIGHT")
            x = graph.node("BitwiseXor", [x, moved], f"{name}/mixed")
            if factor is None:
                return x
            return graph.node("Mul", [x, graph.number(factor, np.uint32)], f"{name}/product")

        x = mixed(x, 16, 0x7FEB352D, "noise/hash_0")
        x = mixed(x, 15, 0x846CA68B, "noise/hash_1")
        x = mixed(x, 16, None, "noise/hash_2")
        eight = graph.number(8, np.uint32)
        x = graph.node("BitShift", [x, eight], "noise/upper_bits", direction="RIGHT")
        x = graph.node("Cast", [x], "noise/whole_numbers", to=TensorProto.FLOAT)
        x = graph.node("Mul", [x, graph.number(2.0**-23)], "noise/up_to_2")
        return graph.node("Sub", [x, graph.number(1.0)], "noise/samples")


def _short_frame(hop_size: int) -> int:
    """Returns the samples of a short frame, of which a hop is a multiple."""
    divisors = (size for size in range(1, hop_size + 1) if hop_size % size == 0)
    return min(divisors, key=lambda size: abs(math.log(size / _SHORT_FRAME)))


@dataclass(frozen=True)
class _Groups:
    """Harmonics in groups of neighbours.

    Attributes:
      n_harmonics: How many there are; the last group may have places left.
      count: Groups.
      reach: Neighbours of a centre, on either side.
    """

    n_harmonics: int
    count: int
    reach: int

    @classmethod
    def of(cls, n_harmonics: int) -> "_Groups":
        """Returns the grouping that takes the fewest sines."""
        return min(
            (cls(n_harmonics, -(-n_harmonics // (2 * m + 1)), m) for m in range(n_harmonics)),
            key=lambda groups: 2 * groups.count + 2 * groups.reach,
        )

    def sines(self) -> tuple[Array, Array]:
        """Returns the multiples of the phase whose sine is needed, and quarter turns to add.

        Sine and cosine of the centres, cosine and sine of the offsets: [2 count + 2 reach + 1].
        """
        centres = np.arange(self.count) * (2.0 * self.reach + 1) + self.reach + 1
        offsets = np.arange(self.reach + 1.0)
        multiples = np.concatenate([centres, centres, offsets, offsets[1:]])
        quarters = np.repeat([0.0, 1.0, 1.0, 0.0], [*[self.count] * 2, self.reach + 1, self.reach])
        return multiples, quarters

    def weights(self) -> Array:
        """Returns what takes amplitudes to the factors of products, [n_harmonics, rows * columns].

        A row for the sine and for the cosine of each centre, a column for each offset's.
        """
        reach, count = self.reach, self.count
        weights = np.zeros((count * (2 * reach + 1), 2 * count, 2 * reach + 1))
        for group in range(count):
            centre = group * (2 * reach + 1) + reach
            weights[centre, group, 0] = 1.0
            for b in range(1, reach + 1):
                above, below = centre + b, centre - b
                weights[[above, below], group, b] = 1.0
                weights[[above, below], count + group, reach + b] = 1.0, -1.0
        return weights[: self.n_harmonics].reshape(self.n_harmonics, -1)


def _filter_spectra(n_bands: int, size: int) -> Array:
    """Returns the real spectrum of each band's filter without delay, [bands, size // 2 + 1]."""
    taps = 2 * (n_bands - 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(taps) / taps)
    responses = np.fft.fftshift(np.fft.irfft(np.eye(n_bands)), axes=-1) * window
    padded = np.zeros((n_bands, size))
    padded[:, :taps] = responses
    return np.asarray(np.fft.rfft(np.roll(padded, -(taps // 2), axis=-1)).real)


@dataclass(frozen=True)
class _Reverb:
    """A long FIR filter, in two parts.

    The first samples of the response are applied at once, as one convolution over short frames.
    The rest is cut into parts of a fixed size: whenever so many samples are complete, their
    spectrum, with those before, gives the sound of the rest in the samples that follow (uniformly
    partitioned convolution, Stockham 1966).

    Attributes:
      graph: What it is added to.
      hop_size: Samples a frame.
      impulse_response: [taps].
    """

    graph: Graph
    hop_size: int
    impulse_response: npt.NDArray[np.float32]

    def lay(self, dry: str) -> str:
        """Returns the wet signal for a dry one, both [frames, hop_size]; '' where there is none."""
        taps = self.impulse_response.size
        if taps < 2:
            return ""
        response = self.impulse_response.astype(np.float64).copy()
        response[0] = 0.0
        part = max(1, round(_PARTITION / self.hop_size))  # in frames
        n_far = -(-taps // (part * self.hop_size)) - 1
        if n_far <= 0:
            part, n_far = -(-taps // self.hop_size), 0
        parts = np.zeros((1 + n_far, part * self.hop_size))
        parts.ravel()[:taps] = response
        past = max(2 * part - 1, part) if n_far else part
        whole = self.graph.remembered("dry", dry, past, shape=[past, self.hop_size], axis=0)
        wet = self._near(whole, parts[0], skip=past - part)
        if n_far:
            far = self._far(whole, parts[1:], part)
            wet = self.graph.node("Add", [wet, far], "reverb/wet")
        return wet

    def _near(self, whole: str, response: Array, *, skip: int) -> str:
        """Returns the sound of the response's first part, [frames, hop_size].

        Args:
          whole: Dry frames, those of the block after as many as the response is long and `skip`.
          response: [samples], whole frames.
          skip: Frames that are not needed.
        """
        graph, hop = self.graph, self.hop_size
        if skip:
            whole = graph.slice(whole, "near/seen", axis=0, first=skip)
        size = _short_frame(hop)
        if size != hop:
            whole = graph.node("Reshape", [whole, graph.integers(-1, size)], "near/frames")
        n_past = response.size // size
        # kernel[out, in, j]: the tap from sample `in` of the frame n_past - j frames ago to `out`.
        delay = np.arange(size)[:, None, None] - np.arange(size)[None, :, None]
        delay = delay + (n_past - np.arange(n_past + 1)) * size
        inside = (delay >= 0) & (delay < response.size)
        kernel = np.where(inside, response[np.clip(delay, 0, response.size - 1)], 0.0)
        x = graph.node("Transpose", [whole], "near/samples_first", perm=[1, 0])
        x = graph.node("Unsqueeze", [x, graph.integers(0)], "near/batch")
        y = graph.node("Conv", [x, graph.constant("near/response", kernel)], "near/convolved")
        y = graph.node("Squeeze", [y, graph.integers(0)], "near/samples")
        y = graph.node("Transpose", [y], "near/frames_first", perm=[1, 0])
        if size != hop:
            y = graph.node("Reshape", [y, graph.integers(-1, hop)], "near/audio")
        return y

    def _far(self, whole: str, parts: Array, part: int) -> str:
        """Returns the sound of the other parts, [frames, hop_size].

        Args:
          whole: Dry frames, those of the block after `2 * part - 1`.
          parts: Of the response, [n, samples].
          part: Frames that are as long.
        """
        graph, hop, n = self.graph, self.hop_size, len(parts)
        dft = _Dft(graph, 2 * part * hop)
        length = graph.integers(part)
        done = graph.node("Mod", [STATE + POSITION, length], "far/done")
        reached = graph.node("Add", [done, N_FRAMES], "far/reached")
        completed = graph.node("Div", [reached, length], "far/completed")
        count = graph.node("Squeeze", [completed], "far/count")
        zero, one = graph.number(0, np.int64), graph.number(1, np.int64)
        each = graph.node("Range", [zero, count, one], "far/each")
        each = graph.node("Unsqueeze", [each, graph.integers(1)], "far/each_column")

        # The dry samples of each completed part and of the one before it.
        begin = graph.node("Sub", [graph.integers(part - 1), done], "far/begin")
        begins = graph.node("Mul", [each, length], "far/steps")
        begins = graph.node("Add", [begins, begin], "far/begins")
        rows = graph.node("Add", [begins, graph.integers(*range(2 * part))], "far/rows")
        dry = graph.node("Gather", [whole, rows], "far/dry", axis=0)
        spectra = dft.forward(dry)

        if n > 1:
            spectra = graph.remembered("spectra", spectra, n - 1, shape=[n - 1, dft.width], axis=0)
        rows = graph.node("Add", [each, graph.integers(*range(n))], "far/spectra_rows")
        seen = graph.node("Gather", [spectra, rows], "far/spectra_seen", axis=0)
        oldest_first = dft.layout(np.fft.fft(parts[::-1], dft.size))
        products = []
        for name, factor in (("real", oldest_first.real), ("imag", oldest_first.imag)):
            both = np.concatenate([factor, factor], axis=-1).reshape(n, -1)
            response = graph.constant(f"far/response_{name}", both)
            product = graph.node("Mul", [seen, response], f"far/products_{name}")
            products.append(
                graph.node("ReduceSum", [product, graph.integers(1)], f"far/{name}", keepdims=0)
            )
        new = dft.inverse(*products, shape=(part, hop))
        state = graph.state("far", [1, part, hop])
        tails = graph.node("Concat", [state, new], "far/tails", axis=0)
        graph.slice(tails, NEXT + "far", axis=0, first=-1)
        flat = graph.node("Reshape", [tails, graph.integers(-1, hop)], "far/frames")
        return graph.slice(flat, "far/audio", axis=0, first=done, end=reached)


class _Dft:
    """The DFT of real blocks as matrix products, four steps (Bailey 1990).

    Sample `rows * ..` of a block is at [s1, s2], `s = columns * s1 + s2`; bin `k1 + rows * k2` at
    [k1, k2]. Of real blocks, k1 up to half of the rows says all.
    """

    def __init__(self, graph: Graph, size: int) -> None:
        self._graph = graph
        self.size = size
        even = [d for d in range(2, size + 1, 2) if size % d == 0]
        self._rows = min(even, key=lambda d: abs(math.log(d * d / size)))
        self._columns = size // self._rows
        self._half = self._rows // 2 + 1
        self.width = 2 * self._half * self._columns
        k1, s2 = np.arange(self._half)[:, None], np.arange(self._columns)
        self._twiddle = np.exp(-2j * np.pi * k1 * s2 / size)

    def layout(self, bins: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
        """Returns bins [n, size] in the order of `forward`, [n, half, columns]."""
        k1, k2 = np.arange(self._half)[:, None], np.arange(self._columns)
        return np.asarray(bins[:, k1 + self._rows * k2])

    def forward(self, blocks: str) -> str:
        """Returns the spectra of blocks whose samples are in order, [n, width].

        Each of `half` rows holds real parts, then imaginary parts.
        """
        graph, half, columns = self._graph, self._half, self._columns
        shape = graph.integers(0, self._rows, columns)
        x = graph.node("Reshape", [blocks, shape], "dft/blocks")
        angle = 2 * np.pi * np.arange(half)[:, None] * np.arange(self._rows) / self._rows
        real, imag = np.cos(angle), -np.sin(angle)
        # Rows (real, imag) of each k1 for the twiddle's real part, (-imag, real) for the other.
        turned = np.concatenate([_interleaved(real, imag), _interleaved(-imag, real)])
        x = graph.node("MatMul", [graph.constant("dft/rows", turned), x], "dft/by_rows")
        x = graph.node(
            "Mul", [x, graph.constant("dft/twiddles", self._twiddle_rows())], "dft/twiddled"
        )
        x = graph.node("Reshape", [x, graph.integers(0, 2, 2 * half, columns)], "dft/both")
        x = graph.node("ReduceSum", [x, graph.integers(1)], "dft/turned", keepdims=0)
        x = graph.node("Reshape", [x, graph.integers(0, half, 2 * columns)], "dft/of_rows")
        angle = 2 * np.pi * np.outer(np.arange(columns), np.arange(columns)) / columns
        matrix = np.block([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        x = graph.node("MatMul", [x, graph.constant("dft/columns", matrix)], "dft/by_columns")
        return graph.node("Reshape", [x, graph.integers(0, self.width)], "dft/spectra")

    def inverse(self, by_real: str, by_imag: str, *, shape: tuple[int, int]) -> str:
        """Returns the second half of the blocks with a spectrum, [n, *shape].

        Args:
          by_real: A spectrum times real factors, [n, width].
          by_imag: It times the imaginary factors, not yet turned by i.
          shape: Of the half.
        """
        graph, half, columns = self._graph, self._half, self._columns
        parts = graph.integers(0, half, 2, columns)
        by_imag = graph.node("Reshape", [by_imag, parts], "dft/imag_parts")
        real, imag = graph.nodes(
            "Split", [by_imag, graph.integers(1, 1)], ["dft/imag_real", "dft/imag_imag"], axis=2
        )
        imag = graph.node("Neg", [imag], "dft/negative")
        turned = graph.node("Concat", [imag, real], "dft/turned_by_i", axis=2)
        x = graph.node("Reshape", [by_real, parts], "dft/real_parts")
        x = graph.node("Add", [x, turned], "dft/product")
        x = graph.node("Reshape", [x, graph.integers(0, half, 2 * columns)], "dft/product_rows")
        angle = 2 * np.pi * np.outer(np.arange(columns), np.arange(columns)) / columns
        matrix = np.block([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        x = graph.node("MatMul", [x, graph.constant("dft/back_columns", matrix)], "dft/back")
        x = graph.node("Reshape", [x, graph.integers(0, 1, 2 * half, columns)], "dft/back_rows")
        both = graph.constant("dft/twiddles_apart", self._twiddle_rows().reshape(2, -1, columns))
        x = graph.node("Mul", [x, both], "dft/back_twiddled")
        x = graph.node("Reshape", [x, graph.integers(0, 4 * half, columns)], "dft/back_both")
        s1, k1 = np.arange(self._rows // 2, self._rows)[:, None], np.arange(half)
        angle = 2 * np.pi * s1 * k1 / self._rows
        # The other half of k1 holds the conjugates.
        counts = np.where((k1 == 0) | (2 * k1 == self._rows), 1.0, 2.0) / self.size
        cos, sin = np.cos(angle) * counts, np.sin(angle) * counts
        # Times (real, imag) of the twiddled: with the twiddle's real part, then its imaginary one.
        matrix = np.concatenate([_interleaved(cos.T, -sin.T), _interleaved(sin.T, cos.T)]).T
        x = graph.node("MatMul", [graph.constant("dft/back_rows_matrix", matrix), x], "dft/samples")
        return graph.node("Reshape", [x, graph.integers(0, *shape)], "dft/halves")

    def _twiddle_rows(self) -> Array:
        """Returns the twiddles' real parts, a row twice, then the imaginary ones."""
        parts = (self._twiddle.real, self._twiddle.imag)
        return np.concatenate([_interleaved(part, part) for part in parts])


def _interleaved(a: Array, b: Array) -> Array:
    """Returns rows of `a` and `b` in turn."""
    return np.stack([a, b], axis=1).reshape(2 * len(a), -1)
