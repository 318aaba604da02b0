"""What a stranger's JSON may be made into, and what it may not."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thesis import typed_json
from thesis.typed_json import UnixTime, build, fields_of, parse_json, parse_object


@dataclass(frozen=True)
class Inner:
    share: float


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    inner: Inner
    count: int = 0
    at: UnixTime = 0.0
    words: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    losses: Mapping[int, float] = field(default_factory=dict)
    limit: float | None = None


VALUES: dict[str, Any] = {
    "name": "n",
    "kind": "a",
    "inner": {"share": 1},
    "count": 3,
    "at": 1e9,
    "words": ["x", "y"],
    "names": {"x": "y"},
    "losses": {"10": 2.5},
    "limit": None,
}

# --- Documents ---


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_subnormal=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_is_what_was_written(value: Any) -> None:
    text = json.dumps(value)
    if "Infinity" in text and not isinstance(value, str):
        with suppress(ValueError):
            assert parse_json(text) == value
    else:
        assert parse_json(text) == value


@pytest.mark.parametrize(
    "data",
    [
        "", "{", "{} {}", "{'a': 1}", "\ufeff1", "NaN", "[-Infinity]", "1e999", '{"a": -1e400}',
        "9" * 9999, '{"a": ' + "9" * 5000 + "}", "[" * 10**6, '{"a":' * 10**5,
        b"\0\0", b"\xff{}", b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16"),
    ],
    ids=lambda data: str(data[:12]),
)  # fmt: skip
def test_what_is_no_json_is_refused_in_a_line(data: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("data", ["[]", "3", "null", '"x"', "true"])
def test_what_is_no_object_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        parse_object(data)


@given(st.binary() | st.text())
def test_any_text_is_an_object_or_a_value_error(text: str | bytes) -> None:
    try:
        values = parse_object(text)
    except ValueError:
        return
    assert isinstance(values, dict)


def test_a_document_that_is_too_large_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed_json, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="11 bytes"):
        parse_object(b'{"a": 1234}')


# --- Values ---


def test_values_come_in_the_types_of_their_fields() -> None:
    built = build(Outer, parse_object(json.dumps(VALUES)))
    expected = Outer("n", "a", Inner(1.0), 3, 1e9, ("x", "y"), {"x": "y"}, {10: 2.5})
    assert built == expected
    assert type(built.inner.share) is float
    assert build(Outer, parse_object(json.dumps(asdict(built)))) == built


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", None), ("name", 3), ("name", ["a"]), ("name", "\ud800"),
        ("kind", "c"), ("kind", ["a"]), ("kind", None),
        ("inner", 1.0), ("inner", None), ("inner", []),
        ("count", -1), ("count", 1.0), ("count", "1"), ("count", True), ("count", 2**63),
        ("at", -1.0), ("at", 1e300), ("at", "now"),
        ("words", "x"), ("words", [1]), ("words", {"x": 1}), ("words", None),
        ("names", ["x"]), ("names", {"x": 1}), ("names", {"\udc80": "y"}),
        ("losses", []), ("losses", {"x": 1.0}), ("losses", {"1": "x"}), ("losses", {"-1": 1.0}),
        ("losses", {"1" * 30: 1.0}), ("limit", "1"), ("limit", []),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_named_in_a_line(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"'{name}'") as caught:
        build(Outer, VALUES | {name: value})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("share", ["1", None, True, float("nan"), float("inf"), 10**400, []])
def test_a_number_is_finite(share: Any) -> None:
    with pytest.raises(ValueError, match=r"^'share' is "):
        build(Outer, VALUES | {"inner": {"share": share}})


def test_a_missing_field_is_named() -> None:
    del (values := dict(VALUES))["kind"]
    for read in (build, fields_of):
        with pytest.raises(ValueError, match="'kind' is missing"):
            read(Outer, values)


def test_a_field_that_only_another_release_knows_is_named_or_passed_over() -> None:
    newer = VALUES | {"newer": 1}
    assert fields_of(Outer, newer) == fields_of(Outer, VALUES)
    with pytest.raises(ValueError, match="no field 'newer"):
        build(Outer, newer)
