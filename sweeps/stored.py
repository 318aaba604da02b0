"""JSON that others have stored, as values of known types. Standard library only.

Whoever wrote a storage may have written anything. What comes out of here has the types that the
fields of a dataclass declare, and numbers are finite and of a size that everything can count with.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin

MOST_BYTES = 16 << 20
"""A file of JSON is not larger. The largest, `sweep.json`, has some ten thousand bytes."""

UnixTime = Annotated[float, "s since 1970"]
"""A time that every calendar has: from 1970 to the end of the year 8999."""

_LAST_TIME = 221_845_391_999.0
_LARGEST_INT = 2**63 - 1


def json_object(data: bytes | str) -> dict[str, Any]:
    """Returns the object that a JSON document is.

    Raises:
      ValueError: It is none, or too large, or no UTF-8, or nested too deeply, or has numbers that
        are not finite. One line.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has {len(data):,} bytes")
    document = data.decode("utf-8") if isinstance(data, bytes) else data
    try:
        values = json.loads(document, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    return values


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is not finite")
    return value


def fields_of(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those values that a dataclass has a field for; others are a newer release's.

    Args:
      kind: The dataclass.
      values: By name, as JSON has them.

    Raises:
      ValueError: One has another type than its field, or one without a default is missing.
    """
    found = {}
    for field in dataclasses.fields(kind):
        if field.name in values:
            found[field.name] = checked(field.name, values[field.name], field.type)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"'{field.name}' is missing")
    return found


def checked(name: str, value: Any, declared: Any) -> Any:
    """Returns a value in its declared type: JSON has lists for tuples, 1 for 1.0, '1' for a key 1.

    Args:
      name: What is said to be wrong.
      value: As JSON has it.
      declared: `str`, `int` (from 0), `float`, `UnixTime`, `X | None`, or a tuple or mapping of
        these.

    Raises:
      ValueError: It is of no such type.
    """
    origin, arguments = get_origin(declared), get_args(declared)
    if origin is tuple and isinstance(value, list):
        return tuple(checked(name, each, arguments[0]) for each in value)
    if origin in (dict, Mapping) and isinstance(value, dict):
        key = _step if arguments[0] is int else text
        return {key(name, k): checked(name, each, arguments[1]) for k, each in value.items()}
    if origin is UnionType and NoneType in arguments:
        return None if value is None else checked(name, value, arguments[0])
    if declared in _CHECKS:
        return _CHECKS[declared](name, value)
    if isinstance(declared, type) and isinstance(value, declared):  # read before
        return value
    raise ValueError(f"{short(name)} is {short(value)}")


def _step(name: str, key: str) -> int:
    if key.isdecimal() and len(key) < 19:
        return int(key)
    raise ValueError(f"{short(name)} has a step {short(key)}")


def scalar(name: str, value: Any) -> bool | int | float | str:
    """Returns a value that an axis may have.

    Raises:
      ValueError: It is of another type, or a number that is not finite or huge.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(name, value)
    if isinstance(value, int) and abs(value) <= _LARGEST_INT:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"{short(name)} is {short(value)}")


def text(name: str, value: Any) -> str:
    """Returns a text.

    Raises:
      ValueError: It is none, or holds half a character.
    """
    if isinstance(value, str):
        with contextlib.suppress(UnicodeEncodeError):
            value.encode()
            return value
    raise ValueError(f"{short(name)} is {short(value)}, no text")


def _count(name: str, value: Any) -> int:
    if type(value) is int and 0 <= value <= _LARGEST_INT:
        return value
    raise ValueError(f"{short(name)} is {short(value)}, no whole number from 0")


def _number(name: str, value: Any) -> float:
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is int and abs(value) <= _LARGEST_INT:
        return float(value)
    raise ValueError(f"{short(name)} is {short(value)}, no number")


def _time(name: str, value: Any) -> float:
    seconds = _number(name, value)
    if is_time(seconds):
        return seconds
    raise ValueError(f"{short(name)} is {short(value)}, no time")


def is_time(seconds: Any) -> Any:
    """Returns whether a number, or which of an array's, is a `UnixTime`."""
    return (seconds >= 0) & (seconds <= _LAST_TIME)


_CHECKS: Mapping[Any, Callable[[str, Any], Any]] = {
    str: text, int: _count, float: _number, UnixTime: _time,
}  # fmt: skip


def short(value: Any, most: int = 40) -> str:
    """Returns a value of any size for a message: printable, so many characters at the most."""
    if isinstance(value, int) and abs(value) > _LARGEST_INT:
        return "a huge number"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    shown = ascii(value)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def in_a_line(error: Exception) -> str:
    """Returns what an error says first, printable: it may quote what it could not read."""
    said = str(error).partition("\n")[0][:_LONGEST]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said)


_LONGEST = 300
"""Characters of what another library says that a message holds."""
