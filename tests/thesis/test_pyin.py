"""Our pYIN against librosa's, whose details it shares."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import REAL_DATA
from thesis.features import load_audio
from thesis.pyin import PitchGrid, pyin

RATE, HOP = 16_000, 64
TIME = np.arange(2 * RATE) / RATE
NOISE = np.random.default_rng(0).standard_normal(len(TIME))


def grid(f0_min_hz: float = 50.0, f0_max_hz: float = 2000.0, bins: int = 2, move: int = 2):
    size = 1 << math.ceil(math.log2(6 * RATE / f0_min_hz))
    return PitchGrid(RATE, HOP, f0_min_hz, f0_max_hz, size, bins, move)


def librosa_pyin(audio: np.ndarray, grid: PitchGrid):
    import librosa

    return librosa.pyin(
        audio,
        sr=grid.sample_rate,
        fmin=grid.f0_min_hz,
        fmax=grid.f0_max_hz,
        frame_length=grid.frame_size,
        hop_length=grid.hop_size,
        resolution=1 / grid.bins_per_semitone,
        max_transition_rate=grid.semitones_per_frame * grid.sample_rate / 12 / grid.hop_size,
        fill_na=None,
    )


def saw(f0_hz: np.ndarray | float) -> np.ndarray:
    phase = np.cumsum(np.broadcast_to(f0_hz, TIME.shape)) / RATE
    return sum(np.sin(2 * np.pi * k * phase) / k for k in range(1, 9))


SOUNDS = {
    "low": saw(61.0),
    "high": saw(1500.0),
    "glide": saw(80 * 2 ** (TIME * 2)),
    "leap": saw(np.where(TIME < 1, 200.0, 600.0)),
    "note in noise": 0.1 * saw(220.0) + 0.3 * NOISE,
    "noise": NOISE,
    "rest": saw(300.0) * (np.abs(TIME - 1) > 0.3),
    "silence": np.zeros_like(TIME),
}


def assert_equal(audio: np.ndarray, grid: PitchGrid) -> None:
    audio = audio.astype(np.float64)  # librosa would compute in single precision
    for ours, theirs in zip(pyin(audio, grid), librosa_pyin(audio, grid), strict=True):
        # Where two troughs are equally low, rounding decides; it may for a frame or two.
        assert ours.shape == theirs.shape
        assert np.mean(np.abs(ours.astype(float) - theirs) > 1e-9 * np.abs(theirs)) < 0.005


@pytest.mark.parametrize("sound", SOUNDS)
def test_equals_librosa(sound: str) -> None:
    assert_equal((0.2 * SOUNDS[sound]).astype(np.float32), grid())


@pytest.mark.parametrize("options", [(30.0, 500.0, 2, 2), (100.0, 4000.0, 4, 1), (50, 2000, 1, 4)])
def test_equals_librosa_on_other_grids(options: tuple) -> None:
    assert_equal((0.2 * SOUNDS["glide"] + 0.01 * NOISE).astype(np.float32), grid(*options))


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no recordings in {REAL_DATA}")
@pytest.mark.parametrize("instrument", ["cello", "bass", "alto_sax"])
def test_equals_librosa_on_recordings(instrument: str) -> None:
    for path in sorted((REAL_DATA / instrument).glob("*.flac"))[::25]:
        assert_equal(
            load_audio(path, RATE)[: 4 * RATE], grid(30.0 if instrument == "bass" else 50.0)
        )


def test_frames_are_analysed_alike_however_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = (0.2 * SOUNDS["note in noise"]).astype(np.float32)
    whole = pyin(audio, grid())
    monkeypatch.setattr("thesis.pyin._BLOCK_SAMPLES", 3 * grid().frame_size)
    for some, every in zip(pyin(audio, grid()), whole, strict=True):
        np.testing.assert_array_equal(some, every)


def test_a_recording_is_read_and_tracked_without_numba(tmp_path: Path) -> None:
    # It keeps compiled code where other processes find it, whole or not.
    for suffix in ("wav", "mp3"):
        soundfile.write(tmp_path / f"a.{suffix}", 0.2 * saw(220.0), RATE)
    code = (
        "import sys; from thesis.features import *; from thesis.metrics import *\n"
        "for path in sys.argv[1:]:\n"
        "    audio = load_audio(path, 8000)\n"
        "    estimate_f0(audio, 8000, 80, 50, 2000); compute_loudness(audio, 8000, 80)\n"
        "    mel_cepstral_distance(audio[None], audio[None], sample_rate=8000)\n"
        "sys.exit(', '.join({'numba', 'librosa'} & set(sys.modules)) or 0)"
    )
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
