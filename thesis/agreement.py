"""Whether files of a bundle are of one model: compares each with what the others say it must be.

All functions raise ValueError with a few words where they disagree. Numbers may differ by what
another processor, or another release of NumPy, rounds otherwise. What another release of this
project wrote may be laid out otherwise: then there is nothing to compare, and they return False.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from thesis.config import gin_name
from thesis.onnx_facts import ModelFacts

RELATIVE, OF_LARGEST = 1e-5, 1e-6
"""A number may differ by this share of itself, and this share of the largest beside it."""

QUANTISATION_ERROR = 0.25
"""Root mean square of what 8-bit integers do to a decoder's outputs, as a share of theirs: up to
0.03 was seen, and 1 or more between any two models."""

Array = npt.NDArray[Any]


def compare_weights(weights: Mapping[str, Array], facts: ModelFacts) -> None:
    """Compares the names and shapes of weights with those of the architecture."""
    plan = facts.decoder.plan(facts.synth.n_outputs)
    shapes = {
        name: shape
        for node in plan
        for name, shape in (node.weight_shapes | node.moment_shapes).items()
    }
    for name in sorted(weights.keys() | shapes.keys()):
        found = weights[name].shape if name in weights else None
        if found != shapes.get(name):
            raise ValueError(f"'{name}' has the shape {found}, not {shapes.get(name)}")


def compare_facts(facts: ModelFacts, of_decoder: ModelFacts) -> None:
    """Compares what a stream says of itself with what the decoder says."""
    for name in ("decoder", "synth", "sample_rate", "hop_size"):
        if getattr(facts, name) != getattr(of_decoder, name):
            raise ValueError(f"its '{name}' is {getattr(facts, name)}")


def compare_outputs(outputs: Array, expected: Array, *, allowed: float) -> None:
    """Compares what two models make of the same controls: the largest difference."""
    with np.errstate(all="ignore"):
        error = float(abs(outputs - expected).max(initial=0))
    if not error <= allowed:
        raise ValueError(f"its output differs by {error:.3g}, allowed {allowed:g}")


def compare_integers(outputs: Array, of_floats: Array) -> None:
    """Compares a decoder in 8-bit integers with the floats that it comes from."""
    with np.errstate(all="ignore"):
        error = float(np.sqrt(np.mean((outputs - of_floats) ** 2)))
        allowed = QUANTISATION_ERROR * float(np.sqrt(np.mean(of_floats**2)))
    if not error <= allowed:
        raise ValueError(f"its output differs by {error:.3g} (RMS), allowed {allowed:.3g}")


def compare_graphs(stored: bytes, anew: bytes) -> bool:
    """Compares two ONNX models, node by node and number by number, but for their metadata.

    Returns:
      Whether they are laid out alike.
    """
    graph, other = (onnx.load_from_string(model).graph for model in (stored, anew))
    if _layout(graph) != _layout(other):
        return False
    for tensor, expected in zip(graph.initializer, other.initializer, strict=True):
        _compare_numbers(
            tensor.name, numpy_helper.to_array(tensor), numpy_helper.to_array(expected)
        )
    return True


def _layout(graph: onnx.GraphProto) -> list[Any]:
    return [
        [(n.op_type, n.domain, *n.input, "", *n.output, str(n.attribute)) for n in graph.node],
        [str(x) for x in (*graph.input, *graph.output)],
        [(t.name, t.data_type, *t.dims) for t in graph.initializer],
    ]


def compare_headers(stored: str, anew: str) -> bool:
    """Compares two C headers, word by word and number by number.

    Returns:
      Whether their code is the same. The tables that both have are of equal numbers in any case.
    """
    if stored == anew:
        return True
    (code, tables), (expected_code, expected) = map(_taken_apart, (stored, anew))
    for name, table in tables.items():
        if name in expected and table.shape == expected[name].shape:
            # Constants of the code have nothing in common that the largest could stand for.
            of_largest = OF_LARGEST if name else 0.0
            _compare_numbers(name or "its code", table, expected[name], of_largest)
    return (
        code == expected_code
        and tables.keys() == expected.keys()
        and all(table.shape == expected[name].shape for name, table in tables.items())
    )


_TABLE = re.compile(r"static const float (\w+)\[\d+\] = \{([^{}]*)\};")
_FLOAT = re.compile(r"(?<![\w.])-?\d+(?:\.\d*)?(?:e[+-]?\d+)?f\b", re.ASCII)


def _taken_apart(header: str) -> tuple[str, dict[str, npt.NDArray[np.float64]]]:
    """Returns a header's code without its floats; and these: those of tables, and under '' others.

    How a float is written, and so where lines of tables break, hangs on its last bit.
    """

    def floats(text: str) -> npt.NDArray[np.float64]:
        return np.array([float(number[:-1]) for number in _FLOAT.findall(text)])

    tables = {table[1]: floats(table[2]) for table in _TABLE.finditer(header)}
    code = _TABLE.sub(lambda table: f"static const float {table[1]}", header)
    return _FLOAT.sub("#", code), tables | {"": floats(code)}


def _compare_numbers(
    name: str, values: Array, expected: Array, of_largest: float = OF_LARGEST
) -> None:
    atol = of_largest * float(np.abs(expected).max(initial=0))
    with np.errstate(all="ignore"):
        alike = np.allclose(values, expected, rtol=RELATIVE, atol=atol)
    if not alike:
        raise ValueError(f"the numbers of '{name}' are others")


def compare_record(record: Mapping[str, Any], facts: ModelFacts, model_bytes: int) -> None:
    """Compares the axes of a trial's record, and sizes that follow from them, with a model.

    Args:
      record: The trial's.
      facts: Of the decoder.
      model_bytes: Size of its file.
    """
    expected = {f"axis_{name}": value for name, value in _parameters(facts).items()}
    expected["parameters"] = facts.decoder.parameter_count(facts.synth.n_outputs)
    expected["macs_per_frame"] = facts.decoder.macs_per_frame(facts.synth.n_outputs)
    expected["receptive_field_frames"] = facts.decoder.receptive_field_frames
    expected["model_bytes"] = model_bytes
    for name in expected.keys() & record.keys():
        if record[name] is not None and record[name] != expected[name]:
            raise ValueError(f"its '{name}' is {record[name]!r}, not {expected[name]!r}")
    frames, seconds = (record.get(f"receptive_field_{unit}") for unit in ("frames", "seconds"))
    if isinstance(frames, int) and isinstance(seconds, float):
        found = frames * facts.hop_size / facts.sample_rate
        if not abs(seconds - found) <= RELATIVE * found:
            raise ValueError(f"its receptive field lasts {seconds!r} s, not {found!r}")


def compare_config(text: str, facts: ModelFacts) -> None:
    """Compares a model's gin text with what the model is. The text is read, not parsed by gin.

    Bindings of plain values, and macros of those, are compared; others are passed over.
    """
    stages: dict[str, dict[str, Any]] = {
        gin_name(stage): asdict(stage) for stage in (facts.decoder, facts.synth)
    }
    stages["model"] = {"decoder": f"@{gin_name(facts.decoder)}()"}
    for stage, parameter, value in _bindings(text):
        expected = stages.get(stage, {}).get(parameter, value)
        if value != expected:
            raise ValueError(f"it has {stage}.{parameter} = {value!r}, not {expected!r}")


_MAX_LITERAL = 200
"""Characters: values of parameters are short, and Python's parser is not for strangers' texts."""
_BINDING = re.compile(r"^(?:[\w.]+\.)?(\w+)\.(\w+) *= *(\S.*)$", re.MULTILINE)
_MACRO = re.compile(r"^((?:\w+/)*\w+) *= *(\S.*)$", re.MULTILINE)
_MOST_MACROS = 24
"""That stand for each other, as many as gin texts may have."""


def _bindings(text: str) -> Iterator[tuple[str, str, Any]]:
    """Yields stage, parameter and value of the bindings that a line tells, the last of each."""
    macros = dict(_MACRO.findall(text))
    last = {(stage, parameter): value for stage, parameter, value in _BINDING.findall(text)}
    for (stage, parameter), value in last.items():
        for _ in range(_MOST_MACROS):
            value = macros.get(value[1:].strip(), value) if value.startswith("%") else value
        if value.startswith("@"):
            yield stage, parameter, value.strip()
        elif len(value) <= _MAX_LITERAL:
            with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                yield stage, parameter, ast.literal_eval(value)


def _parameters(facts: ModelFacts) -> dict[str, Any]:
    return asdict(facts.synth) | asdict(facts.decoder)
