import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.breaker import ALIKE, MAX_DEATHS, Breaker
from sweeps.trial import Candidate, Reason

CRASHED, ERROR, OOM = Reason.CRASHED, Reason.ERROR, Reason.OUT_OF_MEMORY


def channels(number):
    return Candidate.of({"channels": number})


@pytest.fixture
def breaker():
    return Breaker()


def test_candidates_that_fail_alike_are_a_fault_of_what_they_run_on(breaker):
    for number in range(ALIKE):
        assert breaker.fault is None
        breaker.failed(channels(number), f"ValueError: no luck with {number}", ERROR)
    fault = breaker.fault
    assert (fault.cause, fault.reason) == (f"ValueError: no luck with {ALIKE - 1}", ERROR)
    assert fault.candidates == ALIKE


def test_failures_of_different_kinds_are_no_fault(breaker):
    for number, said in enumerate(["no luck", "no time", "no money"]):
        breaker.failed(channels(number), f"ValueError: {said}", ERROR)
        breaker.failed(channels(number), f"KeyError: {said}", ERROR)
    assert breaker.fault is None


def test_one_candidate_is_never_enough(breaker):
    for _ in range(MAX_DEATHS):
        breaker.died(channels(1), "killed", CRASHED)
    breaker.gave_up(channels(1), "killed", CRASHED)
    assert breaker.fault is None
    breaker.died(channels(2), "killed", CRASHED)
    assert breaker.fault.candidates == 2


def test_two_candidates_that_kill_more_workers_than_one_may_are_enough(breaker):
    for number in (1, 2, 1):
        breaker.died(channels(number), "killed", CRASHED)
    assert breaker.fault is None
    breaker.died(channels(2), "killed", CRASHED)
    assert breaker.fault


def test_a_worker_that_dies_while_it_trains_may_have_been_killed_from_without(breaker):
    for number in range(9):
        breaker.reached(channels(number), 0.1)
        breaker.died(channels(number), "killed", CRASHED)
    assert breaker.fault is None
    for number in (1, 2):
        breaker.gave_up(channels(number), "killed", CRASHED)
    assert breaker.fault


def test_of_those_that_are_killed_for_memory_only_who_takes_it_is_counted(breaker):
    for number in range(9):
        breaker.died(channels(number), "running low on memory", OOM)
    assert breaker.fault is None
    breaker.gave_up(channels(1), "running low on memory", OOM)
    assert breaker.fault is None
    breaker.gave_up(channels(2), "running low on memory", OOM)
    assert breaker.fault


def test_a_trial_that_gets_further_speaks_for_the_launch(breaker):
    for number in range(ALIKE):
        breaker.reached(channels(number), 0.5)
        breaker.failed(channels(number), "no", ERROR)
    breaker.reached(channels(10), 0.5)
    assert breaker.fault
    breaker.reached(channels(10), 0.6)
    assert breaker.fault is None
    for number in (10, 11, 12):  # those that get furthest fail alike, too
        breaker.reached(channels(number), 0.6)
        breaker.failed(channels(number), "neither", ERROR)
    assert breaker.fault.cause == "neither"


def test_a_trial_that_works_settles_it(breaker):
    breaker.worked()
    for number in range(9):
        breaker.failed(channels(number), "no", ERROR)
        breaker.gave_up(channels(number), "killed", CRASHED)
    assert breaker.fault is None


@pytest.mark.parametrize(
    "said",
    [
        "RuntimeError: at 0x{:x} in process {} (fakes.py, line 7)",
        "OSError: /runs/s/work/{:012x}/step and /tmp/{}",
        "ValueError: no place for '{:x}' and \"{}\"",
        "cannot build Candidate(values=(('a', {}), ('b', 'x'))) of {}",
        "InvalidArgumentError: shape [{}, {}] [Op:Conv2D]",
        "worker {:012x} of node {:040x} has died",
        "loss {}e-3, {}",
    ],
)
@given(numbers=st.lists(st.integers(10**6, 2**40), min_size=2 * ALIKE, max_size=2 * ALIKE))
def test_numbers_names_and_addresses_make_no_difference(said, numbers):
    breaker = Breaker()
    for candidate in range(ALIKE):
        two = numbers[2 * candidate : 2 * candidate + 2]
        breaker.failed(channels(candidate), said.format(*two), ERROR)
    assert breaker.fault


@given(st.lists(st.text(max_size=60), min_size=1))
def test_whatever_crashes_say_there_is_an_answer(causes):
    breaker = Breaker()
    for number, cause in enumerate(causes):
        breaker.failed(channels(number), cause, ERROR)
    assert breaker.fault is None or len(causes) >= ALIKE
