"""What a stranger's JSON may be made into, and what it may not."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thesis.typed_json import build, parse_object


@dataclass(frozen=True)
class Inner:
    share: float


@dataclass(frozen=True)
class Outer:
    count: int
    kind: Literal["a", "b"]
    names: Mapping[str, str]
    inner: Inner
    note: str = ""


VALUES = {"count": 3, "kind": "a", "names": {"x": "y"}, "inner": {"share": 1}}


def test_values_of_the_right_types_become_a_dataclass():
    built = build(Outer, VALUES)
    assert built == Outer(3, "a", {"x": "y"}, Inner(1.0))
    assert isinstance(built.inner.share, float)
    assert build(Outer, asdict(built)) == built


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 3.0),
        ("count", "3"),
        ("count", True),
        ("count", 2**60),
        ("kind", "c"),
        ("kind", ["a"]),
        ("names", ["x"]),
        ("names", {"x": 1}),
        ("names", {"\udc80": "y"}),
        ("note", "\ud800"),
        ("note", None),
        ("inner", 1.0),
    ],
)
def test_a_value_of_another_type_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}.* cannot be ") as caught:
        build(Outer, VALUES | {name: value})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("share", ["1", None, True, float("nan"), float("inf"), 10**400, []])
def test_a_number_is_finite(share):
    with pytest.raises(ValueError, match=r"^share cannot be "):
        build(Outer, VALUES | {"inner": {"share": share}})


def test_a_missing_field_and_an_unknown_one_are_named():
    with pytest.raises(ValueError, match="'kind' is missing"):
        build(Outer, {name: value for name, value in VALUES.items() if name != "kind"})
    with pytest.raises(ValueError, match="no field 'surplus"):
        build(Outer, VALUES | {"surplus": 1})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "null",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"a":' * 100_000,
        b"\xff",
        b"\xef\xbb\xbf{}",
        "{} {}",
    ],
)
def test_what_is_no_json_object_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_object(text)
    assert len(str(caught.value)) < 200


@given(st.binary() | st.text())
def test_any_text_is_an_object_or_a_value_error(text):
    try:
        values = parse_object(text)
    except ValueError:
        return
    assert isinstance(values, dict)
