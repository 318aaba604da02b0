"""Collects the nodes of an ONNX graph: constants shared, states named, the whole checked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 9

STATE = "state/"
"""Prefix of inputs that hold what a stream remembers."""
NEXT = "next/"
"""Prefix of outputs that are the states of the next block."""


@dataclass(frozen=True)
class _Value:
    name: str
    dtype: int
    shape: tuple[int | str, ...]


class Graph:
    """An ONNX graph in the making; methods that add a node return its output's name."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._names: set[str] = set()
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[_Value] = []
        self._outputs: list[_Value] = []

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Adds a node with one output, of the node's name."""
        (output,) = self.nodes(op, inputs, [name], **attributes)
        return output

    def nodes(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> Sequence[str]:
        """Adds a node with several outputs; an empty name leaves one out."""
        name = next(filter(None, outputs))
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        self._names.update(outputs)
        return outputs

    def rename(self, old: str, new: str) -> None:
        """Gives the output of the node that was added last another name."""
        (output,) = self._nodes[-1].output
        if output != old:
            raise ValueError(f"'{old}' is not what was added last, '{output}' is")
        self._nodes[-1].output[0] = new

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """Adds a constant, unless there is one of this name."""
        array = np.asarray(value, dtype)
        self._constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        """Returns a vector of whole numbers."""
        return self.constant("i" + "_".join(map(str, values)), values, np.int64)

    def number(self, value: float, dtype: npt.DTypeLike = np.float32) -> str:
        """Returns a scalar."""
        return self.constant(f"{np.dtype(dtype).name}_{value!r}", value, dtype)

    def slice(
        self, x: str, name: str, *, axis: int, first: int | str = 0, end: int | str | None = None,
        step: int = 1,
    ) -> str:  # fmt: skip
        """Returns a part of a tensor; bounds are numbers or names of vectors of one."""
        end = np.iinfo(np.int64).max if end is None else end
        bounds = [self.integers(x) if isinstance(x, int) else x for x in (first, end)]
        return self.node("Slice", [x, *bounds, self.integers(axis), self.integers(step)], name)

    def input(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        """Adds an input."""
        self._inputs.append(_Value(name, dtype, tuple(shape)))
        return name

    def output(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        """Makes the value of this name an output."""
        self._outputs.append(_Value(name, dtype, tuple(shape)))
        return name

    def state(self, name: str, shape: Sequence[int], dtype: int = TensorProto.FLOAT) -> str:
        """Adds a state: the input is returned, the output is the value named `NEXT + name`."""
        self.output(NEXT + name, shape, dtype)
        return self.input(STATE + name, shape, dtype)

    def remembered(self, name: str, x: str, past: int, *, shape: Sequence[int], axis: int) -> str:
        """Returns `past` earlier entries along an axis, zeros at first, and then those of `x`.

        Args:
          name: Of the state.
          x: The value.
          past: How many, at least one.
          shape: Of the state.
          axis: Of `x`.
        """
        whole = self.node("Concat", [self.state(name, shape), x], f"{name}/remembered", axis=axis)
        self.slice(whole, NEXT + name, axis=axis, first=-past)
        return whole

    def serialize(self, name: str, metadata: Mapping[str, Any]) -> bytes:
        """Returns the model, checked.

        Args:
          name: Of the graph.
          metadata: Written as JSON values. The shapes and types of the states are added.
        """
        states = {
            x.name.removeprefix(STATE): {
                "shape": x.shape,
                "dtype": helper.tensor_dtype_to_np_dtype(x.dtype).name,
            }
            for x in self._inputs
            if x.name.startswith(STATE)
        }
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(x.name, x.dtype, x.shape) for x in self._inputs],
            [helper.make_tensor_value_info(x.name, x.dtype, x.shape) for x in self._outputs],
            list(self._constants.values()),
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        described = {**metadata, "artifact": name, "states": states}
        helper.set_model_props(model, {k: json.dumps(v) for k, v in described.items()})
        onnx.checker.check_model(model, full_check=True)
        serialized: bytes = model.SerializeToString()
        return serialized
