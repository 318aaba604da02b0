"""The dataset format: what is written is what is read, wholly or not at all."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thesis.data import (
    Clip,
    ClipFormat,
    Dataset,
    DatasetFacts,
    Split,
    Statistics,
    load_dataset,
    load_facts,
    write_dataset,
)
from thesis.errors import ConfigError, DatasetError
from thesis.files import check_output, sha256

FORMAT = ClipFormat(
    sample_rate=16_000,
    hop_size=64,
    clip_seconds=0.2,
    clip_hop_seconds=0.2,
    f0_min_hz=50.0,
    f0_max_hz=2000.0,
)


def clip(number: int, split: Split) -> Clip:
    rng = np.random.default_rng(number)
    return Clip(
        clip_id=f"a.wav@{number}",
        source="a.wav",
        start_seconds=0.2 * number,
        split=split,
        audio=rng.uniform(-1, 1, FORMAT.n_samples).astype(np.float32),
        f0_hz=rng.uniform(100, 200, FORMAT.n_frames).astype(np.float32),
        f0_confidence=rng.uniform(0, 1, FORMAT.n_frames).astype(np.float32),
        loudness_db=rng.uniform(-80, 0, FORMAT.n_frames).astype(np.float32),
    )


CLIPS = [clip(0, "train"), clip(1, "validation"), clip(2, "train")]


FACTS = DatasetFacts(
    **vars(FORMAT),
    schema_version=1,
    name="d",
    f0_estimator="invented",
    sources={"a.wav": "00ff"},
    skipped={},
    split_by="recording",
    n_train=2,
    n_validation=1,
    statistics=Statistics(-30.0, 10.0, 100.0, 200.0, 400.0, 1.0, 8.0),
    fingerprint="f" * 64,
)

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_subnormal=False)
    | st.text(st.characters(codec=None))
    | st.sampled_from(["recording", "time", 1e300, 2**60, "a" * 64]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def write(path: Path, clips: list[Clip] = CLIPS) -> Dataset:
    return write_dataset(
        path,
        clips,
        clip_format=FORMAT,
        f0_estimator="invented",
        sources={"a.wav": "00ff"},
        skipped={"b.wav": "silent"},
        total_seconds=0.6,
    )


# --- Round trip ---


def test_clips_are_read_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "d")
    dataset = load_dataset(tmp_path / "d")
    for split in ("train", "validation"):
        clips = dataset.clips(split)
        written = [c for c in CLIPS if c.split == split]
        assert len(clips) == len(written)
        assert clips.ids == tuple(c.clip_id for c in written)
        assert clips.sources == ("a.wav",) * len(written)
        for column in ("audio", "f0_hz", "f0_confidence", "loudness_db"):
            expected = np.stack([getattr(c, column) for c in written])
            values = getattr(clips, column)
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, expected)


def test_facts_survive_the_round_trip(tmp_path: Path) -> None:
    facts = write(tmp_path / "d").facts
    assert load_facts(tmp_path / "d") == facts
    assert DatasetFacts.from_json(facts.to_json()) == facts
    assert (facts.name, facts.n_train, facts.n_validation) == ("d", 2, 1)
    assert (facts.frame_rate, facts.n_samples, facts.n_frames) == (250, 3200, 50)
    assert (facts.sources, facts.skipped) == ({"a.wav": "00ff"}, {"b.wav": "silent"})


def test_statistics_are_those_of_the_training_clips(tmp_path: Path) -> None:
    statistics = write(tmp_path / "d").facts.statistics
    train = [c for c in CLIPS if c.split == "train"]
    loudness_db = np.concatenate([c.loudness_db for c in train]).astype(np.float64)
    voiced = np.concatenate([c.f0_confidence for c in train]) >= 0.5
    f0_hz = np.concatenate([c.f0_hz for c in train])[voiced]
    assert statistics.loudness_mean_db == pytest.approx(loudness_db.mean())
    assert statistics.loudness_std_db == pytest.approx(loudness_db.std())
    assert statistics.f0_median_hz == pytest.approx(np.median(f0_hz))
    assert statistics.f0_p05_hz < statistics.f0_median_hz < statistics.f0_p95_hz
    assert statistics.voiced_share == pytest.approx(voiced.mean())
    assert statistics.total_seconds == 0.6


def test_a_dataset_without_a_voiced_frame_has_statistics(tmp_path: Path) -> None:
    unvoiced = [replace(c, f0_confidence=np.zeros_like(c.f0_confidence)) for c in CLIPS]
    statistics = write(tmp_path / "d", unvoiced).facts.statistics
    assert (statistics.f0_median_hz, statistics.voiced_share) == (0, 0)


def test_equal_clips_have_equal_fingerprints_and_others_do_not(tmp_path: Path) -> None:
    facts = write(tmp_path / "a").facts
    assert write(tmp_path / "b").facts.fingerprint == facts.fingerprint
    assert write(tmp_path / "c", CLIPS[:2]).facts.fingerprint != facts.fingerprint


def test_reading_copies_nothing(tmp_path: Path) -> None:
    import pyarrow as pa

    dataset = write(tmp_path / "d")
    before = pa.total_allocated_bytes()
    clips = dataset.clips("train")
    for values in (clips.audio, clips.f0_hz, clips.f0_confidence, clips.loudness_db):
        assert not values.flags.owndata
        assert not values.flags.writeable
    assert pa.total_allocated_bytes() - before < clips.audio.nbytes / 4
    in_file = (tmp_path / "d" / "clips.arrow").read_bytes()
    assert clips.audio.tobytes() in in_file, "one split's audio is contiguous in the file"


def test_clips_outlive_their_dataset(tmp_path: Path) -> None:
    audio = write(tmp_path / "d").clips("train").audio
    np.testing.assert_array_equal(audio[1], CLIPS[2].audio)


def test_a_dataset_is_cheap_to_send_to_another_process(tmp_path: Path) -> None:
    dataset = write(tmp_path / "d")
    message = pickle.dumps(dataset)
    assert len(message) < 4096
    assert pickle.loads(message) == dataset


def test_values_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(FrozenInstanceError):
        write(tmp_path / "d").facts.n_train = 5  # type: ignore[misc]


def test_facts_are_read_without_pyarrow(tmp_path: Path) -> None:
    write(tmp_path / "d")
    code = (
        "import sys; from thesis.data import load_facts; load_facts(sys.argv[1]);"
        "sys.exit(bool({'pyarrow', 'librosa', 'scipy', 'tensorflow'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "d")], check=False)
    assert run.returncode == 0


# --- What is no dataset ---


def test_what_is_no_dataset_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder")
    for name in ("missing", "empty", "file"):
        for load in (load_dataset, load_facts):
            with pytest.raises(DatasetError, match=f"no dataset at '.*{name}'") as caught:
                load(tmp_path / name)
            assert "sweeps prepare" in caught.value.hint


def test_another_schema_version_is_an_error_that_names_both(tmp_path: Path) -> None:
    write(tmp_path / "d")
    facts = tmp_path / "d" / "dataset.json"
    facts.write_text(facts.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(DatasetError, match="schema version 99, this program reads 1") as caught:
        load_facts(tmp_path / "d")
    assert "sweeps prepare" in caught.value.hint


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "[1, 2]",
        "{}",
        '{"schema_version": 1}',
        '{"schema_version": 1, "statistics": 3}',
        b"\xff\xfe",
    ],
)
def test_broken_facts_are_an_error(tmp_path: Path, broken: str | bytes) -> None:
    write(tmp_path / "d")
    facts = tmp_path / "d" / "dataset.json"
    facts.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    with pytest.raises(DatasetError, match=str(tmp_path / "d")):
        load_dataset(tmp_path / "d")


@pytest.mark.parametrize("field", ["sample_rate", "statistics", "fingerprint"])
def test_a_missing_fact_is_an_error(tmp_path: Path, field: str) -> None:
    write(tmp_path / "d")
    facts = tmp_path / "d" / "dataset.json"
    values = json.loads(facts.read_text())
    del values[field]
    facts.write_text(json.dumps(values))
    with pytest.raises(DatasetError, match="the facts are broken"):
        load_facts(tmp_path / "d")


@given(data=st.data())
def test_facts_of_another_type_or_range_are_an_error_in_one_line(data: st.DataObject) -> None:
    values = json.loads(FACTS.to_json())
    inner = data.draw(st.booleans())
    where = values["statistics"] if inner else values
    name = data.draw(st.sampled_from(sorted(where)))
    where[name] = data.draw(anything)
    try:
        facts = DatasetFacts.from_json(json.dumps(values))
    except DatasetError as error:
        message, hint = error.message, error.hint
    else:
        found = getattr(facts.statistics if inner else facts, name)
        assert found == where[name]
        assert type(found) is type(getattr(FACTS.statistics if inner else FACTS, name))
        return
    assert message.isprintable()
    assert len(message) < 300
    assert hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample_rate", "16000"),
        ("sample_rate", 10**400),
        ("hop_size", True),
        ("clip_seconds", float("inf")),
        ("clip_seconds", 10**40),
        ("n_train", -1),
        ("n_train", 2.0),
        ("n_validation", 0),
        ("fingerprint", "../../../etc"),
        ("fingerprint", "F" * 64),
        ("fingerprint", "f" * 64 + "\n"),
        ("sources", ["a.wav"]),
        ("sources", {"a.wav": 1}),
        ("skipped", {"\ud800": "x"}),
        ("name", "\ud800"),
        ("split_by", "luck"),
        ("split_by", ["time"]),
        ("statistics", [1.0] * 7),
        ("statistics", None),
        ("schema_version", True),
        ("schema_version", 1.0),
        ("schema_version", "1"),
        ("surplus", 1),
    ],
)
def test_a_fact_that_cannot_be_is_named(tmp_path: Path, name: str, value: object) -> None:
    path = write(tmp_path / "d").path
    text = json.dumps(json.loads(FACTS.to_json()) | {name: value})
    (path / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match="the facts are broken: ") as caught:
        load_dataset(path)
    assert name in caught.value.message or "Infinity" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000, b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"\0"]
)
def test_facts_that_are_no_json_are_an_error(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "d").path
    (path / "dataset.json").write_bytes(content)
    with pytest.raises(DatasetError, match="the facts are broken: "):
        load_facts(path)


def test_a_path_that_cannot_be_is_no_dataset() -> None:
    for path in ("a\0b", "a\nb", "x" * 5000):
        with pytest.raises(DatasetError) as caught:
            load_facts(path)
        assert caught.value.message.isprintable()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_truncated_clips_are_an_error(tmp_path: Path, share: float) -> None:
    write(tmp_path / "d")
    clips = tmp_path / "d" / "clips.arrow"
    os.truncate(clips, int(share * clips.stat().st_size))
    with pytest.raises(DatasetError, match="cut short"):
        load_dataset(tmp_path / "d")


def test_missing_clips_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "d")
    (tmp_path / "d" / "clips.arrow").unlink()
    with pytest.raises(DatasetError, match="missing or broken"):
        load_dataset(tmp_path / "d")


def test_clips_of_another_dataset_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", CLIPS[:2])
    (tmp_path / "b" / "clips.arrow").replace(tmp_path / "a" / "clips.arrow")
    with pytest.raises(DatasetError, match="not those that its facts describe"):
        load_dataset(tmp_path / "a")


def altered(path: Path, share: float = 0.5) -> None:
    """Flips one bit of a dataset's clips."""
    content = bytearray((path / "clips.arrow").read_bytes())
    content[int(share * len(content))] ^= 4
    with (path / "clips.arrow").open("r+b") as file:
        file.write(content)


