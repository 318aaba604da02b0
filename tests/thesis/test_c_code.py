"""The generated C: the float64 twin's equal on a stream, clean and safe."""

import itertools
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thesis import reference
from thesis.c_code import c_header
from thesis.c_stream import FLAGS, CStream, compiler
from thesis.config import (
    REFERENCE_DECODER,
    DecoderConfig,
    DilatedConvStackConfig,
    RnnFcConfig,
    SynthConfig,
)
from thesis.controls import absolute_levels, decoder_inputs, white_noise
from thesis.errors import ExportError, StreamError
from thesis.export import synth_stream_onnx
from thesis.stream import SynthStream

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
SMALL = SynthConfig(n_harmonics=5, n_noise_bands=6, reverb_seconds=0.02)
SAMPLE_RATE = 16_000

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None, reason="there is no C compiler on this machine"
)


def response_of(n_taps, seed=0):
    decay = 10.0 ** (-3.0 * np.arange(n_taps) / max(n_taps, 1))
    return (np.random.default_rng(seed).normal(0, 0.02, n_taps) * decay).astype(np.float32)


def wild_controls(n_frames, seed=0):
    """A wandering pitch with rests, jumps, pitches above Nyquist and below zero; any loudness."""
    rng = np.random.default_rng(seed)
    f0_hz = 220 * 2 ** np.cumsum(rng.normal(0, 0.05, n_frames))
    for value, share in ((0.0, 0.1), (9000.0, 0.05), (-3.0, 0.05), (3999.0, 0.1), (31.0, 0.1)):
        f0_hz[rng.random(n_frames) < share] = value
    return f0_hz.astype(np.float32), rng.uniform(-80, 0, n_frames).astype(np.float32)


