"""Where sweeps are kept: files on any pyarrow filesystem, which appear whole or not at all.

A storage location is a local folder, a network mount, or an object store (`s3://`, `gs://`). This
module and `sweeps.ledger` are the only ones of `sweeps` that import pyarrow.
"""

import contextlib
import errno
import os
import random
import re
import stat
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from sweeps.credentials import has_credentials, is_misspelt_uri, safe_uri
from sweeps.errors import DamagedError, LedgerError
from thesis.errors import first_line
from thesis.typed_json import MOST_BYTES

S = TypeVar("S")
T = TypeVar("T")

_OBJECT_STORES = {"s3", "gcs", "abfs"}

_PATIENCE_SECONDS = 30.0
"""How long after its first attempt an operation is tried again where a failure may pass."""

_FIRST_PAUSE_SECONDS = 0.1
"""Before the second attempt. Each pause is twice the last, less up to a half by chance, so that
many workers that were throttled together do not come back together."""

_FEW = 16
"""Files of a local disk that are read before a second thread would have started."""

_LEFTOVER_SECONDS = 24 * 3600
"""No write takes so long, and few clocks of machines that share a storage are so far apart."""

_MAY_PASS = {
    errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.EPIPE,
    errno.ETIMEDOUT, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETDOWN,
    errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH,
}  # fmt: skip
"""What mounts report while a server or the network is away."""

_MAY_PASS_SAID = re.compile(
    "NETWORK_CONNECTION|REQUEST_TIMEOUT|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE"
    r"|HTTP status (429|5\d\d)|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED"
)
"""What object stores say in such a case, in pyarrow's words: they have no error numbers."""

_FAILURES = (OSError, pa.ArrowException)
"""What a filesystem of pyarrow's raises: of some, Azure for one, not all are an OSError."""

_SERVICES = re.compile("AWS Error|google::cloud|Azure")
_GONE_SAID = re.compile("(NO_SUCH_KEY|RESOURCE_NOT_FOUND).* GetObject")

_MENDS = {
    errno.ENOSPC: "free some space and try again; nothing was left half-written",
    errno.EDQUOT: "free some of your quota and try again; nothing was left half-written",
    errno.EROFS: "the storage is read-only; give another --storage, or mount it writable",
    errno.EACCES: "ask for permission on the storage, or give another --storage",
    errno.EPERM: "ask for permission on the storage, or give another --storage",
}
_MENDS_SAID = {
    "NO_SUCH_BUCKET": "make the bucket first, or give another --storage",
    "ACCESS_DENIED": "check the key in the environment, and what it may do in this bucket",
    "INVALID_ACCESS_KEY_ID": "check the key in the environment: AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "check the key in the environment: AWS_SECRET_ACCESS_KEY",
}


def _may_pass(error: Exception) -> bool:
    number = getattr(error, "errno", None)
    if isinstance(error, TimeoutError | ConnectionError) or number in _MAY_PASS:
        return True
    return number is None and bool(_MAY_PASS_SAID.search(str(error)))


def _is_gone(error: Exception) -> bool:
    # An object that is deleted between being opened and being read is met without a number.
    return isinstance(error, FileNotFoundError) or bool(_GONE_SAID.search(str(error)))


def _explained(error: Exception, doing: str, where: str) -> LedgerError:
    """Returns what the operating system or the object store said, and what to do about it."""
    number = getattr(error, "errno", None)
    said = os.strerror(number) if number else first_line(error)
    mends = [mend for word, mend in _MENDS_SAID.items() if word in said]
    mends += [_MENDS.get(number or 0, "check that the storage exists and can be reached")]
    return LedgerError(f"cannot {doing} {where}: {said}", hint=mends[0])


def _patiently(action: Callable[[], T]) -> T:
    """Returns what an action returns; does it again while it fails in a way that may pass.

    Raises:
      OSError, pa.ArrowException: It fails in another way, or still fails after
        `_PATIENCE_SECONDS`.
    """
    began, pause = time.monotonic(), _FIRST_PAUSE_SECONDS
    while True:
        try:
            return action()
        except _FAILURES as error:
            left = began + _PATIENCE_SECONDS - time.monotonic()
            if left <= 0 or not _may_pass(error):
                raise
        time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
        pause *= 2


def is_name(text: str) -> bool:
    """Returns whether a text may be the name of a file or a folder, and leads nowhere else."""
    return text.isprintable() and text not in ("", ".", "..") and not {"/", "\\"} & set(text)


def _name_of(info: fs.FileInfo) -> str:
    try:
        return str(info.base_name)
    except UnicodeDecodeError:  # none of ours
        return ""