def test_altered_clips_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "d")
    altered(tmp_path / "d")
    with pytest.raises(DatasetError, match="they were altered") as caught:
        load_dataset(tmp_path / "d")
    assert "sweeps prepare" in caught.value.hint


@pytest.mark.parametrize(
    "values",
    [
        {"sample_rate": FORMAT.sample_rate // 2, "clip_seconds": FORMAT.clip_seconds * 2,
         "f0_max_hz": FORMAT.f0_max_hz / 2},
        {"f0_min_hz": FORMAT.f0_min_hz + 1},
        {"f0_max_hz": FORMAT.f0_max_hz - 1},
    ],
    ids=lambda values: next(iter(values)),
)  # fmt: skip
def test_facts_that_give_clips_another_meaning_are_an_error(tmp_path: Path, values: dict) -> None:
    path = write(tmp_path / "d").path
    facts = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps(facts | values))
    with pytest.raises(DatasetError, match="not those that its facts describe"):
        load_dataset(path)


def test_clips_of_a_release_that_did_not_say_what_they_mean_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thesis.data._FORMAT", b"something else")
    path = write(tmp_path / "d").path
    monkeypatch.undo()
    assert len(load_dataset(path).clips("train"))


def test_clips_are_read_once_and_again_when_their_file_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def counted(path: Path) -> str:
        read.append(path)
        return sha256(path)

    path = write(tmp_path / "d").path
    monkeypatch.setattr("thesis.data.sha256", counted)
    load_dataset(path)
    assert read == []
    before = (path / "clips.arrow").stat()
    altered(path)
    os.utime(path / "clips.arrow", ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(DatasetError, match="they were altered"):
            load_dataset(path)
    altered(path)  # back to what it was
    for _ in range(2):
        load_dataset(path)
    assert len(read) == 3


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("audio", np.nan),
        ("audio", np.inf),
        ("f0_hz", 0.0),
        ("f0_hz", np.inf),
        ("f0_confidence", 1.1),
        ("f0_confidence", np.nan),
        ("loudness_db", -np.inf),
    ],
)
def test_clips_that_nothing_can_be_trained_on_are_neither_written_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, value: float
) -> None:
    values = getattr(CLIPS[1], column).copy()
    values[7] = value
    bad = [CLIPS[0], replace(CLIPS[1], **{column: values})]
    with pytest.raises(DatasetError, match=f"'{column}' of the clip 'a.wav@1' is not finite"):
        write(tmp_path / "d", bad)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:  # as a stranger would
        patch.setattr("thesis.data._in_range", lambda *_: True)
        write(tmp_path / "d", bad)
    monkeypatch.setattr("thesis.data._checked", {})
    with pytest.raises(DatasetError, match=f"'{column}' in the validation clips"):
        load_dataset(tmp_path / "d")


