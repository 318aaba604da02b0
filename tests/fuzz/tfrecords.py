"""Fuzz target: TFRecords that `sweeps prepare --from-tfrecord` is given."""

import struct
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from thesis.errors import UserError
from thesis.tfrecord import masked_crc, prepare_from_tfrecord

RATE, HOP, SECONDS = 4_000, 40, 0.5
"""As small as clips are taken: there are many to be tried."""


def check(data: bytes) -> None:
    """Reads a shard: as it is, and with the checksums made right that a change has made wrong.

    Args:
      data: What the file holds.

    Raises:
      Exception: Anything but a `UserError` is a bug.
    """
    for content in {data, with_right_checksums(data)}:
        with tempfile.TemporaryDirectory() as folder, suppress(UserError):
            (Path(folder) / "a.tfrecord").write_bytes(content)
            prepare_from_tfrecord(
                [f"{folder}/a.tfrecord"],
                Path(folder) / "dataset",
                sample_rate=RATE,
                frame_rate=RATE // HOP,
                recompute_loudness=True,
            )


def with_right_checksums(data: bytes) -> bytes:
    """Returns a shard whose records have the checksums that they should have."""
    parts, at = [], 0
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        payload = data[at + 12 : at + 12 + size]
        parts.append(record(payload))
        at += 16 + size
    return b"".join(parts)


def record(payload: bytes) -> bytes:
    """Returns one record of a TFRecord."""
    size = struct.pack("<Q", len(payload))
    return size + masked_crc(size) + payload + masked_crc(payload)


def example(**features: np.ndarray | list[bytes]) -> bytes:
    """Returns a `tf.train.Example` of lists of floats, integers or bytes."""
    entries = b""
    for name, values in features.items():
        if isinstance(values, list):
            kind, content = 1, b"".join(field(1, value) for value in values)
        elif values.dtype.kind == "f":
            kind, content = 2, field(1, values.astype("<f4").tobytes())
        else:
            kind, content = 3, field(1, b"".join(varint(int(value)) for value in values))
        entries += field(1, field(1, name.encode()) + field(2, field(kind, content)))
    return field(1, entries)


def field(number: int, content: bytes) -> bytes:
    """Returns a field of a protocol buffer that has a length."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """Returns a whole number as protocol buffers have it."""
    value &= 2**64 - 1
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def clip(seed: int, **others: np.ndarray | list[bytes]) -> bytes:
    """Returns a clip as ddsp writes it."""
    rng = np.random.default_rng(seed)
    n_samples = round(SECONDS * RATE)
    n_frames = n_samples // HOP
    time = np.arange(n_samples) / RATE
    values = {
        "audio": 0.3 * np.sin(2 * np.pi * (200 + seed) * time) + rng.normal(0, 0.01, n_samples),
        "f0_hz": np.full(n_frames, 200.0 + seed),
        "f0_confidence": np.full(n_frames, 0.9),
        "loudness_db": np.full(n_frames, -20.0),
    }
    return example(**values | others)


SEEDS: list[bytes] = [
    b"".join(record(clip(seed)) for seed in range(3)),
    record(clip(0)) + record(clip(1, audio_16k=np.zeros(8_000))),
    record(clip(0, f0_hz=np.zeros(50))),
    record(clip(0, audio=np.arange(2_000))) + record(clip(0, loudness_db=[b"quiet"])),
    record(clip(0, audio=np.full(2_000, np.nan))),
    record(clip(0, audio=np.full(2_000, 1e30))),
    record(b""),
    b"",
]
