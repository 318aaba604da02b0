"""What a bench says of times that are known; one real run."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from thesis import bench as benched
from thesis import bench_process, bench_variants, runtimes
from thesis.bench import bench
from thesis.bench_process import FreshProcess, Loaded, Subject
from thesis.controls import absolute_levels, decoder_inputs, white_noise
from thesis.errors import BenchError, BundleError, DatasetError, ExportError, MissingRuntimeError
from thesis.reference import synthesize
from thesis.runtimes.contract import Quantisation

FRESH = FreshProcess(0.5, 0.25, 0.125, 1_000_000)
HOP, RATE = 64, 16_000
INTEGERS = Quantisation("dynamic")


@pytest.fixture
def path(write_small_bundle, tmp_path):
    return write_small_bundle(tmp_path / "bundle").path


class Seconds(dict):
    """Seconds a frame by a part of 'artefact/runtime/path', and the calls that were made."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __getitem__(self, subject):
        name = f"{subject.artifact}/{subject.runtime}/{subject.path}"
        return next(seconds for part, seconds in self.items() if part in name)


class Known:
    """A model whose calls take a known time, and a little more."""

    cycle = 1

    def __init__(self, subject, seconds):
        self.subject, self.seconds, self.noise = subject, seconds, np.random.default_rng(0)

    def calls(self, f0_hz, loudness_db, n_frames):
        def call():
            self.seconds.called.append((self.subject, n_frames))
            return self.seconds[self.subject] * n_frames * (1 + self.noise.exponential(0.01))

        return call


@pytest.fixture
def seconds_of(monkeypatch):
    """What calls take, to be filled in. Nothing is loaded or timed."""
    seconds = Seconds()
    monkeypatch.setattr(Subject, "load", lambda subject: Known(subject, seconds))
    monkeypatch.setattr(benched, "_in_new_process", lambda case: FRESH)
    return seconds


def quick(paths, **options):
    """A bench of decoders in blocks of one size, unless told otherwise, that takes no time."""
    chosen = {"artifacts": ["decoder"], "blocks": [256], "seconds": 1e-9, **options}
    return bench(paths, **chosen)


# --- What it says ---


def test_ratios_and_speeds_are_those_of_the_undisturbed_times(path, seconds_of, monkeypatch):
    monkeypatch.setattr(runtimes.runtime("tensorflow").__class__, "_convert", fake_conversion)
    seconds_of |= {"decoder/onnx_runtime": 1e-5, "decoder/tensorflow": 3e-5}
    report = quick([path], runtimes=["tensorflow"], blocks=[64, 256])
    assert [(r.runtime, r.block) for r in report.rows] == [
        (name, block) for name in ("onnx_runtime", "tensorflow") for block in (64, 256)
    ]
    for row in report.rows:
        expected = 3 if row.runtime == "tensorflow" else 1
        assert row.rtf_ratio == pytest.approx(expected, rel=0.02)
        assert row.rtf_ratio_low <= row.rtf_ratio <= row.rtf_ratio_high
        assert row.rtf == pytest.approx(expected * 1e-5 / (HOP / RATE), rel=0.02)
        assert row.x_real_time == pytest.approx(1 / row.rtf)
        assert row.is_reference == (row.runtime == "onnx_runtime")
        assert (row.block_samples, row.deadline_seconds) == (row.block, row.block / RATE)


def fake_conversion(self, model, folder):
    (folder / "model").write_bytes(b"x" * 100)
    (folder / "weights").write_bytes(b"x" * 23)
    return folder / "model"


def test_percentiles_are_of_all_calls_and_the_deadline_is_the_length_of_a_block(
    path, seconds_of, monkeypatch
):
    times = iter(np.tile(np.arange(1, 101) * 1e-6, 10))

    class Known:
        def calls(self, *_):
            return lambda: next(times)

    monkeypatch.setattr(Subject, "load", lambda self: Known())
    monkeypatch.setattr(benched, "_WARM_UP_CALLS", 0)
    monkeypatch.setattr(benched, "_MIN_CALLS", 1000)
    (row,) = quick([path]).rows
    assert row.calls == 1000
    assert row.p50_seconds == pytest.approx(50.5e-6, rel=0.01)
    assert row.p95_seconds == pytest.approx(95e-6, rel=0.01)
    assert row.p99_seconds == pytest.approx(99e-6, rel=0.01)
    assert row.max_seconds == pytest.approx(100e-6)
    assert row.p99_share_of_deadline == pytest.approx(row.p99_seconds / (256 / RATE))


