"""The dataset: clips of equal length with their pitch and loudness, and the facts about them.

A dataset is a folder of two files. `dataset.json` holds the facts (`DatasetFacts`), readable
without any library. `clips.arrow` holds the clips: an uncompressed Arrow file of two record
batches, first the training clips, then the validation clips. It is memory-mapped when read, so
that opening it takes no time, and processes on one machine share one copy of it in memory.

| column | type | |
|---|---|---|
| `clip_id` | string | unique: recording and start, or TFRecord and place in it |
| `source` | string | the recording, or the passage that clips of a TFRecord share |
| `start_seconds` | float64 | where in the recording the clip begins |
| `split` | string | 'train' or 'validation' |
| `audio` | float32[n_samples] | mono |
| `f0_hz` | float32[n_frames] | pitch; also where nothing sounds |
| `f0_confidence` | float32[n_frames] | probability that the frame has this pitch, 0 to 1 |
| `loudness_db` | float32[n_frames] | A-weighted, -80 dB or above |

Frame t is centred on sample `t * hop_size` of its clip.

A dataset may be a stranger's. It comes in by `load_facts` and `load_dataset`, which see to it that
facts have the types and ranges of their fields, and clips the fingerprint and the columns that the
facts name, finite and in range. Names of recordings are names, never paths.
"""

import json
import math
import re
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from thesis.checked_files import read_bytes
from thesis.errors import ConfigError, DatasetError
from thesis.files import sha256, written_whole
from thesis.typed_json import build, parse_object

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1

FACTS_FILE = "dataset.json"
CLIPS_FILE = "clips.arrow"

VOICED_CONFIDENCE = 0.5
"""f0_confidence from which a frame counts as voiced in the statistics."""

Split = Literal["train", "validation"]

SPLITS: tuple[Split, ...] = ("train", "validation")
"""In the order of their record batches."""

MAX_CLIP_SECONDS = 600.0
"""Training keeps spectrograms of whole clips."""

_MAX_FACTS_BYTES = 64 * 2**20
"""The names and checksums of a few hundred thousand recordings."""

_ARROW_FILE = b"ARROW1\0\0"
"""What an Arrow file begins with."""


@dataclass(frozen=True)
class ClipFormat:
    """How recordings are cut and analysed.

    Attributes:
      sample_rate: In Hz.
      hop_size: Samples from one frame of f0 and loudness to the next.
      clip_seconds: Length of a clip; a whole number of frames, ten minutes at most.
      clip_hop_seconds: From the start of one clip to the start of the next; a whole number of
        frames, at most `clip_seconds`.
      f0_min_hz: Lowest pitch that is looked for.
      f0_max_hz: Highest pitch that is looked for, at most half of the sample rate.

    Raises:
      ConfigError: A value is outside its range.
    """

    sample_rate: int
    hop_size: int
    clip_seconds: float
    clip_hop_seconds: float
    f0_min_hz: float
    f0_max_hz: float

    def __post_init__(self) -> None:
        self._require(4000 <= self.sample_rate <= 192_000, "sample_rate", "4000 to 192000 Hz")
        self._require(8 <= self.hop_size <= 512, "hop_size", "8 to 512 samples")
        self._require(
            self._is_whole_frames(self.clip_seconds),
            "clip_seconds",
            f"whole frames, {MAX_CLIP_SECONDS:g} s at most",
        )
        self._require(
            self._is_whole_frames(self.clip_hop_seconds)
            and self.clip_hop_seconds <= self.clip_seconds,
            "clip_hop_seconds",
            "whole frames, and no longer than a clip",
        )
        self._require(self.f0_min_hz >= 10, "f0_min_hz", "10 Hz or more")
        self._require(
            2 * self.f0_min_hz <= self.f0_max_hz <= self.sample_rate / 2,
            "f0_max_hz",
            "an octave above f0_min_hz or more, and at most half of the sample rate",
        )

    def _is_whole_frames(self, seconds: float) -> bool:
        if not 0 < seconds <= MAX_CLIP_SECONDS:
            return False
        frames = seconds * self.sample_rate / self.hop_size
        return frames >= 1 and abs(frames - round(frames)) < 1e-6

    def _require(self, satisfied: bool, name: str, allowed: str) -> None:
        if not satisfied:
            raise ConfigError(
                f"{name} = {getattr(self, name)!r} is outside its range",
                hint=f"{name} must be {allowed}",
            )

    @property
    def frame_rate(self) -> float:
        """Frames of f0 and loudness a second."""
        return self.sample_rate / self.hop_size

    @property
    def n_samples(self) -> int:
        """Samples of a clip: `n_frames * hop_size`."""
        return self.n_frames * self.hop_size

    @property
    def n_frames(self) -> int:
        """Frames of a clip."""
        return round(self.clip_seconds * self.frame_rate)


