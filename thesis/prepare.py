"""Recordings in, dataset out."""

import hashlib
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from thesis import demo_instrument
from thesis.data import Clip, ClipFormat, Dataset, Split, write_dataset
from thesis.environ import SAFE_PATH, environment
from thesis.errors import AudioError, ConfigError, DatasetError
from thesis.features import (
    F0_ESTIMATOR,
    SILENCE_DB,
    Frames,
    Samples,
    compute_loudness,
    estimate_f0,
    f0_frame_size,
    load_audio,
)
from thesis.files import check_output

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")

SHORTEST_REST_SECONDS = 0.5
"""What is left of a recording after its last whole clip becomes a padded clip from this length."""

OnProgress = Callable[[int, int, str], None]
"""Called with recordings done, recordings in all, and the name of the one just done."""


def prepare(
    audio_dir: Path | str,
    out: Path | str,
    *,
    clip_seconds: float = 4.0,
    clip_hop_seconds: float | None = None,
    sample_rate: int = 16_000,
    frame_rate: int = 250,
    f0_min_hz: float = 50.0,
    f0_max_hz: float = 2000.0,
    validation_share: float = 0.1,
    skip_broken: bool = False,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Dataset:
    """Makes a dataset of the recordings in a folder.

    WAV, FLAC, MP3 and Ogg files are found in the folder and the folders below it, hidden ones
    aside. Each is analysed as a whole, then cut to clips; what is left at its end is padded with
    silence to a clip, or left out when it is shorter than half a second. Clips and recordings
    without any sound are left out too; `facts.skipped` says what and why.

    `split_recordings` tells training from validation by recording. The clips of a single
    recording are split in time instead: the last ones validate.

    Args:
      audio_dir: Folder of recordings of one instrument, one note at a time.
      out: Folder to make.
      clip_seconds: Length of a clip.
      clip_hop_seconds: From the start of one clip to the next; by default `clip_seconds`.
      sample_rate: In Hz; recordings at other rates are resampled.
      frame_rate: Frames of f0 and loudness a second; divides `sample_rate`.
      f0_min_hz: Lowest pitch to look for.
      f0_max_hz: Highest pitch to look for.
      validation_share: Expected share of the recordings that validate, between 0 and 1.
      skip_broken: Leave out recordings that cannot be read, rather than fail.
      workers: Processes; by default one for each core that this process may use.
      on_progress: Called after each recording, in the calling process.

    Returns:
      The dataset at `out`. Equal recordings give equal clips, whatever the number of workers.

    Raises:
      AudioError: The folder holds no usable recording; or one cannot be read, unless
        `skip_broken`.
      ConfigError: An option is outside its range.
      DatasetError: `out` exists already or cannot be written to.
    """
    clip_format = make_clip_format(
        sample_rate, frame_rate, clip_seconds, clip_hop_seconds, f0_min_hz, f0_max_hz
    )
    _require(0 < validation_share < 1, "validation_share", validation_share, "between 0 and 1")
    _require(workers is None or workers >= 1, "workers", workers, "1 or more")
    check_output(out, DatasetError)
    found = find_recordings(audio_dir)
    analyse = partial(_analyse, Path(audio_dir), clip_format, skip_broken)
    analysed = []
    with closing(_map(analyse, found, workers)) as results:
        for result in results:
            analysed.append(result)
            if on_progress:
                on_progress(len(analysed), len(found), result.source)
    usable = [recording for recording in analysed if isinstance(recording, _Recording)]
    if not usable:
        raise AudioError(
            f"no recording in '{audio_dir}' can be used: '{found[0]}' is {analysed[0].skipped}",
            hint="add recordings that are longer and louder",
        )
    return write_dataset(
        out,
        _split_clips(usable, clip_format, validation_share),
        clip_format=clip_format,
        f0_estimator=F0_ESTIMATOR,
        sources={recording.source: recording.sha256 for recording in usable},
        skipped={r.source: r.skipped for r in analysed if r.skipped},
        total_seconds=math.fsum(recording.seconds for recording in usable),
        split_by="time" if len(usable) == 1 else "recording",
    )


def prepare_demo(
    out: Path | str,
    *,
    n_train: int = 24,
    n_validation: int = 6,
    clip_seconds: float = 4.0,
    sample_rate: int = 16_000,
    frame_rate: int = 250,
    seed: int = 0,
) -> Dataset:
    """Makes a dataset of phrases played by a synthetic bowed string, in seconds.

    Its pitch is known rather than estimated: confidence is 1 where the string sounds, else 0.

    Args:
      out: Folder to make.
      n_train: Training clips, one phrase each.
      n_validation: Validation clips, one phrase each.
      clip_seconds: Length of a clip.
      sample_rate: In Hz.
      frame_rate: Frames of f0 and loudness a second; divides `sample_rate`.
      seed: Of the instrument and what it plays.

    Raises:
      ConfigError: An option is outside its range.
      DatasetError: `out` exists already or cannot be written to.
    """
    clip_format = make_clip_format(
        sample_rate, frame_rate, clip_seconds, None, *demo_instrument.RANGE_HZ
    )
    _require(n_train >= 1, "n_train", n_train, "1 or more")
    _require(n_validation >= 1, "n_validation", n_validation, "1 or more")
    check_output(out, DatasetError)
    phrases = demo_instrument.play(
        n_train + n_validation,
        seconds=clip_seconds,
        sample_rate=sample_rate,
        hop_size=clip_format.hop_size,
        seed=seed,
    )
    clips = [
        Clip(
            clip_id=f"phrase_{i:02}",
            source=f"phrase_{i:02}",
            start_seconds=0.0,
            split="train" if i < n_train else "validation",
            audio=phrase.audio,
            f0_hz=phrase.f0_hz,
            f0_confidence=phrase.sounding.astype(np.float32),
            loudness_db=compute_loudness(phrase.audio, sample_rate, clip_format.hop_size),
        )
        for i, phrase in enumerate(phrases)
    ]
    return write_dataset(
        out,
        clips,
        clip_format=clip_format,
        f0_estimator="known: synthetic instrument",
        sources={clip.source: hashlib.sha256(clip.audio.tobytes()).hexdigest() for clip in clips},
        skipped={},
        total_seconds=len(clips) * clip_seconds,
    )


def find_recordings(audio_dir: Path | str) -> list[str]:
    """Returns the recordings in a folder and below, as sorted POSIX paths relative to it.

    Hidden files and folders are passed over: among them are the files that macOS leaves beside
    recordings on foreign disks, which end in .wav and hold no audio.

    Raises:
      AudioError: There is no such folder, no recording in it, or one whose name is not text.
    """
    root = Path(audio_dir)
    if not root.is_dir():
        raise AudioError(
            f"'{root}' is no folder of recordings", hint="name a folder that holds audio files"
        )
    found = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    )
    if not found:
        raise AudioError(
            f"no recording in '{root}'", hint=f"recordings end in {', '.join(AUDIO_SUFFIXES)}"
        )
    for source in found:
        if not _is_unicode(source):
            raise AudioError(f"the name of {source!r} is not valid UTF-8", hint="rename the file")
    return found


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Bytes of a file name that no text stands for.
        return False
    return True


