"""How commands end: one line and a hint for what a user can mend, a traceback for bugs."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.door import run, say
from thesis.errors import UserError, printable

COMMAND = [sys.executable, "-m", "sweeps.cli"]


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def raises(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


# --- How it ends ---


def test_a_command_that_ends_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda: None) == 0
    assert lines(capsys) == []


@pytest.mark.parametrize(("code", "status"), [(2, 2), (0, 0), (None, 0)])
def test_argparse_says_itself_how_it_ends(code: int | None, status: int) -> None:
    assert run(raises(SystemExit(code))) == status


def test_what_a_user_can_mend_is_a_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raises(UserError("no tea", hint="boil water"))) == 1
    assert lines(capsys) == ["error: no tea", "hint: boil water"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b"), "'a/b': No space left"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "error: Too many open files"),
        (PermissionError(errno.EACCES, "Permission denied", b"a"), "'a': Permission denied"),
        (MemoryError("Unable to allocate 8 TiB"), "out of memory: Unable to allocate 8 TiB"),
        (MemoryError(), "error: out of memory\n"),
        (caused(OSError("no cache"), OSError(errno.EROFS, "Read-only file system")), "Read-only"),
    ],
)
def test_what_the_system_refuses_is_a_line_and_a_hint(
    capsys: pytest.CaptureFixture[str], error: Exception, words: str
) -> None:
    assert run(raises(error)) == 1
    said = capsys.readouterr().err
    assert [line.partition(":")[0] for line in said.splitlines()] == ["error", "hint"]
    assert words in said


@pytest.mark.parametrize(
    "error", [ValueError("boom"), FileNotFoundError(errno.ENOENT, "boom", "x"), OSError("boom")]
)
def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    assert run(raises(error)) == 3
    first, *_, last = lines(capsys)
    assert first.startswith("Traceback")
    assert last == "error: unexpected; please report the lines above"


def test_a_bug_while_an_error_is_handled_is_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            {}["bug"]

    assert run(command) == 3
    assert "KeyError: 'bug'" in lines(capsys)


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        caused(ImportError("initialisation failed"), KeyboardInterrupt()),
    ],
)
def test_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str], error: BaseException) -> None:
    assert run(raises(error)) == 130
    assert lines(capsys) == ["interrupted"]


def test_a_user_without_a_home_folder_is_one_with_none_to_write_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    seen = []
    assert run(lambda: seen.append(Path("~/runs").expanduser())) == 0
    assert seen == [Path("/nonexistent/runs")]


# --- What it prints ---


def test_what_a_stranger_wrote_does_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(raises(UserError("no \x1b[2J\nhint: x", hint="\u202edo\x07"))) == 1
    assert lines(capsys) == [r"error: no \x1b[2J\nhint: x", r"hint: \u202edo\x07"]
    assert run(raises(ValueError("\x1b]0;owned\x07"))) == 3
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["plain", "naïve Ω 音 → ·", "'a b'", "🎻"])
def test_what_can_be_read_is_printed_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("text", ["\x00", "\x7f", "\x9b", "\u2028", "\u200f", "\ud800", "\r"])
def test_what_cannot_be_read_is_escaped(text: str) -> None:
    assert printable(f"a{text}b").isascii()
    assert printable(f"a{text}b").isprintable()


def test_messages_come_after_the_data_before_them() -> None:
    program = "import sweeps.door as d; d.run(lambda: (print('data'), d.say('message')))"
    both = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=True,
    )
    assert both.stdout == b"data\nmessage\n"


# --- Where it prints ---


def shell(redirections: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line behind some redirections of a shell."""
    line = f'exec "$@" {redirections}'
    return subprocess.run(
        ["sh", "-c", line, "sh", *COMMAND, *arguments], capture_output=True, text=True, check=False
    )


@needs_full
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_standard_output_that_takes_nothing_is_one_error(redirection: str) -> None:
    done = shell(redirection, "--help")
    assert done.returncode == 1, done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert "standard output" in done.stderr


@needs_full
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&-"])
def test_a_command_needs_no_standard_error_and_no_standard_input(
    redirection: str, tmp_path: Path
) -> None:
    done = shell(redirection, "status", "--storage", str(tmp_path), "--json")
    assert (done.returncode, done.stdout) == (0, "[]\n")


def test_without_standard_error_no_message_is_among_the_data(tmp_path: Path) -> None:
    done = shell("2>&-", "front", "none", "--storage", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_text_that_the_locale_does_not_know_is_printed_all_the_same() -> None:
    program = "import sweeps.door as d; d.run(lambda: print('5 \\xb7 \\udcff'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("5 \\xb7 \\udcff\n", "")


def test_say_is_for_messages(capsys: pytest.CaptureFixture[str]) -> None:
    say("next: \x07")
    assert capsys.readouterr() == ("", "next: \\x07\n")
