"""MP3s whose headers do not tell how long they are, or tell it wrong."""

import struct
from collections.abc import Iterator
from pathlib import Path

import miniaudio
import numpy as np
import pytest
import soundfile

from thesis.errors import AudioError
from thesis.features import load_audio
from thesis.mp3 import Mp3, Mp3Error

RATE = 44_100
BIT_RATES = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]


def mpeg_frames(data: bytes) -> list[bytes]:
    """The frames of an MPEG-1 Layer III stream, one after another from the first byte on."""
    frames, at = [], 0
    while at + 4 <= len(data):
        (header,) = struct.unpack_from(">I", data, at)
        assert header >> 17 == 0x7FFD  # sync, MPEG-1, Layer III
        rate = [44_100, 48_000, 32_000][header >> 10 & 3]
        size = 144_000 * BIT_RATES[header >> 12 & 15] // rate + (header >> 9 & 1)
        frames.append(data[at : at + size])
        at += size
    return frames


def encoded(path: Path, audio: np.ndarray, mode: str = "VARIABLE") -> list[bytes]:
    """The frames of an MP3, the first of which is its Xing or Info tag."""
    options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "compression_level": 0.2}
    with soundfile.SoundFile(path, "w", RATE, audio.ndim, bitrate_mode=mode, **options) as file:
        file.write(audio)
    frames = mpeg_frames(path.read_bytes())
    assert b"Xing" in frames[0] or b"Info" in frames[0]
    return frames


def tones(seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 220 * 2 ** (np.floor(2 * time) % 12 / 12) * time)).astype("f4")


def cover_art(n_bytes: int) -> bytes:
    picture = np.random.default_rng(0).bytes(n_bytes)  # with what looks like frames in it
    body = b"APIC" + struct.pack(">I", n_bytes) + b"\0\0" + picture
    sizes = bytes(len(body) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + sizes + body


NOISE = np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)


@pytest.mark.parametrize(
    ("audio", "mode"),
    [
        (tones(6), "CONSTANT"),
        (np.concatenate([np.zeros(2 * RATE, np.float32), tones(6) + 0.05 * tones(6)]), "VARIABLE"),
        (np.concatenate([0.3 * NOISE, 0.02 * tones(10)]), "VARIABLE"),
        (np.stack([tones(5), 0.5 * tones(5)], axis=1), "VARIABLE"),
    ],
    ids=["constant rate", "quiet start", "loud start", "stereo"],
)
@pytest.mark.parametrize("tag", [b"", cover_art(300_000)], ids=["bare", "cover art"])
def test_without_a_tag_of_its_length_an_mp3_is_read_to_its_end(
    tmp_path: Path, audio: np.ndarray, mode: str, tag: bytes
) -> None:
    path = tmp_path / "a.mp3"
    frames = encoded(path, audio, mode)[1:]
    path.write_bytes(tag + b"".join(frames))
    read = load_audio(path, RATE)
    assert len(read) == len(frames) * 1152
    # Late by what encoder and decoder take; of noise not much is left at this rate.
    mono = audio if audio.ndim == 1 else audio.mean(axis=1)
    late = read[1105 : 1105 + len(mono)]
    assert np.corrcoef(late, mono[: len(late)])[0, 1] > 0.8


def test_a_stream_that_begins_between_two_files_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    frames = encoded(path, tones(4))[20:]
    path.write_bytes(frames[0][100:] + b"".join(frames[1:]))
    # The first frames refer to what came before them, and cannot be decoded.
    assert len(frames) - 10 <= len(load_audio(path, RATE)) / 1152 <= len(frames)


def test_two_files_in_one_are_read_to_the_end_of_the_second(tmp_path: Path) -> None:
    first, second = encoded(tmp_path / "a.mp3", tones(3)), encoded(tmp_path / "b.mp3", tones(5))
    (tmp_path / "both.mp3").write_bytes(b"".join(first + second))
    assert len(load_audio(tmp_path / "both.mp3", RATE)) == pytest.approx(8 * RATE, abs=8 * 1152)


def test_an_mp3_whose_tag_tells_its_length_has_it_to_the_sample(tmp_path: Path) -> None:
    encoded(tmp_path / "a.mp3", tones(3.123))
    assert len(load_audio(tmp_path / "a.mp3", RATE)) == len(tones(3.123))


def test_an_mp3_that_holds_less_than_its_tag_promises_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    frames = encoded(path, tones(3))
    path.write_bytes(b"".join(frames[: len(frames) // 2]))
    with pytest.raises(AudioError, match="cut short"):
        load_audio(path, RATE)


@pytest.mark.parametrize("form", ["WAV", "RF64", "W64", "FLAC", "AIFF", "CAF", "AU"])
def test_another_format_that_is_named_mp3_is_read(tmp_path: Path, form: str) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 5 * RATE)  # any bytes, those of frames as well
    for name in ("a.mp3", "a.audio"):
        soundfile.write(tmp_path / name, noise, RATE, format=form, subtype="PCM_16")
    read = load_audio(tmp_path / "a.mp3", RATE)
    np.testing.assert_array_equal(read, load_audio(tmp_path / "a.audio", RATE))
    assert len(read) == len(noise)


def test_what_the_decoder_refuses_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> Iterator[object]:
        raise miniaudio.DecodeError("failed to init decoder", -2)
        yield

    monkeypatch.setattr(miniaudio, "stream_memory", refuses)
    with pytest.raises(Mp3Error):
        [*Mp3(RATE, 1, 1152, 1152, b"").blocks(1000)]


def test_what_is_no_mp3_is_one_error_and_no_word_of_a_library(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for n_bytes in (0, 1, 10, 1000, 100_000):
        (tmp_path / "a.mp3").write_bytes(rng.bytes(n_bytes))
        with pytest.raises(AudioError, match="is not audio"):
            load_audio(tmp_path / "a.mp3", RATE)
    assert capfd.readouterr() == ("", "")
