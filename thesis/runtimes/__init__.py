"""Runtimes that an exported model runs in, one file each.

All are behind one contract, `thesis.runtimes.contract`. Their packages are imported when they are
used; those that are not installed are listed all the same, with the command that installs them.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from thesis.errors import MissingRuntimeError

if TYPE_CHECKING:
    from thesis.runtimes.contract import Runtime

NAMES = (
    "onnx_runtime",
    "tensorflow",
    "litert",
    "torchscript",
    "openvino",
    "tvm",
    "deepsparse",
)
"""Modules of this package with a `RUNTIME` each. The first is the one that sweeps measure."""


def check_name(name: str, names: Sequence[str] = NAMES) -> None:
    """Raises MissingRuntimeError, with a hint, for what is none of some names."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise MissingRuntimeError(
            f"no runtime named '{name}'",
            hint=(f"did you mean '{near[0]}'? " if near else "") + f"there are {', '.join(names)}",
        )


def runtime(name: str) -> Runtime:
    """Returns a runtime, installed or not.

    Raises:
      MissingRuntimeError: There is none of this name.
    """
    check_name(name)
    found: Runtime = importlib.import_module(f"{__name__}.{name}").RUNTIME
    return found


def runtimes() -> tuple[Runtime, ...]:
    """Returns all runtimes, installed or not."""
    return tuple(map(runtime, NAMES))
