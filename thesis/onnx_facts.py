"""What an exported ONNX model says of itself, read as a stranger's: types, ranges, nodes, states.

The metadata is that which `thesis.export` writes. A model of it that ONNX Runtime has loaded takes
and gives what an artefact of its kind does, holds no more states than it says, and is made of the
operations that this project uses: none of them loops, calls or reads a file.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError

from thesis.architecture import INPUTS
from thesis.config import DECODERS, MAX_RESAMPLING, N_INPUTS, DecoderConfig, SynthConfig
from thesis.errors import ExportError, UserError
from thesis.onnx_graph import NEXT, STATE

SAMPLE_RATES = (4_000, 192_000)
"""In Hz, from and to: as of datasets."""
HOP_SIZES = (1, 16 * 512)
"""Samples a frame, from and to: sixteen hops of a dataset at the most."""
MAX_DELAY_FRAMES = 2**16
"""Minutes: no one waits for that."""
MAX_STATE_BYTES = 2**30

OPERATIONS = frozenset({
    *("Add", "BitShift", "BitwiseXor", "Cast", "Ceil", "Clip", "Concat", "Conv", "ConvInteger"),
    *("ConvTranspose", "CumSum", "DequantizeLinear", "Div", "DynamicQuantizeLinear", "Exp"),
    *("Floor", "GRU", "Gather", "Greater", "GreaterOrEqual", "Identity", "InstanceNormalization"),
    *("LeakyRelu", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mod", "Mul", "Neg"),
    *("NonZero", "QLinearConv", "QuantizeLinear", "Range", "ReduceMax", "ReduceMean", "ReduceSum"),
    *("Relu", "Reshape", "ScatterND", "Shape", "Sigmoid", "Sin", "Slice", "Split", "Sqrt"),
    *("Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where"),
})  # fmt: skip
"""Of ONNX itself, those that exported models have."""

CONTRIBUTED = frozenset({"QLinearAdd", "QLinearConcat", "QLinearLeakyRelu", "QLinearMul"})
"""Of ONNX Runtime, `com.microsoft`: those of decoders in 8-bit integers."""

_DOMAINS: Mapping[str, frozenset[str]] = {
    "": OPERATIONS, "ai.onnx": OPERATIONS, "com.microsoft": CONTRIBUTED
}  # fmt: skip
_DTYPES: Mapping[str, str] = {
    "float32": "tensor(float)", "float64": "tensor(double)", "int64": "tensor(int64)",
}  # fmt: skip

Shape = tuple[int | None, ...]
"""None stands for any number of frames or samples."""
Arguments = Mapping[str, tuple[str, Shape]]
"""Type and shape of what a model takes or gives, by name; types as ONNX Runtime names them."""

Config = TypeVar("Config", DecoderConfig, SynthConfig)


class OtherArtifactError(ValueError):
    """A model of another kind than is asked for; which one it is."""


@dataclass(frozen=True)
class State:
    """What a stream remembers under one name: shape and type of an array."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def zeros(self) -> npt.NDArray[Any]:
        """What it is at first."""
        return np.zeros(self.shape, self.dtype)


@dataclass(frozen=True)
class ModelFacts:
    """What an exported model says of itself.

    Attributes:
      artifact: 'decoder', 'decoder_stream', 'synth_stream' or 'synthesis_stream'.
      decoder_type: What gin calls the architecture.
      decoder_values: Its parameters by name, not looked at yet: see `decoder`.
      synth: What the decoder's outputs mean.
      sample_rate: Of the audio, in Hz.
      hop_size: Samples a frame of the decoder.
      quantisation: Name of the quantisation; None for floats.
      cycle: A block of a stream holds a multiple of so many frames.
      delay_frames: Frames by which a stream's output is late.
      states: What a stream remembers, by name.
    """

    artifact: str
    decoder_type: str
    decoder_values: Mapping[str, Any]
    synth: SynthConfig
    sample_rate: int
    hop_size: int
    quantisation: str | None
    cycle: int
    delay_frames: int
    states: Mapping[str, State]

    @classmethod
    def of(cls, metadata: Mapping[str, Any], artifact: str) -> "ModelFacts":
        """Returns the facts that a model's metadata states.

        Args:
          metadata: Of the model, JSON values by name.
          artifact: What it is to be.

        Raises:
          OtherArtifactError: It is something else.
          ValueError: A value is missing, of another type, or outside its range.
        """
        read = _Metadata(metadata)
        # Decoders of 0.1 do not say what they are.
        is_decoder = "artifact" not in metadata and "synth" in metadata
        found = "decoder" if is_decoder else read.text("artifact", "something else")
        if found != artifact:
            raise OtherArtifactError(found)
        kind = read.text("decoder_type", "DilatedConvStack")
        if kind not in DECODERS:
            raise ValueError(f"'decoder_type' is {kind!r}, not one of {', '.join(DECODERS)}")
        streams = artifact != "decoder"
        # Models of 0.1 do not say what their levels are relative to: to nothing.
        synth = _config(SynthConfig, {"levels": "absolute", **read.mapping("synth")})
        hop_size = read.whole("hop_size", *HOP_SIZES)
        if hop_size % synth.hop_multiple:
            raise ValueError(f"'hop_size' of its metadata is no multiple of {synth.hop_multiple}")
        return cls(
            artifact,
            kind,
            read.mapping("decoder"),
            synth,
            sample_rate=read.whole("sample_rate", *SAMPLE_RATES),
            hop_size=hop_size,
            quantisation=read.text("quantisation") if "quantisation" in metadata else None,
            cycle=read.whole("cycle", 1, MAX_RESAMPLING) if streams else 1,
            delay_frames=read.whole("delay_frames", 0, MAX_DELAY_FRAMES) if streams else 0,
            states=_states(read.mapping("states")) if streams else {},
        )

    @cached_property
    def decoder(self) -> DecoderConfig:
        """The architecture. A model may be of one that only its maker knows, and play all the same.

        Raises:
          ExportError: It is none of this project's, or a parameter is outside its range.
        """
        try:
            return _config(DECODERS[self.decoder_type], self.decoder_values)
        except ValueError as error:
            raise ExportError(
                f"'decoder' of a model's metadata is no {self.decoder_type}: {error}",
                hint="export or promote it again",
            ) from error

    @property
    def inputs(self) -> "Arguments":
        """What such a model takes."""
        f0: dict[str, Shape] = {"f0_hz": (None,)}
        controls = {
            "synth_stream": f0 | {"loudness_db": (None,)},
            "synthesis_stream": f0 | {"outputs": (1, self.synth.n_outputs, None)},
        }.get(self.artifact, {INPUTS: (1, N_INPUTS, None)})
        return self._with_states(controls, STATE)

    @property
    def outputs(self) -> "Arguments":
        """What it gives."""
        if self.artifact.startswith("synth"):
            return self._with_states({"audio": (None,)}, NEXT)
        return self._with_states({"outputs": (1, self.synth.n_outputs, None)}, NEXT)

    def _with_states(self, floats: Mapping[str, "Shape"], prefix: str) -> "Arguments":
        of_states = {prefix + k: (_DTYPES[v.dtype], v.shape) for k, v in self.states.items()}
        return {name: (_DTYPES["float32"], shape) for name, shape in floats.items()} | of_states


