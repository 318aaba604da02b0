"""A recording through a model: its pitch, its length, another sound."""

import errno
import os
import shutil
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import soundfile

from thesis import render as stage
from thesis.bundle import WEIGHTS_FILE, Controls
from thesis.config import SynthConfig
from thesis.errors import AudioError, BundleError
from thesis.features import compute_loudness, estimate_f0
from thesis.render import render_recording

RATE, HOP = 16_000, 64


def note(seconds, f0_hz=330.0, rate=22_050):
    t = np.arange(round(seconds * rate)) / rate
    return 0.2 * sum(np.sin(2 * np.pi * k * f0_hz * t) / k for k in range(1, 6))


@pytest.fixture
def recording(tmp_path):
    """Half a second of 330 Hz in stereo, at another rate than the models'."""
    path = tmp_path / "in.wav"
    soundfile.write(path, np.stack([note(0.5)] * 2, axis=1), 22_050)
    return path


@pytest.fixture
def sine():
    """A stand-in for a bundle: plays its pitch as a sine, and keeps what it was given."""

    class Sine:
        session = SimpleNamespace(sample_rate=RATE, hop_size=HOP, synth=SynthConfig())

        def play(self, controls):
            self.given = controls
            phase = np.cumsum(np.repeat(controls.f0_hz, HOP).astype(np.float64) / RATE)
            yield from np.array_split(np.sin(2 * np.pi * phase).astype(np.float32), 7)

    return Sine()


@pytest.mark.parametrize(("semitones", "f0_hz"), [(0, 330), (12, 660), (-12, 165), (7, 494.44)])
def test_the_pitch_is_that_of_the_recording_shifted(sine, recording, tmp_path, semitones, f0_hz):
    render_recording(sine, recording, tmp_path / "out.wav", semitones=semitones)
    audio, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert rate == RATE
    heard, _ = estimate_f0(audio, rate, HOP, 50, 2000)
    np.testing.assert_allclose(np.median(heard), f0_hz, rtol=5e-3)


def test_the_loudness_is_that_of_the_recording(sine, recording, tmp_path):
    render_recording(sine, recording, tmp_path / "loud.wav")
    loud = sine.given.loudness_db
    audio, rate = soundfile.read(recording)
    soundfile.write(tmp_path / "softer.wav", 0.1 * audio, rate, subtype="FLOAT")
    render_recording(sine, tmp_path / "softer.wav", tmp_path / "soft.wav")
    np.testing.assert_allclose(sine.given.loudness_db, loud - 20, atol=0.5)


def test_a_model_of_fewer_frames_is_given_every_nth_of_them(sine, recording, tmp_path):
    render_recording(sine, recording, tmp_path / "all.wav")
    every = vars(sine.given)
    sine.session = SimpleNamespace(
        sample_rate=RATE, hop_size=3 * HOP, synth=SynthConfig(hop_multiple=3)
    )
    render_recording(sine, recording, tmp_path / "third.wav")
    for name, values in vars(sine.given).items():
        np.testing.assert_array_equal(values, every[name][::3])


def test_a_bundle_plays_a_recording_at_its_length(write_small_bundle, recording, tmp_path):
    bundle = write_small_bundle(tmp_path / "bundle")
    seconds = render_recording(bundle, recording, tmp_path / "out.wav")
    info = soundfile.info(tmp_path / "out.wav")
    assert (info.samplerate, info.channels, info.subtype) == (RATE, 1, "FLOAT")
    assert seconds == info.frames / RATE == pytest.approx(0.5, abs=1e-3)
    audio, _ = soundfile.read(tmp_path / "out.wav")
    assert np.isfinite(audio).all()
    assert abs(audio).max() > 1e-3


def test_what_exists_is_refused_and_left_alone(sine, recording, tmp_path):
    (tmp_path / "out.wav").write_text("mine")
    with pytest.raises(AudioError, match="exists already") as caught:
        render_recording(sine, recording, tmp_path / "out.wav")
    assert caught.value.hint
    assert (tmp_path / "out.wav").read_text() == "mine"


def test_a_recording_is_not_overwritten_by_its_rendering(sine, recording):
    before = recording.read_bytes()
    with pytest.raises(AudioError, match="exists already"):
        render_recording(sine, recording, recording)
    assert recording.read_bytes() == before


def test_an_output_that_cannot_be_written_is_one_line(sine, recording, tmp_path):
    with pytest.raises(AudioError, match="cannot write") as caught:
        render_recording(sine, recording, tmp_path / "missing" / "out.wav")
    assert caught.value.hint