def rewritten(path: Path, change: Callable[[Any], Any], **options: Any) -> None:
    """Writes a dataset's clips anew, otherwise than this project would, and vouches for them."""
    import pyarrow as pa

    reader = pa.ipc.open_file(pa.BufferReader((path / "clips.arrow").read_bytes()))
    tables = [change(pa.Table.from_batches([reader.get_batch(i)])) for i in range(2)]
    how = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_file(path / "clips.arrow", tables[0].schema, options=how) as writer:
        for table in tables:
            writer.write_table(table)
    vouched(path)


def vouched(path: Path) -> None:
    facts = replace(load_facts(path), fingerprint=sha256(path / "clips.arrow"))
    (path / "dataset.json").write_text(facts.to_json())


def with_a_null(table: Any) -> Any:
    import pyarrow as pa

    column = table["f0_hz"].combine_chunks()
    values = pa.array([None, *column.to_pylist()[1:]], type=column.type)
    return table.set_column(table.schema.get_field_index("f0_hz"), "f0_hz", values)


def with_a_null_within(table: Any) -> Any:
    import pyarrow as pa

    column = table["f0_hz"].combine_chunks().to_pylist()
    column[0][3] = None
    values = pa.array(column, type=table["f0_hz"].type)
    return table.set_column(table.schema.get_field_index("f0_hz"), "f0_hz", values)


