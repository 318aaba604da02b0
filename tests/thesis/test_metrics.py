"""Metrics of renderings, against sounds whose differences are known and loops over definitions."""

import math
from dataclasses import replace

import numpy as np
import pytest

from thesis.data import ClipFormat, Clips
from thesis.features import compute_loudness, estimate_f0
from thesis.metrics import (
    Quality,
    compare,
    f0_error,
    loudness_error,
    mel_cepstral_distance,
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
    assert quality == Quality(quality.f0_error_cents, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("rendering", [SILENCE, NOISE], ids=["silence", "noise"])
def test_a_rendering_without_pitch_misses_it_and_has_no_error(rendering):
    quality = compare(clips_of(tones([440.0])), rendering, FORMAT)
    assert quality.f0_error_cents is None
    assert quality.f0_missed_share == 1.0
    assert quality.loudness_error_db > 1
    assert quality.mel_cepstral_distance_db > 1


def test_silence_of_silence_is_perfect_where_it_is_defined():
    assert compare(clips_of(SILENCE), SILENCE, FORMAT) == Quality(None, None, 0.0, None)


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


# --- Timbre ---


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
