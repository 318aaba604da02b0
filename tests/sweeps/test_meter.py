"""What is measured once, what again; the measurements are fakes, so nothing takes any time."""

from dataclasses import replace

import pytest
from onnx import TensorProto, helper

from sweeps.meter import ATTEMPTS, MAX_DRIFT, Meter
from tests.sweeps.test_evaluate import MEASURED
from thesis.config import MeasureConfig
from thesis.errors import ExportError

CONFIG = MeasureConfig()
CALM = replace(MEASURED, reference_rtf=1.0, reference_drift=0.0, measure_attempts=1)


def model(name="a", weight=0.0):
    """A graph without nodes, and a weight in it."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1], [weight])
    graph = helper.make_graph([], name, [], [], [weights])
    return helper.make_model(graph).SerializeToString()


@pytest.fixture
def meter_of():
    """A function: a meter that finds this, and the list of what it was asked for."""

    def meter_of(*found):
        asked, left = [], iter(found)

        def measure(*arguments):
            asked.append(arguments)
            return next(left)

        return Meter(measure), asked

    return meter_of


def drifted(share):
    return replace(CALM, reference_drift=share)


def slower(factor, **changes):
    return replace(CALM, reference_rtf=CALM.reference_rtf * factor, **changes)


# --- Once ---


def test_an_equal_graph_is_not_measured_again(meter_of):
    meter, asked = meter_of(CALM)
    first = meter(model(weight=0.0), 4.0, CONFIG)
    assert meter(model(weight=1.0), 4.0, CONFIG) is first
    assert asked == [(model(weight=0.0), 4.0, CONFIG)]


@pytest.mark.parametrize(
    "other",
    [
        (model("b"), 4.0, CONFIG),
        (model(), 2.0, CONFIG),
        (model(), 4.0, replace(CONFIG, seconds=1.0)),
    ],
    ids=["graph", "clip", "config"],
)
def test_what_differs_is_measured(meter_of, other):
    meter, asked = meter_of(CALM, CALM)
    meter(model(), 4.0, CONFIG)
    meter(*other)
    assert len(asked) == 2


def test_what_is_no_model_is_not_measured(meter_of):
    meter, asked = meter_of()
    with pytest.raises(ExportError):
        meter(b"no model", 4.0, CONFIG)
    assert not asked


# --- Again ---


def test_what_drifted_is_measured_again_until_it_does_not(meter_of):
    meter, asked = meter_of(drifted(0.3), drifted(0.2), drifted(0.01))
    found = meter(model(), 4.0, CONFIG)
    assert (found.reference_drift, found.measure_attempts) == (0.01, 3)
    assert len(asked) == 3


def test_drift_at_the_threshold_is_not_too_much(meter_of):
    meter, asked = meter_of(drifted(MAX_DRIFT))
    assert meter(model(), 4.0, CONFIG).measure_attempts == 1
    assert len(asked) == 1


def test_what_never_rests_is_the_calmest_of_its_attempts_and_says_so(meter_of):
    meter, asked = meter_of(drifted(0.3), drifted(0.2), drifted(0.4))
    found = meter(model(), 4.0, CONFIG)
    assert (found.reference_drift, found.measure_attempts) == (0.2, ATTEMPTS)
    assert len(asked) == ATTEMPTS


def test_what_never_rested_is_measured_anew_for_the_next_candidate(meter_of):
    meter, _ = meter_of(*[drifted(0.3)] * ATTEMPTS, CALM)
    meter(model(), 4.0, CONFIG)
    assert meter(model(), 4.0, CONFIG) == CALM


def test_a_machine_that_has_become_slower_has_drifted(meter_of):
    meter, _ = meter_of(CALM, slower(1.2), slower(1.3), slower(1.05))
    meter(model("a"), 4.0, CONFIG)
    found = meter(model("b"), 4.0, CONFIG)
    assert found.reference_drift == pytest.approx(0.05)
    assert found.measure_attempts == 3


def test_a_machine_that_has_become_faster_sets_the_mark(meter_of):
    meter, _ = meter_of(slower(1.2), CALM, slower(1.2), CALM)
    assert meter(model("a"), 4.0, CONFIG).reference_drift == 0.0
    assert meter(model("b"), 4.0, CONFIG).reference_drift == 0.0
    assert meter(model("c"), 4.0, CONFIG).measure_attempts == 2


def test_the_reference_at_other_work_is_another(meter_of):
    meter, asked = meter_of(CALM, slower(2.0, reference_frames=999), slower(3.0))
    meter(model("a"), 4.0, CONFIG)
    meter(model("b"), 4.0, CONFIG)
    meter(model("a"), 2.0, CONFIG)
    assert len(asked) == 3


def test_the_larger_drift_counts(meter_of):
    meter, _ = meter_of(CALM, slower(1.02, reference_drift=0.05))
    meter(model("a"), 4.0, CONFIG)
    assert meter(model("b"), 4.0, CONFIG).reference_drift == 0.05
