"""A model bundle: everything that ships of one model, in a folder that checks itself.

| file | |
|---|---|
| `decoder.onnx` | the decoder for whole clips; its metadata names inputs, outputs and rates |
| `decoder_stream.onnx` | the decoder for blocks of frames, with explicit states |
| `synth_stream.onnx` | the whole model for blocks: pitch and loudness in, audio out |
| `ddsp.h` | the same in C, one header without dependencies |
| `reverb.wav` | the impulse response, 32-bit float |
| `model.gin` | the configuration that it was trained with |
| `weights.npz` | the trained weights by name, as they were before export |
| `trial.json` | the trial's record: candidate, metrics, provenance |
| `clip.wav`, `rendering.wav` | a validation clip and what the model makes of it |
| `controls.npz` | pitch and loudness of that clip, from which it is rendered |
| `README.md` | the model card |
| `SHA256SUMS` | checksums of all of these, as `sha256sum -c` reads them |

A model that cannot stream (norm 'time') has no stream files, nor has one in 8-bit integers; a large
one has no header. Nothing in a bundle is pickled, and nothing is loaded before its checksum is
right.
"""

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thesis.c_code import c_header
from thesis.controls import decoder_inputs, white_noise
from thesis.errors import BundleError, ExportError
from thesis.export import decoder_stream_onnx, synth_stream_onnx
from thesis.files import sha256, written_whole
from thesis.quantise import QUANTISATION
from thesis.reference import synthesize
from thesis.runtimes.onnx_runtime import Session
from thesis.stream import SynthStream
from thesis.streaming import schedule

DECODER_FILE = "decoder.onnx"
DECODER_STREAM_FILE = "decoder_stream.onnx"
SYNTH_STREAM_FILE = "synth_stream.onnx"
HEADER_FILE = "ddsp.h"
REVERB_FILE = "reverb.wav"
CONFIG_FILE = "model.gin"
WEIGHTS_FILE = "weights.npz"
TRIAL_FILE = "trial.json"
CLIP_FILE = "clip.wav"
RENDERING_FILE = "rendering.wav"
CONTROLS_FILE = "controls.npz"
CARD_FILE = "README.md"
CHECKSUMS_FILE = "SHA256SUMS"

ARTIFACT_FILES = (DECODER_FILE, REVERB_FILE, CONFIG_FILE, WEIGHTS_FILE)
"""What a finished trial keeps; the rest of a bundle is made when it is promoted."""
_ALL_FILES = (
    *ARTIFACT_FILES, TRIAL_FILE, CLIP_FILE, RENDERING_FILE, CONTROLS_FILE, CARD_FILE,
)  # fmt: skip

STREAM_FILES = (DECODER_STREAM_FILE, SYNTH_STREAM_FILE, HEADER_FILE)
"""What a model that can stream has besides."""

MAX_HEADER_PARAMETERS = 500_000
"""Decoders with more weights have no C header: it is a text, of 73 MB for DDSP-full, and one that
takes a compiler minutes."""

RENDER_TOLERANCE = 1e-4
"""A bundle's rendering may differ by this much between machines."""


