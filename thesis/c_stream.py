"""Plays a model as generated C, block by block. Needs a C compiler.

stream = CStream(c_header(config, synth, weights, response, sample_rate=16_000, hop_size=64))
for f0_hz, loudness_db in blocks:
    audio = stream(f0_hz, loudness_db)
"""

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from thesis.errors import ExportError, StreamError

FLAGS = ("-O3", "-march=native")
"""What headers are compiled with unless told otherwise. They need no -ffast-math."""

Array = npt.NDArray[Any]
_FLOATS = np.ctypeslib.ndpointer(np.float32, flags="C_CONTIGUOUS")
_FACTS = ("SAMPLE_RATE", "HOP", "CYCLE", "LATENCY", "DECODER_DELAY", "OUTPUTS")


class CStream:
    """A whole model, block by block: pitch and loudness in, audio out.

    Whatever the blocks, the audio is that of the whole clip, later by `latency_samples`.

    Attributes:
      sample_rate: Of the audio, in Hz.
      hop_size: Samples a frame.
      cycle: A block holds a multiple of so many frames.
      latency_samples: Samples by which the audio is later than its controls.
      decoder_delay_frames: Frames by which the decoder's output is later than its inputs.
      n_outputs: Channels of the decoder's output.
      state_bytes: Size of the struct that is all that is remembered.
    """

    def __init__(
        self, header: str, *, name: str = "ddsp", seed: int = 0, flags: Sequence[str] = FLAGS
    ) -> None:
        """Compiles a header with `$CC`, or else `cc`.

        Args:
          header: What `thesis.c_code.c_header` returns. It runs: of a bundle take
            `ModelBundle.header`, which is made anew, and not the file, which may be a stranger's.
          name: As given to it.
          seed: Of the noise.
          flags: For the compiler.

        Raises:
          ExportError: There is no C compiler, or it does not take the header.
        """
        with TemporaryDirectory(prefix="c-") as folder:
            self._open(compile_header(header, Path(folder), name=name, flags=flags), seed)

    @classmethod
    def load(cls, library: Path, *, seed: int = 0) -> "CStream":
        """Loads what `compile_header` wrote.

        Args:
          library: The shared library.
          seed: Of the noise.

        Raises:
          ExportError: It cannot be loaded.
        """
        stream = cls.__new__(cls)
        stream._open(library, seed)
        return stream

    def _open(self, library: Path, seed: int) -> None:
        try:
            self._library = ctypes.CDLL(str(library))
        except OSError as error:
            raise ExportError(
                f"{library.name} is no library that can be loaded: {error}",
                hint="compile the header on this machine",
            ) from error
        facts = {fact: ctypes.c_int.in_dll(self._library, fact).value for fact in _FACTS}
        self.sample_rate = facts["SAMPLE_RATE"]
        self.hop_size = facts["HOP"]
        self.cycle = facts["CYCLE"]
        self.latency_samples = facts["LATENCY"]
        self.decoder_delay_frames = facts["DECODER_DELAY"]
        self.n_outputs = facts["OUTPUTS"]
        self.state_bytes = ctypes.c_int.in_dll(self._library, "STATE_BYTES").value
        for play in (self._library.process, self._library.decode):
            play.argtypes = [ctypes.c_void_p, _FLOATS, _FLOATS, ctypes.c_int, _FLOATS]
            play.restype = None
        self._library.init.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self._seed = seed
        self._state = ctypes.create_string_buffer(self.state_bytes)
        self.reset()

    def reset(self) -> None:
        """Forgets all: the next block is the first of a clip."""
        self._library.init(self._state, self._seed)

    def __call__(self, f0_hz: Array, loudness_db: Array) -> npt.NDArray[np.float32]:
        """Returns the audio of the next block, [frames * hop_size].

        Args:
          f0_hz: Pitch in Hz, [frames]; 0 or less where there is none.
          loudness_db: Loudness in dB, -80 to 0, [frames].

        Raises:
          StreamError: Controls of another shape, or not a multiple of `cycle` frames.
        """
        return self._run(self._library.process, f0_hz, loudness_db, self.hop_size)

    def decode(self, f0_hz: Array, loudness_db: Array) -> npt.NDArray[np.float32]:
        """As a call, with the decoder alone: [frames, n_outputs].

        A stream is for one or the other, from its start.
        """
        outputs = self._run(self._library.decode, f0_hz, loudness_db, self.n_outputs)
        return outputs.reshape(-1, self.n_outputs)

    def prepared(
        self, f0_hz: Array, loudness_db: Array, *, decode: bool = False
    ) -> Callable[[], npt.NDArray[np.float32]]:
        """Returns a function that plays these controls whenever it is called.

        For measurements: nothing is checked, all calls return the same array, and Python is
        two microseconds of each.

        Args:
          f0_hz: As for a call.
          loudness_db: As for a call.
          decode: The decoder alone, see `decode`.
        """
        controls = [np.ascontiguousarray(x, np.float32) for x in (f0_hz, loudness_db)]
        out = np.empty((f0_hz.size, self.n_outputs if decode else self.hop_size), np.float32)
        # A function of its own, without the checks of the other's arguments.
        play = self._library["decode" if decode else "process"]
        play.restype = None
        f0, loudness, to = (ctypes.c_void_p(x.ctypes.data) for x in (*controls, out))
        state, n_frames = ctypes.c_void_p(ctypes.addressof(self._state)), ctypes.c_int(f0_hz.size)
        result = out if decode else out.reshape(-1)

        def call(_kept: Any = (self, controls)) -> npt.NDArray[np.float32]:
            play(state, f0, loudness, n_frames, to)
            return result

        return call

    def _run(
        self, play: Any, f0_hz: Array, loudness_db: Array, size: int
    ) -> npt.NDArray[np.float32]:
        if f0_hz.ndim != 1 or f0_hz.shape != loudness_db.shape:
            raise StreamError(
                f"f0_hz of shape {list(f0_hz.shape)}, loudness_db {list(loudness_db.shape)}",
                hint="both are [frames]",
            )
        if f0_hz.size % self.cycle:
            raise StreamError(
                f"a block of {f0_hz.size} frames",
                hint=f"this model takes multiples of {self.cycle}",
            )
        f0, loudness = (np.ascontiguousarray(x, np.float32) for x in (f0_hz, loudness_db))
        out = np.empty(f0.size * size, np.float32)
        play(self._state, f0, loudness, f0.size, out)
        return out


