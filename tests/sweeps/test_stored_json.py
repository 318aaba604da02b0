"""JSON of a storage: whatever stands in it, it is taken or refused in a line."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.lease import _Lease
from sweeps.ledger import SweepFacts
from sweeps.trial import Attempt, Candidate

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
