"""Any bytes as the clips of a dataset whose facts vouch for them: it opens, or with one error."""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.fuzz.dataset_facts import assert_one_line
from tests.sweeps.fakes import make_dataset
from thesis.data import CLIPS_FILE, FACTS_FILE, SPLITS, DatasetFacts, load_dataset, load_facts
from thesis.errors import UserError


@cache
def _dataset() -> tuple[tempfile.TemporaryDirectory[str], Path, DatasetFacts, bytes]:
    """A whole dataset, its facts, and its clips as they were written."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-clips-")
    dataset = Path(make_dataset(Path(folder.name) / "data"))
    return folder, dataset, load_facts(dataset), (dataset / CLIPS_FILE).read_bytes()


def check(data: bytes) -> None:
    """Opens a dataset with these clips, and reads every value."""
    _, dataset, facts, _ = _dataset()
    fingerprint = hashlib.sha256(data).hexdigest()
    # A file of its own: what was mapped before must not change beneath.
    (dataset / CLIPS_FILE).unlink(missing_ok=True)
    (dataset / CLIPS_FILE).write_bytes(data)
    (dataset / FACTS_FILE).write_text(replace(facts, fingerprint=fingerprint).to_json())
    try:
        opened = load_dataset(dataset)
        clips = [opened.clips(split) for split in SPLITS]
    except UserError as error:
        assert_one_line(error)
        return
    for read in clips:
        assert len(read.ids) == len(read.sources) == len(read.audio)
        for values in (read.audio, read.f0_hz, read.f0_confidence, read.loudness_db):
            assert values.dtype == np.float32
            assert np.isfinite(values).all()


def _rewritten(
    change: Callable[[pa.Table], pa.Table], options: pa.ipc.IpcWriteOptions | None = None
) -> bytes:
    """The clips written anew, otherwise than this project would."""
    reader, sink = pa.ipc.open_file(pa.BufferReader(_dataset()[3])), pa.BufferOutputStream()
    batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    tables = [change(pa.Table.from_batches([batch])) for batch in batches]
    with pa.ipc.new_file(sink, tables[0].schema, options=options) as writer:
        for table in tables:
            writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _set(column: str, change: Callable[[pa.Array], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        values = change(table[column].combine_chunks())
        return table.set_column(table.schema.get_field_index(column), column, values)

    return changed


def _with_null(array: pa.Array) -> pa.Array:
    return pa.array([None, *array.to_pylist()[1:]], type=array.type)


def _as_tensor(array: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [array.type.list_size]), array
    )


SEEDS: list[bytes] = [
    _dataset()[3],
    _rewritten(lambda table: table, pa.ipc.IpcWriteOptions(compression="zstd")),
    _rewritten(lambda table: table, pa.ipc.IpcWriteOptions(compression="lz4")),
    _rewritten(_set("source", lambda array: array.dictionary_encode())),
    _rewritten(_set("source", _with_null)),
    _rewritten(_set("f0_hz", _with_null)),
    _rewritten(_set("audio", _as_tensor)),
    _rewritten(_set("audio", lambda array: array.cast(pa.list_(pa.float32())))),
    _rewritten(_set("clip_id", lambda array: array.cast(pa.binary()))),
    _rewritten(lambda table: table.slice(0, 0)),
]
