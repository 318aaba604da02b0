"""ONNX Runtime: what it does beside running models."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
from thesis.export import reference_onnx
from thesis.measure import Session
Session(reference_onnx(sample_rate=16_000, hop_size=64))
"""


def test_it_sends_no_usage_data_and_leaves_the_home_folder_alone(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={"HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (ran.stdout, ran.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []
