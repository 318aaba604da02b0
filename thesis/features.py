"""What a decoder is conditioned on: pitch and loudness of a recording, at the frame rate.

Frame t of every feature is centred on sample `t * hop_size`; a recording of n samples has
`n_frames(n, hop_size)` frames.
"""

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft
import scipy.ndimage
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from thesis.errors import AudioError
from thesis.mp3 import Mp3Error, read_mp3
from thesis.pyin import PitchGrid, pyin

if TYPE_CHECKING:
    import soundfile

Samples = NDArray[np.float32]
"""Mono audio, nominally within -1 and 1."""

Frames = NDArray[np.float32]
"""One value for each frame."""

LARGEST_SAMPLE = 1e6
"""Beyond 120 dB above full scale a file holds no audio, whatever a float may hold."""

RECORDED_RATES = (1_000, 2_000_000)
"""Sample rates of recordings, in Hz, from and to. A header may name any: a second of audio at 1 Hz
would become thousands of times as many samples as the file holds."""

_OTHER_FORMATS = {b"fLaC", b"OggS", b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"caff", b".snd"}
"""What files begin with that are no MP3s."""

_BLOCK = 2**16
"""Samples that are decoded at a time."""

LOUDNESS_FLOOR_DB = -80.0
"""Loudness of digital silence, and of everything softer than this."""

SILENCE_DB = -60.0
"""A clip that is nowhere louder is silent. A tone at -80 dB of full scale is as loud as this; the
dither of 16-bit audio is 13 dB softer."""

LOUDNESS_FFT_SIZE = 512
"""Samples that a frame of loudness sees: 32 ms at 16 kHz, as in ddsp."""


def n_frames(n_samples: int, hop_size: int) -> int:
    """Returns the number of frames whose centre lies within n samples."""
    return -(-n_samples // hop_size)


# --- Recordings ---------------------------------------------------------------------------------


def load_audio(path: Path | str, sample_rate: int) -> Samples:
    """Reads a recording as mono at a sample rate.

    Channels are averaged; a recording at another rate is resampled by soxr (HQ). Levels are left
    as they are. Memory is that of the result: the file is decoded block by block.

    Args:
      path: A file that libsndfile decodes, or an MP3, which is decoded to its end whatever its
        header says of its length.
      sample_rate: Sample rate to return, in Hz.

    Returns:
      Float32 samples, shape [n_samples]; empty when the file is well-formed and holds none.

    Raises:
      AudioError: The file cannot be opened or decoded, is cut short, or holds samples that are NaN,
        infinite or absurdly large.
    """
    path = Path(path)
    with _opened(path) as (file_rate, blocks):
        if not RECORDED_RATES[0] <= file_rate <= RECORDED_RATES[1]:
            raise AudioError(
                f"'{path}' is at {file_rate:,} Hz by its header, which no recording is",
                hint="export it again, or remove it",
            )
        mono = (_mono(block, path) for block in blocks)
        resampled = mono if file_rate == sample_rate else _resampled(mono, file_rate, sample_rate)
        return np.concatenate([np.empty(0, np.float32), *resampled])


def _mono(block: NDArray[np.float32], path: Path) -> Samples:
    """Returns the mean of the channels, or raises AudioError where that is no audio."""
    mono: Samples = block.mean(axis=1)
    loudest = np.abs(mono).max(initial=0.0)
    if not np.isfinite(loudest):
        raise AudioError(
            f"'{path}' holds NaN or infinite samples", hint="export it again, or remove it"
        )
    if loudest > LARGEST_SAMPLE:
        raise AudioError(
            f"'{path}' holds samples of {loudest:.3g}; audio is within -1 and 1",
            hint="export it again at that level, or remove it",
        )
    return mono


def _resampled(blocks: Iterable[Samples], rate: int, new_rate: int) -> Iterator[Samples]:
    """Yields a recording at another rate, `ceil(n_samples * new_rate / rate)` samples in all."""
    import soxr

    stream = soxr.ResampleStream(rate, new_rate, 1, dtype="float32", quality="HQ")
    n_read = n_made = 0
    for block in blocks:
        n_read += len(block)
        made = stream.resample_chunk(block)
        n_made += len(made)
        yield made
    left = -(-n_read * new_rate // rate) - n_made
    rest = stream.resample_chunk(np.empty(0, np.float32), last=True)
    yield np.pad(rest, (0, max(0, left - len(rest))))[:left]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, Iterable[NDArray[np.float32]]]]:
    """Gives a recording's sample rate, and its samples in blocks of shape [n, n_channels].

    Raises:
      AudioError: It cannot be decoded, or is cut short.
    """
    if path.exists() and not path.is_file():
        raise AudioError(f"'{path}' is no file", hint="pipes, devices and folders are not read")
    try:
        cut_short = _is_cut_short(path)
        mpeg = read_mp3(path.read_bytes()) if _may_be_mp3(path) else None
    except OSError as error:
        raise AudioError(
            f"cannot open '{path}': {error.strerror}", hint="check the path and its permissions"
        ) from error
    if cut_short or (mpeg and mpeg.is_cut_short):
        raise _too_short(path)
    if mpeg:
        try:
            yield mpeg.sample_rate, mpeg.blocks(_BLOCK)
        except Mp3Error as error:
            raise _undecodable(path) from error
        return
    import soundfile

    try:
        # Of an open file libsndfile sees the content alone. By the name of one that ends in .mp3 it
        # would have mpg123 look for audio in any, which says on stderr that there is none.
        with (
            path.open("rb") as file,
            soundfile.SoundFile(file.fileno(), closefd=False) as recording,
        ):
            yield recording.samplerate, _blocks(recording)
            if recording.tell() < recording.frames:
                raise _too_short(path)
    except soundfile.LibsndfileError as error:
        # libsndfile's own words are left out: of a text file named .mp3 it says 'does not exist'.
        raise _undecodable(path) from error


