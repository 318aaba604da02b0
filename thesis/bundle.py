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
| `clip.wav`, `rendering.wav` | a validation clip with the median loss, what the model makes of it |
| `controls.npz` | pitch and loudness of that clip, from which it is rendered |
| `README.md` | the model card |
| `SHA256SUMS` | checksums of all of these, as `sha256sum -c` reads them |

A model that cannot stream (norm 'time') has no stream files, nor has one in 8-bit integers; a large
one has no header. Nothing in a bundle is pickled or run, and nothing is loaded before its checksum
is right.
"""

import io
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thesis.agreement import (
    compare_config,
    compare_facts,
    compare_graphs,
    compare_headers,
    compare_integers,
    compare_outputs,
    compare_record,
    compare_weights,
)
from thesis.c_code import c_header
from thesis.checked_files import ARRAY_BYTES, read_arrays, read_json_object, read_text, read_wav
from thesis.controls import absolute_levels, decoder_inputs, white_noise
from thesis.errors import BundleError, ExportError, UserError
from thesis.export import MAX_ERROR, decoder_stream_onnx, synth_stream_onnx, synthesis_stream_onnx
from thesis.files import sha256, written_whole
from thesis.reference import synthesize
from thesis.runtimes.contract import TrainedDecoder
from thesis.runtimes.onnx_runtime import Session
from thesis.stream import DecoderStream, SynthesisStream, SynthStream
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

MAX_REVERB_SECONDS, MAX_CLIP_SECONDS = 4, 600
"""As long as configurations allow for, and longer than clips are."""

MAX_WHOLE_SECONDS = 600
"""What a model that cannot stream plays at the most: it decodes all of it at once."""

_CHANGED = "it was damaged or changed; promote the trial again"

DISTRIBUTION = "ddsp-sweeps"
"""What this project is called among installed packages, and in `versions` of a trial's record."""

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


