"""Datasets that ddsp prepared: TFRecords in, dataset out. Needs TensorFlow when it reads.

`ddsp_prepare_tfrecord` writes clips with their audio, pitch (CREPE), confidence and loudness, but
neither rates, nor names of recordings, nor an order: Beam shuffles the clips. What is not written
is found out from the audio. Clips that share samples come from one recording, so many samples
apart; and the loudness, computed anew, tells where a frame is centred.
"""

import glob
import hashlib
import os
import re
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.ndimage

from thesis.controls import MAX_PEAK
from thesis.data import Clip, Dataset, Split, write_dataset
from thesis.errors import ConfigError, DatasetError
from thesis.features import LOUDNESS_FLOOR_DB, SILENCE_DB, Frames, Samples, compute_loudness
from thesis.files import check_output, sha256
from thesis.prepare import OnProgress, make_clip_format, split_recordings

FEATURES = ("audio", "f0_hz", "f0_confidence", "loudness_db")

CREPE_RATE = 16_000
"""ddsp analyses a copy of the audio at this rate, whatever the rate of `audio`."""
CREPE_RANGE_HZ = (31.7, 2005.5)
"""Centres of CREPE's lowest and highest bin."""

F0_DELAY_SECONDS = 512 / CREPE_RATE
LOUDNESS_DELAY_SECONDS = 256 / CREPE_RATE
"""How late a frame is that begins at `t * hop_size`, where it should be centred: half of it.

ddsp's 'same' padding, its default, adds silence after the end only, and so frames begin there."""

LOUDNESS_TOLERANCE_DB = 1.0
"""Median difference from which stored loudness is on another scale than this project's."""

_BOUNDS = {"audio": (-MAX_PEAK, MAX_PEAK), "f0_hz": (0.0, 1e5), "loudness_db": (-1e3, 1e3)}
"""What no recording goes beyond, whatever its rate or its scale of loudness."""

LANDMARK_SAMPLES = 256
"""A landmark is known by so many samples to either side."""

USUAL_RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)


def prepare_from_tfrecord(
    patterns: Sequence[str],
    out: Path | str,
    *,
    sample_rate: int = 16_000,
    frame_rate: int = 250,
    validation_share: float = 0.1,
    recompute_loudness: bool = False,
    on_progress: OnProgress | None = None,
) -> Dataset:
    """Makes a dataset of TFRecords that `ddsp_prepare_tfrecord` wrote.

    Pitch and confidence are kept, loudness too unless it is to be computed anew. Frames are
    brought to where this project has them, centred on `t * hop_size`:

    - Of centred frames (`--center`) there is one more than the clip has hops. It is centred on the
      clip's end and is dropped.
    - Other frames begin where they should be centred. They are delayed by half of their length,
      32 ms of pitch and 16 ms of loudness; the first value is held until then.
    - Frames that old releases centred and trimmed look like the second kind. Which of the two fits
      the loudness of the audio is taken.

    Clips that share samples are a passage: a recording, or the part of it that ddsp cut clips from.
    Where the names of the shards say '-train' and '-eval' (or 'test'), that is the split. Otherwise
    whole passages validate, see `split_recordings`; of a single passage the end does. Training
    clips that share samples with a validation clip are left out ('overlapping'), as are silent
    ones; `facts.skipped` counts them.

    Args:
      patterns: Glob patterns of shards, 'strings.tfrecord*'.
      out: Folder to make.
      sample_rate: Of the audio, in Hz.
      frame_rate: Frames of f0 and loudness a second; divides `sample_rate`.
      validation_share: Expected share of the passages that validate, between 0 and 1.
      recompute_loudness: Take the loudness of the audio in place of the stored one.
      on_progress: Called after each shard.

    Returns:
      The dataset at `out`. `facts.sources` are the shards; the `source` of a clip is its passage.

    Raises:
      ConfigError: An option is outside its range.
      DatasetError: No shard matches, one cannot be read, the clips do not have these rates or their
        loudness is on another scale; or `out` exists already or cannot be written to.
    """
    if not 0 < validation_share < 1:
        raise ConfigError(
            f"validation_share = {validation_share!r} is outside its range",
            hint="validation_share must be between 0 and 1",
        )
    make_clip_format(sample_rate, frame_rate, 1.0, None, *_f0_range(sample_rate))
    check_output(out, DatasetError)
    shards = find_shards(patterns)
    labels = _labels(shards)
    examples: list[_Example] = []
    for done, (shard, path) in enumerate(shards.items(), start=1):
        examples.extend(_read(shard, path))
        if on_progress:
            on_progress(done, len(shards), shard)
    _check_lengths(examples, sample_rate, frame_rate)
    hop_size = sample_rate // frame_rate
    heard = [compute_loudness(example.audio, sample_rate, hop_size) for example in examples]
    loud = [i for i, loudness_db in enumerate(heard) if loudness_db.max() > SILENCE_DB]
    if not loud:
        raise DatasetError(
            f"all clips are silent: nowhere louder than {SILENCE_DB:g} dB",
            hint="audio should be within -1 and 1; prepare the TFRecords again",
        )
    silent = Counter(example.shard for example in examples)
    silent.subtract(examples[i].shard for i in loud)
    framing, centred = _centred(
        [examples[i] for i in loud], [heard[i] for i in loud], frame_rate, recompute_loudness
    )
    clips, overlapping = _split_clips(centred, labels, sample_rate, validation_share)
    clip_seconds = len(clips[0].audio) / sample_rate
    return write_dataset(
        out,
        clips,
        clip_format=make_clip_format(
            sample_rate,
            frame_rate,
            clip_seconds,
            _hop_seconds(clips, clip_seconds, frame_rate),
            *_f0_range(sample_rate),
        ),
        f0_estimator=f"from TFRecord (ddsp's is CREPE; {framing})",
        sources={shard: sha256(path) for shard, path in shards.items()},
        skipped=_in_words({"silent": silent, "overlapping": overlapping}),
        total_seconds=_total_seconds(clips, clip_seconds),
        split_by=_split_by(clips),
    )