def split_recordings(sources: Iterable[str], validation_share: float) -> dict[str, Split]:
    """Says of each recording whether it trains or validates.

    A recording's own name decides: its SHA-256, read as a number from 0 to 1, is below
    `validation_share` or not. Other recordings make no difference, so that what once validated is
    not trained on after more has been recorded. There is one exception. Of two recordings or more
    one must train and one validate; when all are on one side, the one nearest to the other side
    goes there. Adding recordings therefore moves one recording at most, back to its own side.

    Args:
      sources: Names of the recordings.
      validation_share: Expected share of recordings that validate.
    """
    place = {source: _place(source) for source in sources}
    split: dict[str, Split] = {
        source: "validation" if at < validation_share else "train" for source, at in place.items()
    }
    if len(split) >= 2 and "validation" not in split.values():
        split[min(place, key=place.__getitem__)] = "validation"
    elif len(split) >= 2 and "train" not in split.values():
        split[max(place, key=place.__getitem__)] = "train"
    return split


def _place(source: str) -> float:
    """Returns a recording's place between 0 and 1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:6], "big") / 2**48


# --- One recording ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Recording:
    """An analysed recording, padded to the end of its last clip.

    Attributes:
      source: Its name.
      sha256: Of its file.
      seconds: Its length, without padding.
      audio: Shape [n_samples].
      f0_hz: Shape [n_frames].
      f0_confidence: Shape [n_frames].
      loudness_db: Shape [n_frames].
      starts: First frame of each clip.
      skipped: Which part of it is left out; empty when none is.
    """

    source: str
    sha256: str
    seconds: float
    audio: Samples
    f0_hz: Frames
    f0_confidence: Frames
    loudness_db: Frames
    starts: Sequence[int]
    skipped: str


@dataclass(frozen=True)
class _Unusable:
    """A recording that is left out as a whole, and why: '... is {skipped}'."""

    source: str
    skipped: str


_Analysed: TypeAlias = _Recording | _Unusable


def _analyse(root: Path, clip_format: ClipFormat, skip_broken: bool, source: str) -> _Analysed:
    """Reads and analyses one recording. Runs in a worker process."""
    path = root / source
    try:
        audio = load_audio(path, clip_format.sample_rate)
    except AudioError as error:
        if skip_broken:
            return _Unusable(source, "broken: " + error.message.replace(f"'{path}'", "it"))
        raise AudioError(error.message, hint=f"{error.hint}, or pass --skip-broken") from error
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return _analyse_audio(source, sha256, audio, clip_format)


def _analyse_audio(source: str, sha256: str, audio: Samples, clip_format: ClipFormat) -> _Analysed:
    rate, hop = clip_format.sample_rate, clip_format.hop_size
    shortest = f0_frame_size(rate, clip_format.f0_min_hz)
    if len(audio) < shortest:
        return _Unusable(source, f"shorter than one frame ({shortest / rate:.3f} s)")
    starts, n_rest = cut(len(audio), clip_format)
    n_padding = max(0, starts[-1] * hop + clip_format.n_samples - len(audio))
    padded = np.pad(audio, (0, n_padding))
    loudness_db = compute_loudness(padded, rate, hop)
    loud = [s for s in starts if loudness_db[s : s + clip_format.n_frames].max() > SILENCE_DB]
    if not loud:
        return _Unusable(source, f"silent: nowhere louder than {SILENCE_DB:g} dB")
    # The padding has no pitch to look for.
    f0_hz, f0_confidence = estimate_f0(
        audio, rate, hop, clip_format.f0_min_hz, clip_format.f0_max_hz
    )
    n_after = len(loudness_db) - len(f0_hz)
    return _Recording(
        source,
        sha256=sha256,
        seconds=len(audio) / rate,
        audio=padded,
        f0_hz=np.pad(f0_hz, (0, n_after), mode="edge"),
        f0_confidence=np.pad(f0_confidence, (0, n_after)),
        loudness_db=loudness_db,
        starts=loud,
        skipped=_left_out(len(starts) - len(loud), n_rest / rate),
    )


def _left_out(n_silent_clips: int, rest_seconds: float) -> str:
    """Says which parts of a recording are left out; '' for none worth a word."""
    parts = []
    if n_silent_clips:
        parts.append(f"{n_silent_clips} silent clip{'s' if n_silent_clips > 1 else ''}")
    if rest_seconds >= 0.005:
        parts.append(f"the last {rest_seconds:.2f} s")
    return " and ".join(parts)


def cut(n_samples: int, clip_format: ClipFormat) -> tuple[list[int], int]:
    """Returns the first frame of each clip of a recording, and the samples left over at its end.

    The last clip may reach beyond the end: when half a second or more is left after the last
    whole clip, or when the recording is shorter than a clip.

    Args:
      n_samples: Length of the recording, at least 1.
      clip_format: Length of a clip, and the step from one to the next.
    """
    length = clip_format.n_samples
    step = round(clip_format.clip_hop_seconds * clip_format.frame_rate) * clip_format.hop_size
    starts = list(range(0, n_samples - length + 1, step)) or [0]
    n_rest = n_samples - (starts[-1] + length)
    if n_rest >= SHORTEST_REST_SECONDS * clip_format.sample_rate:
        starts.append(starts[-1] + step)
        n_rest = 0
    return [start // clip_format.hop_size for start in starts], max(0, n_rest)


# --- All recordings -----------------------------------------------------------------------------


def _map(
    analyse: Callable[[str], _Analysed], sources: Sequence[str], workers: int | None
) -> Generator[_Analysed, None, None]:
    """Yields the analysis of each recording, in order, made in several processes."""
    n_workers = min(workers or len(os.sched_getaffinity(0)), len(sources))
    if n_workers == 1:
        yield from map(analyse, sources)
        return
    # Forking a process that has run TensorFlow or Arrow can deadlock the child: spawn.
    spawn = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with environment(**SAFE_PATH), ExitStack() as stack:
        with _interrupts_ignored():  # by processes that are starting, too
            pool = stack.enter_context(ProcessPoolExecutor(n_workers, spawn, _begin_worker))
            futures = deque(pool.submit(_in_worker, analyse, source) for source in sources)
        try:
            while futures:
                yield futures[0].result()
                futures.popleft()
        except BrokenProcessPool as error:
            at = " or ".join(f"'{source}'" for source in sources[-len(futures) :][:n_workers])
            raise AudioError(
                f"a worker process died of {at}",
                hint="if memory was short, try --workers 1; else leave these recordings out",
            ) from error
        except BaseException:  # nobody waits for what is left
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


_FROM_TERMINALS = (signal.SIGINT, signal.SIGHUP)
"""Ctrl-C, and the end of the terminal."""


# In a worker. It must not die of a signal: half a result in the pipe would have the pool wait for
# the other half for ever. So it is told to stop, and ends what it is at by itself.
_stopping = _analysing = False


def _begin_worker() -> None:
    """Leaves what a terminal sends to every process to the one that waits for this one."""
    for number in _FROM_TERMINALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process with the one that started it, which may be killed and say nothing.

    A pool's workers would wait for work for ever: each holds both ends of the pipe that it is in.
    """
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _stop(*_: object) -> None:
    global _stopping
    if _stopping:  # the pool is broken: another worker was ended before it could listen
        os._exit(1)
    _stopping = True
    if _analysing:
        raise KeyboardInterrupt


