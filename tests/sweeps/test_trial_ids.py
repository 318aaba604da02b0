import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.trial_ids import TrialIds, first_of_each

ids = st.integers(0, 16**12 - 1).map("{:012x}".format)
sets = st.sets(ids, max_size=20)


@given(sets, sets)
def test_ids_are_a_set_as_any_other(a, b):
    ours = TrialIds.of(a)
    assert (len(ours), set(ours), sorted(ours)) == (len(a), a, list(ours))
    assert ours == a
    assert all((trial_id in ours) == (trial_id in a) for trial_id in a | b)
    assert (ours | TrialIds.of(b), ours & b, ours - b) == (a | b, a & b, a - b)
    assert (ours <= b, b <= ours) == (a <= b, b <= a)
    assert pickle.loads(pickle.dumps(ours)) == a


@given(sets, st.text("0123456789abcdefg", max_size=13))
def test_ids_that_begin_so_are_those_that_do(a, prefix):
    a |= {
        prefix[:12].ljust(12, "0").replace("g", "f"),
        prefix[:12].ljust(12, "f").replace("g", "f"),
    }
    assert TrialIds.of(a).beginning(prefix) == {i for i in a if i.startswith(prefix)}


@pytest.mark.parametrize("other", ["", "abc", "ABCDEFABCDEF", "0" * 13, 7, None])
def test_what_is_no_id_is_in_no_set(other):
    assert other not in TrialIds.of(["0" * 12])
    assert other not in TrialIds()


@given(st.lists(st.integers(0, 9)))
def test_first_of_each_is_where_a_number_was_not_met_before(numbers):
    expected = [number not in numbers[:place] for place, number in enumerate(numbers)]
    assert first_of_each(np.array(numbers, np.uint64)).tolist() == expected


def test_an_id_takes_eight_bytes():
    numbers = np.arange(1_000, dtype=np.uint64)
    assert TrialIds(numbers, numbers[::2]).numbers.nbytes == 8_000