@dataclass(frozen=True)
class Statistics:
    """What the clips sound like. All but `total_seconds` are over the frames of training clips.

    Attributes:
      loudness_mean_db: Mean loudness.
      loudness_std_db: Standard deviation of the loudness.
      f0_p05_hz: Pitch below which 5% of the voiced frames are; 0 without voiced frames.
      f0_median_hz: Median pitch of the voiced frames; 0 without voiced frames.
      f0_p95_hz: Pitch below which 95% of the voiced frames are; 0 without voiced frames.
      voiced_share: Share of the frames that are voiced (confidence of one half or more).
      total_seconds: Length of all recordings in use.

    Raises:
      ConfigError: A value is outside its range.
    """

    loudness_mean_db: float
    loudness_std_db: float
    f0_p05_hz: float
    f0_median_hz: float
    f0_p95_hz: float
    voiced_share: float
    total_seconds: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            high = 1.0 if name == "voiced_share" else math.inf
            low = -math.inf if name == "loudness_mean_db" else 0.0
            if not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(f"{name} = {value!r} is outside its range")


@dataclass(frozen=True)
class DatasetFacts(ClipFormat):
    """Everything about a dataset but its clips: where they come from and how they were made.

    Attributes:
      schema_version: Version of the format on disk.
      name: Name of the folder that it was written to.
      f0_estimator: What the pitch comes from, with its version.
      sources: Recordings or TFRecords in use: POSIX path relative to their folder -> SHA-256 of
        the file.
      skipped: What was left out: recording -> why. A recording that is also among `sources` is
        in use but for a part of it.
      split_by: 'recording', no recording (passage) has clips in both splits; or 'time', the end
        of the only one validates.
      n_train: Training clips.
      n_validation: Validation clips.
      statistics: What the clips sound like.
      fingerprint: SHA-256 of the file of clips: equal for equal clips.

    Raises:
      ConfigError: A value is outside its range.
    """

    schema_version: int
    name: str
    f0_estimator: str
    sources: Mapping[str, str]
    skipped: Mapping[str, str]
    split_by: Literal["recording", "time"]
    n_train: int
    n_validation: int
    statistics: Statistics
    fingerprint: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.n_train >= 1, "n_train", "1 or more")
        self._require(self.n_validation >= 1, "n_validation", "1 or more")
        # Where datasets are cached it is the name of a folder.
        self._require(is_fingerprint(self.fingerprint), "fingerprint", "64 hexadecimal digits")

    def to_json(self) -> str:
        """Returns the facts as one JSON object."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "DatasetFacts":
        """Returns the facts that `to_json` wrote.

        Raises:
          DatasetError: The text is no JSON object, of another schema version, or does not have
            the fields of this one, in their types and ranges.
        """
        try:
            values = parse_object(text)
            version = values.get("schema_version")
            if type(version) is int and version != SCHEMA_VERSION:
                raise DatasetError(
                    f"the dataset has schema version {version}, this program reads "
                    f"{SCHEMA_VERSION}",
                    hint=_PREPARE_AGAIN,
                )
            return build(cls, values)
        except (ValueError, ConfigError) as error:
            raise DatasetError(f"the facts are broken: {error}", hint=_PREPARE_AGAIN) from error


_PREPARE_AGAIN = "make it again with 'sweeps prepare'"


@dataclass(frozen=True)
class Clip:
    """One clip, on its way into a dataset.

    Attributes:
      clip_id: Unique in its dataset.
      source: The recording it is cut from.
      start_seconds: Where in the recording it begins.
      split: 'train' or 'validation'.
      audio: Shape [n_samples].
      f0_hz: Shape [n_frames].
      f0_confidence: Shape [n_frames].
      loudness_db: Shape [n_frames].
    """

    clip_id: str
    source: str
    start_seconds: float
    split: Split
    audio: NDArray[np.float32]
    f0_hz: NDArray[np.float32]
    f0_confidence: NDArray[np.float32]
    loudness_db: NDArray[np.float32]


@dataclass(frozen=True)
class Clips:
    """The clips of one split, as read-only views of the memory-mapped file.

    Attributes:
      audio: Shape [n, n_samples], float32 like all others.
      f0_hz: Shape [n, n_frames].
      f0_confidence: Shape [n, n_frames], 0 to 1.
      loudness_db: Shape [n, n_frames].
      ids: Id of each clip.
      sources: Recording of each clip.
    """

    audio: NDArray[np.float32]
    f0_hz: NDArray[np.float32]
    f0_confidence: NDArray[np.float32]
    loudness_db: NDArray[np.float32]
    ids: tuple[str, ...]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def subsampled(self, factor: int) -> "Clips":
        """Returns the clips with every `factor`-th frame, from the first on; audio stays whole.

        A frame remains what it was: nothing is smoothed. Where `factor` does not divide the number
        of frames the last one that is left reaches beyond the end of the audio.
        """
        frames = ("f0_hz", "f0_confidence", "loudness_db")
        return replace(self, **{name: getattr(self, name)[:, ::factor] for name in frames})


@dataclass(frozen=True)
class Dataset:
    """A dataset on disk. Holds no clips itself, and so is cheap to send to another process.

    Attributes:
      path: Its folder.
      facts: What `dataset.json` says.
    """

    path: Path
    facts: DatasetFacts

    def clips(self, split: Split) -> Clips:
        """Returns the clips of a split, without copying them.

        Raises:
          DatasetError: The file of clips is missing, broken, or not the one of the facts.
        """
        return _read_clips(self.path, self.facts, split)


def is_fingerprint(text: str) -> bool:
    """Returns whether a text has the shape of a dataset's fingerprint."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


