import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import sweeps
import thesis
from sweeps.code_version import code_version


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where copies of both packages lie, which are those that were imported."""
    before = code_version()
    for package in (sweeps, thesis):
        name = package.__name__
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package.__path__[0], tmp_path / name, ignore=ignored)
        monkeypatch.setattr(package, "__path__", [str(tmp_path / name)])
    code_version.cache_clear()
    assert code_version() == before
    code_version.cache_clear()
    yield tmp_path
    code_version.cache_clear()


@pytest.mark.parametrize("module", ["sweeps/space.py", "thesis/runtimes/__init__.py"])
def test_a_line_more_in_any_module_is_another_version(copies: Path, module: str) -> None:
    before = code_version()
    with (copies / module).open("a") as file:
        file.write("# more\n")
    code_version.cache_clear()
    assert code_version() != before
    assert code_version().startswith(f"{sweeps.__version__}+")


def test_what_is_no_module_makes_no_difference(copies: Path) -> None:
    before = code_version()
    (copies / "sweeps" / "notes.txt").write_text("notes")
    code_version.cache_clear()
    assert code_version() == before