def as_extension(table: Any) -> Any:
    import pyarrow as pa

    column = table["audio"].combine_chunks()
    kind = pa.fixed_shape_tensor(pa.float32(), [column.type.list_size])
    index = table.schema.get_field_index("audio")
    return table.set_column(index, "audio", pa.ExtensionArray.from_storage(kind, column))


def as_dictionary(table: Any) -> Any:
    column = table["source"].combine_chunks().dictionary_encode()
    return table.set_column(table.schema.get_field_index("source"), "source", column)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (with_a_null, {}),
        (with_a_null_within, {}),
        (as_extension, {}),
        (as_dictionary, {}),
        (lambda table: table, {"compression": "zstd"}),
        (lambda table: table, {"compression": "lz4"}),
        (lambda table: table.slice(0, 1), {}),
    ],
)
def test_clips_of_another_form_are_an_error_whoever_vouches_for_them(
    tmp_path: Path, change: Callable[[Any], Any], options: dict[str, Any]
) -> None:
    path = write(tmp_path / "d").path
    rewritten(path, lambda table: table)
    load_dataset(path)
    rewritten(path, change, **options)
    with pytest.raises(DatasetError, match="not those that its facts describe"):
        load_dataset(path)


@pytest.mark.parametrize("name", ["dataset.json", "clips.arrow"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "d").path
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(DatasetError):
        load_dataset(path)


# --- Writing, wholly or not at all ---


def test_folders_above_are_made_and_nothing_is_left_beside(tmp_path: Path) -> None:
    write(tmp_path / "new" / "d")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["d"]
    assert sorted(p.name for p in (tmp_path / "new" / "d").iterdir()) == [
        "clips.arrow",
        "dataset.json",
    ]


def test_a_relative_path_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write(Path("d")).facts.name == "d"
    assert len(load_dataset("d").clips("train")) == 2


def test_an_existing_output_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "precious").touch()
    with pytest.raises(DatasetError, match="exists already") as caught:
        write(tmp_path / "d")
    assert caught.value.hint
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["precious"]


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="no folder that can be written to"):
        check_output(tmp_path / "file" / "d", DatasetError)


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DatasetError, match="no folder that can be written to"):
        check_output(tmp_path / "d", DatasetError)