def _blocks(recording: "soundfile.SoundFile") -> Iterator[NDArray[np.float32]]:
    while len(block := recording.read(_BLOCK, dtype="float32", always_2d=True)):
        yield block


def _undecodable(path: Path) -> AudioError:
    return AudioError(
        f"'{path}' is not audio that can be decoded",
        hint="WAV, FLAC, MP3 and Ogg are read; convert the file, or remove it",
    )


def _may_be_mp3(path: Path) -> bool:
    """Returns whether a file is named, or begins, as MP3s do."""
    with path.open("rb") as file:
        head = file.read(4)
    if head in _OTHER_FORMATS:  # whatever the name; bytes as an MPEG frame's are in any long file
        return False
    in_sync = head[:1] == b"\xff" and head[1:2] >= b"\xe0"
    return path.suffix.lower() == ".mp3" or head[:3] == b"ID3" or in_sync


def _too_short(path: Path) -> AudioError:
    return AudioError(
        f"'{path}' is cut short: it holds less audio than its header says",
        hint="copy or download it again, or remove it",
    )


def _is_cut_short(path: Path) -> bool:
    """Returns whether a WAV or Ogg file ends before its last chunk or page does.

    libsndfile reads such files as shorter recordings without a word; of the other formats it
    complains itself.

    Raises:
      OSError: The file cannot be opened or read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(65536)
        file.seek(max(0, size - 65536))  # An Ogg page is shorter than this.
        tail = file.read()
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return _end_of_wav_data(head) > size
    return head[:4] == b"OggS" and _end_of_last_ogg_page(tail) > len(tail)


def _end_of_wav_data(head: bytes) -> int:
    """Returns the offset at which a WAV's data chunk ends by its header; 0 when it does not say.

    Args:
      head: The beginning of the file, with the headers of its chunks up to the data.
    """
    at = 12
    while at + 8 <= len(head):
        chunk, size = struct.unpack_from("<4sI", head, at)
        at += 8
        if chunk == b"data":
            # Programs that write to a pipe cannot know the size and leave a huge one.
            return 0 if size >= 0x7FFFF000 else at + size
        at += size + size % 2
    return 0


def _end_of_last_ogg_page(tail: bytes) -> int:
    """Returns the offset in `tail` at which the last page that begins in it ends (RFC 3533)."""
    start = tail.rfind(b"OggS")
    n_segments = tail[start + 26] if start + 26 < len(tail) else 0
    lengths = tail[start + 27 : start + 27 + n_segments]
    return start + 27 + n_segments + sum(lengths)


# --- Loudness -----------------------------------------------------------------------------------


def compute_loudness(audio: Samples, sample_rate: int, hop_size: int) -> Frames:
    """Returns the A-weighted loudness of each frame, in dB.

    Equal to `ddsp.spectral_ops.compute_loudness` of ddsp 3.7 with its defaults, without the one
    frame more that it centres on the end of the audio. Beyond the ends the audio is silent.

    Not calibrated in phon or LUFS, and not dB relative to full scale: it is the power of a
    512-point spectrum averaged over its bins, so that a full-scale 1 kHz sine has 20 dB.
    Silence, and everything softer, has -80 dB.

    Args:
      audio: Shape [n_samples].
      sample_rate: In Hz.
      hop_size: Samples from one frame to the next.

    Returns:
      Loudness in dB, -80 or above, shape [n_frames].
    """
    size = LOUDNESS_FFT_SIZE
    count = n_frames(len(audio), hop_size)
    framed = sliding_window_view(np.pad(audio, size // 2), size)[::hop_size][:count]
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)
    weights = (10 ** (_a_weighting_db(np.fft.rfftfreq(size, 1 / sample_rate)) / 10)).astype(
        np.float32
    )
    power = np.empty(count)
    block = 4096  # Bounds the memory that a long recording takes.
    for start in range(0, count, block):
        spectrum = scipy.fft.rfft(framed[start : start + block] * window)
        power[start : start + block] = (np.abs(spectrum) ** 2) @ weights / len(weights)
    return (10 * np.log10(np.maximum(power, 10 ** (LOUDNESS_FLOOR_DB / 10)))).astype(np.float32)


def _a_weighting_db(frequencies_hz: NDArray[np.floating]) -> NDArray[np.floating]:
    """Returns the A-weighting of IEC 61672, in dB, -80 or above as in librosa."""
    f2 = frequencies_hz**2
    poles = np.array([12194.217, 20.598997, 107.65265, 737.86223]) ** 2
    gain = (
        (poles[0] * f2**2)
        / ((f2 + poles[0]) * (f2 + poles[1]))
        / np.sqrt((f2 + poles[2]) * (f2 + poles[3]))
    )
    return np.asarray(np.maximum(20 * np.log10(np.maximum(gain, 1e-10)) + 2.0, -80.0))


# --- Pitch --------------------------------------------------------------------------------------

TRACKER_SEMITONES = 0.5
"""Grid on which the pitch is tracked, before it is refined."""

_REFINED_AT_ONCE = 1024
"""Frames whose pitch is refined at a time, which bounds the memory that an hour takes."""

F0_ESTIMATOR = "pyin, refined by autocorrelation"
"""What `estimate_f0` does, for a dataset's record."""