@dataclass(frozen=True)
class Controls:
    """What a model plays from: pitch and loudness, one value a frame.

    Attributes:
      f0_hz: [frames], Hz.
      loudness_db: [frames], dB from -80 to 0.
    """

    f0_hz: npt.NDArray[np.float32]
    loudness_db: npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelBundle:
    """A model as it ships.

    Attributes:
      path: Its folder.
    """

    path: Path

    @cached_property
    def session(self) -> Session:
        """The decoder, loaded."""
        return Session(self.path / DECODER_FILE)

    @property
    def streams(self) -> bool:
        """Whether the model can play a stream."""
        return (self.path / SYNTH_STREAM_FILE).is_file()

    def stream(self, *, seed: int = 0) -> SynthStream:
        """Returns the model as it plays a stream, at the beginning of one.

        Args:
          seed: Of the noise.

        Raises:
          BundleError: The model cannot stream.
        """
        if not self.streams:
            raise BundleError(
                f"the model of '{self.path}' cannot stream",
                hint="its norm needs the whole clip, or it is in 8-bit integers: promote one with "
                "DilatedConvStack.norm = 'frame' and export.quantisation = 'none'",
            )
        return SynthStream(self.path / SYNTH_STREAM_FILE, seed=seed)

    @cached_property
    def trial(self) -> dict[str, Any]:
        """The trial's record."""
        record: dict[str, Any] = json.loads((self.path / TRIAL_FILE).read_text())
        return record

    @cached_property
    def impulse_response(self) -> npt.NDArray[np.float32]:
        """The reverb, [taps]."""
        return read_audio(self.path / REVERB_FILE)

    def controls(self) -> Controls:
        """Returns the controls of the validation clip that comes with the bundle."""
        with np.load(self.path / CONTROLS_FILE, allow_pickle=False) as arrays:
            return Controls(arrays["f0_hz"], arrays["loudness_db"])

    def render(self, controls: Controls, *, seed: int = 0) -> npt.NDArray[np.float32]:
        """Returns the audio that the model makes of controls, [frames * hop_size]."""
        return render(self.session, self.impulse_response, controls, seed=seed)


def render(
    session: Session,
    impulse_response: npt.NDArray[np.float32],
    controls: Controls,
    *,
    seed: int = 0,
) -> npt.NDArray[np.float32]:
    """Returns the audio that an exported decoder makes of controls, [frames * hop_size].

    Args:
      session: The decoder.
      impulse_response: The reverb, [taps].
      controls: Pitch and loudness.
      seed: Of the noise.
    """
    outputs = session.decode(decoder_inputs(controls.f0_hz, controls.loudness_db)[None])[0]
    audio = synthesize(
        outputs,
        controls.f0_hz,
        white_noise(seed, 1, len(controls.f0_hz) * session.hop_size)[0],
        impulse_response,
        config=session.synth,
        sample_rate=session.sample_rate,
        hop_size=session.hop_size,
    )
    return audio.astype(np.float32)


def write_bundle(
    path: Path,
    artifacts: Path,
    *,
    trial: Mapping[str, Any],
    card: str,
    clip: npt.NDArray[np.float32],
    controls: Controls,
) -> ModelBundle:
    """Writes a bundle, wholly or not at all.

    Args:
      path: Folder to make.
      artifacts: Folder that holds `ARTIFACT_FILES` of the trial.
      trial: The trial's record, values that JSON can hold.
      card: The model card, Markdown.
      clip: Audio of a validation clip, [samples].
      controls: The clip's pitch and loudness.

    Raises:
      BundleError: The path exists, cannot be written to, or an artefact is missing.
      ExportError: The decoder cannot be loaded, or does not go with the weights.
    """
    with written_whole(path, BundleError) as folder:
        for name in ARTIFACT_FILES:
            if not (artifacts / name).is_file():
                raise BundleError(
                    f"the trial has no {name}", hint="only a completed trial can be promoted"
                )
            shutil.copy2(artifacts / name, folder / name)
        session = Session(folder / DECODER_FILE)
        _write_streams(folder, session)
        rendering = render(session, read_audio(folder / REVERB_FILE), controls)
        write_audio(folder / CLIP_FILE, clip, session.sample_rate)
        write_audio(folder / RENDERING_FILE, rendering, session.sample_rate)
        np.savez(
            folder / CONTROLS_FILE,
            allow_pickle=False,
            f0_hz=controls.f0_hz,
            loudness_db=controls.loudness_db,
        )
        (folder / TRIAL_FILE).write_text(json.dumps(trial, indent=2) + "\n")
        (folder / CARD_FILE).write_text(card)
        names = [name for name in (*_ALL_FILES, *STREAM_FILES) if (folder / name).is_file()]
        sums = "".join(f"{sha256(folder / name)}  {name}\n" for name in names)
        (folder / CHECKSUMS_FILE).write_text(sums)
    return ModelBundle(path)


