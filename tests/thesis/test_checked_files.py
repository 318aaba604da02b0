"""Files of strangers: of the right kind, size and type, or one line."""

import io
import math
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from thesis.checked_files import (
    read_arrays,
    read_bytes,
    read_json_object,
    read_text,
    read_wav,
)
from thesis.errors import BundleError


def assert_refused(
    read: Any, path: Path, *arguments: Any, words: str = ".", **options: Any
) -> None:
    with pytest.raises(BundleError, match=words) as caught:
        read(path, *arguments, BundleError, **options)
    assert "\n" not in caught.value.message
    assert caught.value.hint


# --- Bytes and text ---


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_only_files_are_read(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "a")
    assert_refused(read_bytes, tmp_path / "a", 9, words="is no file")


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert_refused(read_bytes, tmp_path / "a", 9, words="cannot read .*No such file")


def test_large_files_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2**40)
    assert_refused(read_bytes, tmp_path / "a", 2**20, words="larger than 1 MB")
    (tmp_path / "b").write_bytes(b"12345")
    assert read_bytes(tmp_path / "b", 5, BundleError) == b"12345"
    assert_refused(read_bytes, tmp_path / "b", 4, words="larger")


def test_text_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("naïve", encoding="utf-8-sig")
    assert read_text(tmp_path / "a", BundleError) == "naïve"
    (tmp_path / "a").write_text("naïve", encoding="utf-16")
    assert_refused(read_text, tmp_path / "a", words="no text in UTF-8")


# --- JSON ---


@pytest.mark.parametrize("content", [b"[]", b"1", b'"a"', b"null", b"{", b"\xff", b""])
def test_what_is_no_object_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert_refused(read_json_object, tmp_path / "a.json")


# --- Arrays ---


def header(shape: Any, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(f"{name}.npy", content)
    return path


def test_arrays_are_what_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b/c": np.asfortranarray(rng.normal(size=(2, 5)).astype(np.float32)),
        "none": np.zeros((0, 3), np.float32),
        "one": np.array(1.5, np.float32),
        "big-endian": np.arange(3).astype(">f4"),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    read = read_arrays(tmp_path / "a.npz", BundleError)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == np.float32


@pytest.mark.parametrize(
    "content",
    [
        header((10**15,)),
        header((-4,)) + bytes(16),
        header((10**9, 10**9)) + bytes(16),
        header((4,)) + bytes(15),
        header((4,)) + bytes(17),
        header((2,), "<f8") + bytes(16),
        header((2,), "|O") + bytes(16),
        header((4,), "<i4") + bytes(16),
        header("(" * 5000) + bytes(16),
        header("__import__('os').system('x')") + bytes(16),
        header((1,)) + np.float32("nan").tobytes(),
        b"\x93NUMPY\x09\x00",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"",
    ],
)
def test_an_array_is_as_long_as_its_header_says_and_of_finite_floats(
    tmp_path: Path, content: bytes
) -> None:
    assert_refused(read_arrays, archive(tmp_path / "a.npz", a=content))


def test_compressed_arrays_are_refused_before_they_grow(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6, np.float32))
    assert_refused(read_arrays, tmp_path / "a.npz", words="is compressed")


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", a=header((9999,)) + bytes(4 * 9999))
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry, last = data[start:end], bytearray(data[end:])
    last[8:12] = (9).to_bytes(2, "little") * 2
    last[12:16] = (9 * len(entry)).to_bytes(4, "little")
    path.write_bytes(data[:start] + 9 * entry + bytes(last))
    assert_refused(read_arrays, path, words="overlap")


@given(st.binary(), st.integers(0, 2000), st.integers(0, 40))
def test_damaged_archives_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, patch: bytes, at: int, gone: int
) -> None:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    np.savez(path, a=np.arange(9, dtype=np.float32), b=np.ones((2, 2), np.float32))
    data = path.read_bytes()
    at %= len(data)
    path.write_bytes(data[:at] + patch + data[at + gone :])
    with suppress(BundleError):
        read_arrays(path, BundleError)


# --- Audio ---


def wav(path: Path, **options: Any) -> Path:
    values = {"subtype": "FLOAT", "format": "WAV", **options}
    soundfile.write(path, np.array([0.0, 0.5, -2.0], np.float32), 8_000, **values)
    return path


def test_audio_is_what_was_written(tmp_path: Path) -> None:
    audio, rate = read_wav(wav(tmp_path / "a.wav"), BundleError)
    assert audio.tolist() == [0.0, 0.5, -2.0]
    assert rate == 8_000


@pytest.mark.parametrize("form", [{"subtype": "PCM_16"}, {"format": "FLAC", "subtype": "PCM_16"}])
def test_other_audio_is_refused(tmp_path: Path, form: dict[str, str]) -> None:
    assert_refused(read_wav, wav(tmp_path / "a", **form), words="no mono WAV of 32-bit floats")


def test_stereo_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((3, 2)), 8_000, subtype="FLOAT")
    assert_refused(read_wav, tmp_path / "a.wav", words="no mono WAV")


def test_samples_are_finite_unless_they_need_not_be(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0, math.nan]), 8_000, subtype="FLOAT")
    assert_refused(read_wav, tmp_path / "a.wav", words="not finite")
    audio, _ = read_wav(tmp_path / "a.wav", BundleError, finite=False)
    assert math.isnan(audio[1])


@given(st.binary(max_size=9), st.integers(0, 90), st.integers(0, 9))
def test_damaged_audio_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, patch: bytes, at: int, gone: int
) -> None:
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(5), 8_000, subtype="FLOAT", format="WAV")
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    path.write_bytes(sound.getvalue()[:at] + patch + sound.getvalue()[at + gone :])
    with suppress(BundleError):
        read_wav(path, BundleError)
