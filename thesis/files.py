"""Output folders that appear whole or not at all, and checksums."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thesis.errors import UserError


def check_output(path: Path | str, error: type[UserError]) -> None:
    """Returns if a folder can be made here, so that long work does not end in vain.

    Args:
      path: The folder to make.
      error: What to raise where it exists already, or the folder above cannot be written to.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise error(f"'{path}' exists already", hint="choose another folder, or remove it")
    parent = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise _cannot_write(path, f"'{parent}' is no folder that can be written to", error)


@contextmanager
def written_whole(path: Path | str, error: type[UserError]) -> Iterator[Path]:
    """Gives a hidden folder beside `path` that becomes `path`, or disappears if the block raises.

    Args:
      path: The folder to make; folders above it are made too.
      error: What to raise where it exists already or cannot be written.
    """
    check_output(path, error)
    path = Path(path).absolute()
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        staging.mkdir(parents=True)
        yield staging
        staging.rename(path)
    except OSError as cause:
        raise _cannot_write(path, cause.strerror or str(cause), error) from cause
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _cannot_write(path: Path, why: str, error: type[UserError]) -> UserError:
    return error(f"cannot write '{path}': {why}", hint="choose a folder that can be written to")