# --- Reading ------------------------------------------------------------------------------------


def load_facts(path: Path | str) -> DatasetFacts:
    """Returns the facts of a dataset. Reads one small file, and imports nothing for it.

    Args:
      path: Folder of the dataset.

    Raises:
      DatasetError: There is no dataset, its facts are broken, or of another schema version.
    """
    path = Path(path)
    facts = path / FACTS_FILE
    if not _is_there(facts):
        raise DatasetError(
            f"no dataset at {str(path)!r}",
            hint="make one with 'sweeps prepare AUDIO_DIR --out DATASET'",
        )
    text = read_bytes(facts, _MAX_FACTS_BYTES, DatasetError)
    try:
        return DatasetFacts.from_json(text)
    except DatasetError as error:
        raise DatasetError(f"cannot use {str(path)!r}: {error.message}", hint=error.hint) from error


def _is_there(file: Path) -> bool:
    try:
        return file.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def load_dataset(path: Path | str) -> Dataset:
    """Opens a dataset and checks that its clips are there, whole, and those of the facts.

    The clips are read once for that, 40 MB (ten minutes at 16 kHz) in 0.05 s; a process that opens
    the dataset again does not, as long as the file has not been touched.

    Args:
      path: Folder of the dataset.

    Raises:
      DatasetError: There is no dataset, it is of another schema version, or its clips are
        missing, truncated, altered, or not those that the facts describe.
    """
    dataset = Dataset(Path(path), load_facts(path))
    file = dataset.path / CLIPS_FILE
    try:
        found = file.stat()
    except OSError as error:
        raise _broken(dataset.path) from error
    if not stat.S_ISREG(found.st_mode):  # a pipe, for one, would be waited for
        raise _broken(dataset.path)
    # Who edits a file can set all of these back but the last one.
    version = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    known = dataset.path.absolute()
    if _checked.get(known) != (version, dataset.facts):
        _check_clips(dataset)
        _checked[known] = (version, dataset.facts)
    return dataset


_checked: dict[Path, tuple[tuple[int, ...], DatasetFacts]] = {}
"""By dataset: which version of its clips this process has checked, and against which facts."""


def _check_clips(dataset: Dataset) -> None:
    """Raises DatasetError for clips that are not those of the facts, or no good for training."""
    path, facts = dataset.path, dataset.facts
    try:
        fingerprint = sha256(path / CLIPS_FILE)
    except OSError as error:
        raise _broken(path) from error
    if fingerprint != facts.fingerprint:
        raise _of_other_facts(path)
    for split in SPLITS:
        clips = dataset.clips(split)
        for column in _RANGES:
            if not _in_range(column, getattr(clips, column)):
                raise DatasetError(
                    f"'{column}' in the {split} clips of {str(path)!r} is not finite, or out of "
                    "range",
                    hint=_PREPARE_AGAIN,
                )