# --- Shards -------------------------------------------------------------------------------------


def find_shards(patterns: Sequence[str]) -> dict[str, Path]:
    """Returns the files that match, by their POSIX path relative to the folder they share.

    Raises:
      DatasetError: A pattern matches no file, or one whose name is no text.
    """
    found: set[Path] = set()
    for pattern in patterns:
        # Path.glob takes no absolute patterns.
        matches = glob.glob(os.path.expanduser(pattern))  # noqa: PTH111, PTH207
        files = {path for match in matches if (path := Path(match).absolute()).is_file()}
        if not files:
            raise DatasetError(
                f"no file matches '{pattern}'",
                hint="ddsp's shards are named x.tfrecord-00000-of-00010: try 'x.tfrecord*'",
            )
        for file in files:
            try:
                str(file).encode()
            except UnicodeEncodeError as error:  # bytes of a name that no text stands for
                raise DatasetError(
                    f"the name of '{file}' is not valid UTF-8", hint="rename the file"
                ) from error
        found |= files
    root = Path(os.path.commonpath([path.parent for path in found]))
    return {path.relative_to(root).as_posix(): path for path in sorted(found)}


def _labels(shards: Collection[str]) -> Mapping[str, Split] | None:
    """Returns the split of each shard where their names tell both sides, else None.

    Raises:
      DatasetError: Some names tell and others do not.
    """
    words: dict[str, Split] = {"train": "train", "training": "train"}
    words |= dict.fromkeys(("eval", "test", "val", "valid", "validation"), "validation")
    told: dict[str, Split] = {}
    for shard in shards:
        known = [words[w] for w in re.split("[^a-z]+", Path(shard).name.lower()) if w in words]
        if known:
            told[shard] = known[-1]
    if len(set(told.values())) < 2:
        return None
    for shard in shards:
        if shard not in told:
            raise DatasetError(
                f"the name of '{shard}' does not tell whether it trains or validates; others do",
                hint="narrow the pattern, or convert it by itself",
            )
    return told