_Player = Callable[[npt.NDArray[np.int_]], npt.NDArray[np.float32]]


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
          BundleError: The model cannot stream, or the stream is of another one.
          ExportError: The stream cannot be loaded.
        """
        if not self.streams:
            raise BundleError(
                f"the model of '{self.path}' cannot stream",
                hint="its norm needs the whole clip, or it is in 8-bit integers: promote one with "
                "DilatedConvStack.norm = 'frame' and export.quantisation = 'none'",
            )
        stream = SynthStream(self.path / SYNTH_STREAM_FILE, seed=seed)
        with self._naming(SYNTH_STREAM_FILE):
            compare_facts(stream.facts, self.session.facts)
        return stream

    @cached_property
    def trial(self) -> dict[str, Any]:
        """The trial's record; its 'id' is a text.

        Raises:
          BundleError: It is no such record.
        """
        record = read_json_object(self.path / TRIAL_FILE, BundleError)
        if not isinstance(record.get("id"), str):
            raise BundleError(f"{TRIAL_FILE} in '{self.path}' has no id", hint=_CHANGED)
        return record

    @cached_property
    def impulse_response(self) -> npt.NDArray[np.float32]:
        """The reverb, [taps].

        Raises:
          BundleError: It is no audio of the model's rate, or too long.
        """
        response = self._audio(REVERB_FILE)
        if response.size > MAX_REVERB_SECONDS * self.session.sample_rate:
            raise BundleError(
                f"{REVERB_FILE} in '{self.path}' is longer than {MAX_REVERB_SECONDS} s",
                hint=_CHANGED,
            )
        return response

    @cached_property
    def decoder(self) -> TrainedDecoder:
        """The decoder as it was trained: what all that ships is made from.

        Raises:
          BundleError: The weights are not those of the architecture.
        """
        return read_decoder(self.path, self.session, BundleError)

    @property
    def has_header(self) -> bool:
        """Whether it holds the model in C."""
        return (self.path / HEADER_FILE).is_file()

    def header(self) -> str:
        """Returns the model in C, made from the weights: what ships is a stranger's text.

        Raises:
          BundleError: The weights are not those of the architecture.
          ExportError: The model cannot stream.
        """
        return _header(self.decoder, self.impulse_response)

    def controls(self) -> Controls:
        """Returns the controls of the validation clip that comes with the bundle.

        Raises:
          BundleError: They are no controls: [frames] each, as many, 1 or more.
        """
        arrays = read_arrays(self.path / CONTROLS_FILE, BundleError)
        f0_hz, loudness_db = arrays.get("f0_hz"), arrays.get("loudness_db")
        if f0_hz is None or loudness_db is None or f0_hz.shape != loudness_db.shape:
            raise BundleError(
                f"{CONTROLS_FILE} in '{self.path}' holds no pitch and loudness", hint=_CHANGED
            )
        most = MAX_CLIP_SECONDS * self.session.sample_rate / self.session.hop_size
        if f0_hz.ndim != 1 or not 1 <= f0_hz.size <= most:
            raise BundleError(
                f"{CONTROLS_FILE} in '{self.path}' holds controls of shape {list(f0_hz.shape)}",
                hint=f"a clip has up to {MAX_CLIP_SECONDS} s",
            )
        return Controls(f0_hz, loudness_db)

    def play(self, controls: Controls, *, seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
        """Yields the audio that the model makes of controls, in blocks of about a second.

        Together they are what `render` returns, in memory that does not grow with their length; but
        the model plays on into what the last frame held would be, where `render` ends.

        Args:
          controls: Pitch and loudness.
          seed: Of the noise.

        Raises:
          BundleError: The model cannot stream and the controls last longer than
            `MAX_WHOLE_SECONDS`; or it plays values that are not finite.
        """
        stream, played = self._player(controls, seed)
        n_late = stream.latency_samples
        n_left = len(controls.f0_hz) * stream.hop_size
        for frames in self._blocks(len(controls.f0_hz), stream):
            block = played(frames)
            if not np.isfinite(block).all():
                raise BundleError(
                    f"the model of '{self.path}' plays values that are not finite",
                    hint="its weights are damaged; promote another trial",
                )
            heard = block[n_late:][:n_left]
            n_late, n_left = max(0, n_late - block.size), n_left - heard.size
            yield heard

    def _player(
        self, controls: Controls, seed: int
    ) -> tuple[SynthStream | SynthesisStream, _Player]:
        """Returns a stream, and what plays on it the frames of some numbers."""
        if self.streams:
            whole = self.stream(seed=seed)
            return whole, lambda at: whole(controls.f0_hz[at], controls.loudness_db[at])
        session = self.session
        seconds = len(controls.f0_hz) * session.hop_size / session.sample_rate
        if seconds > MAX_WHOLE_SECONDS:
            raise BundleError(
                f"{seconds:.0f} s are too long for a model that cannot stream",
                hint=f"{MAX_WHOLE_SECONDS} s at a time, or a model with DilatedConvStack.norm = "
                "'frame' and export.quantisation = 'none'",
            )
        outputs = _outputs(session, controls)
        model = synthesis_stream_onnx(
            session.decoder_config,
            session.synth,
            self.impulse_response,
            sample_rate=session.sample_rate,
            hop_size=session.hop_size,
        )
        synthesis = SynthesisStream(model, seed=seed)
        return synthesis, lambda at: synthesis(outputs[at], controls.f0_hz[at])

    def _blocks(
        self, n_frames: int, stream: SynthStream | SynthesisStream
    ) -> Iterator[npt.NDArray[np.int_]]:
        """Yields the numbers of the frames of each block, until the last one has been heard."""
        of_a_second = self.session.sample_rate // self.session.hop_size
        length = max(1, of_a_second // stream.cycle) * stream.cycle
        end = n_frames + stream.delay_frames
        for start in range(0, end, length):
            n = min(length, end - start)
            frames = start + np.arange(-(-n // stream.cycle) * stream.cycle)
            yield np.minimum(frames, n_frames - 1)

    def _audio(self, name: str, *, finite: bool = True) -> npt.NDArray[np.float32]:
        audio, rate = read_wav(self.path / name, BundleError, finite=finite)
        if rate != self.session.sample_rate:
            raise BundleError(
                f"{name} in '{self.path}' is at {rate} Hz, its model at {self.session.sample_rate}",
                hint=_CHANGED,
            )
        return audio

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Says of which file a ValueError is."""
        try:
            yield
        except ValueError as error:
            raise BundleError(
                f"{name} in '{self.path}' is not of the model of the other files: {error}",
                hint=_CHANGED,
            ) from error

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
    audio = synthesize(
        _outputs(session, controls),
        controls.f0_hz,
        white_noise(seed, 1, len(controls.f0_hz) * session.hop_size)[0],
        impulse_response,
        config=session.synth,
        sample_rate=session.sample_rate,
        hop_size=session.hop_size,
    )
    return audio.astype(np.float32)


def _outputs(session: Session, controls: Controls) -> npt.NDArray[np.float32]:
    """Returns a decoder's output for controls, of absolute levels, [frames, n_outputs]."""
    inputs = decoder_inputs(controls.f0_hz, controls.loudness_db)
    outputs: npt.NDArray[np.float32] = absolute_levels(
        session.decode(inputs[None])[0], inputs, session.synth
    )
    return outputs


def check_artifacts(artifacts: Path) -> None:
    """Raises BundleError where one of `ARTIFACT_FILES` is not in a folder."""
    for name in ARTIFACT_FILES:
        if not (artifacts / name).is_file():
            raise BundleError(
                f"the trial has no {name}", hint="only a completed trial can be promoted"
            )


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
        check_artifacts(artifacts)
        for name in ARTIFACT_FILES:
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