def _write_streams(folder: Path, session: Session) -> None:
    """Writes the models that play streams, if this one can."""
    if QUANTISATION in session.metadata:
        return
    config = session.decoder_config
    try:
        schedule(config.plan(session.synth.n_outputs))
    except ExportError:
        return
    with np.load(folder / WEIGHTS_FILE, allow_pickle=False) as arrays:
        weights = dict(arrays)
    rates = {"sample_rate": session.sample_rate, "hop_size": session.hop_size}
    (folder / DECODER_STREAM_FILE).write_bytes(
        decoder_stream_onnx(config, session.synth, weights, **rates)
    )
    response = read_audio(folder / REVERB_FILE)
    (folder / SYNTH_STREAM_FILE).write_bytes(
        synth_stream_onnx(config, session.synth, weights, response, **rates)
    )
    if config.parameter_count(session.synth.n_outputs) > MAX_HEADER_PARAMETERS:
        return
    header = c_header(
        config,
        session.synth,
        weights,
        response,
        sample_rate=session.sample_rate,
        hop_size=session.hop_size,
    )
    (folder / HEADER_FILE).write_text(header, encoding="ascii")


def load_bundle(path: Path) -> ModelBundle:
    """Returns a bundle whose files are all there and unchanged.

    Raises:
      BundleError: The folder is no bundle, or a file is missing or differs from its checksum.
    """
    try:
        lines = (path / CHECKSUMS_FILE).read_text().splitlines()
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise BundleError(
            f"'{path}' is no model bundle",
            hint="make one with 'sweeps promote TRIAL --to DIR'",
        ) from error
    signed = [name for name in STREAM_FILES if name in expected or (path / name).exists()]
    for name in (*_ALL_FILES, *signed):
        file = path / name
        if name not in expected or not file.is_file():
            raise BundleError(f"'{path}' has no {name}", hint="promote the trial again")
        if sha256(file) != expected[name]:
            raise BundleError(
                f"{name} in '{path}' is not the file that was written",
                hint="it was damaged or changed; promote the trial again",
            )
    return ModelBundle(path)


def verify_bundle(path: Path) -> ModelBundle:
    """Loads a bundle, renders its clip again, whole and as a stream, and compares the renderings.

    Raises:
      BundleError: As `load_bundle`, or a rendering differs.
      ExportError: The decoder cannot be loaded.
    """
    bundle = load_bundle(path)
    stored, controls = read_audio(path / RENDERING_FILE), bundle.controls()
    _require_equal("rendering", bundle.render(controls), stored, path)
    if bundle.streams:
        stream = bundle.stream()
        n_frames = len(controls.f0_hz) // stream.cycle * stream.cycle
        played = stream(controls.f0_hz[:n_frames], controls.loudness_db[:n_frames])
        played = played[stream.latency_samples :]
        _require_equal("stream", played, stored[: played.size], path)
    return bundle


def _require_equal(
    what: str, audio: npt.NDArray[np.float32], stored: npt.NDArray[np.float32], path: Path
) -> None:
    error = float(abs(audio - stored).max(initial=0)) if audio.shape == stored.shape else np.inf
    if not error <= RENDER_TOLERANCE:
        raise BundleError(
            f"the {what} of '{path}' differs by {error:.3g}, allowed {RENDER_TOLERANCE:g}",
            hint="this machine's runtime computes something else; see trial.json for versions",
        )


def write_audio(path: Path, audio: npt.NDArray[np.float32], sample_rate: int) -> None:
    """Writes mono audio as 32-bit float, so that it is read back exactly.

    Raises:
      OSError: The file cannot be written.
    """
    import soundfile

    # By way of memory: soundfile does not say why it could not write, the operating system does.
    encoded = io.BytesIO()
    soundfile.write(encoded, audio, sample_rate, subtype="FLOAT", format="WAV")
    path.write_bytes(encoded.getvalue())


def read_audio(path: Path) -> npt.NDArray[np.float32]:
    """Returns mono audio that `write_audio` wrote, [samples]."""
    import soundfile

    audio, _ = soundfile.read(path, dtype="float32")
    return np.asarray(audio, dtype=np.float32)