def f0_frame_size(sample_rate: int, f0_min_hz: float) -> int:
    """Returns the samples that pYIN sees: six periods of the lowest pitch, to a power of two.

    Two periods are the least. In shorter frames pYIN's difference function, which does not
    account for the samples that a lag pushes out of the frame, makes low notes look unvoiced.
    """
    return 1 << int(np.ceil(np.log2(6 * sample_rate / f0_min_hz)))


def estimate_f0(
    audio: Samples, sample_rate: int, hop_size: int, f0_min_hz: float, f0_max_hz: float
) -> tuple[Frames, Frames]:
    """Estimates the fundamental frequency of each frame of a monophonic recording.

    pYIN (Mauch and Dixon 2014) finds the note on a grid of half semitones, then the peak of the
    normalised autocorrelation near it gives the pitch. A grid of a tenth of a semitone is slower
    and still less exact: it cannot undo the smear of pYIN's long frame, which flattens a vibrato
    (`test_features.py` compares them).

    Through unvoiced frames f0 is interpolated (in log frequency) between the notes around them,
    and held before the first and after the last: it is always a pitch, and continuous.

    Args:
      audio: Shape [n_samples], at least one sample.
      sample_rate: In Hz.
      hop_size: Samples from one frame to the next.
      f0_min_hz: Lowest pitch to find.
      f0_max_hz: Highest pitch to find, at most half of the sample rate.

    Returns:
      f0 in Hz, within the two limits, shape [n_frames]; and its confidence, pYIN's probability
      that the frame is voiced, 0 to 1, shape [n_frames].
    """
    f0, voiced, confidence = _track(audio, sample_rate, hop_size, f0_min_hz, f0_max_hz)
    frames = np.flatnonzero(voiced)
    if frames.size:
        refined = _refine(audio, f0[frames], frames * hop_size, sample_rate)
        f0 = np.exp(np.interp(np.arange(len(f0)), frames, np.log(refined)))
    f0 = np.clip(f0, f0_min_hz, f0_max_hz)
    return f0.astype(np.float32), confidence.astype(np.float32)


