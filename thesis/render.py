"""Plays a recording through a model: its pitch and loudness, another instrument's sound."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thesis.bundle import Controls, ModelBundle
from thesis.controls import MAX_PEAK
from thesis.errors import AudioError
from thesis.features import LOUDNESS_FLOOR_DB, Samples, compute_loudness, estimate_f0, load_audio
from thesis.files import check_output_file, written_file

F0_MIN_HZ, F0_MAX_HZ = 50.0, 2000.0

PITCH_HZ = (440.0 * 2.0 ** (-69 / 12), 440.0 * 2.0 ** (58 / 12))
"""What models are played at, from and to, in Hz: MIDI notes 0 to 127, to which they scale pitch."""

LOUDNESS_DB = (LOUDNESS_FLOOR_DB, 24.0)
"""What they are played at, in dB. Audio within -1 and 1 is not louder, whatever it is: a window of
512 samples holds no more power (Parseval), and A-weighting adds 1.3 dB at the most."""

MAX_SEMITONES = 120.0
"""To transpose by, up or down: ten octaves, all that `PITCH_HZ` spans."""

OnNote = Callable[[str], None]


def render_recording(
    bundle: ModelBundle,
    recording: Path,
    out: Path,
    *,
    semitones: float = 0.0,
    on_note: OnNote = lambda note: None,
) -> float:
    """Writes what a model makes of a recording's pitch and loudness (timbre transfer).

    Pitch and loudness are held within `PITCH_HZ` and `LOUDNESS_DB`: beyond them no model has been
    trained. What is written is finite. Of the whole recording there is its audio, mono at the
    model's rate, its pitch and its loudness in memory; the rest takes a second at a time.

    Args:
      bundle: The model.
      recording: What is played: wav, flac, mp3 or ogg, any sample rate.
      out: WAV file to write, 32-bit float, at the model's sample rate.
      semitones: Shifts the pitch, to where the model's instrument plays.
      on_note: Called with what was held within bounds, a line each.

    Returns:
      Length of what was written, in seconds.

    Raises:
      AudioError: The recording cannot be read, or is no audio; `out` exists, has another suffix or
        cannot be written; or `semitones` are not within `MAX_SEMITONES`.
      BundleError: The model cannot play it, see `ModelBundle.play`.
    """
    if not abs(semitones) <= MAX_SEMITONES:
        raise AudioError(
            f"cannot transpose by {semitones:g} semitones",
            hint=f"by {MAX_SEMITONES:g} at the most, up or down: 12 are an octave",
        )
    check_output_file(out, AudioError, suffix=".wav")
    sample_rate = bundle.session.sample_rate
    audio = load_audio(recording, sample_rate)
    _check_audio(audio, sample_rate, recording)
    controls = _controls(bundle, audio, semitones, on_note)
    with written_file(out, AudioError) as temporary, temporary.open("wb") as file:
        file.write(_wav_header(audio.size, sample_rate))
        n_left = audio.size
        for block in bundle.play(controls):
            file.write(block[:n_left].astype("<f4").tobytes())
            n_left -= block[:n_left].size
    return float(audio.size / sample_rate)


def _check_audio(audio: Samples, sample_rate: int, recording: Path) -> None:
    if not audio.size:
        raise AudioError(f"'{recording}' holds no samples", hint="record it again")
    peak = max(-float(audio.min()), float(audio.max()))
    if not peak <= MAX_PEAK:
        raise AudioError(
            f"'{recording}' holds samples of {peak:.3g}; audio is within -1 and 1",
            hint="scale it down: what was written as float may have been integers",
        )
    if 4 * audio.size > _MAX_WAV_BYTES:
        hours = _MAX_WAV_BYTES / 4 / sample_rate / 3600
        raise AudioError(
            f"'{recording}' is longer than a WAV file can be", hint=f"cut it to {hours:.0f} hours"
        )


def _controls(bundle: ModelBundle, audio: Samples, semitones: float, on_note: OnNote) -> Controls:
    """Returns what the model is played with, of a recording."""
    sample_rate, every = bundle.session.sample_rate, bundle.session.synth.hop_multiple
    hop_size = bundle.session.hop_size // every  # the dataset's: what the model was trained on
    loudness_db = compute_loudness(audio, sample_rate, hop_size)[::every]
    f0_hz, _ = estimate_f0(audio, sample_rate, hop_size, F0_MIN_HZ, F0_MAX_HZ)
    f0_hz = (f0_hz[::every] * 2.0 ** (semitones / 12.0)).astype(np.float32)
    return Controls(
        _within(f0_hz, PITCH_HZ, "a pitch beyond {:.3g} to {:.3g} Hz", on_note),
        _within(loudness_db, LOUDNESS_DB, "a loudness beyond {:g} to {:g} dB", on_note),
    )


def _within(
    values: npt.NDArray[np.float32], bounds: tuple[float, float], what: str, on_note: OnNote
) -> npt.NDArray[np.float32]:
    held = np.clip(values, *bounds).astype(np.float32)
    share = float(np.mean(abs(held - values) > 1e-3 * abs(values)))
    if share:
        on_note(f"{share:.1%} of the recording has {what.format(*bounds)}, and is played at that")
    return held


_MAX_WAV_BYTES = 2**32 - 2**16
"""Of samples: the format counts its bytes in 32 bits."""


def _wav_header(n_samples: int, sample_rate: int) -> bytes:
    """Returns what comes before the samples of a mono WAV of 32-bit floats."""
    n_bytes = 4 * n_samples
    form = struct.pack("<HHIIHHH", 3, 1, sample_rate, 4 * sample_rate, 4, 32, 0)
    chunks = b"".join(
        struct.pack("<4sI", name, len(content)) + content
        for name, content in ((b"fmt ", form), (b"fact", struct.pack("<I", n_samples)))
    )
    size = 4 + len(chunks) + 8 + n_bytes
    return (
        struct.pack("<4sI4s", b"RIFF", size, b"WAVE")
        + chunks
        + struct.pack("<4sI", b"data", n_bytes)
    )
