"""File names that tell a pitch, against the pitch that was tracked.

Metrics cannot see a wrong label: one tracker judges clips and renderings, and errs alike on both.
A name such as `cello_E2_forte.flac` comes from somebody who knows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from thesis.data import SPLITS, VOICED_CONFIDENCE, Dataset

STEADY_SHARE = 0.75
"""So many of a recording's voiced frames have its median pitch, to a semitone: it is one note."""

_TOLERANCE = 0.75
"""Semitones that an instrument may be out of tune by."""

_FEWEST_ALIKE = 3
"""Recordings that make a habit."""

_FEWEST_FRAMES = 25
"""Voiced frames without which a recording says nothing: 0.1 s at 250 a second."""

_MOST_NAMED = 6
"""Files that a line names; the others it counts."""

_PITCH = re.compile(
    r"([A-Ga-g])(#|♯|(?<=[CDFGAcdfga])s|b|♭)?([0-9])(?:[vV][0-9]+)?", re.ASCII
)  # in English no E is sharp, in German 'Es' is E flat
_SEMITONES = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
_NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def named_pitch(source: str) -> int | None:
    """Returns the MIDI note that a recording's name tells, None where it tells none or several.

    A note is a word of its own, between any of ` _-.,()[]`: A3, a3, A#3, As3, Bb3, C4v10 (with a
    velocity). `E2E` and `A10` are no notes. A4 is 440 Hz, MIDI note 69.

    Args:
      source: A path, of which the last part without its suffix is looked at.
    """
    stem = PurePosixPath(source).stem
    words = re.split(r"[\s_\-.,()\[\]]+", stem)
    found = {_note(*match.groups()) for word in words if (match := _PITCH.fullmatch(word))}
    return found.pop() if len(found) == 1 else None


def _note(letter: str, accidental: str | None, octave: str) -> int:
    shift = {None: 0, "#": 1, "♯": 1, "s": 1, "b": -1, "♭": -1}[accidental]
    return 12 * (int(octave) + 1) + _SEMITONES[letter.lower()] + shift


def note_name(note: int) -> str:
    """Returns the name of a MIDI note: 69 is 'A4'."""
    return f"{_NOTES[note % 12]}{note // 12 - 1}"


@dataclass(frozen=True)
class Labelled:
    """A recording of one note whose name tells a pitch.

    Attributes:
      named: MIDI note of its name.
      tracked: The median of its voiced frames, in MIDI notes.
    """

    named: int
    tracked: float


def steady_note(f0_hz: NDArray[np.floating], confidence: NDArray[np.floating]) -> float | None:
    """Returns a recording's median MIDI note, None where it is not one note for most of its time.

    Args:
      f0_hz: Pitch in Hz, shape [n_frames].
      confidence: Its confidence, 0 to 1, likewise.
    """
    voiced = f0_hz[(confidence >= VOICED_CONFIDENCE) & (f0_hz > 0)]
    if voiced.size < _FEWEST_FRAMES:
        return None
    notes = 69 + 12 * np.log2(voiced / 440)
    median = float(np.median(notes))
    return median if np.mean(np.abs(notes - median) <= 1) >= STEADY_SHARE else None


def doubtful_pitches(recordings: Mapping[str, Labelled]) -> list[str]:
    """Returns what is to be said of recordings whose pitch is not that of their names, in lines.

    Names may be of written pitches, or count octaves otherwise: what most of them are off by is a
    habit, which has a line of its own. Where no more than half of the recordings are off by the
    same, or not at all, names are taken to tell no pitch, and nothing is said: 'take_A1' is none.

    Args:
      recordings: By name; see `labelled`.
    """
    if not recordings:
        return []
    off = {source: found.tracked - found.named for source, found in recordings.items()}
    habit = round(float(np.median([*off.values()])))
    doubtful = [source for source, by in off.items() if abs(by - habit) > _TOLERANCE]
    n_alike = len(off) - len(doubtful)
    if 2 * n_alike <= len(off) or (habit and n_alike < _FEWEST_ALIKE):
        return []
    lines = []
    if habit:
        lines.append(
            f"{n_alike} of {len(off)} files that name a note sound {_interval(habit)} than named: "
            "a habit of naming, or the tracker is wrong in all of them"
        )
    if doubtful:
        named = [
            f"{source} ({note_name(recordings[source].named)}, tracked as "
            f"{note_name(round(recordings[source].tracked))})"
            for source in doubtful[:_MOST_NAMED]
        ]
        more = [f"{len(doubtful) - _MOST_NAMED} more"] * (len(doubtful) > _MOST_NAMED)
        lines.append(
            f"the pitch of {len(doubtful)} of {len(off)} files that name a note is another one: "
            + ", ".join(named + more)
        )
    return lines


def _interval(semitones: int) -> str:
    size = f"{abs(semitones)} semitones"
    if semitones % 12 == 0:
        size = "an octave" if abs(semitones) == 12 else f"{abs(semitones) // 12} octaves"
    return f"{size} {'higher' if semitones > 0 else 'lower'}"


def labelled(dataset: Dataset) -> dict[str, Labelled]:
    """Returns the recordings of a dataset whose name tells a note and that are one, by name."""
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for split in SPLITS:
        clips = dataset.clips(split)
        for source, *track in zip(clips.sources, clips.f0_hz, clips.f0_confidence, strict=True):
            if named_pitch(source) is not None:
                parts.setdefault(source, []).append(np.stack(track))
    found = {}
    for source in sorted(parts):
        named, tracked = named_pitch(source), steady_note(*np.concatenate(parts[source], axis=1))
        if named is not None and tracked is not None:
            found[source] = Labelled(named, tracked)
    return found
