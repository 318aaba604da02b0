import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps import stored
from sweeps.lease import _Lease
from sweeps.ledger import SweepFacts
from sweeps.stored import UnixTime, fields_of, json_object
from sweeps.trial import Attempt, Candidate


@dataclass
class Thing:
    name: str
    count: int = 0
    share: float = 0.0
    at: UnixTime = 0.0
    words: tuple[str, ...] = ()
    losses: Mapping[int, float] = field(default_factory=dict)
    limit: float | None = None


WHOLE = {
    "name": "a",
    "count": 3,
    "share": 1,
    "at": 1e9,
    "words": ["x", "y"],
    "losses": {"10": 2.5},
    "limit": None,
}


def test_values_come_in_the_types_of_their_fields():
    thing = Thing(**fields_of(Thing, json_object(json.dumps(WHOLE))))
    assert thing == Thing("a", 3, 1.0, 1e9, ("x", "y"), {10: 2.5})
    assert type(thing.share) is float
    assert fields_of(Thing, {"name": "a", "newer": 1}) == {"name": "a"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", None), ("name", 3), ("name", ["a"]), ("name", "\ud800"),
        ("count", -1), ("count", 1.0), ("count", "1"), ("count", True), ("count", 2**63),
        ("share", "1"), ("share", None), ("share", True), ("share", 10**400),
        ("at", -1.0), ("at", 1e300), ("at", "now"),
        ("words", "x"), ("words", [1]), ("words", {"x": 1}), ("words", None),
        ("losses", []), ("losses", {"x": 1.0}), ("losses", {"1": "x"}), ("losses", {"-1": 1.0}),
        ("losses", {"1" * 30: 1.0}), ("limit", "1"), ("limit", []),
    ],
)  # fmt: skip
def test_value_of_another_type_is_refused_in_a_line(name, value):
    with pytest.raises(ValueError, match=f"'{name}'") as caught:
        fields_of(Thing, {**WHOLE, name: value})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 120


def test_missing_value_is_refused():
    with pytest.raises(ValueError, match="'name' is missing"):
        fields_of(Thing, {})


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"3", b'"x"', b"\0\0", b"\xff{}", b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"), b"[" * 10**6, b'{"a":' * 10**5, b'{"a": 1e999}',
        b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": ' + b"9" * 5000 + b"}", b"{'a': 1}",
    ],
    ids=lambda data: str(data[:12]),
)  # fmt: skip
def test_what_is_no_json_object_is_refused_in_a_line(data):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  JSON and Unicode have words of their own
        json_object(data)
    assert "\n" not in str(caught.value)


def test_document_that_is_too_large_is_not_parsed(monkeypatch):
    monkeypatch.setattr(stored, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="11 bytes"):
        json_object(b'{"a": 1234}')


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text()
flat = st.lists(scalars, max_size=3) | st.dictionaries(st.text(), scalars, max_size=3)
documents = (
    scalars | flat | st.lists(flat, max_size=2) | st.dictionaries(st.text(), flat, max_size=2)
)
WRITTEN = [
    (SweepFacts.from_json, SweepFacts(name="s", gin_config="", dataset_fingerprint="f",
                                      objectives=("val_loss", "rtf")).to_json()),
    (Attempt.from_json, Attempt(Candidate.of({"channels": 8}), "h", 5.0, 1).to_json()),
    (_Lease.from_json, _Lease().to_json()),
]  # fmt: skip


@pytest.mark.parametrize(("read", "written"), WRITTEN, ids=["facts", "attempt", "lease"])
@given(data=st.data())
def test_anything_in_place_of_a_value_is_taken_or_refused(read, written, data):
    values = json.loads(written)
    name = data.draw(st.sampled_from([*values, "other"]))
    values[name] = data.draw(documents)
    try:
        found = read(json.dumps(values).encode())
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        for number in (v for v in vars(found).values() if isinstance(v, float)):
            assert math.isfinite(number)


@pytest.mark.parametrize(("read", "written"), WRITTEN, ids=["facts", "attempt", "lease"])
def test_what_was_written_is_read(read, written):
    assert json.loads(read(written).to_json()) == json.loads(written)


@given(documents)
def test_any_document_in_place_of_an_attempt_is_taken_or_refused(document):
    try:
        Attempt.from_json(json.dumps(document))
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
