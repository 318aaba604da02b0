"""Plays a recording through a model: its pitch and loudness, another instrument's sound."""

import os
import uuid
from pathlib import Path

import numpy as np

from thesis.bundle import Controls, ModelBundle, write_audio
from thesis.errors import AudioError
from thesis.features import compute_loudness, estimate_f0, load_audio

F0_MIN_HZ, F0_MAX_HZ = 50.0, 2000.0


def render_recording(
    bundle: ModelBundle, recording: Path, out: Path, *, semitones: float = 0.0
) -> float:
    """Writes what a model makes of a recording's pitch and loudness (timbre transfer).

    Args:
      bundle: The model.
      recording: What is played: wav, flac, mp3 or ogg, any sample rate.
      out: WAV file to write, 32-bit float, at the model's sample rate.
      semitones: Shifts the pitch, to where the model's instrument plays.

    Returns:
      Length of what was written, in seconds.

    Raises:
      AudioError: The recording cannot be read, or `out` exists or cannot be written.
    """
    if os.path.lexists(out):
        raise AudioError(f"'{out}' exists already", hint="choose another name, or remove it")
    sample_rate, every = bundle.session.sample_rate, bundle.session.synth.hop_multiple
    hop_size = bundle.session.hop_size // every  # the dataset's: what the model was trained on
    audio = load_audio(recording, sample_rate)
    if not audio.size:
        raise AudioError(f"'{recording}' holds no samples")
    f0_hz, _ = estimate_f0(audio, sample_rate, hop_size, F0_MIN_HZ, F0_MAX_HZ)
    shifted = (f0_hz * 2.0 ** (semitones / 12.0)).astype(np.float32)
    loudness_db = compute_loudness(audio, sample_rate, hop_size)
    controls = Controls(shifted[::every], loudness_db[::every])
    rendering = bundle.render(controls)[: audio.size]
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        write_audio(temporary, rendering, sample_rate)
        temporary.replace(out)
    except OSError as error:
        raise AudioError(f"cannot write '{out}'", hint="choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)
    return float(rendering.size / sample_rate)