def read_decoder(folder: Path, session: Session, error: type[UserError]) -> TrainedDecoder:
    """Returns the decoder as it was trained, of a bundle's or a trial's folder.

    Args:
      folder: It holds `WEIGHTS_FILE`.
      session: Its decoder, loaded.
      error: What to raise where the weights are not those of that architecture.
    """
    weights = read_arrays(folder / WEIGHTS_FILE, error)
    try:
        compare_weights(weights, session.facts)
    except ValueError as cause:
        raise error(
            f"{WEIGHTS_FILE} in '{folder}' is not of the model of {DECODER_FILE}: {cause}",
            hint=_CHANGED,
        ) from cause
    return TrainedDecoder(
        session.decoder_config, session.synth, weights, session.sample_rate, session.hop_size
    )


def _write_streams(folder: Path, session: Session) -> None:
    """Writes the models that play streams, if this one can."""
    decoder = read_decoder(folder, session, ExportError)
    response = read_audio(folder / REVERB_FILE)
    for name, model in _streams(session, decoder, response).items():
        (folder / name).write_bytes(model)
    if _has_header(session):
        (folder / HEADER_FILE).write_text(_header(decoder, response), encoding="ascii")


def _can_stream(session: Session) -> bool:
    if session.facts.quantisation is not None:
        return False
    try:
        schedule(session.decoder_config.plan(session.synth.n_outputs))
    except ExportError:
        return False
    return True


def _has_header(session: Session) -> bool:
    size = session.decoder_config.parameter_count(session.synth.n_outputs)
    return _can_stream(session) and size <= MAX_HEADER_PARAMETERS


def _streams(
    session: Session, decoder: TrainedDecoder, response: npt.NDArray[np.float32]
) -> dict[str, bytes]:
    """Returns the models that play streams by the names of their files; none if it cannot."""
    if not _can_stream(session):
        return {}
    model = decoder.config, decoder.synth, decoder.weights
    rate, hop_size = decoder.sample_rate, decoder.hop_size
    return {
        DECODER_STREAM_FILE: decoder_stream_onnx(*model, sample_rate=rate, hop_size=hop_size),
        SYNTH_STREAM_FILE: synth_stream_onnx(*model, response, sample_rate=rate, hop_size=hop_size),
    }


def _header(decoder: TrainedDecoder, response: npt.NDArray[np.float32]) -> str:
    return c_header(
        decoder.config,
        decoder.synth,
        decoder.weights,
        response,
        sample_rate=decoder.sample_rate,
        hop_size=decoder.hop_size,
    )


def load_bundle(path: Path) -> ModelBundle:
    """Returns a bundle whose files are all there and unchanged.

    It may be a stranger's. What is in its files is looked at when it is used, and it never runs.

    Raises:
      BundleError: The folder is no bundle, or a file is missing, differs from its checksum or
        cannot be read.
    """
    expected = _checksums(path)
    signed = [name for name in STREAM_FILES if name in expected or os.path.lexists(path / name)]
    for name in (*_ALL_FILES, *signed):
        file = path / name
        if name not in expected or not _is_file(file):
            raise BundleError(f"'{path}' has no {name}", hint="promote the trial again")
        if _sha256(file) != expected[name]:
            raise BundleError(
                f"{name} in '{path}' is not the file that was written",
                hint=_CHANGED,
            )
    return ModelBundle(path)