def _in_worker(analyse: Callable[[str], _Analysed], source: str) -> _Analysed:
    global _analysing
    _analysing = True
    try:
        if _stopping:
            raise KeyboardInterrupt
        return analyse(source)
    finally:
        _analysing = False


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignores terminals for a moment, and in the processes that are started in it for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _FROM_TERMINALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _split_clips(
    recordings: Sequence[_Recording], clip_format: ClipFormat, validation_share: float
) -> list[Clip]:
    if len(recordings) == 1:
        return _split_in_time(recordings[0], clip_format, validation_share)
    split = split_recordings((r.source for r in recordings), validation_share)
    return [
        _clip(recording, start, split[recording.source], clip_format)
        for recording in recordings
        for start in recording.starts
    ]


def _split_in_time(
    recording: _Recording, clip_format: ClipFormat, validation_share: float
) -> list[Clip]:
    """Returns the clips of a single recording, the last of which validate.

    Clips that overlap the first validation clip are left out.

    Raises:
      AudioError: There are not two clips that do not overlap.
    """
    n_validation = max(1, math.floor(validation_share * len(recording.starts)))
    validate = recording.starts[-n_validation:]
    train = [s for s in recording.starts if s + clip_format.n_frames <= validate[0]]
    if not train:
        raise AudioError(
            f"'{recording.source}', the only recording in use, makes a single clip",
            hint="two are needed, to train and to validate: add recordings, or shorten the clips",
        )
    starts: Mapping[Split, Sequence[int]] = {"train": train, "validation": validate}
    return [
        _clip(recording, start, split, clip_format)
        for split, of_split in starts.items()
        for start in of_split
    ]


