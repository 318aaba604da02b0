"""The table of models: fresh, and made without TensorFlow."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sweeps.config import gin_root

SCRIPT = Path(__file__).parents[2] / "docs" / "make_model_table.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_holds_the_table_of_the_models_that_ship(script: ModuleType) -> None:
    assert script.TARGET.read_text() == script.page(), "run: python docs/make_model_table.py"


def test_every_model_has_a_row(script: ModuleType) -> None:
    rows = {line.split("`")[1]: line for line in script.table().splitlines() if "`" in line}
    assert rows.keys() == {file.stem for file in (gin_root() / "models").glob("*.gin")}
    assert rows["ddsp-cnn-tiny"] == (
        "| `ddsp-cnn-tiny` | 2,446 | 18,446 | 2,208 | 55 | 220 | 0 | yes | yes |"
    )
    assert rows["ddsp-cnn"].endswith("| 55 | 220 | 27 | no | no |")


def test_the_table_needs_no_tensorflow() -> None:
    code = f"import runpy, sys; runpy.run_path({str(SCRIPT)!r})['table'](); print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert "sweeps.config" in run.stdout.split()
    assert "tensorflow" not in run.stdout.split()
