"""A sweep from start to end through the command line: real training, real export, a real kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRIALS = 3
SETTINGS = [
    "STEPS=12", "BATCH_SIZE=2", "CHANNELS=(2, 4, 8)", "LAYERS_PER_STACK=(1, 3)",
    "measure.seconds=0.2", "train.checkpoint_every=2",
]  # fmt: skip


def sweeps(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweeps.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def records(storage: Path) -> dict[str, bytes]:
    return {f.stem: f.read_bytes() for f in (storage / "real" / "trials").glob("[!_]*.parquet")}


@pytest.mark.timeout(400)
def test_a_sweep_is_launched_killed_continued_queried_promoted_and_verified(tmp_path: Path) -> None:
    made = sweeps("prepare", "--demo", "--clip-seconds", "1", "--out", "data", cwd=tmp_path)
    assert made.returncode == 0, made.stderr

    launch = ["launch", "--name", "real", "--data", "data", "--trials", str(TRIALS)]
    for setting in SETTINGS:
        launch += ["--set", setting]
    killed = subprocess.Popen(
        [sys.executable, "-m", "sweeps.cli", *launch],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 150
    while not records(tmp_path / "runs"):
        assert killed.poll() is None, "the sweep ended by itself"
        assert time.monotonic() < deadline, "no trial finished"
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = records(tmp_path / "runs")
    assert len(before) < TRIALS

    continued = sweeps(*launch, cwd=tmp_path)
    assert continued.returncode == 0, continued.stderr
    after = records(tmp_path / "runs")
    assert len(after) == TRIALS
    assert {trial_id: after[trial_id] for trial_id in before} == before

    asked = sweeps("front", "real", "--json", cwd=tmp_path)
    front = json.loads(asked.stdout)
    assert front["finished"] == TRIALS
    for trial in front["front"]:
        assert trial["status"] == "completed"
        assert trial["export_max_error"] <= 1e-4
        assert trial["rtf_ratio_low"] <= trial["rtf_ratio"] <= trial["rtf_ratio_high"]
    # The baseline came first, and is what it is measured against.
    baseline = json.loads(sweeps("status", "real", "--json", cwd=tmp_path).stdout)
    assert baseline[0]["completed"] == TRIALS

    chosen = front["front"][0]["id"]
    promoted = sweeps("promote", chosen[:8], "--to", "bundle", cwd=tmp_path)
    assert promoted.returncode == 0, promoted.stderr
    assert sweeps("verify", "bundle", cwd=tmp_path).returncode == 0
    again = sweeps("promote", chosen[:8], "--to", "bundle", cwd=tmp_path)
    assert again.returncode == 1
    assert "exists already" in again.stderr

    rendered = sweeps("render", "bundle", "bundle/clip.wav", "out.wav", cwd=tmp_path)
    assert rendered.returncode == 0, rendered.stderr
    assert (tmp_path / "out.wav").stat().st_size > 50_000

    (tmp_path / "bundle" / "decoder.onnx").write_bytes(b"tampered")
    tampered = sweeps("verify", "bundle", cwd=tmp_path)
    assert tampered.returncode == 1
    assert "decoder.onnx" in tampered.stderr