def test_what_a_new_process_says_and_the_size_of_the_files_go_into_the_row(
    path, seconds_of, monkeypatch
):
    monkeypatch.setattr(runtimes.runtime("tensorflow").__class__, "_convert", fake_conversion)
    seconds_of["decoder"] = 1e-5
    shipped, converted = quick([path], runtimes=["tensorflow"]).rows
    assert shipped.size_bytes == (path / "decoder.onnx").stat().st_size
    assert converted.size_bytes == 123
    for row in (shipped, converted):
        assert (row.start_seconds, row.load_seconds) == (0.5, 0.25)
        assert (row.first_call_seconds, row.peak_memory_bytes) == (0.125, 1_000_000)
        assert row.val_loss is None


def test_models_take_turns_and_which_goes_first_alternates(path, write_small_bundle, seconds_of):
    other = write_small_bundle(path.with_name("other")).path
    seconds_of["decoder"] = 1e-5
    quick([path, other])
    turns = ["other" in subject.path for subject, _ in seconds_of.called]
    pairs = [*zip(turns[::2], turns[1::2], strict=True)]
    assert all(first != second for first, second in pairs)
    measured = pairs[benched._WARM_UP_CALLS : benched._WARM_UP_CALLS + 4]
    assert measured == [(False, True), (True, False)] * 2


def test_the_first_bundle_is_the_reference_of_the_others(path, write_small_bundle, seconds_of):
    other = write_small_bundle(path.with_name("other")).path
    seconds_of |= {"decoder/onnx_runtime/" + str(path): 1e-5, str(other): 2e-5}
    for paths, expected in (([path, other], 2.0), ([other, path], 0.5)):
        first, second = quick(paths).rows
        assert (first.is_reference, second.is_reference) == (True, False)
        assert second.rtf_ratio == pytest.approx(expected, rel=0.02)


def test_whole_clips_have_as_many_frames_as_the_clip_of_the_bundle(path, seconds_of, dataset):
    seconds_of["stream"] = 1e-5
    report = quick([path], artifacts=["decoder_stream", "synth_stream"], blocks=["clip"])
    n_frames = dataset.clips("validation").f0_hz.shape[1]
    assert [row.block_samples for row in report.rows] == [n_frames * HOP] * 2
    assert {n for _, n in seconds_of.called} == {n_frames}


def test_a_row_is_a_flat_record_that_json_holds(path, seconds_of):
    seconds_of["decoder"] = 1e-5
    (row,) = quick([path]).rows
    record = json.loads(json.dumps(row.to_record(), allow_nan=False))
    assert record["x_real_time"] == row.x_real_time
    assert {"artifact", "runtime", "quantisation", "block", "rtf", "rtf_ratio", "val_loss"} <= (
        record.keys()
    )


def test_progress_ends_with_all_steps_done(path, seconds_of):
    seconds_of |= {"decoder": 1e-5, "stream": 1e-5}
    seen = []
    quick([path], artifacts=["decoder", "synth_stream"], on_progress=lambda *x: seen.append(x))
    assert [done for done, _ in seen] == [*range(1, seen[0][1] + 1)]


# --- What it leaves out ---


def test_blocks_that_are_no_whole_frames_are_left_out_and_say_so(path, seconds_of):
    seconds_of["decoder"] = 1e-5
    report = quick([path], blocks=[100, 128])
    assert [row.block for row in report.rows] == [128]
    (skipped,) = report.skipped
    assert skipped.block == 100
    assert "multiples of 64" in skipped.why


def test_a_bundle_without_streams_is_benched_for_the_rest(
    path, write_small_bundle, artifacts, seconds_of, monkeypatch
):
    monkeypatch.setattr("thesis.bundle._write_streams", lambda *_: None)
    other = write_small_bundle(path.with_name("other")).path
    seconds_of |= {"decoder": 1e-5, "stream": 1e-5}
    report = quick([other, path], artifacts=["decoder", "synth_stream"])
    assert [(r.artifact, r.bundle) for r in report.rows] == [
        ("decoder", str(other)), ("decoder", str(path)), ("synth_stream", str(path)),
    ]  # fmt: skip
    assert report.rows[-1].is_reference
    (skipped,) = report.skipped
    assert (skipped.bundle, skipped.why) == (str(other), "the bundle has no synth_stream.onnx")


def test_all_runtimes_are_those_that_are_installed_the_others_come_with_their_command(
    path, seconds_of, monkeypatch
):
    seconds_of["decoder"] = 1e-5
    for found in runtimes.runtimes():
        version = "1.0" if found.title == "ONNX Runtime" else None
        monkeypatch.setattr(type(found), "version", version)
    monkeypatch.setenv("CC", "no-such-compiler")
    report = quick([path], runtimes=["all"])
    assert [row.runtime for row in report.rows] == ["onnx_runtime"]
    missing = {s.runtime: s.hint for s in report.skipped if s.runtime != "c"}
    assert missing == {n: runtimes.runtime(n).install for n in runtimes.NAMES[1:]}
    assert report.skipped[-1].why == "there is no C compiler: 'no-such-compiler' is not found"


def test_a_model_that_a_runtime_cannot_take_is_left_out_with_its_reason(
    path, seconds_of, monkeypatch
):
    def refuse(*_):
        raise ExportError("TensorFlow cannot take this decoder: no", hint="another")

    seconds_of["decoder"] = 1e-5
    monkeypatch.setattr(runtimes.runtime("tensorflow").__class__, "convert", refuse)
    report = quick([path], runtimes=["onnx_runtime", "tensorflow"])
    assert [row.runtime for row in report.rows] == ["onnx_runtime"]
    assert [(s.runtime, s.why) for s in report.skipped] == [
        ("tensorflow", "TensorFlow cannot take this decoder: no")
    ]


def test_streams_are_left_out_where_no_runtime_plays_them(path, seconds_of, monkeypatch):
    monkeypatch.setattr(runtimes.runtime("tensorflow").__class__, "_convert", fake_conversion)
    seconds_of["decoder"] = 1e-5
    report = quick([path], artifacts=["decoder", "synth_stream"], runtimes=["tensorflow"])
    assert {row.artifact for row in report.rows} == {"decoder"}
    assert [s.why for s in report.skipped] == ["synth_stream plays in onnx_runtime, c only"]


# --- Quantisation ---


@pytest.fixture
def quantises(monkeypatch):
    """What it was calibrated on, by an ONNX Runtime whose quantisation copies the floats."""
    calibrated = []

    def quantise(self, model, folder, how, inputs):
        calibrated.append(inputs)
        (folder / "decoder.onnx").write_bytes(model.onnx)
        return folder / "decoder.onnx"

    kind = type(runtimes.runtime("onnx_runtime"))
    monkeypatch.setattr(kind, "quantisations", (INTEGERS,))
    monkeypatch.setattr(kind, "_quantise", quantise)
    return calibrated


@pytest.mark.parametrize("asked", [INTEGERS.name, "all"])
def test_decoders_are_quantised_beside_their_floats(path, seconds_of, quantises, asked):
    seconds_of |= {INTEGERS.name: 5e-6, "decoder": 1e-5, "stream": 1e-5}
    report = quick([path], artifacts=["decoder", "synth_stream"], quantisations=[asked])
    assert [(r.artifact, r.quantisation) for r in report.rows] == [
        ("decoder", "float"), ("decoder", INTEGERS.name), ("synth_stream", "float"),
    ]  # fmt: skip
    assert report.rows[1].rtf_ratio == pytest.approx(0.5, rel=0.02)


def test_calibration_is_on_the_bundles_clip_or_on_training_clips(path, quantises, dataset):
    bundle = benched.load_bundle(path)
    for data, n_clips in ((None, 1), (dataset, dataset.facts.n_train)):
        maker = bench_variants.Maker(bundle, path.with_name(f"made{n_clips}"), data)
        assert len([*maker.variants("decoder", ["onnx_runtime"], ["all"])]) == 2
        assert quantises[-1].shape == (n_clips, dataset.clips("train").f0_hz.shape[1], 2)
        assert quantises[-1].dtype == np.float32


