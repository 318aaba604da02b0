"""A sweep from start to end through the command line: real training, real export, a real kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

TRIALS = 3
SETTINGS = [
    "STEPS=12", "BATCH_SIZE=2", "CHANNELS=(2, 4, 8)", "LAYERS_PER_STACK=(1, 3)",
    "measure.seconds=0.2", "train.checkpoint_every=2", "MAX_F0_MISSED_SHARE=None",
]  # fmt: skip


# By `python -m sweeps.cli` the current folder would be on the path.
COMMAND = [str(Path(sys.executable).with_name("sweeps"))]

SHADOWS = ["sweeps", "thesis", "ray", "numpy", "json", "pickle", "socket", "sitecustomize"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose modules have the names of ours; what imports one leaves a trace and dies."""
    folder = tmp_path / "someones"
    for name in SHADOWS:
        module = folder / name / "__init__.py"
        module.parent.mkdir(parents=True)
        trace = tmp_path / f"{name} was imported"
        module.write_text(f"open({str(trace)!r}, 'a').close()\nraise SystemExit(9)\n")
    yield folder
    assert [path.name for path in tmp_path.glob("* was imported")] == []


def sweeps(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def records(storage: Path) -> dict[str, bytes]:
    return {f.stem: f.read_bytes() for f in (storage / "real" / "trials").glob("[!_]*.parquet")}


@pytest.mark.timeout(400)
def test_a_sweep_is_launched_killed_continued_queried_promoted_and_verified(folder: Path) -> None:
    made = sweeps("prepare", "--demo", "--clip-seconds", "1", "--out", "data", cwd=folder)
    assert made.returncode == 0, made.stderr

    launch = ["launch", "--name", "real", "--data", "data", "--trials", str(TRIALS)]
    for setting in SETTINGS:
        launch += ["--set", setting]
    killed = subprocess.Popen(
        [*COMMAND, *launch],
        cwd=folder,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 150
    while not records(folder / "runs"):
        assert killed.poll() is None, "the sweep ended by itself"
        assert time.monotonic() < deadline, "no trial finished"
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = records(folder / "runs")
    assert len(before) < TRIALS

    continued = sweeps(*launch, cwd=folder)
    assert continued.returncode == 0, continued.stderr
    after = records(folder / "runs")
    assert len(after) == TRIALS
    assert {trial_id: after[trial_id] for trial_id in before} == before

    asked = sweeps("front", "real", "--json", cwd=folder)
    front = json.loads(asked.stdout)
    assert front["finished"] == TRIALS
    for trial in front["front"]:
        assert trial["status"] == "completed"
        assert trial["export_max_error"] <= 1e-4
        assert trial["rtf_ratio_low"] <= trial["rtf_ratio"] <= trial["rtf_ratio_high"]
    # The baseline came first, and is what it is measured against.
    baseline = json.loads(sweeps("status", "real", "--json", cwd=folder).stdout)
    assert baseline[0]["completed"] == TRIALS

    chosen = front["front"][0]["id"]
    promote = ["promote", chosen[:8], "--to", "bundle", "--allow-missed-pitch"]
    promoted = sweeps(*promote, cwd=folder)
    assert promoted.returncode == 0, promoted.stderr
    assert sweeps("verify", "bundle", cwd=folder).returncode == 0
    again = sweeps(*promote, cwd=folder)
    assert again.returncode == 1
    assert "exists already" in again.stderr

    rendered = sweeps("render", "bundle", "bundle/clip.wav", "out.wav", cwd=folder)
    assert rendered.returncode == 0, rendered.stderr
    assert (folder / "out.wav").stat().st_size > 50_000

    (folder / "bundle" / "decoder.onnx").write_bytes(b"tampered")
    tampered = sweeps("verify", "bundle", cwd=folder)
    assert tampered.returncode == 1
    assert "decoder.onnx" in tampered.stderr


def test_workers_that_analyse_recordings_import_nothing_from_the_current_folder(
    folder: Path,
) -> None:
    for number in range(2):
        tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(32_000) / 16_000)
        soundfile.write(folder / f"{number}.wav", tone, 16_000)
    options = ["--clip-seconds", "1", "--workers", "2", "--out", "data"]
    made = sweeps("prepare", ".", *options, cwd=folder)
    assert made.returncode == 0, made.stderr
