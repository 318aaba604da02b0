"""TFRecords of ddsp in, dataset out: written by ddsp's own code, read back by ours."""

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pyarrow as pa
import pytest
import scipy.signal

from tests.fuzz.tfrecords import clip, record
from thesis._ddsp import ddsp, tf
from thesis.data import Dataset
from thesis.errors import ConfigError, DatasetError
from thesis.tfrecord import masked_crc, prepare_from_tfrecord

RATE = 16_000

# librosa weighs 0 Hz by its logarithm.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero encountered in log10")

Example = dict[str, np.ndarray]
Write = Callable[..., Path]


def pitch(time: np.ndarray, seed: int) -> np.ndarray:
    """A vibrato, in Hz, that differs from recording to recording."""
    return 400 + 20 * seed + 100 * np.sin(2 * np.pi * (0.4 + 0.01 * seed) * time)


def recording(seconds: float, seed: int = 0) -> np.ndarray:
    """A tone with vibrato and tremolo."""
    time = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(pitch(time, seed)) / RATE
    return (0.3 * (1.5 + np.sin(8 * time + seed)) * np.sin(phase)).astype(np.float32)


def read_off_pitch(audio: np.ndarray, step_size: float, **_: object) -> tuple[Any, ...]:
    """Stands in for CREPE: the frequency of a pure tone in the middle of each frame of 1,024."""
    phase = np.unwrap(np.angle(scipy.signal.hilbert(audio.astype(float))))
    middles = np.arange(512, len(audio) - 511, round(step_size * RATE / 1000))
    f0_hz = (phase[middles + 40] - phase[middles - 40]) / 80 * RATE / (2 * np.pi)
    return None, np.clip(f0_hz, 50, 1900), np.full(middles.size, 0.9), None


@pytest.fixture(scope="module")
def beam_steps() -> ModuleType:
    """ddsp's `prepare_tfrecord_lib`, whose steps run without Beam."""
    path = Path(ddsp.__file__).parent / "training/data_preparation/prepare_tfrecord_lib.py"
    spec = importlib.util.spec_from_file_location("prepare_tfrecord_lib", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "apache_beam", MagicMock())
        patch.setitem(sys.modules, "pydub", MagicMock())
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def examples_of(beam_steps: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function: the examples that ddsp makes of a recording, in order."""
    stand_in = SimpleNamespace(predict=read_off_pitch)
    monkeypatch.setattr(beam_steps.spectral_ops, "crepe", stand_in)

    def examples_of(
        audio: np.ndarray,
        *,
        frame_rate: int = 250,
        center: bool = False,
        chunk_secs: float = 4.0,
        hop_secs: float = 0.2,
    ) -> list[Example]:
        made = []
        for chunk in beam_steps._chunk_audio(
            {"audio": audio, "audio_16k": audio}, RATE, chunk_secs
        ):
            example = beam_steps._add_f0_estimate(chunk, frame_rate, center, viterbi=True)
            example = beam_steps._add_loudness(example, frame_rate, n_fft=512, center=center)
            made += beam_steps._split_example(example, RATE, frame_rate, 1.0, hop_secs, center)
        return made

    return examples_of


@pytest.fixture
def write(beam_steps: ModuleType, tmp_path: Path) -> Write:
    """A function: writes shards as Beam does, examples shuffled, and returns their folder."""

    def write(examples: Sequence[Example], *, stem: str = "a.tfrecord", seed: int = 0) -> Path:
        folder = tmp_path / "records"
        folder.mkdir(exist_ok=True)
        order = np.random.default_rng(seed).permutation(len(examples))
        for shard, rows in enumerate(np.array_split(order, 2)):
            path = folder / f"{stem}-{shard:05}-of-00002"
            with tf.io.TFRecordWriter(str(path)) as writer:
                for row in rows:
                    example = beam_steps._float_dict_to_tfexample(examples[row])
                    writer.write(example.SerializeToString())
        return folder

    return write


def convert(folder: Path, **options: Any) -> Dataset:
    return prepare_from_tfrecord([str(folder / "*")], folder.parent / "dataset", **options)


def clips_of(dataset: Dataset) -> Mapping[bytes, tuple[str, int, str]]:
    """Audio -> split, index and source of each clip."""
    return {
        audio.tobytes(): (split, i, clips.sources[i])
        for split in ("train", "validation")
        for clips in [dataset.clips(split)]
        for i, audio in enumerate(clips.audio)
    }


# --- Frames ---


@pytest.mark.parametrize("frame_rate", [250, 50])
@pytest.mark.parametrize("center", [False, True])
def test_frames_are_centred_on_their_hops(
    examples_of: Callable[..., list[Example]], write: Write, center: bool, frame_rate: int
) -> None:
    audio = recording(8.0)
    examples = examples_of(audio, frame_rate=frame_rate, center=center)
    assert len(examples[0]["f0_hz"]) == frame_rate + center
    dataset = convert(write(examples), frame_rate=frame_rate)
    loudness_db = ddsp.spectral_ops.compute_loudness(audio, RATE, frame_rate).numpy()
    found = clips_of(dataset)
    starts = [chunk + i / 5 for chunk in (0, 4) for i in range(16)]
    seen = 0
    for example, start in zip(examples, starts, strict=True):
        if example["audio"].tobytes() not in found:
            continue
        split, i, _ = found[example["audio"].tobytes()]
        clips = dataset.clips(split)  # type: ignore[arg-type]
        time = start + np.arange(frame_rate) / frame_rate
        # Not at the ends of a chunk, where ddsp hears silence, nor where the first value is held.
        inside = slice(frame_rate // 10, -frame_rate // 10)
        np.testing.assert_allclose(clips.f0_hz[i][inside], pitch(time, 0)[inside], rtol=1e-3)
        expected = loudness_db[round(start * frame_rate) :][:frame_rate]
        np.testing.assert_allclose(clips.loudness_db[i][inside], expected[inside], atol=0.3)
        np.testing.assert_allclose(clips.f0_confidence[i], 0.9)
        seen += 1
    assert seen == dataset.facts.n_train + dataset.facts.n_validation > 12
    assert ("delayed" in dataset.facts.f0_estimator) is not center


def test_values_of_centred_frames_are_kept_bit_for_bit(
    examples_of: Callable[..., list[Example]], write: Write
) -> None:
    examples = examples_of(recording(8.0), center=True)
    dataset = convert(write(examples))
    found = clips_of(dataset)
    for example in examples:
        if example["audio"].tobytes() in found:
            split, i, _ = found[example["audio"].tobytes()]
            clips = dataset.clips(split)  # type: ignore[arg-type]
            np.testing.assert_array_equal(clips.loudness_db[i], example["loudness_db"][:-1])
            np.testing.assert_allclose(clips.f0_hz[i], example["f0_hz"][:-1], rtol=1e-6)


def of_old_release(example: Example, audio_at: np.ndarray) -> Example:
    """ddsp before 2.0: centred frames, trimmed; white noise at 0 dB; no 16 kHz copy."""
    loudness_db = ddsp.spectral_ops.compute_loudness(
        audio_at, RATE, 250, n_fft=2048, range_db=120, ref_db=20.7
    ).numpy()
    kept = {name: values for name, values in example.items() if name != "audio_16k"}
    return {
        name: values[:250] if len(values) == 251 else values for name, values in kept.items()
    } | {"loudness_db": loudness_db[:250]}


def test_loudness_of_old_releases_is_refused_or_computed_anew(
    examples_of: Callable[..., list[Example]], write: Write
) -> None:
    examples = examples_of(recording(8.0), center=True)
    folder = write([of_old_release(example, example["audio"]) for example in examples])
    with pytest.raises(DatasetError, match=r"loudness is \d\d\.\d dB from") as raised:
        convert(folder)
    assert "--recompute-loudness" in raised.value.hint
    dataset = convert(folder, recompute_loudness=True)
    # Their frames are centred, although there are no more of them than of 'same' padding.
    assert "frames centred" in dataset.facts.f0_estimator
    clips = dataset.clips("train")
    expected = [ddsp.spectral_ops.compute_loudness(audio, RATE, 250) for audio in clips.audio]
    np.testing.assert_allclose(clips.loudness_db, np.array(expected)[:, :-1], atol=1e-3)


# --- Passages and splits ---


def test_clips_are_put_back_in_their_place(
    examples_of: Callable[..., list[Example]], write: Write
) -> None:
    examples = [examples_of(recording(8.0, seed)) for seed in range(2)]
    dataset = convert(write([*examples[0], *examples[1]]))
    assert dataset.facts.clip_hop_seconds == 0.2
    assert dataset.facts.statistics.total_seconds == 16.0
    assert dataset.facts.skipped == {}
    assert dataset.facts.split_by == "recording"
    found = clips_of(dataset)
    sources = [
        {found[e["audio"].tobytes()][2] for e in of_one[chunk : chunk + 16]}
        for of_one in examples
        for chunk in (0, 16)
    ]
    assert all(len(of_chunk) == 1 for of_chunk in sources)
    assert len(set.union(*sources)) == 4
    rows = pa.ipc.open_file(dataset.path / "clips.arrow").read_all().to_pylist()
    starts = {np.array(row["audio"], np.float32).tobytes(): row["start_seconds"] for row in rows}
    for of_one in examples:
        for i, example in enumerate(of_one):
            assert starts[example["audio"].tobytes()] == (i % 16) / 5


def test_the_split_is_by_passage_and_does_not_depend_on_the_shuffling(
    examples_of: Callable[..., list[Example]], write: Write, tmp_path: Path
) -> None:
    examples = [e for seed in range(3) for e in examples_of(recording(4.0, seed))]
    splits = []
    for seed in (0, 1):
        dataset = prepare_from_tfrecord(
            [str(write(examples, seed=seed) / "*")], tmp_path / f"dataset{seed}"
        )
        splits.append({clip: found[0] for clip, found in clips_of(dataset).items()})
        sides = [set(dataset.clips(split).sources) for split in ("train", "validation")]
        assert all(sides)
        assert sides[0].isdisjoint(sides[1])
    assert splits[0] == splits[1]


def test_the_end_of_a_single_passage_validates_without_overlap(
    examples_of: Callable[..., list[Example]], write: Write
) -> None:
    examples = examples_of(recording(8.0), chunk_secs=8.0)
    dataset = convert(write(examples), validation_share=0.2)
    found = clips_of(dataset)
    split = [found.get(e["audio"].tobytes(), ("dropped",))[0] for e in examples]
    # 36 clips, of which 7 validate, and the four before them share samples with the first.
    assert split == ["train"] * 25 + ["dropped"] * 4 + ["validation"] * 7
    assert dataset.facts.split_by == "time"
    assert sum(int(why.split()[0]) for why in dataset.facts.skipped.values()) == 4
    assert all("overlapping" in why for why in dataset.facts.skipped.values())


def test_the_names_of_shards_are_the_split(
    examples_of: Callable[..., list[Example]], write: Write
) -> None:
    train, held_out = examples_of(recording(8.0)), examples_of(recording(4.0, seed=1))
    # One training clip was put on both sides by hand.
    write([*train], stem="a.tfrecord-train")
    dataset = convert(write([*held_out, train[-1]], stem="a.tfrecord-eval"))
    found = clips_of(dataset)
    assert {found[e["audio"].tobytes()][0] for e in held_out} == {"validation"}
    split = [found.get(e["audio"].tobytes(), ("dropped",))[0] for e in train]
    assert split == ["train"] * 27 + ["dropped"] * 4 + ["validation"]


def test_silent_clips_are_left_out(examples_of: Callable[..., list[Example]], write: Write) -> None:
    # ddsp pads the second chunk with silence from 4.5 to 8 s.
    dataset = convert(write(examples_of(recording(4.5))))
    assert dataset.facts.n_train + dataset.facts.n_validation == 16 + 3
    assert sum(int(why.split()[0]) for why in dataset.facts.skipped.values()) == 13


# --- Errors ---


def assert_refused(folder: Path, message: str, hint: str, **options: Any) -> None:
    with pytest.raises(DatasetError, match=message) as raised:
        convert(folder, **options)
    assert hint in raised.value.hint
    assert sorted(p.name for p in folder.parent.iterdir()) == ["records"]


def test_rates_that_do_not_fit_are_an_error_that_names_those_that_do(
    examples_of: Callable[..., list[Example]], write: Write
) -> None:
    examples = examples_of(recording(4.0), frame_rate=50, center=True)
    assert_refused(write(examples), "16000 samples and f0 51 frames", "fit: --frame-rate 50")
    at_48k = [{**e, "audio": np.repeat(e["audio"], 3)} for e in examples_of(recording(4.0))]
    assert_refused(write(at_48k), "its rate is not 16000 Hz", "--sample-rate 48000")
    for example in at_48k:
        del example["audio_16k"]
    assert_refused(write(at_48k), "48000 samples and f0 250 frames", "--sample-rate 48000")
    assert_refused(
        write(at_48k), "48000 samples", "give the rates", frame_rate=100, sample_rate=8000
    )


def edited(values: Mapping[str, object]) -> Callable[[Example], Example]:
    return lambda example: {**example, **values}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("edit", "message", "hint"),
    [
        (
            lambda e: {k: v for k, v in e.items() if k != "f0_hz"},
            "no feature 'f0_hz'",
            "frame_rate",
        ),
        (edited({"audio": np.ones(64)}), "'audio' has 64 values", "--example_secs"),
        (edited({"f0_hz": np.zeros(250)}), "goes down to 0 Hz", "every frame needs a pitch"),
        (edited({"f0_hz": np.full(250, np.nan)}), "'f0_hz' .* NaN", "prepare"),
        (edited({"f0_confidence": np.full(250, 1.5)}), "'f0_confidence' .* outside", "prepare"),
        (edited({"audio": np.full(16_000, 1e30)}), "'audio' .* goes from 1e", "prepare"),
        (edited({"f0_hz": np.full(250, 1e30)}), "'f0_hz' .* within 0 and", "prepare"),
        (edited({"loudness_db": np.full(250, -1e38)}), "'loudness_db' .* within", "prepare"),
    ],
)
def test_a_bad_record_is_named(
    examples_of: Callable[..., list[Example]],
    write: Write,
    edit: Callable[[Example], Example],
    message: str,
    hint: str,
) -> None:
    examples = examples_of(recording(4.0))
    assert_refused(write([*examples[1:], edit(examples[0])]), message, hint)


def test_features_of_different_lengths_are_an_error(
    examples_of: Callable[..., list[Example]], write: Write
) -> None:
    examples = [{**e, "loudness_db": e["loudness_db"][:-1]} for e in examples_of(recording(4.0))]
    assert_refused(write(examples), "'loudness_db' has 249 frames and 'f0_hz' 250", "prepare")


def test_a_damaged_shard_is_an_error(
    examples_of: Callable[..., list[Example]], write: Write
) -> None:
    folder = write(examples_of(recording(4.0)))
    shard = folder / "a.tfrecord-00001-of-00002"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert_refused(
        folder, "'a.tfrecord-00001-of-00002' is damaged after 7 records", "copy it again"
    )
    shard.write_bytes(b"RIFF" + whole[4:])
    assert_refused(folder, "damaged after 0 records", "decompressed")


@pytest.mark.parametrize("size", [2**32, 2**40, 2**62, 2**63, 2**64 - 1])
def test_a_length_beyond_the_end_is_found_before_memory_is_taken_for_it(
    tmp_path: Path, size: int
) -> None:
    header = size.to_bytes(8, "little")
    (tmp_path / "records").mkdir()
    shard = tmp_path / "records" / "a.tfrecord"
    shard.write_bytes(record(clip(0)) + header + masked_crc(header) + b"some" * 9)
    assert_refused(tmp_path / "records", "damaged after 1 records", "copy it again")


@pytest.mark.parametrize("rest", [b"\0", b"\0" * 11, b"\0" * 12, b"\xff" * 16])
def test_what_follows_the_last_record_is_a_record(tmp_path: Path, rest: bytes) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.tfrecord").write_bytes(record(clip(0)) + record(clip(1)) + rest)
    assert_refused(tmp_path / "records", "damaged after 2 records", "copy it again")


@pytest.mark.parametrize("feature", ["audio", "audio_16k"])
def test_a_feature_of_another_kind_is_an_error(tmp_path: Path, feature: str) -> None:
    example = clip(0, **{feature: [b"\xf2\xff"]})
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.tfrecord").write_bytes(record(example))
    assert_refused(tmp_path / "records", "record 0 of 'a.tfrecord' is no tf.train.Example", "ddsp")


def test_a_name_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    Path(os.fsdecode(bytes(tmp_path) + b"/a\xff.tfrecord")).write_bytes(record(clip(0)))
    with pytest.raises(DatasetError, match="is not valid UTF-8") as raised:
        prepare_from_tfrecord([str(tmp_path / "*")], tmp_path / "dataset")
    assert raised.value.hint


def test_nobodys_home_folder_holds_no_shards(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no file matches '~nobody-at-all/x'"):
        prepare_from_tfrecord(["~nobody-at-all/x"], tmp_path / "dataset")


def test_what_is_no_example_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    with tf.io.TFRecordWriter(str(tmp_path / "records" / "a.tfrecord")) as writer:
        writer.write(b"something else")
    assert_refused(tmp_path / "records", "record 0 of 'a.tfrecord' is no tf.train.Example", "ddsp")


def test_no_records_are_an_error(write: Write, tmp_path: Path) -> None:
    assert_refused(write([]), "the TFRecords are empty", "prepare them again")
    with pytest.raises(DatasetError, match="no file matches 'nothing\\*'") as raised:
        prepare_from_tfrecord(["nothing*"], tmp_path / "dataset")
    assert ".tfrecord-00000-of-00010" in raised.value.hint


def test_silence_only_is_an_error(examples_of: Callable[..., list[Example]], write: Write) -> None:
    assert_refused(write(examples_of(recording(4.0) * 1e-6)), "all clips are silent", "audio")


def test_a_single_clip_is_an_error(examples_of: Callable[..., list[Example]], write: Write) -> None:
    folder = write(examples_of(recording(4.0))[:1])
    assert_refused(folder, "none is left to train on", "two passages")


def test_shards_of_which_some_do_not_tell_their_split_are_an_error(
    examples_of: Callable[..., list[Example]], write: Write
) -> None:
    examples = examples_of(recording(4.0))
    for stem in ("a.tfrecord-train", "a.tfrecord-eval"):
        write(examples, stem=stem)
    assert_refused(write(examples, stem="b"), "'b-00000-of-00002' does not tell", "narrow")


def test_options_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    for options in ({"validation_share": 1.0}, {"frame_rate": 300}, {"sample_rate": 100}):
        with pytest.raises(ConfigError):
            prepare_from_tfrecord(["nothing"], tmp_path / "dataset", **options)  # type: ignore[arg-type]