def blocks(n_frames, cycle, seed):
    """Slices that split so many frames at random multiples of the cycle."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(cycle * rng.integers(1, 30, n_frames))
    edges = [0, *ends[ends < n_frames], n_frames]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


class Model:
    """A model with weights as after training, as C and as its float64 twin."""

    def __init__(self, weights_of, decoder=REFERENCE_DECODER, synth=SMALL, hop_size=64, seed=0):
        self.decoder, self.synth, self.hop_size, self.seed = decoder, synth, hop_size, seed
        self.weights = weights_of(decoder.plan(synth.n_outputs), seed)
        self.response = response_of(synth.reverb_length(SAMPLE_RATE), seed)

    def header(self, **options):
        rates = {"sample_rate": SAMPLE_RATE, "hop_size": self.hop_size}
        return c_header(self.decoder, self.synth, self.weights, self.response, **rates, **options)

    def rendered(self, f0_hz, loudness_db, decoded=None):
        """What the twin makes of the whole clip."""
        inputs = decoder_inputs(f0_hz, loudness_db)
        if decoded is None:
            decoded = reference.decode(inputs, self.weights, self.decoder)
        return reference.synthesize(
            absolute_levels(decoded, inputs, self.synth),
            f0_hz,
            white_noise(self.seed, 1, f0_hz.size * self.hop_size)[0],
            self.response,
            config=self.synth,
            sample_rate=SAMPLE_RATE,
            hop_size=self.hop_size,
        )


def streamed(stream, f0_hz, loudness_db, splits=0):
    """Audio of a stream from its start, in random blocks."""
    stream.reset()
    parts = blocks(f0_hz.size, stream.cycle, splits)
    return np.concatenate([stream(f0_hz[part], loudness_db[part]) for part in parts])


# --- Parity ---

STREAMING = st.from_type(DecoderConfig).filter(lambda config: getattr(config, "norm", "") != "time")


@needs_compiler
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(
    decoder=STREAMING,
    synth=st.builds(
        SynthConfig,
        n_harmonics=st.sampled_from([1, 2, 8, 9, 60, 200]),
        n_noise_bands=st.sampled_from([3, 4, 9, 65, 257]),
        reverb_seconds=st.sampled_from([0.0, 1e-4, 0.003, 0.05, 0.3]),
        levels=st.sampled_from(["loudness", "absolute"]),
    ),
    hop_size=st.sampled_from([1, 5, 16, 63, 64, 100, 192]),
    seed=st.integers(0, 1000),
)
def test_any_model_on_a_stream_equals_its_float64_twin_on_the_clip(
    weights_of, assert_equals_twin, decoder, synth, hop_size, seed
):
    model = Model(weights_of, decoder, synth, hop_size, seed)
    stream = CStream(model.header(), seed=seed, flags=("-O1", *STRICT))
    late = stream.decoder_delay_frames
    n = ((100 if hop_size > 16 else 400) + late) // stream.cycle * stream.cycle
    f0_hz, loudness_db = wild_controls(n, seed)
    inputs = decoder_inputs(f0_hz, loudness_db)

    decoded = stream.decode(f0_hz, loudness_db)
    assert not decoded[:late].any()
    assert_equals_twin(decoded[late:], inputs, model.weights, decoder, frames=n - late)

    audio, silent = streamed(stream, f0_hz, loudness_db, splits=seed), stream.latency_samples
    assert not audio[:silent].any()
    # From here on, what the stream has decoded counts: its rounding has been looked at.
    held = np.concatenate([decoded[late:], np.zeros_like(decoded[:late])])
    expected = model.rendered(f0_hz, loudness_db, held)[: n * hop_size - silent]
    np.testing.assert_allclose(audio[silent:], expected, rtol=0, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("flags", [FLAGS, (*FLAGS, "-ffast-math"), ("-O2",)])
def test_ddsp_cnn_tiny_is_exact_to_1e_5_however_it_is_compiled(weights_of, flags):
    model = Model(weights_of, REFERENCE_DECODER, SynthConfig())
    stream = CStream(model.header(), flags=flags)
    controls = wild_controls(1000)
    audio, late = streamed(stream, *controls), stream.latency_samples
    assert late == 64
    expected = model.rendered(*controls)[:-late]
    np.testing.assert_allclose(audio[late:], expected, rtol=0, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize(
    ("hop_size", "reverb_seconds"), [(64, 1.0), (63, 4.0), (1024, 1.0), (16, 4.0)]
)
def test_long_reverbs_equal_their_twin(weights_of, hop_size, reverb_seconds):
    synth = replace(SMALL, reverb_seconds=reverb_seconds)
    model = Model(weights_of, RnnFcConfig(2, 2, 0), synth, hop_size)
    stream = CStream(model.header(), flags=("-O1",))
    controls = wild_controls(5 * SAMPLE_RATE // hop_size)
    audio, late = streamed(stream, *controls), stream.latency_samples
    expected = model.rendered(*controls)[: audio.size - late]
    np.testing.assert_allclose(audio[late:], expected, rtol=0, atol=1e-4)


@needs_compiler
def test_a_stream_is_the_same_in_any_blocks_and_after_any_start(weights_of):
    decoder = replace(
        REFERENCE_DECODER, causal=False, resample="downsample", resample_stride=3, norm="none"
    )
    stream = CStream(Model(weights_of, decoder).header(name="my_synth2"), name="my_synth2")
    assert stream.cycle == 9
    controls = wild_controls(360)
    whole = stream(*controls)
    for splits in range(5):
        assert np.array_equal(streamed(stream, *controls, splits=splits), whole)


@needs_compiler
def test_the_c_and_the_onnx_stream_play_the_same_samples(weights_of):
    config = DilatedConvStackConfig(channels=4, stacks=1, causal=False, conditioning="shift")
    model = Model(weights_of, config, replace(SMALL, reverb_seconds=0.3))
    args = (model.decoder, model.synth, model.weights, model.response)
    onnx = synth_stream_onnx(*args, sample_rate=SAMPLE_RATE, hop_size=model.hop_size)
    streams = CStream(model.header(), seed=4), SynthStream(onnx, seed=4)
    assert streams[0].latency_samples == streams[1].latency_samples
    f0_hz, loudness_db = wild_controls(200)
    in_c, in_onnx = (
        np.concatenate([stream(f0_hz[block], loudness_db[block]) for block in blocks(200, 1, i)])
        for i, stream in enumerate(streams)
    )
    np.testing.assert_allclose(in_c, in_onnx, atol=1e-4)


@needs_compiler
def test_numbers_that_are_none_are_forgotten(weights_of):
    stream = CStream(Model(weights_of, replace(REFERENCE_DECODER, norm="none")).header())
    f0_hz, loudness_db = (np.full(300, value, np.float32) for value in (220.0, -30.0))
    clean = stream(f0_hz, loudness_db)
    for broken in (np.nan, np.inf, -np.inf):
        for controls in ((f0_hz, loudness_db.copy()), (f0_hz.copy(), loudness_db)):
            controls[0 if controls[0] is not f0_hz else 1][10:12] = broken
            stream.reset()
            audio = stream(*controls)
            assert np.isfinite(audio).all()
            assert not np.array_equal(audio, clean)
            # The pitch has lost its phase for good, its loudness is back.
            levels = [np.sqrt((a[-6400:] ** 2).mean()) for a in (audio, clean)]
            assert levels[0] == pytest.approx(levels[1], rel=0.02)


# --- The header ---


@needs_compiler
@pytest.mark.parametrize("reverb_seconds", [0.0, 0.3])
def test_bounds_and_arithmetic_hold_under_sanitizers(weights_of, tmp_path, reverb_seconds):
    synth = replace(SMALL, reverb_seconds=reverb_seconds, n_harmonics=13)
    decoder = DilatedConvStackConfig(
        channels=3, layers_per_stack=1, causal=False, block="inverted_bottleneck",
        resample="upsample", conditioning="scale_and_shift", norm="batch",
    )  # fmt: skip
    model = Model(weights_of, decoder, synth, hop_size=63)
    (tmp_path / "ddsp.h").write_text(model.header())
    (tmp_path / "main.c").write_text(DRIVER)
    sanitizers = "-fsanitize=address,undefined,float-cast-overflow"
    build = [*compiler(), *STRICT, "-O1", "-g", sanitizers, "-fno-sanitize-recover=all"]
    made = subprocess.run(
        [*build, "main.c", "-o", "main", "-lm"], cwd=tmp_path, capture_output=True, text=True
    )
    if "cannot find" in made.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert not made.returncode, made.stderr
    controls = np.stack(wild_controls(400))
    controls[:, 100:104] = [[np.nan, np.inf, 3e38, -3e38], [np.nan, -np.inf, 3e38, np.inf]]
    ran = subprocess.run(
        [tmp_path / "main"], input=controls.T.tobytes(), capture_output=True, check=False
    )
    assert not ran.returncode, ran.stderr.decode()
    audio = np.frombuffer(ran.stdout, np.float32)
    assert audio.size == 400 * 63
    assert np.isfinite(audio).all()


DRIVER = """
#include "ddsp.h"
#include <stdio.h>

