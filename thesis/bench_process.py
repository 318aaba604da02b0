"""What is benched: a model that plays a clip in blocks; and what it costs a process of its own.

    python -m thesis.bench_process < request.json

loads a model in a new process, plays it, and prints one JSON object: the time to start, the first
call, the time to load and the peak memory. None of these can be had in a process that has loaded
the runtime before.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Not the runtimes themselves: what they take to import is a part of what is measured.
from thesis.controls import decoder_inputs
from thesis.runtimes import runtime
from thesis.runtimes.contract import Session

Array = npt.NDArray[Any]
ARTIFACTS = ("decoder", "decoder_stream", "synth_stream")
C = "c"
"""Stands for a runtime: generated C, compiled on this machine."""

_LATER_CALLS = 20


@dataclass(frozen=True)
class Subject:
    """A model as one runtime loads it.

    Attributes:
      artifact: 'decoder', which knows nothing of the block before; or a stream.
      runtime: Name of the runtime, or 'c'.
      path: What it loads.
    """

    artifact: str
    runtime: str
    path: str

    def load(self) -> "Loaded":
        """Loads the model.

        Raises:
          ExportError: It cannot be loaded.
          MissingRuntimeError: The runtime is not installed.
        """
        path = Path(self.path)
        if self.artifact == "decoder":
            return _of_decoder(runtime(self.runtime).load(path))
        return (_of_c if self.runtime == C else _of_stream)(self.artifact, path)


@dataclass(frozen=True)
class Loaded:
    """A model that is loaded.

    Attributes:
      play: Plays a block, of what `arranged` returned.
      arranged: Takes the pitch in Hz and the loudness in dB of a block, both [frames], and returns
        them as the model takes them. Not a part of what is timed.
      cycle: A block holds a multiple of so many frames.
      seconds: Plays a block and returns how long that took, where the clock is not here: a runtime
        may run in a process of its own.
    """

    play: Callable[..., object]
    arranged: Callable[[Array, Array], tuple[Any, ...]]
    cycle: int = 1
    seconds: Callable[..., float] | None = None

    def calls(self, f0_hz: Array, loudness_db: Array, n_frames: int) -> Callable[[], float]:
        """Returns a function that plays the next block of a clip and returns its seconds.

        After the last whole block of the clip comes the first again.

        Args:
          f0_hz: Pitch of the clip, [frames].
          loudness_db: Its loudness, [frames].
          n_frames: Of a block. A clip that is shorter is repeated.
        """
        length = max(len(f0_hz) // n_frames, 1) * n_frames
        blocks = zip(
            np.resize(f0_hz, length).reshape(-1, n_frames),
            np.resize(loudness_db, length).reshape(-1, n_frames),
            strict=True,
        )
        endless = itertools.cycle([self.arranged(*block) for block in blocks])

        seconds = self.seconds or self._clocked
        return lambda: seconds(*next(endless))

    def _clocked(self, *block: Any) -> float:
        start = time.perf_counter()
        self.play(*block)
        return time.perf_counter() - start


def _of_decoder(session: Session) -> Loaded:
    def arranged(f0_hz: Array, loudness_db: Array) -> tuple[Any, ...]:
        return (session.arranged(_inputs(f0_hz, loudness_db)),)

    return Loaded(session, arranged, seconds=session.seconds)


def _of_stream(artifact: str, path: Path) -> Loaded:
    from thesis.stream import DecoderStream, SynthStream

    if artifact == "decoder_stream":
        decoder = DecoderStream(path)
        return Loaded(decoder, lambda f0, loudness: (_inputs(f0, loudness),), decoder.cycle)
    synth = SynthStream(path)
    return Loaded(synth, lambda f0, loudness: (f0, loudness), synth.cycle)


def _of_c(artifact: str, path: Path) -> Loaded:
    from thesis.c_stream import CStream

    stream = CStream.load(path)
    prepared = partial(stream.prepared, decode=artifact == "decoder_stream")
    return Loaded(lambda call: call(), lambda f0, loudness: (prepared(f0, loudness),), stream.cycle)


def _inputs(f0_hz: Array, loudness_db: Array) -> Array:
    return decoder_inputs(f0_hz, loudness_db)[None]


@dataclass(frozen=True)
class Request:
    """What a new process is to load and play.

    Attributes:
      subject: The model.
      controls: File with the arrays `f0_hz` and `loudness_db` of a clip.
      n_frames: Of a block.
    """

    subject: Subject
    controls: str
    n_frames: int


@dataclass(frozen=True)
class FreshProcess:
    """What a model costs a new process.

    Attributes:
      start_seconds: To import the runtime and load the model.
      load_seconds: To load it once more, with the runtime there.
      first_call_seconds: The first block.
      peak_memory_bytes: The most that the process had resident, Python and libraries included, and
        processes that the runtime started.
    """

    start_seconds: float
    load_seconds: float
    first_call_seconds: float
    peak_memory_bytes: int


def measure(request: Request) -> FreshProcess:
    """Measures in this process, which is to be new."""
    with np.load(request.controls, allow_pickle=False) as arrays:
        f0_hz, loudness_db = arrays["f0_hz"], arrays["loudness_db"]
    start = time.perf_counter()
    loaded = request.subject.load()
    started = time.perf_counter()
    call = loaded.calls(f0_hz, loudness_db, request.n_frames)
    first = call()
    for _ in range(_LATER_CALLS):
        call()
    peak = _peak_memory_bytes()
    again = time.perf_counter()
    request.subject.load()
    return FreshProcess(started - start, time.perf_counter() - again, first, peak)


def _peak_memory_bytes() -> int:
    """Returns the largest resident size so far of this process and of those that it has started.

    Not getrusage's on Linux: that begins with the size of the parent.
    """
    try:
        children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
        pids = ["self", *(pid for some in children for pid in some)]
        status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    except OSError:
        status = []
    if not status:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    lines = [line.split() for text in status for line in text.splitlines()]
    return 1024 * sum(int(words[1]) for words in lines if words[:1] == ["VmHWM:"])


def main() -> None:
    """Reads a request from standard input and prints what was measured."""
    fields = json.load(sys.stdin)
    request = Request(Subject(**fields.pop("subject")), **fields)
    print(json.dumps(asdict(measure(request))))


if __name__ == "__main__":
    main()
