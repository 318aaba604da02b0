"""Fuzz target: the texts and numbers of a bundle whose checksums are right."""

import hashlib
import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from thesis.architecture import initial_weights
from thesis.bundle import (
    CHECKSUMS_FILE,
    CLIP_FILE,
    CONFIG_FILE,
    CONTROLS_FILE,
    DECODER_FILE,
    HEADER_FILE,
    RENDERING_FILE,
    REVERB_FILE,
    TRIAL_FILE,
    WEIGHTS_FILE,
    Controls,
    load_bundle,
    verify_bundle,
    write_audio,
    write_bundle,
)
from thesis.config import DilatedConvStackConfig, SynthConfig
from thesis.errors import UserError, printable
from thesis.export import decoder_onnx

_FILES = (
    TRIAL_FILE, CHECKSUMS_FILE, CONFIG_FILE, CONTROLS_FILE, WEIGHTS_FILE, REVERB_FILE, CLIP_FILE,
    RENDERING_FILE, HEADER_FILE,
)  # fmt: skip


def _make(folder: Path) -> Path:
    """Writes a bundle as small as one can be."""
    decoder = DilatedConvStackConfig(channels=2, layers_per_stack=1, stacks=1)
    synth = SynthConfig(n_harmonics=2, n_noise_bands=3, reverb_seconds=0.01)
    weights = initial_weights(decoder.plan(synth.n_outputs), seed=0)
    model = decoder_onnx(decoder, synth, weights, sample_rate=16_000, hop_size=64)
    trial = folder / "trial"
    trial.mkdir()
    (trial / DECODER_FILE).write_bytes(model)
    (trial / CONFIG_FILE).write_text("N = 2\nSynth.n_harmonics = %N\nDilatedConvStack.norm='frame'")
    np.savez(trial / WEIGHTS_FILE, **weights)
    write_audio(trial / REVERB_FILE, np.full(160, 0.01, np.float32), 16_000)
    record = {"id": "3fa91c", "val_loss": 8.5, "axis_channels": 2, "versions": {"numpy": "2"}}
    frames = np.full(9, 220.0, np.float32)
    write_bundle(
        folder / "bundle", trial, trial=record, card="# A model\n", clip=np.zeros(576, np.float32),
        controls=Controls(frames, frames - 240),
    )  # fmt: skip
    return folder / "bundle"


_ROOT = tempfile.TemporaryDirectory()
_BUNDLE = _make(Path(_ROOT.name))


def check(data: bytes) -> None:
    """Loads and verifies the bundle with one file replaced, and plays it.

    Args:
      data: The number of the file in `_FILES`, a byte, and its content.

    Raises:
      Exception: Anything but a `UserError` is a bug.
    """
    name = _FILES[data[0] % len(_FILES)] if data else TRIAL_FILE
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        shutil.copytree(_BUNDLE, path)
        (path / name).write_bytes(data[1:])
        if name != CHECKSUMS_FILE:
            sign(path)
        with suppress(UserError):
            bundle = verify_bundle(path)
            printable(bundle.trial["id"])
        with suppress(UserError):
            bundle = load_bundle(path)
            for _ in bundle.play(bundle.controls()):
                pass


def sign(path: Path) -> None:
    """Makes the checksums of a bundle right, as whoever forges one does."""
    files = sorted(file for file in path.iterdir() if file.name != CHECKSUMS_FILE)
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (path / CHECKSUMS_FILE).write_text("".join(sums))


SEEDS: list[bytes] = [
    *(bytes([number]) + (_BUNDLE / name).read_bytes() for number, name in enumerate(_FILES)),
    *(
        b"\0" + json.dumps(record).encode()
        for record in (
            {"id": "x", "axis_channels": 2, "axis_norm": "frame", "parameters": 36},
            {"id": "x", "versions": {"ddsp-sweeps": "0.1.0"}, "receptive_field_frames": 3},
            {"id": "\x1b[2J\ud800", "promotion": {"rtf": 1e-5}, "curve": {"10": None}},
            [1, [2, [3]]],
        )
    ),
]