def compiler() -> list[str]:
    """Returns the command of the C compiler: `$CC`, or else `cc`.

    Raises:
      ExportError: There is none.
    """
    named = os.environ.get("CC", "")
    try:
        command = shlex.split(named) or ["cc"]
    except ValueError as error:
        raise ExportError(
            f"the environment variable CC is no command: {error}", hint=f"it is {named!r}"
        ) from error
    if shutil.which(command[0]) is None:
        raise ExportError(
            f"there is no C compiler: '{command[0]}' is not found",
            hint="install gcc or clang, or name one in the environment variable CC",
        )
    return command


def compiler_version() -> str:
    """Returns the version of the C compiler.

    Raises:
      ExportError: There is none.
    """
    command = [*compiler(), "-dumpversion"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def compile_header(
    header: str, folder: Path, *, name: str = "ddsp", flags: Sequence[str] = FLAGS
) -> Path:
    """Compiles a header to a shared library, which `CStream.load` plays.

    Args:
      header: What `thesis.c_code.c_header` returns.
      folder: Where the library goes.
      name: As given to it.
      flags: For the compiler.

    Raises:
      ExportError: There is no C compiler, or it does not take the header.
    """
    command = compiler()
    entries = _ENTRIES.replace("@NAME@", name.upper()).replace("@name@", name)
    library = folder / f"{name}.so"
    with TemporaryDirectory(prefix="c-") as scratch:
        path = Path(scratch)
        (path / f"{name}.h").write_text(header)
        (path / "entries.c").write_text(entries)
        arguments = [*flags, "-shared", "-fPIC", str(path / "entries.c"), "-o", str(library), "-lm"]
        ran = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if ran.returncode:
        said = next((line for line in ran.stderr.splitlines() if "error" in line), ran.stderr)
        raise ExportError(
            f"the C compiler does not take the model: {said.strip()[:200]}",
            hint=f"tried {shlex.join([*command, *flags])}; CC names another compiler",
        )
    return library


_ENTRIES = (
    '#include "@name@.h"\n'
    + "".join(f"const int {fact} = @NAME@_{fact};\n" for fact in _FACTS)
    + """
const int STATE_BYTES = (int)sizeof(@name@_state);

void init(@name@_state *s, uint32_t seed) { @name@_init(s, seed); }

void process(@name@_state *s, const float *f0_hz, const float *loudness_db, int n, float *audio)
{
    @name@_process(s, f0_hz, loudness_db, n, audio);
}

void decode(@name@_state *s, const float *f0_hz, const float *loudness_db, int n, float *outputs)
{
    @name@_decode(s, f0_hz, loudness_db, n, outputs);
}
"""
)