@dataclass(frozen=True)
class Location:
    """A folder on any pyarrow filesystem. Names are relative to it, with `/` between parts.

    Whoever wrote a storage may have put any names and links into it. `at` is the only way from a
    name to a path, and none leads out of the folder. The folders of sweeps may be links themselves,
    as whoever lists a storage knows; beneath them there are none.

    Attributes:
      filesystem: Where the folder is.
      path: The folder, as the filesystem names it.
      uri: The folder, as users name it; absolute, and without a key that was given with it.
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
            return cls(fs.LocalFileSystem(), *2 * (_local_path(storage),))
        shown = safe_uri(storage)
        try:
            filesystem, path = fs.FileSystem.from_uri(_small_in_one_request(storage))
        except (pa.ArrowException, OSError, ValueError, ImportError) as error:
            if has_credentials(storage):  # which may be in what is said, and in pieces
                raise LedgerError(f"cannot use storage '{shown}'", hint=_KEYS_ELSEWHERE) from None
            said = first_line(error)
            raise LedgerError(
                f"cannot use storage '{shown}': {said}",
                hint="give a folder, or a URI such as s3://bucket/folder or gs://bucket/folder",
            ) from error
        return cls(filesystem, path, shown)

    @property
    def local_folder(self) -> Path | None:
        """The folder as the operating system knows it; None on an object store."""
        return Path(self.path) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    @property
    def _is_object_store(self) -> bool:
        return self.filesystem.type_name in _OBJECT_STORES

    def show(self, name: str) -> str:
        """Returns a file's full name, for messages."""
        folder, question_mark, options = self.uri.partition("?" if "://" in self.uri else "\0")
        return f"{folder.rstrip('/')}/{name}{question_mark}{options}"

    def at(self, name: str) -> str:
        """Returns a file's path on the filesystem; the folder's own for ''.

        Raises:
          DamagedError: It is no name of anything in the folder, or leads over a link.
        """
        parts = name.split("/") if name else []
        if not all(map(is_name, parts)):
            raise DamagedError(
                f"{name!r} is no name of anything in {self.uri}",
                hint="the storage was tampered with, or is damaged: take another copy of it",
            )
        if isinstance(self.filesystem, fs.LocalFileSystem):
            for depth in range(2, len(parts) + 1):
                place = os.path.join(self.path, *parts[:depth])  # noqa: PTH118  called for each record
                if os.path.islink(place):  # noqa: PTH114
                    raise _is_link(place)
        return "/".join(filter(None, (self.path.rstrip("/"), name))) or self.path

    def make_folder(self, name: str) -> None:
        """Makes a folder and those above it. Object stores have none."""
        if not self._is_object_store:
            make = partial(self.filesystem.create_dir, self.at(name), recursive=True)
            self._do("make", name, make)

    def entries(self, folder: str, *, recursive: bool = False) -> list[fs.FileInfo]:
        """Returns what is in a folder, temporary files left out; nothing if there is no folder."""
        found = self._entries(folder, recursive)
        return [i for i in found if is_name(_name_of(i)) and not _name_of(i).startswith("_")]

    def _entries(self, folder: str, recursive: bool) -> list[fs.FileInfo]:
        selector = fs.FileSelector(self.at(folder), allow_not_found=True, recursive=recursive)

        def entries() -> list[fs.FileInfo]:
            # Arrow looks before it lists, and a folder that is made in between is "not found".
            with contextlib.suppress(FileNotFoundError):
                found: list[fs.FileInfo] = self.filesystem.get_file_info(selector)
                return found
            return []

        return self._do("list", folder, entries)

    def names(self, folder: str, suffix: str) -> list[str]:
        """Returns the names of a folder's files, as far as they end so, in order."""
        files = [info.base_name for info in self.entries(folder) if info.is_file]
        return sorted(f"{folder}/{name}" for name in files if name.endswith(suffix))

    def exists(self, name: str) -> bool:
        """Returns whether there is such a file."""
        path = self.at(name)
        return bool(self._do("look for", name, lambda: self.filesystem.get_file_info(path).is_file))

    def read(self, name: str) -> bytes:
        """Returns what a file holds.

        Raises:
          FileNotFoundError: There is no such file.
          LedgerError: It cannot be read.
        """
        data: bytes = self.parse(name, lambda file: file.readall())
        return data

    def load(self, name: str, function: Callable[[bytes], T], *, hint: str) -> T:
        """Returns what a function makes of a small file, which anybody may have written.

        Args:
          name: Of the file.
          function: Raises ValueError, in one line, where the file is not what it should be.
          hint: What to do then.

        Raises:
          FileNotFoundError: There is no such file.
          DamagedError: It is too large, or the function does not take it.
          LedgerError: It cannot be read.
        """

        def small(file: pa.NativeFile) -> bytes:
            if file.size() > MOST_BYTES:
                raise ValueError(f"it has {file.size():,} bytes")
            data: bytes = file.readall()
            return data

        try:
            return function(self.parse(name, small))
        except ValueError as error:
            said = first_line(error)
            raise DamagedError(f"{self.show(name)} cannot be read: {said}", hint=hint) from error

    def parse(self, name: str, function: Callable[[pa.NativeFile], T]) -> T:
        """Returns what a function makes of an open file; it is called again if the storage fails.

        Raises:
          FileNotFoundError: There is no such file, or none any more.
          LedgerError: It cannot be read.
          OSError, pa.ArrowException: The function's own, about what it read.
        """

        def parse() -> T:
            self._check_file(name)
            with self.filesystem.open_input_file(self.at(name)) as file:
                return function(file)

        try:
            return _patiently(parse)
        except _FAILURES as error:
            if _is_gone(error):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error
            if getattr(error, "errno", None) or _may_pass(error) or _SERVICES.search(str(error)):
                raise _explained(error, "read", self.show(name)) from error
            raise

    def _check_file(self, name: str) -> None:
        """Raises DamagedError for what is no file: a pipe would have its reader wait for ever."""
        path = self.at(name)
        if self.local_folder is not None and not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            raise DamagedError(f"{self.show(name)} is no file", hint="remove it")

    def delete(self, name: str) -> None:
        """Deletes a file; no matter if somebody else has."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(self.at(name))

        self._do("delete", name, delete)

    def put(self, name: str, data: bytes, *, replace: bool = False) -> bool:
        """Writes a file that others see whole or not at all.

        On a local filesystem it is flushed to disk under a `_` name and then linked to its own,
        which fails if the name is taken. An object store shows an object when its upload is
        complete; other filesystems rename. Neither of those can refuse a taken name in the same
        step: of two processes that write one name at once, both may be told True, and the later
        file stays.

        Folders between the first one of the name and the file are made if they are missing. The
        first one is not: where it is gone, a mount may be, and nothing is written beneath it.

        Returns:
          False where the file exists and is not to be replaced.

        Raises:
          LedgerError: It cannot be written. Nothing is left behind.
        """

        def put() -> bool:
            if isinstance(self.filesystem, fs.LocalFileSystem):
                return _put_local(Path(self.at(name)), data, replace)
            if not replace and self.exists(name):
                return False
            write = self._write if self._is_object_store else self._write_and_move
            _patiently(lambda: write(self.at(name), data))
            return True

        try:
            try:
                return put()
            except FileNotFoundError:
                self._make_folders_of(name)
                return put()
        except _FAILURES as error:
            raise _explained(error, "write", self.show(name)) from error

    def _do(self, doing: str, name: str, action: Callable[[], T]) -> T:
        """Returns what an action returns, patiently; what it fails with is a LedgerError."""
        try:
            return _patiently(action)
        except _FAILURES as error:
            raise _explained(error, doing, self.show(name)) from error

    def _make_folders_of(self, name: str) -> None:
        first, *between = PurePosixPath(name).parent.parts
        for depth in range(len(between)):
            folder = self.at(str(PurePosixPath(first, *between[: depth + 1])))
            _patiently(partial(self.filesystem.create_dir, folder, recursive=False))

    def _write(self, path: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(path) as file:
            file.write(data)

    def _write_and_move(self, path: str, data: bytes) -> None:
        temporary = str(_temporary(PurePosixPath(path)))
        try:
            self._write(temporary, data)
            self.filesystem.move(temporary, path)
        except _FAILURES:
            with contextlib.suppress(*_FAILURES):
                self.filesystem.delete_file(temporary)
            raise

    def each(self, function: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """Returns what a function returns for each file, many of them at once."""
        # A local disk answers at once and Python is what takes time; object stores take theirs.
        local = isinstance(self.filesystem, fs.LocalFileSystem)
        if local and len(items) < _FEW:
            return [function(item) for item in items]
        threads = 2 if local else 32
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, items))

    def copy_in(self, source: Path, folder: str) -> None:
        """Copies the files of a local folder to a new one here. Not in one step.

        Raises:
          LedgerError: They cannot be copied. Nothing of them stays.
        """

        def copy(name: str) -> None:
            target = f"{folder}/{name}"
            self.make_folder(str(PurePosixPath(target).parent))
            local = fs.LocalFileSystem()
            paths = str(source / name), self.at(target)
            self._do("copy files to", target, lambda: fs.copy_files(*paths, local, self.filesystem))

        try:
            files = [path for path in sorted(source.rglob("*")) if path.is_file()]
            self.each(lambda path: copy(path.relative_to(source).as_posix()), files)
        except LedgerError:
            with contextlib.suppress(LedgerError):
                self.delete_folder(folder)
            raise
        if isinstance(self.filesystem, fs.LocalFileSystem):
            for path in (Path(self.at(folder)), *Path(self.at(folder)).rglob("*")):
                _flush(path)

    def copy_out(self, folder: str, target: Path) -> None:
        """Copies the files of a folder to a local one, which is made if need be.

        Raises:
          FileNotFoundError: One of them is gone by now.
          DamagedError: One has a name that leads elsewhere, or is a link.
          LedgerError: They cannot be copied.
        """
        local = fs.LocalFileSystem()

        def copy(name: str) -> None:
            source, path = self.at(f"{folder}/{name}"), target / name
            self._check_file(f"{folder}/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(source, str(path), self.filesystem, local)

        try:
            self.each(lambda name: _patiently(lambda: copy(name)), self._files_in(folder))
        except _FAILURES as error:
            if _is_gone(error):
                raise FileNotFoundError(*error.args) from error
            raise _explained(error, "copy files from", self.show(folder)) from error

    def _files_in(self, folder: str) -> list[str]:
        """Returns the names of all files in a folder and those in it, temporary ones left out."""
        whole = self.at(folder)
        if self.local_folder is not None:
            names = files_in(Path(whole))
        else:
            found = self._entries(folder, recursive=True)
            names = [info.path.removeprefix(f"{whole}/") for info in found if info.is_file]
        return [name for name in names if not name.rpartition("/")[2].startswith("_")]

    def delete_leftovers(self, folder: str) -> None:
        """Deletes the temporary files of a folder whose writers were killed a day ago or more."""
        latest = time.time() - _LEFTOVER_SECONDS
        for info in self._entries(folder, recursive=False):
            name = _name_of(info)
            left = is_name(name) and name.startswith("_") and info.is_file
            if left and info.mtime.timestamp() < latest:
                self.delete(f"{folder}/{name}")

    def delete_folder(self, folder: str) -> None:
        """Deletes a folder and all that is in it."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_dir(self.at(folder))

        self._do("delete", folder, delete)


