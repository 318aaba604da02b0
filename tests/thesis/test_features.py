"""Reading recordings, loudness against ddsp, pitch against synthetic tones."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from thesis import features
from thesis.errors import AudioError
from thesis.features import compute_loudness, estimate_f0, load_audio
from thesis.pyin import PitchGrid, pyin

RATE, HOP = 16_000, 64


def sine(frequency_hz: float, seconds: float, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate)) / rate)


def sawtooth(f0_hz: np.ndarray) -> np.ndarray:
    """A dozen harmonics of a pitch that is given for every sample, none near Nyquist."""
    phase = np.cumsum(f0_hz) / RATE
    harmonics = range(1, 13)
    tone = sum((k * f0_hz < 7500) / k * np.sin(2 * np.pi * k * phase) for k in harmonics)
    noise = np.random.default_rng(0).standard_normal(len(phase))
    return (0.2 * tone + 1e-4 * noise).astype(np.float32)


def cents_off(estimate_hz: np.ndarray, f0_hz: np.ndarray) -> np.ndarray:
    """Absolute errors, but for the first and last tenth of a second."""
    edge = RATE // HOP // 10
    return np.abs(1200 * np.log2(estimate_hz / f0_hz[::HOP]))[edge:-edge]


# --- load_audio ---


@pytest.mark.parametrize(
    ("subtype", "tolerance"),
    [("PCM_U8", 1e-2), ("PCM_16", 1e-4), ("PCM_24", 1e-6), ("PCM_32", 1e-7), ("FLOAT", 1e-7)],
)
def test_wav_of_any_bit_depth_is_read(tmp_path: Path, subtype: str, tolerance: float) -> None:
    tone = sine(440, 0.5)
    soundfile.write(tmp_path / "a.wav", tone, RATE, subtype=subtype)
    audio = load_audio(tmp_path / "a.wav", RATE)
    assert audio.dtype == np.float32
    np.testing.assert_allclose(audio, tone, atol=tolerance)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_compressed_recordings_keep_their_length_and_pitch(tmp_path: Path, suffix: str) -> None:
    tone = sine(440, 1.0)
    soundfile.write(tmp_path / f"a.{suffix}", tone, RATE)
    audio = load_audio(tmp_path / f"a.{suffix}", RATE)
    assert audio.shape == tone.shape
    assert np.corrcoef(audio, tone)[0, 1] > 0.99


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = sine(300, 0.2), sine(500, 0.2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav", RATE), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 96_000])
def test_other_sample_rates_are_resampled_in_place(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", sine(440, 1.0, rate), rate, subtype="FLOAT")
    audio = load_audio(tmp_path / "a.wav", RATE)
    assert len(audio) == RATE
    middle = slice(RATE // 4, -RATE // 4)
    np.testing.assert_allclose(audio[middle], sine(440, 1.0)[middle], atol=1e-3)


def test_tones_above_the_new_nyquist_do_not_alias(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sine(10_000, 1.0, 48_000), 48_000, subtype="FLOAT")
    middle = load_audio(tmp_path / "a.wav", RATE)[RATE // 4 : -RATE // 4]
    assert np.abs(middle).max() < 1e-4


def test_a_recording_without_samples_is_empty(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.empty(0), 44_100)
    assert load_audio(tmp_path / "a.wav", RATE).shape == (0,)


@pytest.mark.parametrize("rate", [1, 999, 2**31 - 1])
def test_a_rate_that_no_recording_has_is_one_error_and_no_flood_of_samples(
    tmp_path: Path, rate: int
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), rate)
    tracemalloc.start()
    with pytest.raises(AudioError, match="by its header"):
        load_audio(tmp_path / "a.wav", RATE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_no_number_is_an_error(tmp_path: Path, bad: float) -> None:
    tone = sine(440, 0.5)
    tone[100] = bad
    soundfile.write(tmp_path / "a.wav", tone, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav' holds NaN or infinite"):
        load_audio(tmp_path / "a.wav", RATE)


@pytest.mark.parametrize("largest", [1e7, 1e30, 3e38])
def test_samples_far_beyond_full_scale_are_an_error(tmp_path: Path, largest: float) -> None:
    soundfile.write(tmp_path / "a.wav", largest * sine(440, 0.5), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav' holds samples of .*within -1 and 1"):
        load_audio(tmp_path / "a.wav", RATE)


def test_levels_above_full_scale_are_left_as_they_are(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 20 * sine(440, 0.5), RATE, subtype="FLOAT")
    assert np.abs(load_audio(tmp_path / "a.wav", RATE)).max() == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_truncated_recording_is_an_error(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 9 * RATE), RATE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(AudioError, match=rf"a\.{suffix}") as caught:
        load_audio(path, RATE)
    assert caught.value.hint


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("content", [b"", b"Dear diary, today I named a letter .wav.\n" * 20])
def test_a_file_that_is_no_audio_is_an_error(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=rf"a\.{suffix}' is not audio"):
        load_audio(path, RATE)


def test_a_folder_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(AudioError, match="is no file"):
        load_audio(tmp_path / "a.wav", RATE)
    with pytest.raises(AudioError, match="No such file"):
        load_audio(tmp_path / "b.wav", RATE)


def test_a_file_without_permission_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.wav").touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AudioError, match="Permission denied"):
        load_audio(tmp_path / "a.wav", RATE)


def test_a_wav_that_was_written_to_a_pipe_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(440, 0.5), RATE)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert len(load_audio(path, RATE)) == RATE // 2


# --- compute_loudness ---


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # In librosa.A_weighting.
@pytest.mark.parametrize(("rate", "hop"), [(16_000, 64), (16_000, 160), (44_100, 441)])
def test_loudness_equals_that_of_ddsp(rate: int, hop: int) -> None:
    from thesis._ddsp import ddsp

    rng = np.random.default_rng(0)
    noise = rng.standard_normal(rate) * np.logspace(-5, -0.5, rate)
    tone = sine(660, 1.0, rate) * (np.arange(rate) % 4000 > 1500)
    for audio in (noise, tone, np.zeros(rate), noise[: rate - 37]):
        audio = audio.astype(np.float32)
        expected = ddsp.spectral_ops.compute_loudness(audio, rate, rate // hop).numpy()
        loudness_db = compute_loudness(audio, rate, hop)
        assert len(loudness_db) == -(-len(audio) // hop)
        np.testing.assert_allclose(loudness_db, expected[: len(loudness_db)], atol=1e-3)


def test_silence_has_the_floor_and_a_full_scale_sine_has_20_db() -> None:
    assert (compute_loudness(np.zeros(RATE, np.float32), RATE, HOP) == -80).all()
    tone = 2 * sine(1000, 1.0).astype(np.float32)
    assert compute_loudness(tone, RATE, HOP)[100] == pytest.approx(20, abs=0.5)


def test_a_frame_is_centred_on_its_sample() -> None:
    click = np.zeros(RATE, np.float32)
    click[100 * HOP] = 1.0
    loudness_db = compute_loudness(click, RATE, HOP)
    assert loudness_db.argmax() == 100
    np.testing.assert_allclose(loudness_db[97:100], loudness_db[103:100:-1], atol=1e-3)


def test_loudness_of_a_long_recording_does_not_depend_on_its_blocks() -> None:
    audio = np.random.default_rng(0).standard_normal(4200 * HOP).astype(np.float32)
    whole = compute_loudness(audio, RATE, HOP)
    part = compute_loudness(audio[4000 * HOP :], RATE, HOP)
    np.testing.assert_allclose(whole[4010:], part[10:], atol=1e-4)


# --- estimate_f0 ---

TIME = np.arange(3 * RATE) / RATE


@pytest.mark.parametrize("f0_hz", [55.0, 65.4, 110.0, 233.1, 441.7, 997.0, 1812.3])
def test_a_steady_tone_is_found_within_one_cent(f0_hz: float) -> None:
    truth = np.full(RATE, f0_hz)
    estimate, confidence = estimate_f0(sawtooth(truth), RATE, HOP, 50, 2000)
    assert estimate.dtype == confidence.dtype == np.float32
    assert estimate.shape == confidence.shape == (RATE // HOP,)
    assert cents_off(estimate, truth).max() < 1.0


@pytest.mark.parametrize("rate", [22_050, 44_100])
def test_other_sample_rates_make_no_difference(rate: int) -> None:
    tone = sine(440, 1.0, rate).astype(np.float32)
    estimate, _ = estimate_f0(tone, rate, rate // 100, 50, 2000)
    np.testing.assert_allclose(estimate[10:-10], 440, rtol=1e-3)


GLIDE = 100 * 2 ** (TIME / 3 * 3.5)
VIBRATO = 440 * 2 ** (40 / 1200 * np.sin(2 * np.pi * 6 * TIME))


@pytest.mark.parametrize("truth", [GLIDE, VIBRATO], ids=["glide", "vibrato"])
def test_refined_pitch_is_closer_than_that_of_a_five_times_finer_tracker(truth: np.ndarray) -> None:
    audio = sawtooth(truth)
    estimate, _ = estimate_f0(audio, RATE, HOP, 50, 2000)
    default, _, _ = pyin(audio, PitchGrid(RATE, HOP, 50, 2000, 2048, 10, 2))
    ours, theirs = cents_off(estimate, truth), cents_off(default[: len(estimate)], truth)
    assert np.percentile(ours, 95) < 3
    assert np.percentile(ours, 95) < 0.5 * np.percentile(theirs, 95)


def test_pitch_is_held_and_interpolated_where_nothing_sounds() -> None:
    truth = np.repeat([220.0, 330.0], RATE)
    audio = sawtooth(truth)
    rest = slice(int(0.6 * RATE), int(1.4 * RATE))
    audio[rest] = 0
    audio[: RATE // 5] = 0
    estimate, confidence = estimate_f0(audio, RATE, HOP, 50, 2000)
    frames = slice(rest.start // HOP + 20, rest.stop // HOP - 20)
    assert confidence[frames].max() < 0.1
    assert np.abs(np.diff(np.log2(estimate[frames]))).max() < 0.01
    assert 215 < estimate[frames].min() < estimate[frames].max() < 335
    np.testing.assert_allclose(estimate[:10], estimate[RATE // 5 // HOP + 20], rtol=0.05)


def test_silence_and_noise_have_a_pitch_without_confidence() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    for audio in (np.zeros(RATE, np.float32), noise):
        f0_hz, confidence = estimate_f0(audio, RATE, HOP, 50, 2000)
        assert np.isfinite(f0_hz).all()
        assert ((f0_hz >= 50) & (f0_hz <= 2000)).all()
        assert confidence.mean() < 0.1


def test_tracking_in_blocks_leaves_no_seam() -> None:
    truth = 300 * 2 ** (np.sin(2 * np.pi * 0.3 * np.arange(11 * RATE) / RATE) / 2)
    estimate, confidence = estimate_f0(sawtooth(truth), RATE, HOP, 50, 2000)
    assert cents_off(estimate, truth).max() < 3
    assert confidence[25:-25].min() > 0.4


def test_one_long_note_takes_hardly_more_memory_than_its_samples() -> None:
    def peak(seconds: int) -> int:
        audio = np.sin(2 * np.pi * 220 * np.arange(seconds * RATE) / RATE).astype(np.float32)
        tracemalloc.start()
        try:
            estimate_f0(audio, RATE, HOP, 32.7, 2093.0)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(60) - peak(20) < 8 * 40 * RATE * np.float32().nbytes


def test_pitch_may_move_at_a_frame_rate_of_one_millisecond() -> None:
    estimate, _ = estimate_f0(sawtooth(GLIDE[:RATE]), RATE, 16, 50, 2000)
    assert np.abs(1200 * np.log2(estimate / GLIDE[:RATE:16]))[100:-100].max() < 10


def test_importing_features_loads_no_decoder() -> None:
    import subprocess
    import sys

    code = (
        "import sys, thesis.features; sys.exit(bool({'miniaudio', 'soundfile'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_frames_are_those_whose_centre_is_within_the_audio() -> None:
    assert [features.n_frames(n, 64) for n in (0, 1, 64, 65, 128)] == [0, 1, 1, 2, 2]
