import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.errors import SweepError
from sweeps.resources import LEAST, check_resources, resolved


def check(cpus=1.0, gpus=0.0, most=None, address=None, *, machine=None):
    check_resources(cpus, gpus, most, address, cpus=machine)


@pytest.mark.parametrize("cpus", [0, -1, -math.inf, math.inf, math.nan, 1e-9])
def test_a_trial_asks_for_some_cpus(cpus):
    with pytest.raises(SweepError, match=r"a trial cannot ask for .* CPUs") as caught:
        check(cpus)
    assert "--cpus-per-trial" in caught.value.hint


@pytest.mark.parametrize("gpus", [-1, -0.5, -math.inf, math.inf, math.nan, 1e-9, 1.5])
def test_a_trial_asks_for_no_gpu_or_a_share_of_one_or_whole_ones(gpus):
    with pytest.raises(SweepError, match=r"a trial cannot ask for .* GPUs") as caught:
        check(gpus=gpus)
    assert "--gpus-per-trial" in caught.value.hint


@given(st.floats(LEAST, 1e6), st.one_of(st.floats(LEAST, 1), st.integers(0, 1000)))
def test_what_makes_sense_is_taken_wherever_the_trials_run(cpus, gpus):
    check(cpus, gpus, most=1, address="head:6379")


@pytest.mark.parametrize("most", [0, -1])
def test_a_launch_that_may_run_nothing_is_refused(most):
    with pytest.raises(SweepError, match="no trial runs"):
        check(most=most)


def test_a_trial_that_is_larger_than_this_machine_is_refused_where_there_is_no_other():
    check(2, machine=2)
    with pytest.raises(SweepError, match="asks for 3 CPUs, this machine has 2"):
        check(3, machine=2)
    check(3)


@pytest.mark.parametrize(
    "address", ["auto", "head:6379", "10.0.0.1:6379", "[::1]:6379", "ray://head:10001"]
)
def test_addresses_of_clusters_are_taken(address):
    check(address=address)


@pytest.mark.parametrize(
    "address",
    [
        "", " ", "local", "head", "head:", ":6379", "ray://", "ray://head", "ray://:10001",
        "http://head:80", "head:0", "head:65536", "head:-1", "head:6379/x", "me:secret@head:6379",
        "ray://head:10001?x=1", "a b:1", "head:6379\n",
    ],
)  # fmt: skip
def test_what_leads_to_no_cluster_is_refused(address):
    with pytest.raises(SweepError, match="is no address of a Ray cluster") as caught:
        check(address=address)
    assert "host:port" in caught.value.hint


def test_auto_is_what_the_environment_says(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert resolved("auto") == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert resolved("auto") == "ray://head:10001"
    assert resolved("other:6379") == "other:6379"
    assert resolved(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(SweepError, match="'local' is no address"):
        check(address="auto")