# --- What it refuses ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"artifacts": ["decoders"]}, "no artefact named 'decoders'"),
        ({"blocks": ["whole"]}, "no block of 'whole'"),
        ({"blocks": [0]}, "no block of '0'"),
        ({"blocks": [10**30]}, "no block of '1000"),
        ({"seconds": 0}, "0 s of calls"),
        ({"seconds": float("nan")}, "nan s of calls"),
        ({"blocks": []}, "nothing to bench"),
        ({"blocks": [100]}, "nothing to bench: no blocks of 100 samples"),
        ({"quantisations": ["hope"]}, "no quantisation 'hope' in onnx_runtime"),
    ],
)
def test_values_that_are_not_taken_are_one_error_with_a_hint(path, seconds_of, options, words):
    with pytest.raises(BenchError, match=words) as error:
        quick([path], **options)
    assert error.value.hint
    assert "\n" not in error.value.message


def test_a_runtime_that_is_named_has_to_be_there(path, monkeypatch):
    monkeypatch.setattr(runtimes.runtime("openvino").__class__, "version", None)
    with pytest.raises(MissingRuntimeError, match="OpenVINO is not installed") as error:
        quick([path], runtimes=["openvino"])
    assert "pip install" in error.value.hint
    with pytest.raises(MissingRuntimeError, match="no runtime named 'openvin'") as caught:
        quick([path], runtimes=["openvin"])
    assert ", c" in caught.value.hint or caught.value.hint.endswith("c")


