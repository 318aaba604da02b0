"""Where sweeps are kept: files on any pyarrow filesystem, which appear whole or not at all.

A storage location is a local folder, a network mount, or an object store (`s3://`, `gs://`). This
module and `sweeps.ledger` are the only ones of `sweeps` that import pyarrow.
"""

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from sweeps.errors import LedgerError

T = TypeVar("T")

_OBJECT_STORES = {"s3", "gcs", "abfs"}

_MENDS = {
    errno.ENOSPC: "free some space and try again; nothing was left half-written",
    errno.EDQUOT: "free some of your quota and try again; nothing was left half-written",
    errno.EROFS: "the storage is read-only; give another --storage, or mount it writable",
    errno.EACCES: "ask for permission on the storage, or give another --storage",
    errno.EPERM: "ask for permission on the storage, or give another --storage",
}


@contextlib.contextmanager
def _reporting(doing: str, where: str, *, may_be_absent: bool = False) -> Iterator[None]:
    """Turns what the operating system or the object store says into a LedgerError."""
    try:
        yield
    except OSError as error:
        if may_be_absent and isinstance(error, FileNotFoundError):
            raise
        said = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
        hint = _MENDS.get(error.errno or 0, "check that the storage exists and can be reached")
        raise LedgerError(f"cannot {doing} {where}: {said}", hint=hint) from error


