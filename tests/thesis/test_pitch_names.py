"""Pitches in file names: which names tell one, and which recordings are doubted for it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sweeps.cli import main
from tests.conftest import REAL_DATA
from thesis.pitch_names import (
    Labelled,
    doubtful_pitches,
    labelled,
    named_pitch,
    note_name,
    steady_note,
)
from thesis.prepare import prepare

VOICED = np.ones(100)


@pytest.mark.parametrize(
    ("source", "note"),
    [
        ("cello_A2_15_forte_arco-normal.flac", "A2"),
        ("Cello_As4_15_pianissimo.mp3", "A#4"),
        ("sax_db2_p.flac", "C#2"),
        ("bass_bb1_ff.flac", "A#1"),
        ("A#3.wav", "A#3"),
        ("deep/er/Eb4 (1).wav", "D#4"),
        ("C4v10.wav", "C4"),
        ("piano-F♯5.ogg", "F#5"),
        ("C0.wav", "C0"),
        ("A3_A3_twice.wav", "A3"),
        ("B-flat.wav", None),
        ("E2E.wav", None),
        ("A10.wav", None),
        ("H2.wav", None),
        ("Es4.wav", None),
        ("A2_to_C3.wav", None),
        ("A3/take.wav", None),
        ("15.wav", None),
        ("A٣.wav", None),
        ("", None),
    ],
)
def test_a_name_tells_a_note_where_one_word_is_one(source: str, note: str | None) -> None:
    found = named_pitch(source)
    assert (found is None) if note is None else (note_name(found) == note)


def test_notes_count_from_middle_a() -> None:
    assert named_pitch("A4.wav") == 69
    assert named_pitch("Cb4.wav") == 59


def test_a_recording_is_one_note_where_most_of_its_voiced_frames_are() -> None:
    f0_hz = np.full(100, 220.0)
    f0_hz[:20] = 440.0
    assert steady_note(f0_hz, VOICED) == pytest.approx(57)
    assert steady_note(np.where(np.arange(100) < 40, 440.0, 220.0), VOICED) is None
    assert steady_note(f0_hz, 0.1 * VOICED) is None
    assert steady_note(0 * f0_hz, VOICED) is None
    assert steady_note(f0_hz[:10], VOICED[:10]) is None


def doubts(**off: float) -> list[str]:
    return doubtful_pitches({name: Labelled(60, 60 + by) for name, by in off.items()})


def test_files_that_are_off_are_named_with_both_pitches() -> None:
    (line,) = doubts(a=0, b=0.4, c=-0.6, d=12, e=-2)
    assert "2 of 5 files" in line
    assert "d (C4, tracked as C5), e (C4, tracked as A#3)" in line
    assert doubts(a=0, b=0.4) == doubts() == []


def test_names_that_most_files_do_not_sound_as_tell_no_pitch() -> None:
    assert doubts(take_A1_final=23) == doubts(a=0, b=12) == doubts(a=0, b=3, c=7, d=14) == []


def test_what_all_names_are_off_by_is_a_habit() -> None:
    (line,) = doubts(a=12, b=12, c=12.2)
    assert line.startswith("3 of 3 files that name a note sound an octave higher than named")
    assert "24" not in line
    line, other = doubts(a=-2, b=-2, c=0, d=-2)
    assert "sound 2 semitones lower" in line
    assert "1 of 4 files that name a note is another one: c (C4, tracked as C4)" in other


def test_one_line_has_room_for_a_few_files() -> None:
    (line,) = doubts(**{f"f{i}": 12 * (i < 8) for i in range(20)})
    assert line.endswith("f5 (C4, tracked as C5), 2 more")


def test_prepare_warns_of_a_file_that_is_not_as_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    time = np.arange(16_000) / 16_000
    for name, f0_hz in (("A3", 220.0), ("C4v2", 261.6), ("E4", 329.6), ("G3", 392.0)):
        audio = 0.2 * sum(np.sin(2 * np.pi * k * f0_hz * time) / k for k in range(1, 6))
        soundfile.write(tmp_path / f"{name}.wav", audio, 16_000)
    out = tmp_path / "dataset"
    assert main(["prepare", str(tmp_path), "--out", str(out), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "warning: the pitch of 1 of 4 files" in printed
    assert "G3.wav (G3, tracked as G4)" in printed


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no recordings in {REAL_DATA}")
def test_low_notes_of_a_cello_that_are_tracked_an_octave_high_are_doubted(tmp_path: Path) -> None:
    folder = tmp_path / "cello"
    folder.mkdir()
    for note in ("E2", "D3", "A3", "C4", "A4"):
        for file in (REAL_DATA / "cello").glob(f"cello_{note}_15_*"):
            (folder / file.name).symlink_to(file.absolute())
    found = labelled(prepare(folder, tmp_path / "dataset"))
    assert {found[name].named for name in found} == {40, 50, 57, 60, 69}
    (line,) = doubtful_pitches(found)
    assert f"the pitch of 4 of {len(found)}" in line
    assert line.count("(E2, tracked as E3)") == 4