/* Controls from stdin, frame by frame, in blocks of 1, 2, 3 .. cycles; audio to stdout. */
int main(void)
{
    static ddsp_state s;
    static float read[100 * DDSP_CYCLE][2], f0[100 * DDSP_CYCLE], loudness[100 * DDSP_CYCLE];
    static float audio[100 * DDSP_CYCLE * DDSP_HOP];
    int cycles = 1, i, n;
    ddsp_init(&s, 1);
    while ((n = (int)fread(read, sizeof *read, (size_t)(cycles * DDSP_CYCLE), stdin)) > 0) {
        for (i = 0; i < n; i++) {
            f0[i] = read[i][0];
            loudness[i] = read[i][1];
        }
        ddsp_process(&s, f0, loudness, n, audio);
        fwrite(audio, sizeof *audio, (size_t)(n * DDSP_HOP), stdout);
        cycles++;
    }
    return 0;
}
"""


@needs_compiler
def test_the_header_is_cpp_too(weights_of, tmp_path):
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler on this machine")
    (tmp_path / "ddsp.h").write_text(Model(weights_of).header())
    (tmp_path / "main.cpp").write_text(DRIVER)
    flags = ["-std=c++11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]
    ran = subprocess.run(["c++", *flags, "main.cpp"], cwd=tmp_path, capture_output=True, text=True)
    assert not ran.returncode, ran.stderr


def test_the_header_needs_three_standard_headers_and_no_heap(weights_of):
    header = Model(weights_of).header()
    assert set(re.findall(r"#include <(.*)>", header)) == {
        "math.h", "stddef.h", "stdint.h", "string.h",
    }  # fmt: skip
    assert not re.search(r"\b(malloc|calloc|realloc|free)\b", header)
    (state,) = re.findall(r"typedef struct \{(.*?)\} ddsp_state;", header, re.DOTALL)
    assert not re.search(r"(float|double|int|_t) \*", state)


def test_all_names_begin_with_the_models(weights_of):
    header = Model(weights_of).header(name="Cello_1")
    assert "ddsp" not in header.replace("DDSP instrument", "").lower()
    assert "Cello_1_process" in header
    assert "#define CELLO_1_LATENCY 64 " in header


@pytest.mark.parametrize("name", ["", "1st", "my-synth", "a b", "é"])
def test_a_name_that_c_does_not_take_is_refused(weights_of, name):
    with pytest.raises(ExportError, match="cannot begin a name in C"):
        Model(weights_of).header(name=name)


def test_a_norm_over_the_clip_cannot_stream(weights_of):
    with pytest.raises(ExportError, match="cannot stream"):
        Model(weights_of, replace(REFERENCE_DECODER, norm="time")).header()


def test_weights_that_are_not_finite_are_refused(weights_of):
    model = Model(weights_of)
    model.weights["block_1/kernel"][0, 0, 0] = np.nan
    with pytest.raises(ExportError, match=r"'block_1_kernel' has values that are not finite"):
        model.header()


# --- Compiling and playing ---


def test_a_compiler_that_is_no_command_is_one_line(monkeypatch):
    monkeypatch.setenv("CC", "gcc '-O2")
    with pytest.raises(ExportError, match="CC is no command") as raised:
        compiler()
    assert "gcc" in raised.value.hint


def test_a_missing_compiler_is_named(weights_of, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(ExportError, match="no C compiler: 'no-such-compiler'") as raised:
        CStream(Model(weights_of).header())
    assert "CC" in raised.value.hint


@needs_compiler
def test_what_the_compiler_says_is_passed_on():
    with pytest.raises(ExportError, match=r"does not take the model: .*error"):
        CStream("#error no model\n")


@needs_compiler
def test_a_stream_knows_its_model_and_refuses_other_blocks(weights_of):
    decoder = replace(REFERENCE_DECODER, resample="downsample")
    stream = CStream(Model(weights_of, decoder, hop_size=128).header())
    assert (stream.sample_rate, stream.hop_size, stream.cycle) == (SAMPLE_RATE, 128, 4)
    assert (stream.decoder_delay_frames, stream.latency_samples) == (0, 128)
    assert stream.n_outputs == SMALL.n_outputs
    assert stream.state_bytes > 4 * 128
    for f0_hz, loudness_db, words in (
        (np.zeros(6), np.zeros(6), "a block of 6 frames"),
        (np.zeros(8), np.zeros(4), r"f0_hz of shape \[8\], loudness_db \[4\]"),
        (np.zeros((1, 8)), np.zeros((1, 8)), r"f0_hz of shape \[1, 8\]"),
    ):
        with pytest.raises(StreamError, match=words) as raised:
            stream(f0_hz, loudness_db)
        assert raised.value.hint


def test_a_library_that_cannot_be_loaded_is_one_error(tmp_path):
    (tmp_path / "ddsp.so").write_text("no library")
    with pytest.raises(ExportError, match=r"ddsp\.so is no library") as error:
        CStream.load(tmp_path / "ddsp.so")
    assert error.value.hint
    assert "\n" not in error.value.message