_KEYS_ELSEWHERE = (
    "keep keys in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and leave "
    "them out of the URI"
)


def check_no_credentials(text: str) -> None:
    """Raises LedgerError for a URI that may hold a key, where others could read it."""
    if has_credentials(text):
        raise LedgerError(f"'{safe_uri(text)}' may hold a key", hint=_KEYS_ELSEWHERE)


def _local_path(storage: str) -> str:
    if is_misspelt_uri(storage):
        raise LedgerError(
            f"'{safe_uri(storage)}' is no folder and no URI",
            hint="a URI has two slashes: s3://bucket/folder",
        )
    try:
        path = str(Path(storage).expanduser().absolute())
    except RuntimeError as error:
        raise LedgerError(f"'{storage}': {error}", hint="write the whole path") from error
    try:
        path.encode()  # as pyarrow does with it
    except UnicodeEncodeError:
        raise LedgerError(
            f"the name of the folder '{path}' is no text",
            hint="choose a folder whose name is UTF-8",
        ) from None
    return path


def _is_link(path: str) -> DamagedError:
    return DamagedError(
        f"{path} is a link, which may lead anywhere",
        hint="put what it stands for in its place, if you know that it is what it should be",
    )


def files_in(folder: Path) -> list[str]:
    """Returns the names of all files in a local folder and those in it, in order.

    Raises:
      DamagedError: One is a link, or no file at all.
    """
    names = []
    for here, folders, files in os.walk(folder):
        for path in (Path(here, name) for name in (*folders, *files)):
            if path.is_symlink():
                raise _is_link(str(path))
        for path in (Path(here, name) for name in files):
            if not path.is_file():
                raise DamagedError(f"{path} is no file", hint="remove it")
            names.append(path.relative_to(folder).as_posix())
    return sorted(names)


def _small_in_one_request(uri: str) -> str:
    """Has pyarrow upload a small object to S3 in one request instead of three."""
    if not uri.startswith("s3://") or "allow_delayed_open=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"


_AnyPath = TypeVar("_AnyPath", bound=PurePath)


def _temporary(path: _AnyPath) -> _AnyPath:
    """Returns a name of its own beside `path`; readers and dataset discovery skip the `_`."""
    return path.with_name(f"_{path.name}.{uuid.uuid4().hex}")


def _put_local(path: Path, data: bytes, replace: bool) -> bool:
    temporary = _temporary(path)
    try:
        _patiently(lambda: _write_flushed(temporary, data))
        if replace:
            _patiently(lambda: temporary.replace(path))
        elif not _patiently(lambda: give_name(temporary, path)):
            return False
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _patiently(lambda: _flush(path.parent))
    return True


def _write_flushed(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def give_name(temporary: Path, path: Path) -> bool:
    """Gives a file its name unless the name is taken, in one step where the mount can do it."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        # It may be our own: a mount may lose the answer to a link that it made.
        return path.samefile(temporary)
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