@dataclass(frozen=True)
class _Example:
    """One record.

    Attributes:
      shard: The file that it is in.
      index: Its place in that file, from 0.
      audio: Shape [n_samples].
      f0_hz: Shape [n_frames].
      f0_confidence: Shape [n_frames].
      loudness_db: Shape [n_frames].
      n_crepe: Samples of the copy that was analysed; 0 where none is kept.
    """

    shard: str
    index: int
    audio: Samples
    f0_hz: Frames
    f0_confidence: Frames
    loudness_db: Frames
    n_crepe: int

    @property
    def name(self) -> str:
        return f"{self.shard}#{self.index}"


def _read(shard: str, path: Path) -> Iterator[_Example]:
    """Yields the records of a shard.

    Raises:
      DatasetError: It is damaged, or holds anything else.
    """
    _check_framing(shard, path)
    from thesis._ddsp import tf

    features = {name: tf.io.VarLenFeature(tf.float32) for name in (*FEATURES, "audio_16k")}
    index = 0
    try:
        for record in tf.data.TFRecordDataset(str(path)):
            parsed = tf.io.parse_single_example(record, features)
            values = {name: parsed[name].values.numpy() for name in FEATURES}
            n_crepe = int(parsed["audio_16k"].shape[0])
            example = _Example(shard, index, **values, n_crepe=n_crepe)
            _check_values(example)
            yield example
            index += 1
    except tf.errors.DataLossError as error:
        raise _damaged(shard, index) from error
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:
        # TensorFlow quotes what it does not understand as if it were text.
        raise DatasetError(
            f"record {index} of '{shard}' is no tf.train.Example of floats",
            hint="name what ddsp_prepare_tfrecord wrote",
        ) from error
    except tf.errors.OpError as error:
        raise DatasetError(f"cannot read '{shard}'", hint="check its permissions") from error


def _check_framing(shard: str, path: Path) -> None:
    """Raises DatasetError for a file that is no sequence of whole records.

    A record is its length (8 bytes), a checksum of that, its bytes, a checksum of those (4 each).
    TensorFlow takes as much memory as a length says, whatever the file holds.
    """
    index, at = 0, 0
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            while at < size:
                header = file.read(12)
                if len(header) < 12 or masked_crc(header[:8]) != header[8:]:
                    raise _damaged(shard, index)
                at += 12 + int.from_bytes(header[:8], "little") + 4
                if at > size:
                    raise _damaged(shard, index)
                file.seek(at)
                index += 1
    except OSError as error:
        raise DatasetError(
            f"cannot read '{shard}': {error.strerror or error}", hint="check its permissions"
        ) from error


def _damaged(shard: str, index: int) -> DatasetError:
    return DatasetError(
        f"'{shard}' is damaged after {index} records",
        hint="copy it again; compressed TFRecords must be decompressed",
    )