@dataclass(frozen=True)
class Location:
    """A folder on any pyarrow filesystem. Names are relative to it, with `/` between parts.

    Attributes:
      filesystem: Where the folder is.
      path: The folder, as the filesystem names it.
      uri: The folder, as users name it; absolute, so that other processes may be told.
    """

    filesystem: fs.FileSystem
    path: str
    uri: str

    @classmethod
    def of(cls, storage: "str | Path | Location") -> "Location":
        """Returns the location of a path or URI.

        Raises:
          LedgerError: No filesystem understands the URI.
        """
        if isinstance(storage, Location):
            return storage
        storage = str(storage)
        if "://" not in storage:
            path = str(Path(storage).expanduser().absolute())
            return cls(fs.LocalFileSystem(), path, path)
        try:
            filesystem, path = fs.FileSystem.from_uri(storage)
        except (pa.ArrowInvalid, OSError) as error:
            raise LedgerError(
                f"cannot use storage '{storage}': {error}",
                hint="give a folder, or a URI such as s3://bucket/folder or gs://bucket/folder",
            ) from error
        return cls(filesystem, path, storage)

    @property
    def local_folder(self) -> Path | None:
        """The folder as the operating system knows it; None on an object store."""
        return Path(self.path) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def show(self, name: str) -> str:
        """Returns a file's full name, for messages."""
        return f"{self.uri.rstrip('/')}/{name}"

    def at(self, name: str) -> str:
        """Returns a file's path on the filesystem."""
        return str(PurePosixPath(self.path, name))

    def make_folder(self, name: str) -> None:
        """Makes a folder and those above it."""
        with _reporting("make", self.show(name)):
            self.filesystem.create_dir(self.at(name), recursive=True)

    def entries(self, folder: str) -> list[fs.FileInfo]:
        """Returns what is in a folder, temporary files left out; nothing if there is no folder."""
        with _reporting("list", self.show(folder)):
            found = self.filesystem.get_file_info(
                fs.FileSelector(self.at(folder), allow_not_found=True)
            )
        return [info for info in found if not info.base_name.startswith("_")]

    def names(self, folder: str, suffix: str) -> list[str]:
        """Returns the names of a folder's files, as far as they end so, in order."""
        files = [info.base_name for info in self.entries(folder) if info.is_file]
        return sorted(f"{folder}/{name}" for name in files if name.endswith(suffix))

    def exists(self, name: str) -> bool:
        """Returns whether there is such a file."""
        with _reporting("look for", self.show(name)):
            return bool(self.filesystem.get_file_info(self.at(name)).is_file)

    def open(self, name: str) -> pa.NativeFile:
        """Opens a file for reading.

        Raises:
          FileNotFoundError: There is no such file.
          LedgerError: It cannot be read.
        """
        with _reporting("read", self.show(name), may_be_absent=True):
            return self.filesystem.open_input_file(self.at(name))

    def delete(self, name: str) -> None:
        """Deletes a file; no matter if somebody else has."""
        with _reporting("delete", self.show(name)), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.at(name))

    def put(self, name: str, data: bytes, *, replace: bool = False) -> bool:
        """Writes a file that others see whole or not at all.

        On a local filesystem it is flushed to disk under a `_` name and then linked to its own,
        which fails if the name is taken. An object store shows an object when its upload is
        complete; other filesystems rename. Neither of those can refuse a taken name in the same
        step: of two processes that write one name at once, both may be told True, and the later
        file stays.

        Returns:
          False where the file exists and is not to be replaced.

        Raises:
          LedgerError: It cannot be written. Nothing is left behind.
        """
        with _reporting("write", self.show(name)):
            if isinstance(self.filesystem, fs.LocalFileSystem):
                return _put_local(Path(self.at(name)), data, replace)
            if not replace and self.exists(name):
                return False
            if self.filesystem.type_name in _OBJECT_STORES:
                self._write(self.at(name), data)
            else:
                self._write_and_move(name, data)
            return True

    def _write(self, path: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(path) as file:
            file.write(data)

    def _write_and_move(self, name: str, data: bytes) -> None:
        path = self.at(name)
        temporary = str(_temporary(PurePosixPath(path)))
        try:
            self._write(temporary, data)
            self.filesystem.move(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                self.filesystem.delete_file(temporary)
            raise

    def each(self, function: Callable[[str], T], names: Sequence[str]) -> list[T]:
        """Returns what a function returns for each file, many of them at once."""
        # A local disk answers at once and Python is what takes time; object stores take theirs.
        threads = 2 if isinstance(self.filesystem, fs.LocalFileSystem) else 32
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, names))

    def copy_in(self, source: Path, folder: str) -> None:
        """Copies a local folder to a new one here. Not in one step; nothing stays if it fails.

        Raises:
          LedgerError: It cannot be copied.
        """
        self.make_folder(folder)
        target = self.at(folder)
        with _reporting("copy files to", self.show(folder)):
            try:
                fs.copy_files(str(source), target, fs.LocalFileSystem(), self.filesystem)
                if isinstance(self.filesystem, fs.LocalFileSystem):
                    for path in Path(target).rglob("*"):
                        _flush(path)
            except OSError:
                with contextlib.suppress(LedgerError):
                    self.delete_folder(folder)
                raise

    def copy_out(self, folder: str, target: Path) -> None:
        """Copies a folder to a local one, which is made if need be.

        Raises:
          LedgerError: It cannot be copied.
        """
        with _reporting("copy files from", self.show(folder)):
            target.mkdir(parents=True, exist_ok=True)
            fs.copy_files(self.at(folder), str(target), self.filesystem, fs.LocalFileSystem())

    def delete_folder(self, folder: str) -> None:
        """Deletes a folder and all that is in it."""
        with _reporting("delete", self.show(folder)), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.at(folder))


_AnyPath = TypeVar("_AnyPath", bound=PurePath)


def _temporary(path: _AnyPath) -> _AnyPath:
    """Returns a name of its own beside `path`; readers and dataset discovery skip the `_`."""
    return path.with_name(f"_{path.name}.{uuid.uuid4().hex}")


def _put_local(path: Path, data: bytes, replace: bool) -> bool:
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        elif not _link(temporary, path):
            return False
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)
    return True


def _link(temporary: Path, path: Path) -> bool:
    """Gives a file its name unless the name is taken, in one step where the mount can do it."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # No hard links here, as on some network and FUSE mounts.
        if path.exists():
            return False
        temporary.rename(path)
    return True


def _flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
