"""Output files and folders that appear whole or not at all, and checksums."""

import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def check_output_file(
    path: Path | str, error: type[UserError], *, suffix: str, replace: bool = False
) -> None:
    """Returns if a file can be written here, so that long work does not end in vain.

    Args:
      path: The file to write.
      error: What to raise where it cannot.
      suffix: What its name ends in, such as '.png'.
      replace: Whether a file that is there already may be replaced. Devices, pipes, folders and
        links never are.
    """
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise error(f"cannot write '{path}': it does not end in {suffix}", hint="rename it")
    if os.path.lexists(path):
        if not replace:
            raise error(f"'{path}' exists already", hint="choose another name, or remove it")
        if not stat.S_ISREG(path.lstat().st_mode):
            raise error(f"'{path}' is there, and no file", hint="choose another name")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise error(f"cannot write '{path}': no folder '{parent}'", hint="make the folder first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _cannot_write(path, f"'{parent}' is no folder that can be written to", error)


@contextmanager
def written_file(
    path: Path | str, error: type[UserError], *, replace: bool = False
) -> Iterator[Path]:
    """Gives a hidden file beside `path` that becomes `path`, or disappears if the block raises.

    Args:
      path: The file to write.
      error: What to raise where it cannot be written, or exists already.
      replace: Whether it then takes the place of the one that exists.
    """
    path = Path(path).absolute()
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
        yield temporary
        if replace:
            temporary.replace(path)
        else:
            _appear(temporary, path)
    except FileExistsError as cause:
        raise error(f"'{path}' exists already", hint="choose another name, or remove it") from cause
    except OSError as cause:
        raise _cannot_write(path, cause.strerror or str(cause), error) from cause
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _appear(temporary: Path, path: Path) -> None:
    """Gives a file its name, which nothing else may have got meanwhile.

    Raises:
      FileExistsError: Something has.
    """
    try:
        path.hardlink_to(temporary)  # a rename would replace what is there
    except FileExistsError:
        raise
    except OSError:  # a file system without such links
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        temporary.rename(path)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _cannot_write(path: Path, why: str, error: type[UserError]) -> UserError:
    return error(f"cannot write '{path}': {why}", hint="choose a place that can be written to")