def masked_crc(data: bytes) -> bytes:
    """Returns the checksum that TFRecords have of a few bytes: CRC-32C (RFC 3720), masked."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    masked = (crc >> 15 | crc << 17) + 0xA282EAD8
    return (masked & 0xFFFFFFFF).to_bytes(4, "little")


def _check_values(example: _Example) -> None:
    for feature in FEATURES:
        values = getattr(example, feature)
        if not values.size:
            raise DatasetError(
                f"{example.name} has no feature '{feature}'",
                hint="ddsp_prepare_tfrecord writes it unless it is run with --frame_rate=0",
            )
        if not np.isfinite(values).all():
            raise DatasetError(
                f"'{feature}' of {example.name} has NaN or infinite values",
                hint="prepare the TFRecords again",
            )
    if example.f0_hz.min() <= 0:
        raise DatasetError(
            f"'f0_hz' of {example.name} goes down to {example.f0_hz.min():g} Hz",
            hint="every frame needs a pitch, also unvoiced ones; CREPE gives it",
        )
    for feature, (low, high) in _BOUNDS.items():
        values = getattr(example, feature)
        if values.min() < low or values.max() > high:
            raise DatasetError(
                f"'{feature}' of {example.name} goes from {values.min():.3g} to "
                f"{values.max():.3g}, and should be within {low:g} and {high:g}",
                hint="prepare the TFRecords again",
            )
    if not (example.f0_confidence.min() >= 0 and example.f0_confidence.max() <= 1):
        raise DatasetError(
            f"'f0_confidence' of {example.name} is outside 0 to 1",
            hint="prepare the TFRecords again",
        )


def _check_lengths(examples: Sequence[_Example], sample_rate: int, frame_rate: int) -> None:
    if not examples:
        raise DatasetError("the TFRecords are empty", hint="prepare them again")
    first = examples[0]
    for example in examples:
        for feature in FEATURES:
            n, expected = len(getattr(example, feature)), len(getattr(first, feature))
            if n != expected:
                raise DatasetError(
                    f"'{feature}' has {n} values in {example.name}, {expected} in {first.name}",
                    hint="clips must be equally long: prepare them with --example_secs=4",
                )
    n_samples, n_frames = len(first.audio), len(first.f0_hz)
    for feature in ("f0_confidence", "loudness_db"):
        if len(getattr(first, feature)) != n_frames:
            raise DatasetError(
                f"'{feature}' has {len(getattr(first, feature))} frames and 'f0_hz' {n_frames}",
                hint="prepare the TFRecords again",
            )
    if first.n_crepe and n_samples * CREPE_RATE != first.n_crepe * sample_rate:
        raise DatasetError(
            f"audio has {n_samples} samples and its copy at {CREPE_RATE} Hz has {first.n_crepe}: "
            f"its rate is not {sample_rate} Hz",
            hint=f"--sample-rate {n_samples * CREPE_RATE / first.n_crepe:g}",
        )
    if (n_frames * sample_rate - n_samples * frame_rate) not in (0, sample_rate):
        raise DatasetError(
            f"audio has {n_samples} samples and f0 {n_frames} frames, which is not "
            f"{frame_rate} frames a second at {sample_rate} Hz",
            hint=_fitting(n_samples, n_frames, sample_rate, frame_rate),
        )


def _fitting(n_samples: int, n_frames: int, sample_rate: int, frame_rate: int) -> str:
    """Says which options would fit; the last frame may be one beyond the end."""
    fits = []
    for n in (n_frames, n_frames - 1):
        rate, rest = divmod(n * sample_rate, n_samples)
        if rest == 0 and rate > 0 and sample_rate % rate == 0:
            fits.append(f"--frame-rate {rate}")
        rate, rest = divmod(n_samples * frame_rate, max(n, 1))
        if rest == 0 and rate in USUAL_RATES:
            fits.append(f"--sample-rate {rate}")
    if not fits:
        return "give the rates of the TFRecords by --sample-rate and --frame-rate"
    return f"what would fit: {' or '.join(fits)}"


# --- Frames -------------------------------------------------------------------------------------


def _centred(
    examples: Sequence[_Example], heard: Sequence[Frames], frame_rate: int, recompute: bool
) -> tuple[str, list[_Example]]:
    """Returns how the frames were placed, in words, and the clips with centred frames.

    Args:
      examples: Clips of equal length.
      heard: Loudness of each one's audio.
      frame_rate: Frames a second.
      recompute: Whether `heard` takes the place of the stored loudness.

    Raises:
      DatasetError: The stored loudness is on another scale.
    """
    n_frames = len(heard[0])
    if len(examples[0].f0_hz) > n_frames:
        begin, framing = False, "frames centred, the one on the clip's end dropped"
        error_db = _loudness_error(examples, heard, 0.0)
    else:
        delay = LOUDNESS_DELAY_SECONDS * frame_rate
        errors = {False: _loudness_error(examples, heard, 0.0)}
        errors[True] = _loudness_error(examples, heard, delay)
        # Of two scales neither fits, but the right place varies the least about its difference.
        begin = errors[True].spread <= errors[False].spread
        error_db = errors[begin]
        framing = "frames delayed by half of their length" if begin else "frames centred"
    if not recompute and error_db.size > LOUDNESS_TOLERANCE_DB:
        raise DatasetError(
            f"the stored loudness is {error_db.size:.1f} dB from that of the audio",
            hint="ddsp before 2.0, and rates other than 16000 Hz, have another scale: "
            "--recompute-loudness",
        )
    f0_delay = F0_DELAY_SECONDS * frame_rate * begin
    loudness_delay = LOUDNESS_DELAY_SECONDS * frame_rate * begin
    centred = []
    for example, own in zip(examples, heard, strict=True):
        stored = _delayed(example.loudness_db[:n_frames], loudness_delay)
        centred.append(
            replace(
                example,
                f0_hz=np.exp(_delayed(np.log(example.f0_hz[:n_frames]), f0_delay)),
                f0_confidence=_delayed(example.f0_confidence[:n_frames], f0_delay),
                loudness_db=own if recompute else np.maximum(stored, LOUDNESS_FLOOR_DB),
            )
        )
    return framing + (", loudness computed anew" if recompute else ""), centred


@dataclass(frozen=True)
class _LoudnessError:
    """Median of the absolute difference, in dB, and of its deviation from its own median."""

    size: float
    spread: float


def _loudness_error(
    examples: Sequence[_Example], heard: Sequence[Frames], delay: float
) -> _LoudnessError:
    """Compares stored with computed loudness where the clip sounds and its ends are not seen."""
    differences = []
    for example, own in zip(examples, heard, strict=True):
        margin = min(len(own) // 4, 16)
        stored = _delayed(example.loudness_db[: len(own)], delay)
        inside = slice(margin, len(own) - margin)
        differences.append((stored - own)[inside][own[inside] > SILENCE_DB])
    difference = np.concatenate(differences)
    if not difference.size:
        return _LoudnessError(0.0, 0.0)
    spread = np.median(np.abs(difference - np.median(difference)))
    return _LoudnessError(float(np.median(np.abs(difference))), float(spread))


def _delayed(values: Frames, frames: float) -> Frames:
    """Returns the values so many frames later; the first one is held until then."""
    at = np.arange(len(values))
    return np.asarray(np.interp(at - frames, at, values), np.float32)


# --- Passages -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a clip comes from.

    Attributes:
      passage: Named by the audio of its first clip.
      start: Sample of the passage at which the clip begins.
    """

    passage: str
    start: int