def test_a_disk_that_fills_up_leaves_nothing(sine, recording, tmp_path):
    def half(controls):
        yield np.zeros(9, np.float32)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sine.play = half
    with pytest.raises(AudioError, match=r"cannot write .*No space left"):
        render_recording(sine, recording, tmp_path / "out.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


@pytest.mark.parametrize("name", ["out.mp3", "out", "none/out.wav", "in.wav/out.wav"])
def test_an_output_that_cannot_be_is_refused_before_the_recording_is_read(
    sine, recording, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(stage, "load_audio", lambda *_: pytest.fail("read"))
    with pytest.raises(AudioError, match="cannot write") as caught:
        render_recording(sine, recording, tmp_path / name)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


def test_a_file_that_came_meanwhile_is_left_alone(sine, recording, tmp_path):
    play = sine.play

    def meanwhile(controls):
        (tmp_path / "out.wav").write_text("another's")
        yield from play(controls)

    sine.play = meanwhile
    with pytest.raises(AudioError, match="exists already"):
        render_recording(sine, recording, tmp_path / "out.wav")
    assert (tmp_path / "out.wav").read_text() == "another's"


# --- Finite in, finite out ---


@pytest.mark.parametrize("semitones", [float("nan"), float("inf"), -float("inf"), 1e9, -121])
def test_what_none_can_be_transposed_by_is_one_line(sine, recording, tmp_path, semitones):
    with pytest.raises(AudioError, match="cannot transpose by") as caught:
        render_recording(sine, recording, tmp_path / "out.wav", semitones=semitones)
    assert caught.value.hint
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize("semitones", [-120, 120])
def test_a_pitch_that_no_model_knows_is_held(sine, recording, tmp_path, semitones):
    notes = []
    render_recording(
        sine, recording, tmp_path / "out.wav", semitones=semitones, on_note=notes.append
    )
    expected = stage.PITCH_HZ[semitones > 0]
    np.testing.assert_allclose(sine.given.f0_hz, expected, rtol=1e-6)
    assert len(notes) == 1
    assert "100.0% of the recording has a pitch beyond 8.18 to 1.25e+04 Hz" in notes[0]


@pytest.mark.parametrize("peak", [1e30, 32_768, 99, -1e38])
def test_numbers_that_are_no_audio_are_one_line(sine, tmp_path, peak):
    soundfile.write(tmp_path / "in.wav", peak * note(0.1, rate=RATE), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="audio is within -1 and 1") as caught:
        render_recording(sine, tmp_path / "in.wav", tmp_path / "out.wav")
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


@pytest.mark.parametrize("peak", [0.0, 1e-38, 1e-20, 1.0, 9.9])
def test_audio_of_any_level_is_played_within_bounds(sine, tmp_path, peak):
    audio = note(0.3, rate=RATE)
    soundfile.write(tmp_path / "in.wav", peak * audio / abs(audio).max(), RATE, subtype="FLOAT")
    notes = []
    render_recording(sine, tmp_path / "in.wav", tmp_path / "out.wav", on_note=notes.append)
    for values, (low, high) in (
        (sine.given.f0_hz, stage.PITCH_HZ),
        (sine.given.loudness_db, stage.LOUDNESS_DB),
    ):
        assert ((low <= values) & (values <= high)).all()
    assert len(notes) == (peak > 9)


@pytest.mark.parametrize("audio", [np.ones(9_000), np.sign(np.sin(np.arange(9_000) * 0.9))])
def test_nothing_within_full_scale_is_louder_than_what_loudness_is_held_at(audio):
    loudness_db = compute_loudness(audio.astype(np.float32), RATE, HOP)
    assert loudness_db.max() <= stage.LOUDNESS_DB[1]


def test_a_model_that_plays_no_numbers_writes_nothing(
    artifacts, write_small_bundle, recording, tmp_path
):
    folder = shutil.copytree(artifacts, tmp_path / "artifacts")
    weights = dict(np.load(folder / WEIGHTS_FILE))
    weights["output/bias"] = np.full_like(weights["output/bias"], -3e38)
    np.savez(folder / WEIGHTS_FILE, **weights)
    bundle = write_small_bundle(tmp_path / "bundle", folder)
    stream = bundle.path / "synth_stream.onnx"
    model = onnx.load(stream)
    for tensor in model.graph.initializer:
        if tensor.name == "output/B":
            values = np.full(tensor.dims, np.nan, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, stream)
    with pytest.raises(BundleError, match="plays values that are not finite") as caught:
        render_recording(bundle, recording, tmp_path / "out.wav")
    assert caught.value.hint
    assert not (tmp_path / "out.wav").exists()


# --- In blocks ---


def controls_of(n_frames, seed=0):
    rng = np.random.default_rng(seed)
    f0_hz = 200 * 2 ** np.cumsum(rng.normal(0, 0.02, n_frames))
    loudness_db = -40 + np.cumsum(rng.normal(0, 1, n_frames))
    return Controls(f0_hz.astype(np.float32), np.clip(loudness_db, -80, 0).astype(np.float32))


def held(controls, n_frames):
    """Controls whose last frame goes on."""
    return Controls(*(np.pad(x, (0, n_frames), "edge") for x in vars(controls).values()))


@pytest.mark.parametrize("n_frames", [1, 249, 250, 251, 700])
@pytest.mark.parametrize(
    "decoder",
    [
        {},
        {"causal": False, "kernel_size": 5},
        {"resample": "downsample", "resample_stride": 4, "norm": "batch"},
        {"norm": "time"},
    ],
)
def test_blocks_are_the_whole_rendering(
    artifacts, export, small, write_small_bundle, tmp_path, decoder, n_frames
):
    folder = shutil.copytree(artifacts, tmp_path / "artifacts")
    model, weights = export(replace(small.decoder, **decoder), small.synth)
    (folder / "decoder.onnx").write_bytes(model)
    np.savez(folder / WEIGHTS_FILE, **weights)
    bundle = write_small_bundle(tmp_path / "bundle", folder)
    controls = controls_of(n_frames)
    blocks = [*bundle.play(controls, seed=3)]
    played = np.concatenate(blocks)
    assert played.size == n_frames * HOP
    assert max(block.size for block in blocks) <= RATE
    if bundle.streams:
        expected = bundle.render(held(controls, 99), seed=3)[: played.size]
        np.testing.assert_allclose(played, expected, atol=1e-4)
    else:  # its norm sees the whole clip; only the last frame's sound goes on
        expected = bundle.render(controls, seed=3)
        np.testing.assert_allclose(played[:-HOP], expected[:-HOP], atol=1e-4)


def test_a_model_that_cannot_stream_is_not_given_an_hour(
    artifacts, export, small, write_small_bundle, tmp_path
):
    folder = shutil.copytree(artifacts, tmp_path / "artifacts")
    model, weights = export(replace(small.decoder, norm="time"), small.synth)
    (folder / "decoder.onnx").write_bytes(model)
    np.savez(folder / WEIGHTS_FILE, **weights)
    bundle = write_small_bundle(tmp_path / "bundle", folder)
    with pytest.raises(BundleError, match="3600 s are too long") as caught:
        next(bundle.play(controls_of(900_000)))
    assert "600 s at a time" in caught.value.hint


def test_memory_does_not_grow_with_the_length_of_what_is_played(write_small_bundle, tmp_path):
    bundle = write_small_bundle(tmp_path / "bundle")

    def peak(n_frames):
        controls = controls_of(n_frames)
        tracemalloc.start()
        for _ in bundle.play(controls):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(250)  # what is loaded once
    assert peak(15_000) < 1.2 * peak(1_500)


def test_a_recording_without_samples_is_an_error(sine, tmp_path):
    soundfile.write(tmp_path / "in.wav", np.empty(0), RATE)
    with pytest.raises(AudioError, match="holds no samples"):
        render_recording(sine, tmp_path / "in.wav", tmp_path / "out.wav")


def test_what_is_no_recording_is_an_error(sine, tmp_path):
    (tmp_path / "in.wav").write_text("a letter")
    with pytest.raises(AudioError):
        render_recording(sine, tmp_path / "in.wav", tmp_path / "out.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(sine, tmp_path, make):
    make(tmp_path / "in.wav")
    with pytest.raises(AudioError, match="is no file"):
        render_recording(sine, tmp_path / "in.wav", tmp_path / "out.wav")


@pytest.mark.parametrize("n_samples", [1, 100, 2000])
def test_a_recording_shorter_than_a_frame_of_the_pitch_tracker_is_played(sine, tmp_path, n_samples):
    soundfile.write(tmp_path / "in.wav", note(1, rate=RATE)[:n_samples], RATE)
    seconds = render_recording(sine, tmp_path / "in.wav", tmp_path / "out.wav")
    assert seconds == n_samples / RATE
