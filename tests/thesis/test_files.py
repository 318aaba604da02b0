"""Files appear whole or not at all, and take no other's place unasked."""

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from thesis.errors import OutputError
from thesis.files import check_output_file, written_file


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_one_line_with_hint(error: OutputError) -> None:
    assert "\n" not in error.message
    assert error.hint


# --- Before long work ---


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "a b.png"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_place_that_is_free_is_taken(tmp_path: Path, name: str, replace: bool) -> None:
    check_output_file(tmp_path / name, OutputError, suffix=".png", replace=replace)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("name", ["a.pdf", "a", ".png", "a.png.jpg", "none/a.png", "file/a.png"])
def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write") as caught:
        check_output_file(tmp_path / name, OutputError, suffix=".png", replace=True)
    assert_one_line_with_hint(caught.value)


def test_a_folder_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for anyone but the superuser
    with pytest.raises(OutputError, match="no folder that can be written to"):
        check_output_file(tmp_path / "a.png", OutputError, suffix=".png")


def test_what_is_there_is_replaced_on_demand_only(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("mine")
    check_output_file(tmp_path / "a.png", OutputError, suffix=".png", replace=True)
    with pytest.raises(OutputError, match="exists already"):
        check_output_file(tmp_path / "a.png", OutputError, suffix=".png")


@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.with_name("elsewhere"))]
)
def test_what_is_no_file_is_never_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(OutputError, match="is there, and no file"):
        check_output_file(tmp_path / "a.png", OutputError, suffix=".png", replace=True)


# --- Whole or not at all ---


def write(path: Path, meanwhile: Callable[[Path], None], **options: bool) -> None:
    """Writes a file; something happens when half of it is there."""
    with written_file(path, OutputError, **options) as temporary:
        temporary.write_text("mine")
        meanwhile(temporary)


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_appears_when_it_is_whole(tmp_path: Path, replace: bool) -> None:
    def meanwhile(_: Path) -> None:
        assert not (tmp_path / "a").exists()

    write(tmp_path / "a", meanwhile, replace=replace)
    assert (tmp_path / "a").read_text() == "mine"
    assert names_in(tmp_path) == ["a"]


def test_a_file_that_came_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def meanwhile(_: Path) -> None:
        (tmp_path / "a").write_text("another's")

    with pytest.raises(OutputError, match="exists already"):
        write(tmp_path / "a", meanwhile)
    assert (tmp_path / "a").read_text() == "another's"
    assert names_in(tmp_path) == ["a"]


@pytest.mark.parametrize("there", [False, True])
def test_a_file_system_without_hard_links_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refuse)

    def meanwhile(_: Path) -> None:
        if there:
            (tmp_path / "a").write_text("another's")

    with pytest.raises(OutputError, match="exists") if there else nullcontext():
        write(tmp_path / "a", meanwhile)
    assert (tmp_path / "a").read_text() == ("another's" if there else "mine")
    assert names_in(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt(), ValueError()]
)
def test_whatever_happens_halfway_nothing_is_left(tmp_path: Path, error: BaseException) -> None:
    def meanwhile(_: Path) -> None:
        raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        write(tmp_path / "a", meanwhile)
    assert names_in(tmp_path) == []


def test_a_name_as_long_as_names_may_be_is_written(tmp_path: Path) -> None:
    write(tmp_path / ("a" * 255), lambda _: None)
    assert names_in(tmp_path) == ["a" * 255]
