"""Recordings: headers and frames of every format that is read."""

import io
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from thesis.errors import AudioError
from thesis.features import LARGEST_SAMPLE, load_audio

_FILE = Path(tempfile.mkdtemp(prefix="fuzz-")) / "a.mp3"  # the suffix that has two decoders tried


def _encoded(form: str, **options: str) -> bytes:
    tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(2000) / 8000)
    file = io.BytesIO()
    soundfile.write(file, np.stack([tone, tone], axis=1), 8000, format=form, **options)
    return file.getvalue()


SEEDS = [
    _encoded("WAV"),
    _encoded("WAV", subtype="FLOAT"),
    _encoded("WAVEX", subtype="PCM_24"),
    _encoded("RF64"),
    _encoded("W64"),
    _encoded("FLAC"),
    _encoded("OGG"),
    _encoded("OGG", subtype="OPUS"),
    _encoded("AIFF"),
    _encoded("CAF"),
    _encoded("AU"),
    _encoded("MP3"),
    b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + _encoded("MP3"),
]


def check(data: bytes) -> None:
    """Raises what is no word to a user; what is read must be audio."""
    _FILE.write_bytes(data)
    try:
        audio = load_audio(_FILE, 4000)
    except AudioError:
        return
    assert audio.ndim == 1
    assert audio.dtype == np.float32
    assert np.isfinite(audio).all()
    assert np.abs(audio).max(initial=0) < 10 * LARGEST_SAMPLE