def landmarks(audio: Samples) -> dict[int, int]:
    """Returns fingerprints of the audio at points of its own, and the sample that each is at.

    Whether a sample is a landmark depends on nothing but the samples around it, so clips that
    share a quarter of a second share landmarks (Schleimer et al. 2003, Winnowing).

    Args:
      audio: Shape [n_samples].
    """
    n = LANDMARK_SAMPLES
    key = np.ascontiguousarray(audio).view(np.uint32) * np.uint32(0x9E3779B1)
    marked = key == scipy.ndimage.maximum_filter1d(key, 2 * n + 1)
    # Nearly silent stretches are equal by chance, in any recordings.
    marked &= scipy.ndimage.maximum_filter1d(np.abs(audio), 2 * n + 1) > 1e-4
    marked[:n] = marked[len(marked) - n :] = False
    return {hash(audio[i - n : i + n].tobytes()): int(i) for i in np.flatnonzero(marked)}


def find_passages(marks: Sequence[Mapping[int, int]], audio: Sequence[Samples]) -> list[Place]:
    """Returns the place of each clip.

    Clips that share landmarks are of one passage, also by way of others; a landmark is at one
    time in all of them.

    Args:
      marks: Landmarks of each clip.
      audio: Audio of each clip.
    """
    links: list[dict[int, int]] = [{} for _ in marks]
    seen: dict[int, tuple[int, int]] = {}
    for clip, own in enumerate(marks):
        for mark, at in own.items():
            other, there = seen.setdefault(mark, (clip, at))
            if other != clip:
                links[clip][other] = at - there
                links[other][clip] = there - at
    places: dict[int, Place] = {}
    for clip in range(len(marks)):
        if clip in places:
            continue
        starts, waiting = {clip: 0}, deque([clip])
        while waiting:
            known = waiting.popleft()
            for other, later in links[known].items():
                if other not in starts:
                    starts[other] = starts[known] + later
                    waiting.append(other)
        first = min(starts, key=starts.__getitem__)
        name = f"passage-{hashlib.sha256(audio[first].tobytes()).hexdigest()[:12]}"
        places |= {c: Place(name, start - starts[first]) for c, start in starts.items()}
    return [places[clip] for clip in range(len(marks))]