def test_a_damaged_bundle_is_refused_before_anything_is_loaded(path, seconds_of):
    (path / "decoder.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        quick([path])
    assert not seconds_of.called


def test_a_damaged_dataset_is_refused_before_anything_is_loaded(
    path, dataset, seconds_of, tmp_path
):
    damaged = shutil.copytree(dataset.path, tmp_path / "data")
    (damaged / "clips.arrow").write_bytes((damaged / "clips.arrow").read_bytes()[:-1])
    with pytest.raises(DatasetError, match="cut short"):
        quick([path], dataset=damaged)
    assert not seconds_of.called


def test_a_dataset_of_other_rates_is_refused(path, dataset, monkeypatch):
    other = replace(dataset, facts=replace(dataset.facts, sample_rate=32_000))
    monkeypatch.setattr(benched, "load_dataset", lambda _: other)
    with pytest.raises(DatasetError, match="64 samples at 32000 Hz"):
        quick([path], dataset=dataset.path)


def test_a_process_that_fails_is_one_error(path, monkeypatch):
    def failing(*_, **__):
        return subprocess.CompletedProcess([], 1, "", "Traceback\n  ...\nValueError: no\n")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(ExportError, match="failed in a new process: ValueError: no") as error:
        quick([path])
    assert "\n" not in error.value.message


# --- What is played ---


def test_a_clip_is_played_block_by_block_and_over_again():
    played = []
    loaded = Loaded(lambda *block: played.append(block), lambda f0, loudness: (f0, loudness))
    f0_hz = np.arange(7.0)
    call = loaded.calls(f0_hz, -f0_hz, 3)
    assert [call() >= 0 for _ in range(3)] == [True] * 3
    expected = [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert [f0.tolist() for f0, _ in played] == expected
    assert all((loudness == -f0).all() for f0, loudness in played)


def test_a_clip_that_is_shorter_than_a_block_is_repeated():
    played = []
    loaded = Loaded(lambda *block: played.append(block), lambda f0, loudness: (f0, loudness))
    loaded.calls(np.arange(2.0), np.zeros(2), 5)()
    assert played[0][0].tolist() == [0, 1, 0, 1, 0]


def test_a_clock_that_is_elsewhere_is_the_one_that_counts():
    loaded = Loaded(print, lambda f0, loudness: (f0,), seconds=lambda f0: f0.sum())
    call = loaded.calls(np.arange(4.0), np.zeros(4), 2)
    assert [call(), call(), call()] == [1, 5, 1]


def test_decoders_are_timed_by_the_clock_of_their_session(path, monkeypatch):
    subject = Subject("decoder", "onnx_runtime", str(path / "decoder.onnx"))
    monkeypatch.setattr("thesis.runtimes.contract.Session.seconds", lambda self, x: x.shape[-1])
    assert subject.load().calls(np.full(9, 220.0), np.zeros(9), 3)() == 3


def test_memory_of_processes_that_a_runtime_starts_counts():
    alone = bench_process._peak_memory_bytes()
    hungry = "x = b'x' * 50_000_000; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hungry], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        together = bench_process._peak_memory_bytes()
        child.communicate(b"\n")
    assert together - alone > 50_000_000


def test_streams_play_what_the_bundle_renders(path):
    bundle = benched.load_bundle(path)
    controls, stream = bundle.controls(), bundle.stream()
    loaded = Subject("synth_stream", "onnx_runtime", str(path / "synth_stream.onnx")).load()
    block = loaded.arranged(controls.f0_hz, controls.loudness_db)
    np.testing.assert_array_equal(loaded.play(*block), stream(controls.f0_hz, controls.loudness_db))


def test_c_plays_what_the_bundle_renders(path):
    bundle = benched.load_bundle(path)
    controls = bundle.controls()
    maker = bench_variants.Maker(bundle, path.with_name("made"))
    for artifact, expected in (
        ("synth_stream", bundle.stream()(controls.f0_hz, controls.loudness_db)),
        ("decoder_stream", bundle.session.decode(inputs_of(controls))[0]),
    ):
        (variant,) = maker.variants(artifact, ["c"], [])
        loaded = variant.subject.load()
        played = loaded.play(*loaded.arranged(controls.f0_hz, controls.loudness_db))
        np.testing.assert_allclose(played, expected, atol=1e-4)
        assert variant.size_bytes > 1000


def test_the_header_of_a_bundle_is_never_compiled(path, tmp_path):
    trap = tmp_path / "sprung"
    code = f'__attribute__((constructor)) static void f(void) {{ fopen("{trap}", "w"); }}'
    header = path / "ddsp.h"
    header.write_text(f"#include <stdio.h>\n{code}\n{header.read_text()}")
    maker = bench_variants.Maker(benched.ModelBundle(path), path.with_name("made"))
    (variant,) = maker.variants("synth_stream", ["c"], [])
    assert variant.subject.load().cycle == 1
    assert not trap.exists()


def inputs_of(controls):
    return decoder_inputs(controls.f0_hz, controls.loudness_db)[None]


def test_c_is_refused_where_there_is_no_compiler(path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ExportError, match="no C compiler"):
        quick([path], runtimes=["c"])


# --- Losses ---


def test_losses_are_those_of_what_is_heard(path, dataset):
    from thesis.losses import spectral_loss

    bundle = benched.load_bundle(path)
    maker = bench_variants.Maker(bundle, path.with_name("made"))
    (variant,) = maker.variants("decoder", ["onnx_runtime"], [])
    clips = dataset.clips("validation")
    noise = white_noise(0, len(clips), clips.audio.shape[1])
    losses = []
    for i in range(len(clips)):
        inputs = decoder_inputs(clips.f0_hz[i], clips.loudness_db[i])
        decoded = bundle.session.decode(inputs[None])[0]
        outputs = absolute_levels(decoded, inputs, bundle.session.synth)
        rates = {"sample_rate": RATE, "hop_size": HOP, "config": bundle.session.synth}
        audio = synthesize(outputs, clips.f0_hz[i], noise[i], bundle.impulse_response, **rates)
        losses.append(spectral_loss(clips.audio[i : i + 1], audio[None].astype(np.float32)).numpy())
    assert benched._loss(variant, dataset) == pytest.approx(np.mean(losses), rel=1e-4)


# --- All of it ---


def test_a_bundle_is_benched(path, dataset):
    report = bench([path], blocks=[64, "clip"], seconds=0.01, dataset=dataset.path)
    assert [(r.artifact, r.block) for r in report.rows] == [
        (artifact, block)
        for artifact in ("decoder", "decoder_stream", "synth_stream")
        for block in (64, "clip")
    ]
    assert report.skipped == ()
    assert report.machine.keys() == {"processor", "cores", "conditions"}
    for row in report.rows:
        assert 0 < row.p50_seconds <= row.p95_seconds <= row.p99_seconds <= row.max_seconds
        assert min(row.rtf, row.first_call_seconds, row.start_seconds, row.load_seconds) > 0
        assert 1e7 < row.peak_memory_bytes < 1e10
        assert row.calls >= 50
        assert (row.val_loss is not None) == (row.artifact == "decoder")


def test_a_process_measures_without_the_packages_of_other_runtimes():
    code = "import sys, thesis.bench_process; "
    code += "print(sorted({'onnxruntime', 'tensorflow', 'torch'} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
