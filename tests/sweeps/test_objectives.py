import math
import subprocess
import sys
from dataclasses import fields

import pytest

from sweeps.errors import MetricError
from sweeps.objectives import (
    KNOWN,
    Goal,
    Limit,
    Objective,
    at_least,
    at_most,
    metric,
    objective,
)
from sweeps.trial import METRICS, Candidate, Measurement, Trial
from thesis.metrics import Quality


def trial(**metrics):
    return Trial("s", Candidate.of({"channels": 8}), Measurement(**metrics))


def test_every_column_of_the_ledger_is_a_metric():
    for name, column in METRICS.items():
        assert metric(name).column == name
        assert metric(name).unit == column.metadata["unit"]
        assert metric(name).of(trial(**{name: 3})) == 3


def test_lower_is_better_for_all_metrics_but_x_real_time():
    assert [name for name in KNOWN if objective(name).goal is Goal.MAX] == ["x_real_time"]


@pytest.mark.parametrize("name", [field.name for field in fields(Quality)])
def test_what_is_known_of_a_sound_is_learnt_and_has_a_linear_scale(name):
    found = metric(name)
    assert (found.goal, found.learnt, found.spans_decades, found.host_bound) == (
        Goal.MIN, True, False, False,
    )  # fmt: skip
    assert at_most(f"{name}=0.1") == Limit(name, high=0.1)


def test_timings_are_bound_to_their_host_and_the_ratio_is_not():
    bound = {name for name in KNOWN if metric(name).host_bound}
    timings = {"rtf", "reference_rtf", "p50_seconds", "p95_seconds", "p99_seconds"}
    assert bound == timings | {"x_real_time"}


def test_x_real_time_is_the_inverse_of_rtf():
    assert objective("x_real_time").of(trial(rtf=0.002)) == pytest.approx(500)
    assert objective("x_real_time").of(trial()) is None
    assert objective("x_real_time").of(trial(rtf=0.0)) == math.inf


def test_objective_takes_its_unit_from_the_metric():
    assert objective("rtf_ratio").unit == "x reference"
    assert objective("val_loss").unit == ""


def test_sign_turns_every_objective_into_a_minimum():
    assert objective("val_loss").sign == 1
    assert objective("x_real_time").sign == -1
    assert Objective("parameters", Goal.MAX).sign == -1


def test_limit_of_an_objective_bounds_its_worse_side():
    assert objective("rtf_ratio", limit=2).limits == (Limit("rtf_ratio", high=2),)
    assert objective("x_real_time", limit=100).limits == (Limit("x_real_time", low=100),)
    assert objective("rtf_ratio").limits == ()


@pytest.mark.parametrize("make", [objective, metric, Limit, lambda name: Objective(name, Goal.MIN)])
def test_misspelt_metric_is_refused_with_the_nearest_name(make):
    with pytest.raises(MetricError, match="no metric named 'val_los'") as caught:
        make("val_los")
    assert "did you mean 'val_loss'?" in caught.value.hint


def test_unknown_metric_is_refused_with_the_list_of_all():
    with pytest.raises(MetricError) as caught:
        objective("qqqq")
    assert all(name in caught.value.hint for name in KNOWN)


@pytest.mark.parametrize("text", ["rtf_ratio=2", " rtf_ratio = 2.0 ", "rtf_ratio=2e0"])
def test_limit_is_read_from_the_command_line(text):
    assert at_most(text) == Limit("rtf_ratio", high=2)
    assert at_least(text) == Limit("rtf_ratio", low=2)


@pytest.mark.parametrize("text", ["", "rtf_ratio", "rtf_ratio=", "rtf_ratio=fast", "rtf=nan"])
def test_limit_that_is_no_number_is_refused_with_an_example(text):
    for parse, option in ((at_most, "--max"), (at_least, "--min")):
        with pytest.raises(MetricError) as caught:
            parse(text)
        assert caught.value.hint == f"for example {option} rtf_ratio=2"


def test_limit_on_a_misspelt_metric_names_the_nearest():
    with pytest.raises(MetricError) as caught:
        at_most("rtf_ration=2")
    assert "did you mean 'rtf_ratio'?" in caught.value.hint


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (Limit("rtf_ratio", high=2), "rtf_ratio over 2"),
        (Limit("x_real_time", low=1000), "x_real_time under 1000"),
        (Limit("parameters", low=10, high=20), "parameters outside 10 to 20"),
    ],
)
def test_limit_says_what_it_excludes(limit, said):
    assert limit.excess() == said


def test_objectives_are_read_without_loading_numpy():
    code = "import sys, sweeps.objectives; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