# --- Clips --------------------------------------------------------------------------------------


def _split_clips(
    examples: Sequence[_Example],
    labels: Mapping[str, Split] | None,
    sample_rate: int,
    validation_share: float,
) -> tuple[list[Clip], Counter[str]]:
    """Returns the clips with their splits, and how many of each shard are left out.

    Raises:
      DatasetError: No training clip is left.
    """
    marks = [landmarks(example.audio) for example in examples]
    places = find_passages(marks, [example.audio for example in examples])
    if labels:
        split = [labels[example.shard] for example in examples]
    else:
        split = _split_passages(places, validation_share)
    held_out = {
        mark for own, side in zip(marks, split, strict=True) if side != "train" for mark in own
    }
    clips, overlapping = [], Counter[str]()
    for example, place, side, own in zip(examples, places, split, marks, strict=True):
        if side == "train" and not held_out.isdisjoint(own):
            overlapping[example.shard] += 1
        else:
            clips.append(_clip(example, place, side, sample_rate))
    if all(clip.split == "validation" for clip in clips):
        raise DatasetError(
            "every clip has samples of a validation clip, and none is left to train on",
            hint="two passages are needed, or one as long as two clips",
        )
    return clips, overlapping


def _split_passages(places: Sequence[Place], validation_share: float) -> list[Split]:
    """Returns the split of each clip: by passage, or in time if there is only one."""
    passages = {place.passage for place in places}
    if len(passages) > 1:
        of_passage = split_recordings(sorted(passages), validation_share)
        return [of_passage[place.passage] for place in places]
    in_time = sorted(range(len(places)), key=lambda clip: places[clip].start)
    last = set(in_time[-max(1, int(validation_share * len(places))) :])
    return ["validation" if clip in last else "train" for clip in range(len(places))]


def _clip(example: _Example, place: Place, split: Split, sample_rate: int) -> Clip:
    return Clip(
        clip_id=example.name,
        source=place.passage,
        start_seconds=place.start / sample_rate,
        split=split,
        audio=example.audio,
        f0_hz=example.f0_hz,
        f0_confidence=example.f0_confidence,
        loudness_db=example.loudness_db,
    )


# --- Facts --------------------------------------------------------------------------------------


def _f0_range(sample_rate: int) -> tuple[float, float]:
    low, high = CREPE_RANGE_HZ
    return low, min(high, sample_rate / 2)


def _hop_seconds(clips: Sequence[Clip], clip_seconds: float, frame_rate: int) -> float:
    """Returns the shortest step between clips of a passage; without any, the length of a clip."""
    starts: dict[str, set[float]] = {}
    for clip in clips:
        starts.setdefault(clip.source, set()).add(clip.start_seconds)
    steps = np.concatenate([np.diff(sorted(of_one)) for of_one in starts.values()])
    frames = max(1, round(float(steps.min(initial=clip_seconds)) * frame_rate))
    return frames / frame_rate


def _total_seconds(clips: Sequence[Clip], clip_seconds: float) -> float:
    ends: dict[str, float] = {}
    for clip in clips:
        ends[clip.source] = max(ends.get(clip.source, 0.0), clip.start_seconds + clip_seconds)
    return sum(ends.values())


def _split_by(clips: Sequence[Clip]) -> Literal["recording", "time"]:
    passages = {(clip.source, clip.split) for clip in clips}
    return "recording" if len({source for source, _ in passages}) == len(passages) else "time"


def _in_words(left_out: Mapping[str, Counter[str]]) -> dict[str, str]:
    """Returns what was left out of each shard, from how many clips of each kind."""
    parts: dict[str, list[str]] = {}
    for kind, of_shard in left_out.items():
        for shard, n in of_shard.items():
            if n:
                parts.setdefault(shard, []).append(f"{n} {kind} clip{'s' if n > 1 else ''}")
    return {shard: " and ".join(parts[shard]) for shard in sorted(parts)}
