"""What a bundle can be benched as: its artefacts, converted for runtimes and quantised."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from thesis.bench_process import C, Subject
from thesis.bundle import (
    DECODER_FILE,
    DECODER_STREAM_FILE,
    HEADER_FILE,
    SYNTH_STREAM_FILE,
    ModelBundle,
)
from thesis.c_stream import compile_header, compiler_version
from thesis.controls import decoder_inputs
from thesis.data import Dataset
from thesis.errors import BenchError, DatasetError, MissingRuntimeError, UserError
from thesis.runtimes import NAMES, check_name, runtime
from thesis.runtimes.contract import Quantisation

Block = int | Literal["clip"]

REFERENCE = NAMES[0]
"""The runtime that others are compared with."""
RUNTIMES = (*NAMES, C)
PLAYS: Mapping[str, Sequence[str]] = {
    "decoder": NAMES,
    "decoder_stream": (REFERENCE, C),
    "synth_stream": (REFERENCE, C),
}
"""The runtimes of each artefact."""
FLOATS = "float"
"""Stands where there is no quantisation."""
ALL = "all"
"""Every runtime that is installed, or every quantisation that one has."""

_FILES: Mapping[str, str] = {
    "decoder": DECODER_FILE,
    "decoder_stream": DECODER_STREAM_FILE,
    "synth_stream": SYNTH_STREAM_FILE,
}
_CALIBRATION_CLIPS = 32


@dataclass(frozen=True)
class Variant:
    """A model as it is benched.

    Attributes:
      bundle: What it is made from.
      subject: What is loaded.
      quantisation: Name of a `Quantisation`, or 'float'.
      size_bytes: Of what is loaded.
      cycle: A block holds a multiple of so many frames.
    """

    bundle: ModelBundle
    subject: Subject
    quantisation: str
    size_bytes: int
    cycle: int

    @property
    def names(self) -> dict[str, str]:
        """What tells it from others."""
        return {
            "bundle": str(self.bundle.path),
            "artifact": self.subject.artifact,
            "runtime": self.subject.runtime,
            "quantisation": self.quantisation,
        }

    @property
    def cycle_samples(self) -> int:
        """A block holds a multiple of so many samples."""
        return self.cycle * self.bundle.session.hop_size

    def frames(self, block: Block) -> int:
        """Returns the frames of a block; 0 where it is no multiple of what the model takes."""
        if block == "clip":
            n_frames = len(self.bundle.controls().f0_hz)
            return max(n_frames // self.cycle, 1) * self.cycle
        return 0 if block % self.cycle_samples else block // self.bundle.session.hop_size


@dataclass(frozen=True)
class Skipped:
    """What was not benched, and why. Where a name is None, it holds for all of them.

    Attributes:
      why: One line.
      hint: What to do about it; may be empty.
    """

    why: str
    hint: str = ""
    bundle: str | None = None
    artifact: str | None = None
    runtime: str | None = None
    quantisation: str | None = None
    block: Block | None = None


def chosen_runtimes(names: Sequence[str]) -> tuple[list[str], list[Skipped]]:
    """Returns the runtimes that are meant, each once, and those that 'all' does not find.

    Raises:
      MissingRuntimeError: There is none of a name, or it is not installed.
      ExportError: C is meant and there is no compiler.
    """
    chosen, skipped = [], []
    for name in RUNTIMES if ALL in names else dict.fromkeys(names):
        try:
            version_of(name)
        except UserError as error:
            if ALL not in names:
                raise
            skipped.append(Skipped(error.message, error.hint, runtime=name))
        else:
            chosen.append(name)
    return chosen, skipped


def version_of(name: str) -> str:
    """Returns the version of a runtime; for C that of the compiler.

    Raises:
      MissingRuntimeError: There is none of this name, or it is not installed.
      ExportError: There is no C compiler.
    """
    check_name(name, RUNTIMES)
    if name == C:
        return compiler_version()
    found = runtime(name)
    if found.version is None:
        raise MissingRuntimeError(f"{found.title} is not installed", hint=found.install)
    return found.version


def check_quantisations(names: Sequence[str], runtime_names: Sequence[str]) -> None:
    """Raises BenchError for a quantisation that none of the runtimes has."""
    decoding = [name for name in runtime_names if name in PLAYS["decoder"]]
    known = {how.name for name in decoding for how in runtime(name).quantisations}
    for name in names:
        if name not in {ALL, *known}:
            raise BenchError(
                f"no quantisation '{name}' in {', '.join(runtime_names)}",
                hint=f"there are {', '.join(sorted(known))}" if known else "there are none",
            )


@dataclass(frozen=True)
class Maker:
    """Makes the variants of a bundle.

    Attributes:
      bundle: The bundle.
      folder: Where converted models go.
      dataset: Whose training clips calibrate; without one it is the bundle's own clip.
    """

    bundle: ModelBundle
    folder: Path
    dataset: Dataset | None = None

    def variants(
        self, artifact: str, runtime_names: Sequence[str], quantisations: Sequence[str]
    ) -> Iterator[Variant | Skipped]:
        """Yields the variants of an artefact, and what of them cannot be had.

        Args:
          artifact: Which.
          runtime_names: Runtimes that are installed and play it.
          quantisations: Names, or 'all'; those that a runtime does not have are passed over.
        """
        for name in runtime_names:
            yield self._made(artifact, name, FLOATS, partial(self._floats, artifact, name))
            for how in runtime(name).quantisations if artifact == "decoder" else ():
                if {ALL, how.name} & {*quantisations}:
                    yield self._made(artifact, name, how.name, partial(self._integers, name, how))

    def _made(
        self, artifact: str, name: str, form: str, make: Callable[[], Path]
    ) -> Variant | Skipped:
        try:
            path = make()
            subject = Subject(artifact, name, str(path))
            cycle = 1 if artifact == "decoder" else subject.load().cycle
        except UserError as error:
            return Skipped(error.message, error.hint, str(self.bundle.path), artifact, name, form)
        return Variant(self.bundle, subject, form, self._size(path), cycle)

    def _floats(self, artifact: str, name: str) -> Path:
        """Returns what a runtime loads: what ships, or what it is converted to."""
        if name == REFERENCE:
            return self._shipped(_FILES[artifact])
        folder = self.folder / name / FLOATS
        if name == C:
            self._shipped(HEADER_FILE)
            folder.mkdir(parents=True, exist_ok=True)
            # Not what ships: a bundle may be a stranger's, and what is compiled here runs here.
            return compile_header(self.bundle.header(), folder)
        return runtime(name).convert(self.bundle.decoder, folder)

    def _shipped(self, name: str) -> Path:
        path = self.bundle.path / name
        if not path.is_file():
            raise BenchError(
                f"the bundle has no {name}",
                hint="a model of norm 'time' cannot stream; others may be promoted again",
            )
        return path

    def _integers(self, name: str, how: Quantisation) -> Path:
        folder = self.folder / name / how.name
        return runtime(name).quantise(self.bundle.decoder, folder, how, self._calibration)

    def _size(self, path: Path) -> int:
        """Returns the bytes of a file of the bundle, or of all that was converted with it."""
        if path.parent == self.bundle.path:
            return path.stat().st_size
        return sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())

    @cached_property
    def _calibration(self) -> npt.NDArray[np.float32]:
        if self.dataset is None:
            controls = self.bundle.controls()
            return decoder_inputs(controls.f0_hz, controls.loudness_db)[None]
        clips = self.dataset.clips("train").subsampled(self.bundle.session.synth.hop_multiple)
        chosen = np.linspace(0, len(clips) - 1, min(_CALIBRATION_CLIPS, len(clips))).astype(int)
        return decoder_inputs(clips.f0_hz[chosen], clips.loudness_db[chosen])


def check_dataset(bundle: ModelBundle, dataset: Dataset) -> None:
    """Raises DatasetError where a dataset has other rates than a bundle."""
    session, facts = bundle.session, dataset.facts
    rates = facts.sample_rate, session.synth.hop_size(facts.hop_size)
    if rates != (session.sample_rate, session.hop_size):
        raise DatasetError(
            f"'{dataset.path}' has frames of {rates[1]} samples at {rates[0]} Hz, the model of "
            f"'{bundle.path}' {session.hop_size} at {session.sample_rate} Hz",
            hint="give the dataset that it was trained on, or one like it",
        )