_FLOAT32 = np.finfo(np.float32)
_LARGEST = float(_FLOAT32.max)

_RANGES: Mapping[str, tuple[float, float]] = {
    "audio": (-_LARGEST, _LARGEST),
    "f0_hz": (float(_FLOAT32.tiny), _LARGEST),
    "f0_confidence": (0.0, 1.0),
    "loudness_db": (-_LARGEST, _LARGEST),
}
"""Least and largest value of each column that training can take."""


def _in_range(column: str, values: NDArray[np.float32]) -> bool:
    low, high = _RANGES[column]
    with np.errstate(invalid="ignore"):  # NaN is in no range
        return bool(low <= values.min() and values.max() <= high)


def _read_clips(path: Path, facts: DatasetFacts, split: Split) -> Clips:
    import pyarrow as pa

    n_clips = {"train": facts.n_train, "validation": facts.n_validation}[split]
    try:
        with pa.memory_map(str(path / CLIPS_FILE)) as file:
            if file.read(len(_ARROW_FILE)) != _ARROW_FILE:
                raise _broken(path)
            # What comes next is a stream, which the file's footer only lists.
            schema, *batches = [pa.ipc.read_message(file) for _ in ("schema", *SPLITS)]
        # Before anything is read in the way that a stranger's schema tells.
        if schema.type != "schema" or not _is_schema_of(pa.ipc.read_schema(schema), facts):
            raise _of_other_facts(path)
        message = batches[SPLITS.index(split)]
        if message.type != "record batch" or _is_compressed(message):
            raise _of_other_facts(path)
        batch = pa.ipc.read_record_batch(message, _schema(facts))
        batch.validate(full=True)
    except (OSError, EOFError, struct.error, pa.ArrowException) as error:
        raise _broken(path) from error
    if batch.num_rows != n_clips or any(column.null_count for column in batch.columns):
        raise _of_other_facts(path)

    def view(column: str) -> NDArray[np.float32]:
        flat = batch[column].flatten()
        if flat.null_count:
            raise _of_other_facts(path)
        values: NDArray[np.float32] = flat.to_numpy(zero_copy_only=True)
        return values.reshape(n_clips, batch.schema.field(column).type.list_size)

    return Clips(
        audio=view("audio"),
        f0_hz=view("f0_hz"),
        f0_confidence=view("f0_confidence"),
        loudness_db=view("loudness_db"),
        ids=tuple(batch["clip_id"].to_pylist()),
        sources=tuple(batch["source"].to_pylist()),
    )


def _is_compressed(batch: "pa.ipc.Message") -> bool:
    """Returns whether a record batch is compressed: a few bytes could then fill the memory.

    Arrow tells by decompressing it, so this looks into its metadata, a FlatBuffer: a table begins
    with the distance back to its vtable, where the distance to each field is, 0 for none. `header`
    is the third field of Arrow's `Message`, `compression` the fourth of the `RecordBatch` in it.
    """
    data = batch.metadata.to_pybytes()

    def field(table: int, index: int) -> int:
        vtable = table - struct.unpack_from("<i", data, table)[0]
        at = 4 + 2 * index
        if at >= struct.unpack_from("<H", data, vtable)[0]:
            return 0
        distance: int = struct.unpack_from("<H", data, vtable + at)[0]
        return distance and table + distance

    def target(at: int) -> int:
        distance: int = struct.unpack_from("<I", data, at)[0]
        return at + distance

    return field(target(field(target(0), 2)), 3) != 0


def _broken(path: Path) -> DatasetError:
    return DatasetError(f"the clips of {str(path)!r} are missing or broken", hint=_PREPARE_AGAIN)


def _of_other_facts(path: Path) -> DatasetError:
    return DatasetError(
        f"the clips of {str(path)!r} are not those that its facts describe: they were altered, cut "
        "short, or are of another dataset",
        hint=f"restore the folder from a copy, or {_PREPARE_AGAIN}",
    )


# --- Writing ------------------------------------------------------------------------------------