@pytest.mark.parametrize("method", ["mkdir", "write_text", "rename"])
@pytest.mark.parametrize(
    ("failure", "reported"),
    [(OSError(28, "No space left on device"), DatasetError), (KeyboardInterrupt(), None)],
)
def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    failure: BaseException,
    reported: type[BaseException] | None,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(Path, method, fail)
    with pytest.raises(reported or type(failure)) as caught:
        write(tmp_path / "d")
    if reported:
        assert "No space left" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# --- Fewer frames ---


@pytest.mark.parametrize("factor", [1, 2, 3, 200])
def test_subsampled_clips_keep_their_audio_and_every_nth_frame(
    dataset: Dataset, factor: int
) -> None:
    clips = dataset.clips("train")
    fewer = clips.subsampled(factor)
    assert fewer.audio is clips.audio
    assert (fewer.ids, fewer.sources, len(fewer)) == (clips.ids, clips.sources, len(clips))
    kept = [t for t in range(125) if t % factor == 0]
    for name in ("f0_hz", "f0_confidence", "loudness_db"):
        np.testing.assert_array_equal(getattr(fewer, name), getattr(clips, name)[:, kept])


# --- Formats ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate", 100),
        ("hop_size", 0),
        ("hop_size", 1024),
        ("clip_seconds", 0.0),
        ("clip_seconds", 0.2001),
        ("clip_seconds", -1.0),
        ("clip_seconds", 1e300),
        ("clip_seconds", float("inf")),
        ("clip_seconds", float("nan")),
        ("clip_hop_seconds", float("inf")),
        ("clip_hop_seconds", 0.3),
        ("clip_hop_seconds", 0.0),
        ("clip_hop_seconds", float("nan")),
        ("f0_min_hz", 0.0),
        ("f0_min_hz", float("nan")),
        ("f0_max_hz", float("inf")),
        ("f0_max_hz", 60.0),
        ("f0_max_hz", 9000.0),
    ],
)
def test_a_format_outside_its_range_is_an_error(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} = ") as caught:
        replace(FORMAT, **{field: value})
    assert caught.value.hint
