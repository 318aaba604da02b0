"""A synthetic bowed string and somebody who plays it: audio whose pitch is known exactly.

For trying everything out without a recording. It is no model of a violin, but it is hard in the
ways that a violin is: the spectrum depends on pitch (a body with resonances, four strings) and on
loudness (a firm bow is bright), the bow hisses, the player slides, swells and uses vibrato, and a
room answers. A small decoder catches the gist of it and a larger one the details.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.signal
from numpy.random import Generator
from numpy.typing import NDArray

from thesis.features import Frames, Samples

RANGE_HZ = (180.0, 1200.0)
"""All notes, slides and vibrato are within these."""

_Curve = NDArray[np.float64]

_SCALE = np.array([0, 2, 3, 5, 7, 8, 10])  # Natural minor,
_TONIC_MIDI, _N_DEGREES = 55, 17  # on G3, up to B flat 5.

_STRINGS_MIDI = np.array([55, 62, 69, 76])
_STRING_BRIGHTNESS = np.array([0.75, 0.9, 1.05, 1.3])

_BODY_HZ = np.array([275, 420, 520, 700, 940, 1250, 1750, 2450, 3100, 4300])
_BODY_WIDTH_HZ = np.array([25, 35, 45, 60, 80, 120, 160, 300, 500, 700])
_BODY_GAIN = np.array([1.6, 1.3, 2.0, 0.7, 1.2, 0.9, 0.8, 1.7, 1.4, 0.7])

_ROOM_SECONDS = 0.4
_LEVEL_RANGE_DB = 34.0
_FULL_SCALE = 0.16  # Leaves some headroom over the loudest accents.


@dataclass(frozen=True)
class Phrase:
    """Some seconds of playing.

    Attributes:
      audio: Shape [n_samples], within -1 and 1.
      f0_hz: Pitch at sample `t * hop_size`, shape [n_frames]; it glides through rests.
      sounding: Whether the string is bowed at that moment, shape [n_frames]. The room may
        still ring where it is not.
    """

    audio: Samples
    f0_hz: Frames
    sounding: NDArray[np.bool_]


def play(
    n_phrases: int, *, seconds: float, sample_rate: int, hop_size: int, seed: int = 0
) -> Iterator[Phrase]:
    """Plays phrases, all different, on one instrument in one room.

    Args:
      n_phrases: Number of phrases.
      seconds: Length of each.
      sample_rate: In Hz, at least 4000.
      hop_size: Samples from one frame of f0 to the next.
      seed: Of everything random. The n-th phrase of a seed is the same however many are played.
    """
    room_seed, *phrase_seeds = np.random.SeedSequence(seed).spawn(1 + n_phrases)
    room = _room(np.random.default_rng(room_seed), sample_rate)
    n_samples = round(seconds * sample_rate)
    for phrase_seed in phrase_seeds:
        yield _phrase(np.random.default_rng(phrase_seed), room, n_samples, sample_rate, hop_size)


def _phrase(
    rng: Generator, room: _Curve, n_samples: int, sample_rate: int, hop_size: int
) -> Phrase:
    score = _write_score(rng, n_samples, sample_rate)
    f0_hz = _perform_pitch(rng, score, sample_rate)
    level_db = _perform_level(rng, score, sample_rate)
    bowing = _smooth(score.bowed.astype(float), 0.05, sample_rate)
    phase = np.cumsum(f0_hz) / sample_rate  # In cycles.
    brightness = _smooth(score.brightness, 0.03, sample_rate)
    string = _string(f0_hz, phase, level_db, brightness, sample_rate)
    dry = bowing * (string + _bow_noise(rng, phase, level_db, score, sample_rate))
    audio = scipy.signal.fftconvolve(dry, room)[:n_samples]
    return Phrase(
        audio=(_FULL_SCALE * audio).astype(np.float32),
        f0_hz=f0_hz[::hop_size].astype(np.float32),
        sounding=bowing[::hop_size] > 0.1,
    )


# --- What is played -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Score:
    """The notes of a phrase, as what is asked of each sample. All have shape [n_samples].

    Attributes:
      midi: Pitch of the note.
      bowed: Whether the bow is on the string.
      level_db: Loudness of the note within the phrase.
      accent_db: Loudness added at the start of the note.
      attack: How much the bow scratches at the start of the note.
      onset: Seconds since the start of the note.
      progress: Share of the note that is over.
      brightness: Of the string that the note is played on.
    """

    midi: _Curve
    bowed: NDArray[np.bool_]
    level_db: _Curve
    accent_db: _Curve
    attack: _Curve
    onset: _Curve
    progress: _Curve
    brightness: _Curve


def _write_score(rng: Generator, n_samples: int, sample_rate: int) -> _Score:
    """Writes a melody that wanders up and down the scale, slurred in part, with some rests."""
    # More notes than the phrase can hold; those beyond its end are not heard.
    n_notes = 2 + int(n_samples / sample_rate / 0.12)
    seconds = rng.choice([0.16, 0.25, 0.5, 0.75, 1.2], n_notes, p=[0.25, 0.3, 0.25, 0.12, 0.08])
    seconds = seconds * rng.uniform(0.85, 1.15)
    steps = rng.choice([-5, -2, -1, 1, 2, 4], n_notes, p=[0.08, 0.17, 0.25, 0.25, 0.17, 0.08])
    degree = _reflect(rng.integers(_N_DEGREES) + np.cumsum(steps), _N_DEGREES)
    midi = _TONIC_MIDI + 12 * (degree // len(_SCALE)) + _SCALE[degree % len(_SCALE)]
    string = np.searchsorted(_STRINGS_MIDI, midi, side="right") - 1
    ends = rng.choice(["slur", "lift", "rest"], n_notes, p=[0.55, 0.3, 0.15])
    silence = np.select([ends == "lift", ends == "rest"], [0.06, np.minimum(0.5 * seconds, 0.4)])

    attack = np.where(np.roll(ends, 1) == "slur", 0.5, 5.0)

    starts = rng.uniform(0, 0.25) + np.cumsum(seconds) - seconds
    time = np.arange(n_samples) / sample_rate
    note = np.maximum(0, np.searchsorted(starts, time, side="right") - 1)
    onset = np.maximum(0, time - starts[note])
    return _Score(
        midi=midi[note].astype(float),
        bowed=(onset > 0) & (onset < (seconds - silence)[note]),
        level_db=rng.normal(0, 2.5, n_notes)[note],
        accent_db=np.where(rng.random(n_notes) < 0.25, 7.0, 0.0)[note],
        attack=attack[note],
        onset=onset,
        progress=onset / seconds[note],
        brightness=_STRING_BRIGHTNESS[string][note],
    )


def _perform_pitch(rng: Generator, score: _Score, sample_rate: int) -> _Curve:
    """Returns f0 in Hz: notes joined by slides, vibrato that grows on long notes, some drift."""
    n_samples = len(score.midi)
    vibrato_hz = 5.6 + 0.5 * _wander(rng, n_samples, 1.0, sample_rate)
    vibrato = np.sin(2 * np.pi * np.cumsum(vibrato_hz) / sample_rate)
    depth = _smooth(np.where(score.onset > 0.2, rng.uniform(0.12, 0.35), 0.02), 0.2, sample_rate)
    drift = 0.03 * _wander(rng, n_samples, 12.0, sample_rate)
    midi = _smooth(score.midi, rng.uniform(0.04, 0.09), sample_rate) + depth * vibrato + drift
    return np.asarray(440 * 2 ** ((midi - 69) / 12))


def _perform_level(rng: Generator, score: _Score, sample_rate: int) -> _Curve:
    """Returns loudness in dB at or below 0: an arc over the phrase, swells and accents in it."""
    n_samples = len(score.midi)
    first, middle, last = rng.uniform(-30, -4, 3)
    position = np.linspace(0, 1, n_samples)
    peak_at = rng.uniform(0.3, 0.7)
    arc = np.interp(position, [0, peak_at, 1], [first, middle, last])
    swell = rng.uniform(0, 6) * (np.sin(np.pi * score.progress) - 0.6)
    tremble = 0.7 * _wander(rng, n_samples, 8.0, sample_rate)
    accents = score.accent_db * np.exp(-score.onset / 0.09)
    level_db = _smooth(arc + score.level_db + swell + accents, 0.03, sample_rate) + tremble
    return np.clip(level_db, -_LEVEL_RANGE_DB, 0)


# --- What it sounds like ------------------------------------------------------------------------


def _string(
    f0_hz: _Curve, phase: _Curve, level_db: _Curve, brightness: _Curve, sample_rate: int
) -> _Curve:
    """Returns the string as the body radiates it: a sum of harmonics, none above Nyquist."""
    # Strengths change slowly: they are worked out every few samples and interpolated.
    samples = np.arange(len(f0_hz))
    knots = samples[::16]
    frequency = np.arange(1, int(0.5 * sample_rate / f0_hz.min()) + 1)[:, None] * f0_hz[knots]
    strengths = _strengths(frequency, level_db[knots], brightness[knots], sample_rate)
    audio = np.zeros_like(f0_hz)
    for harmonic, strength in enumerate(strengths, start=1):
        audio += np.interp(samples, knots, strength) * np.sin(2 * np.pi * harmonic * phase)
    return 10 ** (level_db / 20) * audio


def _strengths(
    frequency_hz: _Curve, level_db: _Curve, brightness: _Curve, sample_rate: int
) -> _Curve:
    """Returns the amplitude of each harmonic relative to the level, shape [n_harmonics, n]."""
    harmonic = np.arange(1, len(frequency_hz) + 1)[:, None]
    firmness = 1 + level_db / _LEVEL_RANGE_DB  # Of the bow, 0 to 1.
    cutoff_hz = 500 * brightness * 2 ** (3.3 * firmness)
    # Harmonics with a node under the bow are weak. A firm bow moves towards the bridge.
    bow_position = 0.16 - 0.07 * firmness
    nyquist = 0.5 * sample_rate
    return np.asarray(
        harmonic**-0.9
        * np.exp(-frequency_hz / cutoff_hz)
        * (0.15 + np.abs(np.sin(np.pi * harmonic * bow_position)))
        * _body(frequency_hz)
        * np.clip((nyquist - frequency_hz) / (0.05 * nyquist), 0, 1)
    )


def _body(frequency_hz: _Curve) -> _Curve:
    """Returns the gain of the wooden body: a row of resonances above a floor."""
    distance = (frequency_hz[..., None] - _BODY_HZ) / _BODY_WIDTH_HZ
    return np.asarray(0.3 + (_BODY_GAIN / (1 + distance**2)).sum(axis=-1))


def _bow_noise(
    rng: Generator, phase: _Curve, level_db: _Curve, score: _Score, sample_rate: int
) -> _Curve:
    """Returns the hiss of the bow: bursts at each slip of the string, scratches at onsets."""
    white = rng.standard_normal(len(phase))
    band = [0.1 * sample_rate, 0.4 * sample_rate]
    hiss = scipy.signal.sosfilt(
        scipy.signal.butter(2, band, "band", fs=sample_rate, output="sos"), white
    )
    rumble = scipy.signal.sosfilt(
        scipy.signal.butter(2, 0.06 * sample_rate, fs=sample_rate, output="sos"), white
    )
    firmness = 1 + level_db / _LEVEL_RANGE_DB
    colour = (0.4 + firmness) * hiss + (1.2 - firmness) * rumble
    slips = 1 + 0.6 * np.cos(2 * np.pi * phase)
    scratch = 1 + score.attack * np.exp(-score.onset / 0.03)
    return np.asarray(0.014 * 10 ** (0.8 * level_db / 20) * slips * scratch * colour)


def _room(rng: Generator, sample_rate: int) -> _Curve:
    """Returns an impulse response: the direct sound, then noise that decays by 60 dB."""
    time = np.arange(round(_ROOM_SECONDS * sample_rate)) / sample_rate
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / _ROOM_SECONDS)
    tail = scipy.signal.sosfilt(
        scipy.signal.butter(1, 0.2 * sample_rate, fs=sample_rate, output="sos"), tail
    )
    tail *= 0.5 * np.clip(time / 0.01, 0, 1) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return np.asarray(tail)


# --- Curves -------------------------------------------------------------------------------------


def _smooth(curve: _Curve, seconds: float, sample_rate: int) -> _Curve:
    """Returns the curve averaged over a Hann window; the ends are held."""
    half = max(1, round(0.5 * seconds * sample_rate))
    window = scipy.signal.windows.hann(2 * half + 1)
    held = np.pad(curve, half, mode="edge")
    return np.asarray(scipy.signal.fftconvolve(held, window / window.sum(), mode="valid"))


def _wander(rng: Generator, n_samples: int, rate_hz: float, sample_rate: int) -> _Curve:
    """Returns a smooth random curve with unit variance that changes `rate_hz` times a second."""
    n_knots = max(4, int(n_samples / sample_rate * rate_hz) + 2)
    knots = rng.standard_normal(n_knots)
    return np.interp(np.linspace(0, n_knots - 1, n_samples), np.arange(n_knots), knots)


def _reflect(position: NDArray[np.int_], size: int) -> NDArray[np.int_]:
    """Returns positions folded back into 0 to size - 1 at both ends."""
    folded = np.mod(position, 2 * size - 2)
    return np.where(folded < size, folded, 2 * size - 2 - folded)
