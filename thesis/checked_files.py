"""Files that a stranger may have written: their kind, size, types and shapes are checked first.

One door for each form: bytes, text, JSON, arrays of float32, audio as `thesis.bundle` writes it.
Nothing that is read here runs, and nothing takes more memory than the file has bytes, times a
few. Whatever is wrong is one error, of the kind that the caller names.
"""

import io
import math
import re
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from thesis.errors import UserError
from thesis.typed_json import parse_object

TEXT_BYTES = 16 * 2**20
"""Texts are smaller than this."""

ARRAY_BYTES = 2**31
"""Models, arrays and audio are smaller than this: it is the limit of ONNX's own format."""

_HINT = "it was damaged or changed; get it again"


def read_bytes(path: Path, limit: int, error: type[UserError]) -> bytes:
    """Returns what a regular file holds.

    Args:
      path: The file, or a link to it. Of a pipe or device nothing is read.
      limit: Bytes that it may have.
      error: What to raise where it is none, is larger, or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error(f"'{path}' is no file", hint="name a file that holds data")
        if status.st_size > limit:
            raise error(f"'{path}' is larger than {limit / 2**20:,.0f} MB", hint=_HINT)
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as cause:
        raise error(
            f"cannot read '{path}': {cause.strerror or cause}", hint="check its permissions"
        ) from cause
    if len(data) > limit:
        raise error(f"'{path}' is larger than {limit / 2**20:,.0f} MB", hint=_HINT)
    return data


def read_text(path: Path, error: type[UserError], *, limit: int = TEXT_BYTES) -> str:
    """Returns a text in UTF-8, which may begin with a byte order mark.

    Args:
      path: The file.
      error: What to raise where it is no such text.
      limit: Bytes that it may have.
    """
    try:
        return read_bytes(path, limit, error).decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise error(f"'{path}' is no text in UTF-8", hint=_HINT) from cause


def read_json_object(path: Path, error: type[UserError]) -> dict[str, Any]:
    """Returns a JSON object. Its numbers are finite.

    Args:
      path: The file.
      error: What to raise where it is none.
    """
    try:
        return parse_object(read_text(path, error))
    except ValueError as cause:
        raise error(f"'{path}' holds no JSON object: {cause}", hint=_HINT) from cause


def read_arrays(path: Path, error: type[UserError]) -> dict[str, npt.NDArray[np.float32]]:
    """Returns the arrays of an uncompressed .npz file by name, finite float32.

    As `numpy.savez` writes them. Objects are never unpickled, and a header that promises more than
    there is, is found before memory is taken for it.

    Args:
      path: The file.
      error: What to raise where it is none.
    """
    data = read_bytes(path, ARRAY_BYTES, error)
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed")
            if sum(entry.file_size for entry in entries) > len(data):
                raise ValueError("its entries overlap")
            for entry in entries:
                arrays[entry.filename.removesuffix(".npy")] = _array(archive.read(entry))
    except (
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        RuntimeError,
        SyntaxError,
        MemoryError,
        OverflowError,
        struct.error,
        zipfile.BadZipFile,
    ) as cause:  # fmt: skip  what zipfile and numpy raise for damage, NotImplementedError among it
        raise error(f"'{path}' holds no arrays: {cause}", hint=_HINT) from cause
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise error(f"'{name}' in '{path}' has values that are not finite", hint=_HINT)
    return arrays


_HEADER = re.compile(
    rb"\{'descr': '([<>]f4)', 'fortran_order': (True|False), "
    rb"'shape': \((|\d{1,12},|\d{1,12}(?:, \d{1,12}){1,7})\), \} *\n"
)
"""As numpy writes it. Its own reader takes any literal of Python."""


def _array(data: bytes) -> npt.NDArray[np.float32]:
    """Returns what the content of an .npy file holds.

    Raises:
      ValueError: It is no float32, or there is more or less of it than its header says.
    """
    version, n_header = np.lib.format.read_magic(io.BytesIO(data)), 10
    if version != (1, 0):
        raise ValueError(f"version {version} of the format is not known")
    start = n_header + int.from_bytes(data[n_header - 2 : n_header], "little")
    header = _HEADER.fullmatch(data[n_header:start])
    if not header:
        raise ValueError("it does not begin as an array of float32")
    shape = tuple(map(int, re.findall(rb"\d+", header[3])))
    if math.prod(shape) * 4 != len(data) - start:
        raise ValueError(f"there are not {list(shape)} values")
    values = np.frombuffer(data, header[1].decode(), offset=start)
    order: Literal["C", "F"] = "F" if header[2] == b"True" else "C"
    return values.reshape(shape, order=order).astype(np.float32)


def read_wav(
    path: Path, error: type[UserError], *, finite: bool = True
) -> tuple[npt.NDArray[np.float32], int]:
    """Returns mono audio of 32-bit floats, [samples], and its sample rate in Hz.

    Args:
      path: What `thesis.bundle.write_audio` wrote.
      error: What to raise where it is anything else.
      finite: Whether samples that are not are an error, too.
    """
    import soundfile

    data = read_bytes(path, ARRAY_BYTES, error)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            form = file.format, file.subtype, file.channels
            frames, rate = file.frames, file.samplerate
            if form != ("WAV", "FLOAT", 1) or not 0 <= frames * 4 <= len(data):
                raise error(f"'{path}' is no mono WAV of 32-bit floats", hint=_HINT)
            audio: npt.NDArray[np.float32] = file.read(frames, dtype="float32")
    except soundfile.SoundFileError as cause:
        raise error(f"'{path}' is no audio that can be read", hint=_HINT) from cause
    if finite and not np.isfinite(audio).all():
        raise error(f"'{path}' has samples that are not finite", hint=_HINT)
    return audio, rate
