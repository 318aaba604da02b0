"""The one door of the command line: where a command prints, and how it ends, whatever happens.

What a user can mend is one line that says what is wrong, and one that says what to do. Anything
else is a bug and keeps its traceback.
"""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from sweeps.credentials import without_credentials
from sweeps.printable import in_a_line
from thesis.errors import OutputError, UserError

DONE, MENDABLE, UNEXPECTED, INTERRUPTED = 0, 1, 3, 130
"""Exit statuses. Wrong usage is 2, as argparse has it."""

_HINTS = {
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space, or ask for more quota",
    errno.EFBIG: "write to a file system that takes files of this size",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "check its permissions and those of the folders above it",
    errno.EPERM: "check its permissions and those of the folders above it",
    errno.EMFILE: "allow more open files: ulimit -n 4096",
    errno.ENFILE: "too many files are open on this machine: try again later",
    errno.EAGAIN: "allow more processes, see ulimit -u",
    errno.ENOMEM: "free some memory and try again",
    errno.EIO: "the disk may be failing: look at the system's log",
    errno.ESTALE: "the network folder was mounted anew: try again",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "links lead in a circle: name the file itself",
    errno.ETIMEDOUT: "try again when the network answers",
}
"""What to do about what the operating system refuses, wherever that happens.

Other errors of it, such as a file that is not there, are foreseen where a user can mend them;
elsewhere they are bugs.
"""


def run(command: Callable[[], None]) -> int:
    """Runs a command and returns its exit status; what is to be said of it goes to stderr.

    Args:
      command: Prints its data on stdout. May leave by SystemExit, as argparse does.
    """
    with _standard_streams(), _interrupted_by(signal.SIGTERM, signal.SIGHUP):
        try:
            _ensure_home()
            _require_stdout()
            try:
                command()
            finally:
                sys.stdout.flush()
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else DONE
        except _ReaderLeftError:
            return DONE
        except UserError as error:
            return _mendable(error)
        except KeyboardInterrupt:
            return _interrupted()
        except Exception as error:
            return _failed(error)
        return DONE


def say(line: str) -> None:
    """Prints one line on stderr, which is for messages, after what stdout has been given."""
    if sys.stdout is not None:
        sys.stdout.flush()
    print(in_a_line(without_credentials(line)), file=sys.stderr)


# --- How it ends ---------------------------------------------------------------------------------


def _mendable(error: UserError) -> int:
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")
    return MENDABLE


def _interrupted() -> int:
    say("interrupted")
    return INTERRUPTED


def _failed(error: Exception) -> int:
    """Returns the status of an error that no verb foresaw."""
    if any(isinstance(each, KeyboardInterrupt) for each in _chain(error)):
        return _interrupted()  # what an extension module calls an ImportError was Ctrl-C
    for each in _chain(error, handled=False):
        if isinstance(each, MemoryError):
            said = f"out of memory: {each}" if str(each) else "out of memory"
            return _mendable(UserError(said, hint=_HINTS[errno.ENOMEM]))
        if isinstance(each, OSError) and each.errno in _HINTS:
            where = f"'{os.fsdecode(each.filename)}': " if each.filename else ""
            said = f"{where}{each.strerror or os.strerror(each.errno)}"
            return _mendable(UserError(said, hint=_HINTS[each.errno]))
        if isinstance(each, UnicodeEncodeError) and each.reason == "surrogates not allowed":
            # Linux takes any bytes for a name; some libraries take text only.
            return _mendable(
                UserError(f"'{each.object}' is no text", hint="choose names that are UTF-8")
            )
    for line in "".join(traceback.format_exception(error)).splitlines():
        say(line)
    say("error: unexpected; please report the lines above")
    return UNEXPECTED


def _chain(error: BaseException, *, handled: bool = True) -> Iterator[BaseException]:
    """Yields an error and what it came of.

    Args:
      error: The last one.
      handled: Those too during whose handling another was raised, not only stated causes.
    """
    seen = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (each.__context__ if handled else None)


@contextmanager
def _interrupted_by(*numbers: signal.Signals) -> Iterator[None]:
    """Has signals that end a process do it as Ctrl-C does: what is half-made is removed.

    Those that are ignored, as under nohup, stay so.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = [n for n in numbers if in_main_thread and signal.getsignal(n) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _ensure_home() -> None:
    """Gives a user without a home folder, as containers have, one that is not there.

    Libraries keep caches elsewhere then; many fail where there is no name to look for.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/nonexistent"


# --- Where it prints -----------------------------------------------------------------------------


class _ReaderLeftError(Exception):
    """Whoever read stdout has seen enough of it, `| head` for one. No error."""


class _Stream:
    """A standard stream that says once, and in one way, that it cannot be written to."""

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self._stream = stream
        self._failed = failed

    def write(self, text: str) -> int:
        with self._guarded():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._guarded():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._discard()
            self._failed(error)

    def _discard(self) -> None:
        """Sends what is still to be written nowhere: Python would complain of it once more."""
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            self._stream.flush()


@contextmanager
def _standard_streams() -> Iterator[None]:
    """Makes stdout fail with an error of one line, and stderr in silence.

    Where one of the three is closed, nothing that is opened later takes its number: it would be
    written to by whatever prints.
    """
    out, err = sys.stdout, sys.stderr
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number
    for stream in (out, err):
        if hasattr(stream, "reconfigure"):
            # Names of files may hold bytes that are no text, a locale may know few characters.
            stream.reconfigure(errors="backslashreplace")
    if out is not None:
        sys.stdout = cast(TextIO, _Stream(out, _stdout_failed))
    sys.stderr = cast(TextIO, _Stream(err or _nowhere(), lambda _: None))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def _nowhere() -> TextIO:
    return open(os.devnull, "w")  # noqa: PTH123  it is open for as long as the process


def _require_stdout() -> None:
    if sys.stdout is None:
        raise OutputError(
            "standard output is closed", hint="send it to a file, or to /dev/null: > /dev/null"
        )


def _stdout_failed(error: OSError) -> None:
    if error.errno == errno.EPIPE:
        raise _ReaderLeftError
    raise OutputError(
        f"cannot write to standard output: {error.strerror or error}",
        hint=_HINTS.get(error.errno or 0, "send it elsewhere"),
    ) from error
