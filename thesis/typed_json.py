"""What a stranger's JSON says, as a dataclass whose fields have the types that they declare.

`json` alone takes what no JSON is (NaN, infinities), fails in many ways, and leaves types to who
reads the values. Everything here fails with ValueError, in a line that names the value.
"""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

_LARGEST_INT = 2**53
"""Whole numbers up to here are the same in every JSON parser."""

_SHOWN = 60
"""Characters of a value that a message shows."""


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Returns the JSON object that a text holds.

    Args:
      text: JSON; bytes are UTF-8.

    Raises:
      ValueError: It is not UTF-8, no JSON, no object, or nested too deeply.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        values = json.loads(decoded, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"{_shown(values)} is no JSON object")
    return values


def build(cls: type[T], values: Mapping[str, object]) -> T:
    """Returns a dataclass made of JSON values, of which each has the type of its field.

    Fields may be `int`, `float`, `str`, a `Literal` of texts, a `Mapping` of texts to any of these,
    or dataclasses of such. A whole number is a float, too; true and false are no numbers. Numbers
    are finite, and text is valid Unicode.

    Raises:
      ValueError: A field is missing, unknown, or of another type.
      Exception: Whatever the dataclass itself raises.
    """
    declared = _types_of(cast(Any, cls))
    if unknown := sorted(values.keys() - declared.keys()):
        raise ValueError(f"there is no field {_shown(unknown[0])}")
    for field in fields(cast(Any, cls)):
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if field.name not in values and not optional:
            raise ValueError(f"the field '{field.name}' is missing")
    return cls(**{name: _typed(declared[name], value, name) for name, value in values.items()})


@functools.cache
def _types_of(cls: type) -> dict[str, Any]:
    """Returns the type of each field, by name."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cast(Any, cls))}


def _typed(kind: Any, value: object, name: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return build(cast(Any, kind), _require(isinstance(value, dict), value, name))
    if origin is Mapping:
        return _mapping(arguments[1], value, name)
    if origin is Literal:
        return _require(isinstance(value, str) and value in arguments, value, name)
    if kind is float:
        return float(_require(_is_number(value), value, name))
    if kind is int:
        whole = type(value) is int and abs(value) <= _LARGEST_INT
        return _require(whole, value, name)
    return _require(isinstance(value, str) and _is_unicode(value), value, name)


def _mapping(kind: Any, value: object, name: str) -> dict[str, Any]:
    mapping: dict[str, Any] = _require(isinstance(value, dict), value, name)
    return {
        _typed(str, key, name): _typed(kind, each, f"{name}.{_shown(key)}")
        for key, each in mapping.items()
    }


def _is_number(value: object) -> bool:
    if type(value) is int:
        return abs(value) <= _LARGEST_INT
    return type(value) is float and math.isfinite(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return False
    return True


def _require(satisfied: bool, value: object, name: str) -> Any:
    if not satisfied:
        raise ValueError(f"{name} cannot be {_shown(value)}")
    return value


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _shown(value: object) -> str:
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}.."
