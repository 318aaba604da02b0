"""Recordings in, dataset out: what is used, what is left out, what is an error."""

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from thesis import prepare as stage
from thesis.data import ClipFormat, Dataset, load_dataset
from thesis.errors import AudioError, ConfigError, DatasetError
from thesis.prepare import cut, find_recordings, prepare, prepare_demo, split_recordings

RATE = 16_000


def tone(seconds: float, f0_hz: float = 440.0, rate: int = RATE) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return 0.2 * sum(np.sin(2 * np.pi * k * f0_hz * time) / k for k in range(1, 6))


def record(folder: Path, name: str, audio: np.ndarray, rate: int = RATE, **options: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two good recordings, a second long."""
    record(tmp_path / "audio", "a.wav", tone(1.0, 330.0))
    record(tmp_path / "audio", "b.flac", tone(1.0, 550.0))
    return tmp_path / "audio"


def prepared(folder: Path, **options: object) -> Dataset:
    """Prepares clips of half a second in this process."""
    options = {"clip_seconds": 0.5, "workers": 1, **options}
    return prepare(folder, folder.parent / "dataset", **options)  # type: ignore[arg-type]


# --- What is used ---


def test_every_format_rate_and_channel_count_becomes_the_same_clips(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    record(audio, "8bit.wav", tone(1.0), subtype="PCM_U8")
    record(audio, "24bit.wav", tone(1.0), subtype="PCM_24")
    record(audio, "float.wav", tone(1.0), subtype="FLOAT")
    record(audio, "96k.WAV", tone(1.0, rate=96_000), 96_000)
    record(audio, "deep/stereo.flac", np.stack([tone(1.0)] * 2, axis=1))
    record(audio, "deep/er/a.mp3", tone(1.0, rate=44_100), 44_100)
    record(audio, "deep/er/a.ogg", tone(1.0, rate=48_000), 48_000)
    dataset = prepared(audio)
    assert list(dataset.facts.sources) == [
        "24bit.wav",
        "8bit.wav",
        "96k.WAV",
        "deep/er/a.mp3",
        "deep/er/a.ogg",
        "deep/stereo.flac",
        "float.wav",
    ]
    assert dataset.facts.n_train + dataset.facts.n_validation == 14
    assert dataset.facts.skipped == {}
    for split in ("train", "validation"):
        clips = dataset.clips(split)
        np.testing.assert_allclose(clips.f0_hz[:, 10:-10], 440, rtol=2e-3)
        assert np.ptp(clips.loudness_db[:, 10:-10]) < 1.5
        assert clips.f0_confidence[:, 10:-10].min() > 0.8


def test_clips_are_cut_in_order_and_the_rest_is_padded(folder: Path) -> None:
    ramp = np.linspace(0.1, 0.5, round(2.75 * RATE))
    record(folder, "c.wav", ramp, subtype="FLOAT")
    dataset = prepared(folder, clip_seconds=1.0)
    clips = [
        dataset.clips(s) for s in ("train", "validation") if "c.wav" in dataset.clips(s).sources
    ]
    rows = [i for i, source in enumerate(clips[0].sources) if source == "c.wav"]
    assert [clips[0].ids[i] for i in rows] == ["c.wav@0.000", "c.wav@1.000", "c.wav@2.000"]
    audio = clips[0].audio[rows].ravel()
    np.testing.assert_allclose(audio[: len(ramp)], ramp, atol=1e-6)
    assert not audio[len(ramp) :].any()
    assert not clips[0].f0_confidence[rows[-1], 200:].any()
    assert (clips[0].loudness_db[rows[-1], 200:] == -80).all()


def test_overlapping_clips_share_samples(folder: Path) -> None:
    clips = prepared(folder, clip_hop_seconds=0.1).clips("train")
    assert len(clips) == 6
    np.testing.assert_array_equal(clips.audio[0, 1600:], clips.audio[1, :-1600])
    for column in (clips.f0_hz, clips.f0_confidence, clips.loudness_db):
        np.testing.assert_array_equal(column[0, 25:], column[1, :-25])


def test_a_short_recording_is_padded_and_a_rest_under_half_a_second_is_left_out(
    folder: Path,
) -> None:
    record(folder, "short.wav", tone(0.3))
    record(folder, "long.wav", tone(1.3))
    facts = prepared(folder, clip_seconds=1.0).facts
    assert {"short.wav", "long.wav"} <= set(facts.sources)
    assert facts.n_train + facts.n_validation == 4
    assert facts.skipped == {"long.wav": "the last 0.30 s"}


def test_hidden_files_and_other_files_are_passed_over(folder: Path) -> None:
    (folder / "._a.wav").write_bytes(b"\x00\x05\x16\x07 resource fork")
    record(folder, ".trash/c.wav", tone(1.0))
    (folder / "notes.txt").write_text("bring rosin")
    (folder / "looks-like.wav").mkdir()
    assert find_recordings(folder) == ["a.wav", "b.flac"]


def test_what_is_too_short_or_silent_is_left_out_and_said(folder: Path) -> None:
    rng = np.random.default_rng(0)
    record(folder, "frame.wav", tone(0.1))
    record(folder, "nothing.wav", np.empty(0))
    record(folder, "silent.wav", np.zeros(RATE))
    record(folder, "dither.wav", rng.integers(-1, 2, RATE).astype(np.int16))
    record(folder, "rest.wav", np.concatenate([tone(0.5), np.zeros(3 * RATE // 2)]))
    facts = prepared(folder).facts
    assert set(facts.sources) == {"a.wav", "b.flac", "rest.wav"}
    assert facts.skipped == {
        "dither.wav": "silent: nowhere louder than -60 dB",
        "frame.wav": "shorter than one frame (0.128 s)",
        "nothing.wav": "shorter than one frame (0.128 s)",
        "rest.wav": "2 silent clips",
        "silent.wav": "silent: nowhere louder than -60 dB",
    }


def test_facts_say_how_the_dataset_was_made(folder: Path) -> None:
    facts = prepared(folder, frame_rate=100, sample_rate=8000, f0_max_hz=1000.0).facts
    assert (facts.sample_rate, facts.hop_size, facts.frame_rate) == (8000, 80, 100)
    assert (facts.clip_seconds, facts.clip_hop_seconds) == (0.5, 0.5)
    assert (facts.f0_min_hz, facts.f0_max_hz) == (50, 1000)
    assert facts.f0_estimator == "pyin, refined by autocorrelation"
    assert facts.split_by == "recording"
    assert facts.statistics.total_seconds == pytest.approx(2.0)
    assert all(len(sha256) == 64 for sha256 in facts.sources.values())


def test_the_number_of_workers_makes_no_difference(folder: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    parallel = prepared(folder, workers=2, on_progress=lambda *args: seen.append(args))
    assert seen == [(1, 2, "a.wav"), (2, 2, "b.flac")]
    alone = prepare(folder, folder.parent / "alone", clip_seconds=0.5, workers=1)
    assert parallel.facts.fingerprint == alone.facts.fingerprint


@given(
    n_samples=st.integers(1, 400_000),
    n_frames=st.integers(1, 600),
    hop_share=st.floats(0.01, 1.0),
)
def test_clips_cover_a_recording_but_for_less_than_half_a_second(
    n_samples: int, n_frames: int, hop_share: float
) -> None:
    clip_format = ClipFormat(
        RATE, 64, n_frames * 64 / RATE, max(1, int(n_frames * hop_share)) * 64 / RATE, 50, 2000
    )
    starts, n_rest = cut(n_samples, clip_format)
    assert starts[0] == 0
    assert all(0 < b - a <= n_frames for a, b in pairwise(starts))
    assert all(start * 64 < n_samples for start in starts)
    covered = starts[-1] * 64 + clip_format.n_samples
    assert covered + n_rest >= n_samples
    assert n_rest < 0.5 * RATE


# --- The split ---

NAMES = st.lists(st.text(min_size=1), unique=True, min_size=2, max_size=30)
SHARES = st.floats(0.01, 0.99)


@given(names=NAMES, share=SHARES)
def test_some_recordings_train_and_some_validate(names: list[str], share: float) -> None:
    assert set(split_recordings(names, share).values()) == {"train", "validation"}


@given(names=NAMES, share=SHARES, data=st.data())
def test_adding_recordings_moves_one_at_most(
    names: list[str], share: float, data: st.DataObject
) -> None:
    n_before = data.draw(st.integers(2, len(names)))
    before = split_recordings(names[:n_before], share)
    after = split_recordings(names, share)
    assert sum(after[name] != side for name, side in before.items()) <= 1


@given(names=NAMES, share=SHARES)
def test_the_split_does_not_depend_on_the_order(names: list[str], share: float) -> None:
    assert split_recordings(names[::-1], share) == split_recordings(names, share)


def test_adding_recordings_moves_none_where_both_sides_are_taken() -> None:
    names = [f"{i}.wav" for i in range(200)]
    split = split_recordings(names, 0.1)
    grown = split_recordings([*names, *(f"new_{i}.wav" for i in range(200))], 0.1)
    assert {name: grown[name] for name in names} == split


def test_the_share_is_about_what_was_asked_for() -> None:
    split = split_recordings((f"{i}.wav" for i in range(2000)), 0.2)
    assert sum(side == "validation" for side in split.values()) == pytest.approx(400, abs=60)


def test_no_recording_has_clips_in_both_splits(folder: Path) -> None:
    dataset = prepared(folder)
    train, validation = (set(dataset.clips(s).sources) for s in ("train", "validation"))
    assert train
    assert validation
    assert not train & validation


def test_a_single_recording_is_split_in_time_and_facts_say_so(tmp_path: Path) -> None:
    record(tmp_path / "audio", "only.wav", tone(5.0))
    dataset = prepared(tmp_path / "audio", validation_share=0.2)
    assert dataset.facts.split_by == "time"
    assert dataset.clips("train").ids[0] == "only.wav@0.000"
    assert dataset.clips("validation").ids == ("only.wav@4.000", "only.wav@4.500")


def test_overlapping_clips_of_a_single_recording_do_not_leak(tmp_path: Path) -> None:
    record(tmp_path / "audio", "only.wav", tone(3.0))
    dataset = prepared(tmp_path / "audio", clip_hop_seconds=0.1)
    last_train = float(dataset.clips("train").ids[-1].split("@")[1])
    first_validation = float(dataset.clips("validation").ids[0].split("@")[1])
    assert last_train + 0.5 <= first_validation + 1e-9


def test_a_single_clip_is_an_error(tmp_path: Path) -> None:
    record(tmp_path / "audio", "only.wav", tone(0.5))
    with pytest.raises(AudioError, match=r"only\.wav.* makes a single clip") as caught:
        prepared(tmp_path / "audio")
    assert "add recordings" in caught.value.hint


# --- Errors ---


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("I am a letter, not a sound. " * 100)


def write_nan(path: Path) -> None:
    audio = tone(1.0)
    audio[77] = np.nan
    soundfile.write(path, audio, RATE, subtype="FLOAT")


@pytest.mark.parametrize("spoil", [truncate, empty, write_text, write_nan])
def test_a_broken_recording_is_an_error_unless_it_may_be_skipped(
    folder: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(record(folder, "broken.wav", tone(1.0)))
    with pytest.raises(AudioError, match=r"broken\.wav") as caught:
        prepared(folder)
    assert "--skip-broken" in caught.value.hint
    assert [path.name for path in folder.parent.iterdir()] == ["audio"]

    facts = prepared(folder, skip_broken=True).facts
    assert set(facts.sources) == {"a.wav", "b.flac"}
    assert facts.skipped["broken.wav"].startswith("broken: it ")
    assert str(folder) not in facts.to_json()


def test_a_broken_recording_is_named_from_a_worker_process_too(folder: Path) -> None:
    write_text(folder / "c.wav")
    with pytest.raises(AudioError, match=r"c\.wav.* is not audio") as caught:
        prepared(folder, workers=2)
    assert "--skip-broken" in caught.value.hint
    assert [path.name for path in folder.parent.iterdir()] == ["audio"]


def test_a_folder_without_recordings_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "notes.txt").touch()
    with pytest.raises(AudioError, match="no recording in") as caught:
        prepared(tmp_path / "audio")
    assert ".flac" in caught.value.hint


def test_a_missing_folder_and_a_file_are_errors(folder: Path) -> None:
    for path in (folder / "missing", folder / "a.wav"):
        with pytest.raises(AudioError, match="is no folder of recordings") as caught:
            prepare(path, folder.parent / "dataset")
        assert caught.value.hint


def test_a_folder_where_all_is_left_out_is_an_error(tmp_path: Path) -> None:
    record(tmp_path / "audio", "a.wav", np.zeros(RATE))
    record(tmp_path / "audio", "b.wav", tone(0.05))
    with pytest.raises(AudioError, match=r"no recording .* can be used: 'a\.wav' is silent"):
        prepared(tmp_path / "audio")


def test_a_name_that_is_no_text_is_an_error(folder: Path) -> None:
    try:
        (folder / "a.wav").rename(folder / os.fsdecode(b"\xff.wav"))
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(AudioError, match="not valid UTF-8"):
        prepared(folder)


def test_an_existing_output_is_refused_before_any_work(folder: Path) -> None:
    (folder.parent / "dataset").mkdir()
    with pytest.raises(DatasetError, match="exists already"):
        prepared(folder, on_progress=lambda *_: pytest.fail("worked in vain"))


def test_an_output_that_cannot_be_written_is_refused_before_any_work(folder: Path) -> None:
    with pytest.raises(DatasetError, match="cannot write"):
        prepare(
            folder, folder / "a.wav" / "d", on_progress=lambda *_: pytest.fail("worked in vain")
        )


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_leaves_nothing(folder: Path, workers: int) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(folder, workers=workers, on_progress=interrupt)
    assert [path.name for path in folder.parent.iterdir()] == ["audio"]


def test_a_worker_that_dies_is_an_error_with_a_hint(folder: Path) -> None:
    results = stage._map(os._exit, [1, 2, 3], 2)  # type: ignore[arg-type, list-item]
    with pytest.raises(AudioError, match="worker process died of '1' or '2'") as caught:
        list(results)
    assert "--workers 1" in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"validation_share": 0.0},
        {"validation_share": 1.0},
        {"workers": 0},
        {"frame_rate": 300},
        {"frame_rate": 0},
        {"clip_seconds": 0.0},
        {"clip_hop_seconds": 9.0},
        {"f0_max_hz": 9000.0},
    ],
)
def test_an_option_outside_its_range_is_an_error(folder: Path, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))) as caught:
        prepared(folder, **options)
    assert caught.value.hint


# --- The demo, and the real thing ---


def test_the_demo_needs_no_recordings_and_is_the_same_every_time(tmp_path: Path) -> None:
    small = {"n_train": 2, "n_validation": 1, "clip_seconds": 1.0}
    facts = prepare_demo(tmp_path / "a", **small).facts  # type: ignore[arg-type]
    assert (facts.n_train, facts.n_validation, facts.n_frames) == (2, 1, 250)
    assert facts.f0_estimator.startswith("known")
    clips = load_dataset(tmp_path / "a").clips("train")
    assert set(np.unique(clips.f0_confidence)) == {0, 1}
    again = prepare_demo(tmp_path / "b", **small).facts  # type: ignore[arg-type]
    assert again.fingerprint == facts.fingerprint


@pytest.mark.parametrize("option", ["n_train", "n_validation"])
def test_a_demo_has_clips_in_both_splits(tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} = 0"):
        prepare_demo(tmp_path / "d", **{option: 0})


def test_the_pitch_of_real_cello_notes_is_the_one_in_their_names(
    tmp_path: Path, cello: Path
) -> None:
    notes = {"C2": 65.41, "A3": 220.0, "Cs5": 554.37}
    audio = tmp_path / "audio"
    audio.mkdir()
    for note in notes:
        name = f"cello_{note}_15_forte_arco-normal.flac"
        (audio / name).symlink_to((cello / name).resolve())
    dataset = prepare(audio, tmp_path / "dataset", workers=1)
    for split in ("train", "validation"):
        clips = dataset.clips(split)
        for i, source in enumerate(clips.sources):
            sounding = clips.f0_confidence[i] > 0.5
            f0_hz = np.median(clips.f0_hz[i][sounding])
            assert f0_hz == pytest.approx(notes[source.split("_")[1]], rel=0.02)