def _clip(recording: _Recording, start: int, split: Split, clip_format: ClipFormat) -> Clip:
    seconds = start / clip_format.frame_rate
    frames = slice(start, start + clip_format.n_frames)
    first = start * clip_format.hop_size
    return Clip(
        clip_id=f"{recording.source}@{seconds:.3f}",
        source=recording.source,
        start_seconds=seconds,
        split=split,
        audio=recording.audio[first : first + clip_format.n_samples],
        f0_hz=recording.f0_hz[frames],
        f0_confidence=recording.f0_confidence[frames],
        loudness_db=recording.loudness_db[frames],
    )


def _require(satisfied: bool, name: str, value: object, allowed: str) -> None:
    if not satisfied:
        raise ConfigError(
            f"{name} = {value!r} is outside its range", hint=f"{name} must be {allowed}"
        )


def make_clip_format(
    sample_rate: int,
    frame_rate: int,
    clip_seconds: float,
    clip_hop_seconds: float | None,
    f0_min_hz: float,
    f0_max_hz: float,
) -> ClipFormat:
    """Returns the format of clips with so many frames a second; by default they do not overlap.

    Raises:
      ConfigError: A value is outside its range, or a frame is no whole number of samples.
    """
    if frame_rate < 1 or sample_rate % frame_rate:
        raise ConfigError(
            f"frame_rate = {frame_rate!r} does not divide the sample rate {sample_rate}",
            hint="choose one that does, so that a frame is a whole number of samples",
        )
    return ClipFormat(
        sample_rate=sample_rate,
        hop_size=sample_rate // frame_rate,
        clip_seconds=clip_seconds,
        clip_hop_seconds=clip_seconds if clip_hop_seconds is None else clip_hop_seconds,
        f0_min_hz=f0_min_hz,
        f0_max_hz=f0_max_hz,
    )
