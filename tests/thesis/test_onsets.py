"""Onsets: of notes whose beginnings are known, and of recordings that are shifted or softened."""

import numpy as np
import pytest

from tests.conftest import REAL_DATA
from thesis.features import compute_loudness, load_audio
from thesis.onsets import LARGEST_ONSET_ERROR_MS, find_onsets, onset_error

RATE, HOP = 16_000, 64
FRAME_RATE = RATE / HOP
TIME = np.arange(2 * RATE) / RATE


def notes(*starts, attack=0.005, level=0.2):
    """Tones of 0.3 s that come in on a line; loudness of them, shape [1, n_frames]."""
    audio = np.zeros_like(TIME)
    for start in starts:
        since = TIME - start
        envelope = np.clip(since / attack, 0, 1) * np.clip((0.3 - since) / 0.01, 0, 1)
        audio += envelope * np.sin(2 * np.pi * 330 * TIME)
    return loudness(level * audio)


def loudness(audio):
    return compute_loudness(audio.astype(np.float32), RATE, HOP)[None]


def error(target_db, loudness_db):
    return onset_error(target_db, loudness_db, FRAME_RATE)


def test_a_note_begins_where_its_attack_is_half_way():
    found = find_onsets(notes(0.2, 0.9, 1.5)[0], FRAME_RATE)
    assert found == pytest.approx([0.2, 0.9, 1.5], abs=0.006)


def test_a_slow_attack_begins_half_of_its_time_later():
    found = find_onsets(notes(0.5, attack=0.08)[0], FRAME_RATE)
    assert found == pytest.approx([0.54], abs=0.006)


def test_a_note_that_sounds_from_the_first_frame_on_does_not_begin():
    assert find_onsets(loudness(np.sin(2 * np.pi * 330 * TIME))[0], FRAME_RATE).size == 0
    assert find_onsets(np.full(50, -80.0), FRAME_RATE).size == 0
    assert find_onsets(np.array([-20.0]), FRAME_RATE).size == 0


def test_onsets_are_found_at_coarse_frames_too():
    found = find_onsets(notes(0.2, 1.2)[0, ::6], FRAME_RATE / 6)
    assert found == pytest.approx([0.2, 1.2], abs=0.03)


@pytest.mark.parametrize("milliseconds", [10, 30, 60])
def test_the_error_is_the_delay(milliseconds):
    late = notes(0.2 + milliseconds / 1000, 0.9 + milliseconds / 1000)
    assert error(notes(0.2, 0.9), late) == pytest.approx(milliseconds, abs=1.5)


def test_a_gain_is_no_error():
    assert error(notes(0.2, 0.9), notes(0.2, 0.9, level=0.02)) < 0.01


def test_missing_and_added_onsets_are_as_far_off_as_can_be():
    assert error(notes(0.2, 0.9), notes(0.2)) == pytest.approx(LARGEST_ONSET_ERROR_MS / 3, abs=0.5)
    assert error(notes(0.2), notes(0.2, 0.9)) == pytest.approx(LARGEST_ONSET_ERROR_MS / 3, abs=0.5)
    assert error(notes(0.2), notes(1.2)) == LARGEST_ONSET_ERROR_MS
    assert error(notes(0.2), notes()) == LARGEST_ONSET_ERROR_MS


def test_a_rise_just_under_the_threshold_answers_one_just_over_it():
    def rising(by):
        return np.repeat([[-10.0 - by, -10.0]], 200, axis=1)

    assert find_onsets(rising(9.0)[0], FRAME_RATE).size == 0
    assert error(rising(11.0), rising(9.0)) < 1
    assert error(rising(11.0), rising(4.0)) == LARGEST_ONSET_ERROR_MS


def test_clips_without_onsets_have_no_error():
    assert error(notes(), notes()) is None
    assert error(notes(), notes(0.2)) is None


def test_all_clips_are_pooled():
    one, two = notes(0.2), notes(0.2 + 0.03)
    both = np.concatenate([one, one]), np.concatenate([one, two])
    assert error(*both) == pytest.approx(15, abs=1)


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no recordings in {REAL_DATA}")
def test_recorded_notes_begin_once_and_bow_strokes_each_time():
    folder = REAL_DATA / "cello"

    def onsets(name):
        audio = load_audio(folder / f"cello_{name}.flac", RATE)[: 4 * RATE]
        return find_onsets(compute_loudness(audio, RATE, HOP), FRAME_RATE)

    for name in (
        "A2_15_forte_arco-normal",
        "C4_15_forte_arco-normal",
        "A5_15_pianissimo_arco-normal",
    ):
        assert onsets(name).size == 1
    strokes = onsets("C3_phrase_mezzo-forte_arco-detache")
    assert np.diff(strokes) == pytest.approx(0.55, abs=0.06)  # as even as a player is


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no recordings in {REAL_DATA}")
def test_on_recordings_the_error_tells_of_time_and_attack_and_not_of_level():
    files = sorted((REAL_DATA / "cello").glob("*.flac"))[::20]
    clips = [load_audio(file, RATE)[: 4 * RATE] for file in files]

    def pooled(change):
        changed = [onset_error(loudness(c), loudness(change(c)), FRAME_RATE) for c in clips]
        return np.mean([e for e in changed if e is not None])

    def softened(clip):
        begins = [*find_onsets(loudness(clip)[0], FRAME_RATE), 0.0][0] - 0.02
        return clip * np.clip((np.arange(len(clip)) / RATE - max(0, begins)) / 0.1, 0, 1)

    assert pooled(lambda clip: 0.25 * clip) < 0.01
    assert pooled(lambda clip: np.pad(clip, (480, 0))[:-480]) == pytest.approx(30, abs=2)
    assert 20 < pooled(softened) < 60
