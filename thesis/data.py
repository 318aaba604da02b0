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
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from thesis.errors import ConfigError, DatasetError
from thesis.files import sha256, written_whole

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


@dataclass(frozen=True)
class ClipFormat:
    """How recordings are cut and analysed.

    Attributes:
      sample_rate: In Hz.
      hop_size: Samples from one frame of f0 and loudness to the next.
      clip_seconds: Length of a clip; a whole number of frames.
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
        self._require(self._is_whole_frames(self.clip_seconds), "clip_seconds", "whole frames")
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
    """

    loudness_mean_db: float
    loudness_std_db: float
    f0_p05_hz: float
    f0_median_hz: float
    f0_p95_hz: float
    voiced_share: float
    total_seconds: float


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

    def to_json(self) -> str:
        """Returns the facts as one JSON object."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DatasetFacts":
        """Returns the facts that `to_json` wrote.

        Raises:
          DatasetError: The text is no JSON object, of another schema version, or does not have
            the fields of this one.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            version = values["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError("the facts are broken", hint=_PREPARE_AGAIN) from error
        if version != SCHEMA_VERSION:
            raise DatasetError(
                f"the dataset has schema version {version!r}, this program reads {SCHEMA_VERSION}",
                hint=_PREPARE_AGAIN,
            )
        try:
            return cls(**{**values, "statistics": Statistics(**values["statistics"])})
        except (KeyError, TypeError, ConfigError) as error:
            raise DatasetError("the facts are broken", hint=_PREPARE_AGAIN) from error


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


# --- Reading ------------------------------------------------------------------------------------


def load_facts(path: Path | str) -> DatasetFacts:
    """Returns the facts of a dataset. Reads one small file, and imports nothing for it.

    Args:
      path: Folder of the dataset.

    Raises:
      DatasetError: There is no dataset, its facts are broken, or of another schema version.
    """
    path = Path(path)
    try:
        text = (path / FACTS_FILE).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(
            f"no dataset at '{path}'",
            hint="make one with 'sweeps prepare AUDIO_DIR --out DATASET'",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read '{path / FACTS_FILE}'", hint=_PREPARE_AGAIN) from error
    try:
        return DatasetFacts.from_json(text)
    except DatasetError as error:
        raise DatasetError(f"cannot use '{path}': {error.message}", hint=error.hint) from error


def load_dataset(path: Path | str) -> Dataset:
    """Opens a dataset and checks that its clips are there and whole.

    Args:
      path: Folder of the dataset.

    Raises:
      DatasetError: There is no dataset, it is of another schema version, or its clips are
        missing, truncated, or not those that the facts describe.
    """
    dataset = Dataset(Path(path), load_facts(path))
    for split in SPLITS:
        dataset.clips(split)
    return dataset


def _read_clips(path: Path, facts: DatasetFacts, split: Split) -> Clips:
    import pyarrow as pa

    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path / CLIPS_FILE)))
        batch = reader.get_batch(SPLITS.index(split))
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(
            f"the clips of '{path}' are missing or broken", hint=_PREPARE_AGAIN
        ) from error
    n_clips = {"train": facts.n_train, "validation": facts.n_validation}[split]
    if batch.schema != _schema(facts) or batch.num_rows != n_clips:
        raise DatasetError(
            f"the clips of '{path}' are not those that its facts describe", hint=_PREPARE_AGAIN
        )

    def view(column: str) -> NDArray[np.float32]:
        flat: NDArray[np.float32] = batch[column].flatten().to_numpy(zero_copy_only=True)
        return flat.reshape(n_clips, batch.schema.field(column).type.list_size)

    return Clips(
        audio=view("audio"),
        f0_hz=view("f0_hz"),
        f0_confidence=view("f0_confidence"),
        loudness_db=view("loudness_db"),
        ids=tuple(batch["clip_id"].to_pylist()),
        sources=tuple(batch["source"].to_pylist()),
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
      clips: Clips of both splits, at least one of training; each split keeps its order.
      clip_format: How the clips were cut and analysed.
      f0_estimator: What the pitch comes from, with its version.
      sources: Recording -> SHA-256 of its file.
      skipped: Recording -> why it, or a part of it, was left out.
      total_seconds: Length of the recordings in use.
      split_by: What keeps the splits apart.

    Returns:
      The dataset at `path`.

    Raises:
      DatasetError: The path exists already or cannot be written to.
    """
    path = Path(path)
    of_split = {split: [clip for clip in clips if clip.split == split] for split in SPLITS}
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
        ]
    )


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
