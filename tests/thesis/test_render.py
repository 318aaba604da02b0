"""A recording through a model: its pitch, its length, another sound."""

import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from thesis import render as stage
from thesis.config import SynthConfig
from thesis.errors import AudioError
from thesis.features import estimate_f0
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

        def render(self, controls):
            self.given = controls
            phase = np.cumsum(np.repeat(controls.f0_hz, HOP).astype(np.float64) / RATE)
            return np.sin(2 * np.pi * phase).astype(np.float32)

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


def test_a_disk_that_fills_up_leaves_nothing(sine, recording, tmp_path, monkeypatch):
    def half(path, *_):
        path.write_bytes(b"RIFF")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stage, "write_audio", half)
    with pytest.raises(AudioError, match="cannot write"):
        render_recording(sine, recording, tmp_path / "out.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


def test_a_recording_without_samples_is_an_error(sine, tmp_path):
    soundfile.write(tmp_path / "in.wav", np.empty(0), RATE)
    with pytest.raises(AudioError, match="holds no samples"):
        render_recording(sine, tmp_path / "in.wav", tmp_path / "out.wav")


def test_what_is_no_recording_is_an_error(sine, tmp_path):
    (tmp_path / "in.wav").write_text("a letter")
    with pytest.raises(AudioError):
        render_recording(sine, tmp_path / "in.wav", tmp_path / "out.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


@pytest.mark.parametrize("n_samples", [1, 100, 2000])
def test_a_recording_shorter_than_a_frame_of_the_pitch_tracker_is_played(sine, tmp_path, n_samples):
    soundfile.write(tmp_path / "in.wav", note(1, rate=RATE)[:n_samples], RATE)
    seconds = render_recording(sine, tmp_path / "in.wav", tmp_path / "out.wav")
    assert seconds == n_samples / RATE