def _checksums(path: Path) -> dict[str, str]:
    """Returns the checksums by name.

    Raises:
      BundleError: The folder holds none.
    """
    file = path / CHECKSUMS_FILE
    if not _is_file(file):
        raise BundleError(
            f"'{path}' is no model bundle: it has no {CHECKSUMS_FILE}",
            hint="make one with 'sweeps promote TRIAL --to DIR'",
        )
    lines = read_text(file, BundleError).splitlines()
    if not lines or not all("  " in line for line in lines):
        raise BundleError(
            f"{CHECKSUMS_FILE} in '{path}' is not the file that was written", hint=_CHANGED
        )
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _is_file(path: Path) -> bool:
    """Returns whether there is a file; of pipes and devices, which may never end, nothing is read.

    Raises:
      BundleError: It cannot be found out.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _cannot_read(path, error) from error


def _cannot_read(path: Path, error: OSError) -> BundleError:
    return BundleError(
        f"cannot read '{path}': {error.strerror or error}", hint="check its permissions"
    )


def _sha256(file: Path) -> str:
    try:
        return sha256(file)
    except OSError as error:
        raise _cannot_read(file, error) from error


def verify_bundle(path: Path, *, on_note: Callable[[str], None] = lambda note: None) -> ModelBundle:
    """Loads a bundle, and checks that all of it is of one model.

    Everything that ships is made again from the weights, the configuration in the decoder's
    metadata and the reverb, and compared; the clip is rendered again, whole and as streams. That
    is integrity, not authenticity: who makes all parts anew, makes another bundle. See
    docs/concepts/bundle.md.

    Args:
      path: The folder.
      on_note: Called with what could not be checked, a line each.

    Raises:
      BundleError: As `load_bundle`, or parts do not belong together, or a rendering differs.
      ExportError: A model cannot be loaded.
    """
    bundle = load_bundle(path)
    facts = bundle.session.facts
    controls, stored = bundle.controls(), bundle._audio(RENDERING_FILE, finite=False)
    bundle._audio(CLIP_FILE)
    with bundle._naming(TRIAL_FILE):
        compare_record(bundle.trial, facts, (path / DECODER_FILE).stat().st_size)
    with bundle._naming(CONFIG_FILE):
        compare_config(read_text(path / CONFIG_FILE, BundleError), facts)
    _verify_decoder(bundle, controls)
    _require_equal("rendering", bundle.render(controls), stored, path)
    _verify_streams(bundle, controls, stored)
    if bundle.has_header:
        _verify_header(bundle, on_note)
    return bundle


def _verify_decoder(bundle: ModelBundle, controls: Controls) -> None:
    """Compares the decoder with one that is made of the weights."""
    anew = bundle.decoder.onnx
    inputs = decoder_inputs(controls.f0_hz, controls.loudness_db)[None]
    outputs, expected = bundle.session.decode(inputs), Session(anew).decode(inputs)
    with bundle._naming(DECODER_FILE):
        if bundle.session.facts.quantisation is not None:
            compare_integers(outputs, expected)
        elif not compare_graphs((bundle.path / DECODER_FILE).read_bytes(), anew):
            compare_outputs(outputs, expected, allowed=MAX_ERROR)


def _verify_streams(
    bundle: ModelBundle, controls: Controls, stored: npt.NDArray[np.float32]
) -> None:
    """Compares the streams with those that are made of the weights, and plays them."""
    there = [name for name in STREAM_FILES if (bundle.path / name).is_file()]
    if not there:
        return
    anew = _streams(bundle.session, bundle.decoder, bundle.impulse_response)
    if not anew or (HEADER_FILE in there and not _has_header(bundle.session)):
        raise BundleError(
            f"{there[-1]} in '{bundle.path}' is of another model: this one has none", hint=_CHANGED
        )
    kinds: dict[str, type[DecoderStream | SynthStream]] = {
        DECODER_STREAM_FILE: DecoderStream,
        SYNTH_STREAM_FILE: SynthStream,
    }
    for name in (name for name in there if name in kinds):
        stream = kinds[name](bundle.path / name)
        with bundle._naming(name):
            compare_facts(stream.facts, bundle.session.facts)
            compare_graphs((bundle.path / name).read_bytes(), anew[name])
        n_frames = len(controls.f0_hz) // stream.cycle * stream.cycle
        f0_hz, loudness_db = controls.f0_hz[:n_frames], controls.loudness_db[:n_frames]
        if isinstance(stream, SynthStream):
            played = stream(f0_hz, loudness_db)[stream.latency_samples :]
            _require_equal("stream", played, stored[: played.size], bundle.path)
        else:
            inputs = decoder_inputs(f0_hz, loudness_db)[None]
            outputs = stream(inputs)[:, stream.delay_frames :]
            expected = bundle.session.decode(inputs)[:, : outputs.shape[1]]
            with bundle._naming(name):
                compare_outputs(outputs, expected, allowed=MAX_ERROR)


def _verify_header(bundle: ModelBundle, on_note: Callable[[str], None]) -> None:
    """Compares the header with one that is made of the weights."""
    stored = read_text(bundle.path / HEADER_FILE, BundleError, limit=ARRAY_BYTES)
    with bundle._naming(HEADER_FILE):
        if not compare_headers(stored, bundle.header()):
            written_by, ours = bundle.trial.get("versions"), version(DISTRIBUTION)
            by = written_by.get(DISTRIBUTION, ours) if isinstance(written_by, dict) else ours
            if by == ours:
                raise ValueError("its code is not what is made of the weights")
            on_note(
                f"{HEADER_FILE} was made by another release ({by}): its numbers were compared, its "
                "code was not"
            )


def _require_equal(
    what: str, audio: npt.NDArray[np.float32], stored: npt.NDArray[np.float32], path: Path
) -> None:
    with np.errstate(all="ignore"):  # what is stored may be anything
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
    """Returns mono audio that `write_audio` wrote, [samples].

    Raises:
      BundleError: It is anything else.
    """
    return read_wav(path, BundleError)[0]