def _track(
    audio: Samples, sample_rate: int, hop_size: int, f0_min_hz: float, f0_max_hz: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Returns pYIN's f0 in Hz on a coarse grid, voiced flags, and voiced probabilities.

    Runs over five seconds at a time, which bounds the memory that an hour takes.
    """
    grid = PitchGrid(
        sample_rate=sample_rate,
        hop_size=hop_size,
        f0_min_hz=f0_min_hz,
        f0_max_hz=f0_max_hz,
        frame_size=f0_frame_size(sample_rate, f0_min_hz),
        bins_per_semitone=round(1 / TRACKER_SEMITONES),
        # 36 octaves a second, as the authors have it; and at least one semitone.
        semitones_per_frame=max(1, round(35.92 * 12 * hop_size / sample_rate)),
    )
    count = n_frames(len(audio), hop_size)
    block = round(5 * sample_rate / hop_size)
    context = round(0.25 * sample_rate / hop_size)
    tracked = []
    for start in range(0, count, block):
        first, stop = max(0, start - context), min(count, start + block)
        of_block = pyin(audio[first * hop_size : (stop + context) * hop_size], grid)
        tracked.append([values[start - first : stop - first] for values in of_block])
    f0, voiced, probability = (np.concatenate(parts) for parts in zip(*tracked, strict=True))
    return f0, voiced, probability


def _refine(
    audio: Samples, coarse_hz: NDArray[np.float64], centres: NDArray[np.int_], sample_rate: int
) -> NDArray[np.float64]:
    """Moves coarse pitches to the nearest peak of the autocorrelation, a fraction of a cent away.

    The normalised autocorrelation `2 a.b / (a.a + b.b)` (McLeod and Wyvill 2005) of two windows
    one lag apart, placed evenly about the frame's centre, peaks where the lag is a whole number
    of periods; a parabola through the peak gives the fraction of a sample. Of high notes a lag
    spans several periods, which divides the error by as many. Frames of one coarse pitch share
    their lags, so that they are done together.

    Args:
      audio: Shape [n_samples].
      coarse_hz: Pitches to refine, on the tracker's grid, shape [n].
      centres: Sample on which each is centred, shape [n].
      sample_rate: In Hz.

    Returns:
      Refined pitches in Hz, shape [n]; the coarse ones where there is no peak nearby.
    """
    # A sharp peak sampled at whole lags is no parabola; without the highest partials it is.
    smooth = scipy.ndimage.correlate1d(audio, np.array([1, 4, 6, 4, 1]) / 16, mode="constant")
    refined = coarse_hz.copy()
    for f0 in np.unique(coarse_hz):
        frames = np.flatnonzero(coarse_hz == f0)
        periods = int(np.ceil(0.006 * f0))  # The lag lasts 6 ms or more,
        lag = periods * sample_rate / f0
        window = int(max(lag, 0.016 * sample_rate))  # the window 16 ms or more.
        margin = 2 ** (1.5 * TRACKER_SEMITONES / 12)
        lags = np.arange(int(lag / margin) - 1, int(np.ceil(lag * margin)) + 2)
        length = window + int(lags[-1])
        padded = sliding_window_view(np.pad(smooth, length), length)
        starts = centres - (window + round(lag)) // 2 + length
        for some in np.split(frames, range(_REFINED_AT_ONCE, len(frames), _REFINED_AT_ONCE)):
            segments = padded[np.clip(starts[some], 0, len(padded) - 1)]
            peak, found = _highest_peak(_autocorrelation(segments, window, lags))
            refined[some] = np.where(found, periods * sample_rate / (lags[0] + peak), f0)
    return refined


def _autocorrelation(
    segments: NDArray[np.float32], window: int, lags: NDArray[np.int_]
) -> NDArray[np.float64]:
    """Returns the normalised autocorrelation of each segment at each lag, shape [n, n_lags]."""
    shifted = sliding_window_view(segments, window, axis=1)
    energy = np.cumsum(np.pad(segments.astype(np.float64) ** 2, ((0, 0), (1, 0))), axis=1)
    energy = energy[:, window:] - energy[:, :-window]
    product = np.einsum("nw,nlw->nl", shifted[:, 0], shifted[:, lags])
    return np.asarray(2 * product / (energy[:, :1] + energy[:, lags] + 1e-12))


def _highest_peak(curves: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns where each row is highest, to a fraction of a step, and whether that is a peak."""
    rows = np.arange(len(curves))
    top = 1 + np.argmax(curves[:, 1:-1], axis=1)
    before, at, after = (curves[rows, top + step] for step in (-1, 0, 1))
    curvature = before - 2 * at + after
    found = (at >= before) & (at >= after) & (curvature < 0)
    offset = np.divide(0.5 * (before - after), curvature, out=np.zeros_like(at), where=found)
    return top + offset, found