def check_arguments(facts: ModelFacts, inputs: Iterable[Any], outputs: Iterable[Any]) -> None:
    """Raises ValueError where a model takes or gives anything else than its facts say.

    Args:
      facts: Of the model.
      inputs: ONNX Runtime's descriptions: name, type and shape of each.
      outputs: The same.
    """
    for what, given, expected in (
        ("takes", inputs, facts.inputs),
        ("gives", outputs, facts.outputs),
    ):
        found = {each.name: (each.type, tuple(map(_size, each.shape))) for each in given}
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                is_there, should = found.get(name, "nothing"), expected.get(name, "nothing")
                raise ValueError(f"it {what} '{name}': {is_there}, where {should} is expected")


def _size(size: object) -> int | None:
    return size if isinstance(size, int) else None


def check_graph(model: bytes) -> None:
    """Raises ValueError for a model that does anything but compute with what it holds.

    Args:
      model: As ONNX serialises it.
    """
    try:
        proto = onnx.load_from_string(model)
    except (DecodeError, RuntimeError) as error:
        raise ValueError("it is no ONNX model") from error
    if proto.functions or proto.training_info:
        raise ValueError("it holds functions of its own")
    graph = proto.graph
    tensors = [*graph.initializer, *(part for t in graph.sparse_initializer for part in
                                     (t.values, t.indices))]  # fmt: skip
    for node in graph.node:
        if node.op_type not in _DOMAINS.get(node.domain, ()):
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise ValueError(f"'{name}' is no operation of exported models")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
                raise ValueError(f"'{node.name}' holds a graph of its own")
            tensors += [attribute.t, *attribute.tensors]
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ValueError(f"'{tensor.name}' is in another file")


@dataclass(frozen=True)
class _Metadata:
    """JSON values by name, asked for by their types."""

    values: Mapping[str, Any]

    def text(self, name: str, default: str | None = None) -> str:
        if default is not None and name not in self.values:
            return default
        text: str = self._of_type(name, str, "text")
        return text

    def mapping(self, name: str) -> dict[str, Any]:
        mapping: dict[str, Any] = self._of_type(name, dict, "mapping")
        return mapping

    def whole(self, name: str, low: int, high: int) -> int:
        value: int = self._of_type(name, int, "whole number")
        if not low <= value <= high:
            raise ValueError(f"'{name}' of its metadata is not within {low} and {high}")
        return value

    def _of_type(self, name: str, kind: type, word: str) -> Any:
        if name not in self.values:
            raise ValueError(f"its metadata has no '{name}'")
        value = self.values[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"'{name}' of its metadata is no {word}")
        return value


def _config(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Returns a configuration. Only what is kept of one may be given, and nothing is called."""
    known = {field.name for field in fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"'{name}' is no parameter of a {kind.__name__}")
    try:
        return kind(**values)
    except UserError as error:
        raise ValueError(error.message) from error


def _states(described: Mapping[str, Any]) -> dict[str, State]:
    states = {}
    for name, value in described.items():
        value = value if isinstance(value, dict) else {}
        shape, dtype = value.get("shape"), value.get("dtype")
        if (
            not isinstance(shape, list)
            or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)
            or not isinstance(dtype, str)
            or dtype not in _DTYPES
        ):
            raise ValueError(f"the state '{name}' of its metadata has no shape and type")
        states[name] = State(tuple(shape), dtype)
    if 8 * sum(math.prod(state.shape) for state in states.values()) > MAX_STATE_BYTES:
        raise ValueError("its states are too large")
    return states