def write_dataset(
    path: Path | str,
    clips: Sequence[Clip],
    *,
    clip_format: ClipFormat,
    f0_estimator: str,
    sources: Mapping[str, str],
    skipped: Mapping[str, str],
    total_seconds: float,
    split_by: Literal["recording", "time"] = "recording",
) -> Dataset:
    """Writes a dataset, wholly or not at all.

    The files are written to a hidden folder beside `path`, which is then renamed.

    Args:
      path: Folder to make; folders above it are made too.
      clips: At least one clip of each split; each split keeps its order.
      clip_format: How the clips were cut and analysed.
      f0_estimator: What the pitch comes from, with its version.
      sources: Recording -> SHA-256 of its file.
      skipped: Recording -> why it, or a part of it, was left out.
      total_seconds: Length of the recordings in use.
      split_by: What keeps the splits apart.

    Returns:
      The dataset at `path`.

    Raises:
      DatasetError: The path exists already or cannot be written to, or a clip has values that are
        not finite, or out of range.
    """
    path = Path(path)
    of_split = {split: [clip for clip in clips if clip.split == split] for split in SPLITS}
    for clip in clips:
        for column in _RANGES:
            if not _in_range(column, getattr(clip, column)):
                raise DatasetError(
                    f"'{column}' of the clip {clip.clip_id!r} is not finite, or out of range",
                    hint="leave out what it was cut from",
                )
    with written_whole(path, DatasetError) as folder:
        _write_clips(folder / CLIPS_FILE, of_split, clip_format)
        facts = DatasetFacts(
            **asdict(clip_format),
            schema_version=SCHEMA_VERSION,
            name=path.absolute().name,
            f0_estimator=f0_estimator,
            sources=dict(sources),
            skipped=dict(skipped),
            split_by=split_by,
            n_train=len(of_split["train"]),
            n_validation=len(of_split["validation"]),
            statistics=_statistics(of_split["train"], total_seconds),
            fingerprint=sha256(folder / CLIPS_FILE),
        )
        (folder / FACTS_FILE).write_text(facts.to_json(), encoding="utf-8")
    return load_dataset(path)


def _schema(clip_format: ClipFormat) -> "pa.Schema":
    import pyarrow as pa

    samples = pa.list_(pa.float32(), clip_format.n_samples)
    frames = pa.list_(pa.float32(), clip_format.n_frames)
    return pa.schema(
        [
            ("clip_id", pa.string()),
            ("source", pa.string()),
            ("start_seconds", pa.float64()),
            ("split", pa.string()),
            ("audio", samples),
            ("f0_hz", frames),
            ("f0_confidence", frames),
            ("loudness_db", frames),
        ],
        metadata={_FORMAT: _written(clip_format)},
    )


_FORMAT = b"clip_format"
"""Key of what the numbers of clips mean; in their file it is part of the fingerprint."""


def _written(clip_format: ClipFormat) -> bytes:
    values = {f.name: getattr(clip_format, f.name) for f in fields(ClipFormat)}
    return repr({name: float(value) for name, value in values.items()}).encode()


def _is_schema_of(schema: "pa.Schema", facts: DatasetFacts) -> bool:
    """Returns whether clips are of these facts; files of older releases tell less of that."""
    said = (schema.metadata or {}).get(_FORMAT)
    return bool(schema == _schema(facts)) and said in (None, _written(facts))


def _write_clips(
    path: Path, of_split: Mapping[Split, Sequence[Clip]], clip_format: ClipFormat
) -> None:
    import pyarrow as pa

    schema = _schema(clip_format)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for split in SPLITS:
            columns = [_column(of_split[split], field) for field in schema]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _column(clips: Sequence[Clip], field: "pa.Field") -> "pa.Array":
    import pyarrow as pa

    values = [getattr(clip, field.name) for clip in clips]
    if not pa.types.is_fixed_size_list(field.type):
        return pa.array(values, type=field.type)
    shape = (len(clips), field.type.list_size)
    flat = np.concatenate([np.empty(0, np.float32), *values]).reshape(shape).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), field.type.list_size)


def _statistics(clips: Sequence[Clip], total_seconds: float) -> Statistics:
    loudness_db = np.array([clip.loudness_db for clip in clips], np.float64)
    voiced = np.array([clip.f0_confidence for clip in clips]) >= VOICED_CONFIDENCE
    f0_hz = np.array([clip.f0_hz for clip in clips], np.float64)[voiced]
    percentiles = np.percentile(f0_hz, (5, 50, 95)) if f0_hz.size else np.zeros(3)
    return Statistics(
        loudness_mean_db=float(loudness_db.mean()),
        loudness_std_db=float(loudness_db.std()),
        f0_p05_hz=float(percentiles[0]),
        f0_median_hz=float(percentiles[1]),
        f0_p95_hz=float(percentiles[2]),
        voiced_share=float(voiced.mean()),
        total_seconds=total_seconds,
    )
