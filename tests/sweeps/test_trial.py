import dataclasses
import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.trial import METRICS, Candidate, Measurement, Reason, Status, Trial

numbers = st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(
    allow_nan=False, allow_infinity=False, allow_subnormal=False
)
axes = st.dictionaries(st.text(min_size=1), st.booleans() | numbers | st.text())


@given(axes)
def test_candidate_survives_json(values):
    candidate = Candidate.of(values)
    assert Candidate.from_json(candidate.to_json()) == candidate
    assert Candidate.from_json(candidate.to_json()).id == candidate.id


@given(axes)
def test_candidate_does_not_depend_on_the_order_of_its_axes(values):
    backwards = Candidate.of(dict(reversed(values.items())))
    assert backwards == Candidate.of(values)
    assert backwards.id == Candidate.of(values).id


def test_candidate_id_is_the_hash_of_canonical_json():
    candidate = Candidate.of({"layers": 3, "channels": 8})
    digest = hashlib.sha256(b'{"channels":8,"layers":3}').hexdigest()
    assert candidate.id == digest[:12]


def test_candidates_that_differ_in_one_value_have_different_ids():
    ids = {Candidate.of({"channels": n, "block": b}).id for n in range(100) for b in ("a", "b")}
    assert len(ids) == 200


def test_candidate_gives_its_values_by_axis():
    candidate = Candidate.of({"channels": 8})
    assert candidate["channels"] == 8
    assert candidate.get("stacks") is None
    assert candidate.get("stacks", 2) == 2
    with pytest.raises(KeyError):
        candidate["stacks"]


def test_candidate_is_hashable_and_frozen():
    candidate = Candidate.of({"channels": 8})
    assert {candidate: 1}[Candidate.of({"channels": 8})] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        candidate.values = ()


def test_trial_without_a_reason_is_completed():
    assert Trial("s", Candidate.of({})).status is Status.COMPLETED


@pytest.mark.parametrize(
    ("status", "reasons"),
    [
        (
            Status.INFEASIBLE,
            {
                Reason.RECEPTIVE_FIELD,
                Reason.PARAMETERS,
                Reason.RTF,
                Reason.MISSED_PITCH,
            },
        ),
        (Status.PRUNED, {Reason.PRUNED}),
        (
            Status.FAILED,
            {
                Reason.DIVERGED,
                Reason.OUT_OF_MEMORY,
                Reason.EXPORT_MISMATCH,
                Reason.CRASHED,
                Reason.ERROR,
            },
        ),
    ],
)
def test_status_follows_from_the_reason(status, reasons):
    trials = [Trial("s", Candidate.of({}), reason=reason) for reason in Reason]
    assert {trial.reason for trial in trials if trial.status is status} == reasons


def test_what_is_infeasible_for_what_it_has_learnt_has_a_model():
    trials = [Trial("s", Candidate.of({}), reason=reason) for reason in (None, *Reason)]
    assert [trial.reason for trial in trials if trial.trained] == [None, Reason.MISSED_PITCH]


def test_an_infeasible_trial_names_the_metric_that_is_over_its_limit():
    for reason in Reason:
        assert bool(reason.limited) == (reason.status is Status.INFEASIBLE)
        assert not reason.limited or reason.limited in METRICS


def test_trial_is_named_by_its_candidate():
    candidate = Candidate.of({"channels": 8})
    assert Trial("s", candidate).id == candidate.id


def test_metric_that_was_not_reached_is_none():
    trial = Trial("s", Candidate.of({}), Measurement(val_loss=math.inf))
    assert trial.metric("val_loss") == math.inf
    assert trial.metric("rtf") is None


def test_every_metric_says_what_it_means():
    assert set(METRICS) == {f.name for f in dataclasses.fields(Measurement)}
    for column in METRICS.values():
        assert column.metadata["description"]
        assert isinstance(column.metadata["unit"], str)
        assert column.default is None
