"""The synthetic instrument behaves like one, and its pitch is what it says."""

import numpy as np
import pytest

from thesis.demo_instrument import RANGE_HZ, Phrase, play
from thesis.features import compute_loudness, estimate_f0

RATE, HOP = 16_000, 64


@pytest.fixture(scope="module")
def phrases() -> list[Phrase]:
    return list(play(4, seconds=3.0, sample_rate=RATE, hop_size=HOP, seed=7))


def test_shapes_and_ranges(phrases: list[Phrase]) -> None:
    for phrase in phrases:
        assert phrase.audio.shape == (3 * RATE,)
        assert phrase.f0_hz.shape == phrase.sounding.shape == (3 * RATE // HOP,)
        assert phrase.audio.dtype == phrase.f0_hz.dtype == np.float32
        assert 0.02 < np.abs(phrase.audio).max() < 1
        assert RANGE_HZ[0] <= phrase.f0_hz.min() <= phrase.f0_hz.max() <= RANGE_HZ[1]


def test_the_known_pitch_is_the_one_that_is_heard(phrases: list[Phrase]) -> None:
    for phrase in phrases:
        heard, confidence = estimate_f0(phrase.audio, RATE, HOP, 100, 2000)
        clear = phrase.sounding & (confidence > 0.8)
        assert clear.mean() > 0.3
        cents = np.abs(1200 * np.log2(heard / phrase.f0_hz))[clear]
        assert np.median(cents) < 5


def test_a_seed_plays_the_same_phrases_however_many(phrases: list[Phrase]) -> None:
    again = next(play(1, seconds=3.0, sample_rate=RATE, hop_size=HOP, seed=7))
    np.testing.assert_array_equal(again.audio, phrases[0].audio)
    other = next(play(1, seconds=3.0, sample_rate=RATE, hop_size=HOP, seed=8))
    assert not np.array_equal(other.f0_hz, phrases[0].f0_hz)


def test_phrases_have_notes_rests_and_dynamics(phrases: list[Phrase]) -> None:
    for phrase in phrases:
        loudness_db = compute_loudness(phrase.audio, RATE, HOP)[phrase.sounding]
        assert 0.5 < phrase.sounding.mean() < 1
        assert np.percentile(loudness_db, 95) - np.percentile(loudness_db, 5) > 8
        assert phrase.f0_hz.max() / phrase.f0_hz.min() > 1.2


def test_louder_is_brighter(phrases: list[Phrase]) -> None:
    audio = np.concatenate([p.audio for p in phrases]).reshape(-1, 1600)
    spectra = np.abs(np.fft.rfft(audio * np.hanning(1600))) ** 2
    power = spectra.sum(axis=1)
    frequency_hz = np.fft.rfftfreq(1600, 1 / RATE)
    centroid_hz = (spectra @ frequency_hz) / (power + 1e-9)
    loud, soft = power > np.percentile(power, 80), power < np.percentile(power, 50)
    audible = power > 1e-3
    assert np.median(centroid_hz[loud]) > 1.2 * np.median(centroid_hz[soft & audible])


@pytest.mark.parametrize(("rate", "hop"), [(8000, 80), (44_100, 441)])
def test_other_rates_play_too(rate: int, hop: int) -> None:
    phrase = next(play(1, seconds=1.0, sample_rate=rate, hop_size=hop))
    assert phrase.audio.shape == (rate,)
    assert np.isfinite(phrase.audio).all()
