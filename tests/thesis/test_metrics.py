"""Metrics of renderings, against sounds whose differences are known and loops over definitions."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from thesis.data import ClipFormat, Clips
from thesis.features import compute_loudness, estimate_f0
from thesis.metrics import (
    Quality,
    compare,
    f0_error,
    log_mel_distance,
    loudness_error,
    loudness_error_sounding,
    mel_cepstral_distance,
    register_level_error,
    rest_excess,
    sounding,
)

RATE, HOP = 16_000, 64
FORMAT = ClipFormat(RATE, HOP, 1.0, 1.0, f0_min_hz=50.0, f0_max_hz=2000.0)
SILENCE = np.zeros((1, RATE), np.float32)
NOISE = (0.1 * np.random.default_rng(0).standard_normal((1, RATE))).astype(np.float32)
VOICED, UNVOICED = np.array([[0.9]]), np.array([[0.1]])


def tones(f0_hz, cents=0.0, level=0.2):
    """A clip of a dozen harmonics for each pitch, shifted."""
    phase = 2 * np.pi * np.arange(RATE) / RATE * np.array(f0_hz)[:, None] * 2 ** (cents / 1200)
    return (level * sum(np.sin(k * phase) / k for k in range(1, 13))).astype(np.float32)


def padded(audio, share=0.25):
    """The same with silence in its first and last part."""
    n = round(share * audio.shape[1])
    return np.pad(audio[:, n:-n], ((0, 0), (n, n)))


def clips_of(audio):
    features = [
        (*estimate_f0(a, RATE, HOP, 50, 2000), compute_loudness(a, RATE, HOP)) for a in audio
    ]
    f0_hz, confidence, loudness_db = map(np.stack, zip(*features, strict=True))
    names = tuple(map(str, range(len(audio))))
    return Clips(audio, f0_hz, confidence, loudness_db, names, names)


# --- All of them ---


def test_a_clip_differs_in_nothing_from_itself():
    audio = tones([130.8, 440.0])
    quality = compare(clips_of(audio), audio, FORMAT)
    assert quality.f0_error_cents == pytest.approx(0, abs=0.1)
    others = {name: value for name, value in asdict(quality).items() if name != "f0_error_cents"}
    never = {"rest_excess_db": None, "onset_error_ms": None}  # the tones never rest, nor begin
    assert others == dict.fromkeys(others, 0.0) | never


@pytest.mark.parametrize("rendering", [SILENCE, NOISE], ids=["silence", "noise"])
def test_a_rendering_without_pitch_misses_it_and_has_no_error(rendering):
    quality = compare(clips_of(tones([440.0])), rendering, FORMAT)
    assert quality.f0_error_cents is None
    assert quality.f0_missed_share == 1.0
    assert quality.loudness_error_db > 1
    assert quality.mel_cepstral_distance_db > 1


def test_silence_of_silence_is_perfect_where_it_is_defined():
    undefined = dict.fromkeys(asdict(compare(clips_of(NOISE), NOISE, FORMAT)))
    expected = Quality(**undefined | {"loudness_error_db": 0.0, "rest_excess_db": 0.0})
    assert compare(clips_of(SILENCE), SILENCE, FORMAT) == expected


def test_a_silent_rendering_of_a_note_is_wrong_in_all_that_is_defined():
    quality = compare(clips_of(padded(tones([440.0]))), SILENCE, FORMAT)
    assert quality.loudness_error_sounding_db > 60
    assert quality.log_mel_distance_db > 5
    assert quality.multi_scale_log_mel_distance_db > 5
    assert quality.register_level_error_db > 60
    assert quality.onset_error_ms == 100
    assert quality.rest_excess_db == 0


@pytest.mark.parametrize("level", [1e-38, 1e-20, 1e6], ids=str)
def test_any_finite_rendering_has_finite_metrics(level):
    rendering = (level * NOISE).astype(np.float32)
    quality = compare(clips_of(padded(tones([440.0]))), rendering, FORMAT)
    assert all(math.isfinite(value) for value in asdict(quality).values() if value is not None)


def test_a_gain_moves_what_is_of_level_and_nothing_else():
    audio = padded(tones([130.8, 440.0]))
    clips = clips_of(audio)
    quality = compare(clips, 0.25 * audio, FORMAT)
    gain_db = 20 * math.log10(4)
    assert quality.loudness_error_sounding_db == pytest.approx(gain_db, abs=1e-3)
    assert quality.register_level_error_db == pytest.approx(gain_db, abs=1e-3)
    assert quality.log_mel_distance_db == pytest.approx(0, abs=1e-4)
    assert quality.multi_scale_log_mel_distance_db == pytest.approx(0, abs=1e-4)
    assert quality.onset_error_ms == pytest.approx(0, abs=1e-3)
    assert quality.rest_excess_db == 0


def test_clips_of_another_frame_rate_are_compared_at_the_same_moments():
    # A glide: a rendering's frame that is taken for another is off by cents.
    f0_hz = 220 * 2 ** (np.arange(RATE) / RATE)
    audio = (0.3 * np.sin(2 * np.pi * np.cumsum(f0_hz) / RATE)).astype(np.float32)[None]
    for hop_size in (32, 100, 500):
        frames = f0_hz[None, ::hop_size].astype(np.float32)
        names = ("0",)
        clips = Clips(audio, frames, np.ones_like(frames), frames, names, names)
        quality = compare(clips, audio, replace(FORMAT, hop_size=hop_size))
        assert quality.f0_error_cents < 1.0
        assert quality.f0_missed_share < 0.15  # at the clip's ends the tracker sees half a frame


# --- Pitch ---


@pytest.mark.parametrize(("cents", "missed_share"), [(-20, 0.0), (45, 0.0), (55, 1.0), (1200, 1.0)])
def test_a_shifted_rendering_is_off_by_the_shift(cents, missed_share):
    quality = compare(clips_of(tones([130.8, 440.0])), tones([130.8, 440.0], cents), FORMAT)
    assert quality.f0_error_cents == pytest.approx(abs(cents), abs=0.5)
    assert quality.f0_missed_share == pytest.approx(missed_share, abs=0.02)


def test_only_frames_that_are_voiced_in_both_have_an_error():
    hz = np.array([[100.0, 100.0, 100.0, 100.0]])
    rendered_hz = hz * 2 ** (np.array([[10.0, 20.0, 400.0, 1200.0]]) / 1200)
    target_confidence = np.array([[0.5, 1.0, 0.7, 0.4]])
    confidence = np.array([[0.9, 0.5, 0.4, 0.9]])
    error, missed_share = f0_error(hz, target_confidence, rendered_hz, confidence)
    assert error == pytest.approx(15)
    assert missed_share == pytest.approx(1 / 3)


def test_octave_errors_are_missed_frames_and_do_not_move_the_error():
    hz = np.full((2, 50), 200.0)
    rendered_hz = hz * 2 ** (5 / 1200)
    rendered_hz[0, :10] *= 2
    error, missed_share = f0_error(hz, np.ones((2, 50)), rendered_hz, np.ones((2, 50)))
    assert error == pytest.approx(5)
    assert missed_share == pytest.approx(0.1)


def test_without_voiced_frames_there_is_neither_error_nor_share():
    hz = np.array([[100.0]])
    assert f0_error(hz, UNVOICED, hz, VOICED) == (None, None)
    assert f0_error(0 * hz, VOICED, hz, VOICED) == (None, None)
    assert f0_error(hz, VOICED, hz, UNVOICED) == (None, 1.0)


# --- Loudness ---


@pytest.mark.parametrize("gain", [0.25, 2.0])
def test_a_gain_is_as_many_decibels_of_loudness_error(gain):
    error = loudness_error(NOISE, gain * NOISE, sample_rate=RATE, hop_size=HOP)
    assert error == pytest.approx(abs(20 * math.log10(gain)), abs=1e-4)


def test_differences_of_opposite_sign_do_not_cancel():
    targets = np.concatenate([NOISE, NOISE])
    renderings = np.concatenate([0.5 * NOISE, 2 * NOISE])
    error = loudness_error(targets, renderings, sample_rate=RATE, hop_size=HOP)
    assert error == pytest.approx(20 * math.log10(2), abs=1e-4)


def test_frames_sound_that_are_loud_beside_their_own_clip_and_not_silent():
    loudness_db = np.array([[-80.0, -60.0, -50.0, -49.0, 0.0], [-80.0, -61.0, -60.0, -59.0, -58.0]])
    expected = [[False, False, False, True, True], [False, False, False, True, True]]
    np.testing.assert_array_equal(sounding(loudness_db), expected)


def test_padding_does_not_flatter_the_loudness_where_clips_sound():
    target = np.full((2, 100), -20.0)
    target[:, 40:] = -80.0
    rendered = np.where(target > -80, target + np.array([[3.0], [-5.0]]), target)
    assert np.abs(rendered - target).mean() == pytest.approx(1.6)
    assert loudness_error_sounding(target, rendered) == pytest.approx(4)
    assert loudness_error_sounding(np.full((1, 9), -80.0), np.zeros((1, 9))) is None


def test_rests_are_judged_by_what_is_heard_in_them():
    target = np.array([[-5.0, -5.0, -80.0, -80.0, -58.0, -80.0]])
    rendered = np.array([[10.0, -70.0, -40.0, -61.0, -59.0, -80.0]])
    assert rest_excess(target, rendered) == pytest.approx(20 / 4)  # one of four is louder
    assert rest_excess(target[:, :2], rendered[:, :2]) is None


def test_the_worst_register_counts_whatever_the_others_are():
    f0_hz = np.geomspace(50, 500, 300)[None]
    target = np.full((1, 300), -20.0)
    rendered = target + np.repeat([6.0, 0.5, -9.0], 100)
    voiced = np.ones((1, 300))
    assert register_level_error(target, rendered, f0_hz, voiced) == pytest.approx(9)
    order = np.random.default_rng(0).permutation(300)
    shuffled = (values[:, order] for values in (target, rendered, f0_hz, voiced))
    assert register_level_error(*shuffled) == pytest.approx(9)
    voiced[:, 200:] = 0.1
    assert register_level_error(target, rendered, f0_hz, voiced) == pytest.approx(6, abs=0.1)


def test_registers_are_of_voiced_frames_that_sound_and_signs_cancel_in_each():
    level, f0_hz = np.full((1, 4), -20.0), np.full((1, 4), 220.0)
    rendered = level + np.array([[8.0, -8.0, 8.0, -8.0]])
    assert register_level_error(level, rendered, f0_hz, np.ones((1, 4))) == pytest.approx(0)
    assert register_level_error(level, rendered, f0_hz, np.zeros((1, 4))) is None
    assert register_level_error(level, rendered, 0 * f0_hz, np.ones((1, 4))) is None
    assert register_level_error(level - 60, rendered, f0_hz, np.ones((1, 4))) is None


# --- Timbre ---


def log_mel_of_frame(frame, rate, gain):
    """Powers of 64 mel bands, by sums over the definition."""
    size = len(frame)
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / size) for n in range(size)]
    spectrum = [
        abs(sum(gain * w * x * np.exp(-2j * np.pi * k * n / size)
                for n, (w, x) in enumerate(zip(window, frame, strict=True)))) ** 2
        for k in range(size // 2 + 1)
    ]  # fmt: skip
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = [700 * (10 ** (top * i / 65 / 2595) - 1) for i in range(66)]
    return [
        sum(p * max(0.0, min((k * rate / size - low) / (centre - low),
                             (high - k * rate / size) / (high - centre)))
            for k, p in enumerate(spectrum))
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False)
    ]  # fmt: skip


def test_log_mel_distance_follows_its_definition():
    rate, size, hop = 4000, 64, 16
    rng = np.random.default_rng(0)
    target = rng.standard_normal(160) * np.repeat([0.1, 1e-5], [96, 64])
    audio = 0.3 * np.convolve(target, [1, 0.7, 0.2], mode="same") + 1e-4 * rng.standard_normal(160)
    target, audio = target.astype(np.float32), audio.astype(np.float32)
    sounds = np.arange(160 // 8) < 12
    gain = math.sqrt(sum(target.astype(float) ** 2) / sum(audio.astype(float) ** 2))
    powers = []
    for start in range(0, 160, hop):
        if sounds[start // 8]:
            frames = (np.pad(x, size // 2)[start : start + size] for x in (target, audio))
            powers.append([log_mel_of_frame(f, rate, g) for f, g in zip(frames, (1, gain))])  # noqa: B905
    floor = 1e-6 * np.max([of_target for of_target, _ in powers])
    levels = 10 * np.log10(np.maximum(powers, floor))
    assert len(powers) == 6
    found = log_mel_distance(
        target[None], audio[None], sounds[None], sample_rate=rate, hop_size=8, frame_seconds=0.016
    )
    assert found == pytest.approx(np.abs(levels[:, 0] - levels[:, 1]).mean(), rel=1e-4)


@pytest.mark.parametrize("rate", [4000, 11_025, 44_100, 48_000])
def test_log_mel_distance_takes_any_rate(rate):
    noise = np.random.default_rng(0).standard_normal((1, rate)).astype(np.float32)
    sounds = np.ones((1, -(-rate // 100)), np.bool_)
    difference = noise - np.pad(noise, ((0, 0), (1, 0)))[:, :-1]
    for seconds in (0.032, 0.064, 0.256):
        options = {"sample_rate": rate, "hop_size": 100, "frame_seconds": seconds}
        assert log_mel_distance(noise, noise, sounds, **options) == 0
        assert 2 < log_mel_distance(noise, difference, sounds, **options) < 20


def test_what_a_rendering_does_in_rests_is_no_distance():
    audio = padded(tones([220.0]))
    sounds = np.zeros((1, RATE // HOP), np.bool_)
    sounds[:, 100:150] = True
    found = log_mel_distance(audio, audio + 1e-4, sounds, sample_rate=RATE, hop_size=HOP)
    assert found < 0.5
    nothing = ~(sounds | True)
    assert log_mel_distance(audio, audio, nothing, sample_rate=RATE, hop_size=HOP) is None


def cepstrum_of_frame(frame, rate):
    """Cepstral coefficients of the log amplitude over mel bands, by sums; None below the floor."""
    size = len(frame)
    powers = []
    for k in range(size // 2 + 1):
        windowed = [x * (0.5 - 0.5 * math.cos(2 * math.pi * n / size)) for n, x in enumerate(frame)]
        angle = 2 * np.pi * k * np.arange(size) / size
        real, imaginary = np.dot(windowed, np.cos(angle)), np.dot(windowed, np.sin(angle))
        powers.append((real**2 + imaginary**2) / (size / 4) ** 2)

    def hz(mel):
        return 700 * (10 ** (mel / 2595) - 1)

    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = [hz(top * i / 41) for i in range(42)]
    levels = []
    for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
        power = 0.0
        for k, p in enumerate(powers):
            f = k * rate / size
            power += p * max(0.0, min((f - low) / (centre - low), (high - f) / (high - centre)))
        levels.append(0.5 * math.log(max(power, 1e-8)))
    if max(levels) <= 0.5 * math.log(1e-8):
        return None
    return [
        2 / 40 * sum(v * math.cos(math.pi * d * (b + 0.5) / 40) for b, v in enumerate(levels))
        for d in range(1, 14)
    ]


def test_mel_cepstral_distance_follows_its_definition():
    rate, size, hop = 4000, 256, 64
    rng = np.random.default_rng(0)
    target = rng.standard_normal(800) * np.repeat([1e-7, 0.1], [500, 300])
    audio = np.convolve(target, [1, 0.7, 0.2], mode="same") + 1e-3 * rng.standard_normal(800)
    distances = []
    for start in range(0, 800 + 1, hop):
        a, b = (
            cepstrum_of_frame(np.pad(x, size // 2)[start : start + size], rate)
            for x in (target, audio)
        )
        if a is not None:
            squares = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
            distances.append(10 * math.sqrt(2) / math.log(10) * math.sqrt(squares))
    assert 3 < len(distances) < 10
    found = mel_cepstral_distance(target[None], audio[None], sample_rate=rate)
    assert found == pytest.approx(np.mean(distances), rel=1e-5)


def test_a_change_of_level_is_no_change_of_timbre():
    assert mel_cepstral_distance(NOISE, 3 * NOISE, sample_rate=RATE) == pytest.approx(0, abs=1e-5)


def test_a_steady_slope_of_the_spectrum_is_its_root_mean_square_in_decibels():
    # A low-pass over noise: on the mel scale its response is nearly a cosine of half a period.
    response = np.array([0.5, 0.5])
    filtered = np.convolve(NOISE[0], response, mode="same")[None]
    edges = 700 * (10 ** (np.linspace(0, 1, 42)[1:-1] * math.log10(1 + 8000 / 700)) - 1)
    decibels = 20 * np.log10(np.abs(np.cos(np.pi * edges / RATE)))
    expected = np.sqrt(np.mean((decibels - decibels.mean()) ** 2))
    found = mel_cepstral_distance(NOISE, filtered.astype(np.float32), sample_rate=RATE)
    assert found == pytest.approx(expected, rel=0.1)
