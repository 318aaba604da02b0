"""JSON that anybody may have written, as values of the types that a dataclass declares.

`json` alone takes what is no JSON (NaN, infinities), fails in many ways, and leaves types to its
caller. Here whatever is wrong is a ValueError of one line, which names the value. Standard library
only.
"""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

MOST_BYTES = 16 << 20
"""A document is not larger. The largest that this project writes has some ten thousand bytes."""

UnixTime = Annotated[float, "s since 1970"]
"""A time that every calendar has: from 1970 to the end of the year 8999."""

_LAST_TIME = 221_845_391_999.0
_LARGEST_INT = 2**63 - 1


# --- Documents ---


def parse_json(data: str | bytes) -> Any:
    """Returns the value that a document holds.

    Args:
      data: JSON; bytes are UTF-8.

    Raises:
      ValueError: It is too large, not UTF-8, no JSON, nested too deeply, or holds a number that is
        not finite.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has {len(data):,} bytes")
    document = data.decode("utf-8") if isinstance(data, bytes) else data
    try:
        return json.loads(document, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_object(data: str | bytes) -> dict[str, Any]:
    """Returns the JSON object that a document holds.

    Raises:
      ValueError: As `parse_json`, or it is no object.
    """
    values = parse_json(data)
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    return values


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is not finite")
    return value


# --- Values ---


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Returns a dataclass made of JSON values, each of the type of its field.

    Args:
      cls: The dataclass. For the types of its fields see `checked`.
      values: By name.

    Raises:
      ValueError: A field is missing, unknown, or of another type.
      Exception: Whatever the dataclass itself raises.
    """
    unknown = sorted(values.keys() - _types_of(cast(Any, cls)).keys())
    if unknown:
        raise ValueError(f"there is no field {short(unknown[0])}")
    return cls(**fields_of(cls, values))


def fields_of(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those values that a dataclass has a field for; others are a newer release's.

    Raises:
      ValueError: One has another type than its field, or one without a default is missing.
    """
    found = {}
    for field in dataclasses.fields(cast(Any, cls)):
        if field.name in values:
            declared = _types_of(cls)[field.name]
            found[field.name] = checked(field.name, values[field.name], declared)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{short(field.name)} is missing")
    return found


@functools.cache
def _types_of(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cast(Any, cls))}


def checked(name: str, value: Any, declared: Any) -> Any:
    """Returns a value in its declared type: JSON has lists for tuples, 1 for 1.0, '1' for a key 1.

    Args:
      name: What is said to be wrong.
      value: As JSON has it, or already of the declared class.
      declared: `str`, `int` (0 to 2**63 - 1), `float` (finite), `UnixTime`, a `Literal` of texts, a
        dataclass, `X | None`, or a tuple or mapping of these.

    Raises:
      ValueError: It is of no such type.
    """
    origin, arguments = get_origin(declared), get_args(declared)
    if declared in _CHECKS:
        return _CHECKS[declared](name, value)
    if dataclasses.is_dataclass(declared) and isinstance(value, dict):
        return build(cast(Any, declared), value)
    if origin is tuple and isinstance(value, list):
        return tuple(checked(name, each, arguments[0]) for each in value)
    if origin in (dict, Mapping) and isinstance(value, dict):
        key = _whole_key if arguments[0] is int else text
        return {key(name, k): checked(name, each, arguments[1]) for k, each in value.items()}
    if origin is UnionType and NoneType in arguments:
        return None if value is None else checked(name, value, arguments[0])
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if isinstance(declared, type) and isinstance(value, declared):
        return value
    raise ValueError(f"{short(name)} is {short(value)}")


def scalar(name: str, value: Any) -> bool | int | float | str:
    """Returns a boolean, whole number, finite number or text.

    Raises:
      ValueError: It is something else, or a huge number.
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
      ValueError: It is none, or holds half of a surrogate pair, which JSON can spell.
    """
    if isinstance(value, str):
        with contextlib.suppress(UnicodeEncodeError):
            value.encode()
            return value
    raise ValueError(f"{short(name)} is {short(value)}, no text")


def is_time(seconds: Any) -> Any:
    """Returns whether a number, or which of an array's, is a `UnixTime`."""
    return (seconds >= 0) & (seconds <= _LAST_TIME)


def short(value: Any, most: int = 40) -> str:
    """Returns a value of any size for a message: printable, so many characters at the most."""
    if isinstance(value, int) and abs(value) > _LARGEST_INT:
        return "a huge number"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    shown = ascii(value)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def _whole_key(name: str, key: str) -> int:
    if key.isdecimal() and len(key) < 19:
        return int(key)
    raise ValueError(f"{short(name)} has a key {short(key)}, no whole number from 0")


def _whole(name: str, value: Any) -> int:
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


_CHECKS: Mapping[Any, Callable[[str, Any], Any]] = {
    str: text, int: _whole, float: _number, UnixTime: _time,
}  # fmt: skip
