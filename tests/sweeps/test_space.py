"""The search space: canonical candidates, domains that hold what they draw, one line for errors."""

import dataclasses
import hashlib
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.config import find_run, load_run
from sweeps.errors import SpaceError
from sweeps.space import Axis, Choice, Range, SearchSpace, make_space
from sweeps.trial import Candidate
from thesis.config import (
    REFERENCE_DECODER,
    DilatedConvStackConfig,
    MeasureConfig,
    ModelConfig,
    RnnFcConfig,
    SynthConfig,
    TrainConfig,
    stages_of,
)

BASE = ModelConfig(REFERENCE_DECODER, SynthConfig(), TrainConfig(), MeasureConfig())

CHOICES = {
    "DilatedConvStack.channels": (2, 8),
    "DilatedConvStack.layers_per_stack": (1, 3),
    "DilatedConvStack.kernel_size": (1, 2, 3),
    "DilatedConvStack.dilation_base": (1, 2, 3),
    "DilatedConvStack.block": ("plain", "inverted_bottleneck"),
    "DilatedConvStack.expansion": (2, 4),
    "DilatedConvStack.causal": (False, True),
    "train.batch_size": (2, 8),
    "Synth.n_harmonics": (20, 60),
}

SPACE = make_space(CHOICES, BASE)

POINTS = st.fixed_dictionaries({a.name: st.sampled_from(a.domain.values) for a in SPACE.axes})

RANGES = st.one_of(
    st.tuples(st.integers(-50, 50), st.integers(1, 100)).map(lambda p: Range(p[0], p[0] + p[1])),
    st.tuples(st.integers(1, 50), st.integers(1, 100)).map(
        lambda p: Range(p[0], p[0] + p[1], log=True)
    ),
    st.tuples(st.floats(-10, 10), st.floats(0.1, 10)).map(lambda p: Range(p[0], p[0] + p[1])),
    st.tuples(st.floats(1e-6, 10), st.floats(1.1, 1e6)).map(
        lambda p: Range(p[0], p[0] * p[1], log=True)
    ),
)


def inactive_names(config):
    return config.decoder.inactive_parameters()


# --- Candidates ---


@given(point=POINTS)
def test_a_candidate_builds_what_its_values_say(point):
    candidate = SPACE.candidate(point)
    stages = stages_of(SPACE.config(candidate))
    inactive = inactive_names(SPACE.config(candidate))
    for axis in SPACE.axes:
        stage, _, parameter = axis.binding.rpartition(".")
        if axis.name not in inactive:
            assert getattr(stages[stage], parameter) == point[axis.name] == candidate[axis.name]


@given(point=POINTS)
def test_axes_that_make_no_difference_are_left_out(point):
    candidate = SPACE.candidate(point)
    left_out = point.keys() - dict(candidate.values).keys()
    assert left_out == inactive_names(SPACE.config(candidate)) & point.keys()


@given(point=POINTS, other=POINTS)
def test_settings_that_differ_in_inactive_axes_only_are_one_candidate(point, other):
    inactive = inactive_names(SPACE.config(Candidate.of(point)))
    moved = {name: other[name] if name in inactive else point[name] for name in point}
    assert SPACE.candidate(moved) == SPACE.candidate(point)
    assert SPACE.candidate(moved).id == SPACE.candidate(point).id


@given(point=POINTS, other=POINTS)
def test_settings_that_differ_in_anything_else_are_two_candidates(point, other):
    inactive = inactive_names(SPACE.config(Candidate.of(point)))
    if any(point[name] != other[name] for name in point.keys() - inactive):
        assert SPACE.candidate(point).id != SPACE.candidate(other).id


@given(point=POINTS)
def test_the_order_of_values_makes_no_difference(point):
    backwards = dict(reversed(point.items()))
    assert SPACE.candidate(backwards) == SPACE.candidate(point)


def test_an_id_is_a_checksum_of_the_values_and_nothing_else():
    space = make_space({"DilatedConvStack.channels": (2, 8), "train.steps": (10, 300)}, BASE)
    checksum = hashlib.sha256(b'{"channels":8,"steps":300}').hexdigest()
    assert checksum.startswith(space.baseline().id)
    assert len(space.baseline().id) >= 10


@given(point=POINTS)
def test_a_candidate_made_again_from_its_own_configuration_is_the_same(point):
    candidate = SPACE.candidate(point)
    config = SPACE.config(candidate)
    again = SearchSpace(SPACE.axes, config).baseline()
    assert again == candidate


@pytest.mark.parametrize("name", ["channels", "batch_size"])
def test_a_missing_value_is_named(name):
    point = {a.name: a.domain.values[0] for a in SPACE.axes if a.name != name}
    with pytest.raises(SpaceError, match=f"no value for axis '{name}'"):
        SPACE.candidate(point)


def test_an_unknown_axis_is_named_with_the_nearest():
    point = {a.name: a.domain.values[0] for a in SPACE.axes}
    with pytest.raises(SpaceError, match="no axis named 'chanels'") as caught:
        SPACE.candidate(point | {"chanels": 8})
    assert "did you mean 'channels'" in caught.value.hint


@pytest.mark.parametrize("value", [3, 8.5, "8", None])
def test_a_value_outside_the_domain_is_named(value):
    point = {a.name: a.domain.values[0] for a in SPACE.axes}
    with pytest.raises(SpaceError, match="axis 'channels' has no value") as caught:
        SPACE.candidate(point | {"channels": value})
    assert "2, 8" in caught.value.hint


# --- All of them ---


def test_a_finite_space_lists_each_candidate_once_and_misses_none():
    listed = list(SPACE.candidates())
    assert len(listed) == len(set(listed)) == len({c.id for c in listed})
    rng = random.Random(0)
    assert {SPACE.sample(rng) for _ in range(300)} <= set(listed)
    # One layer knows no dilation base; kernel 1 no causality either, kernel 2 not undilated.
    of_kernel_1, of_kernel_2, of_kernel_3 = 1 + 1, 1 + 1 + 2 * 2, 2 + 3 * 2
    blocks = 1 + 2  # plain, or a bottleneck with one of two expansions
    assert len(listed) == (of_kernel_1 + of_kernel_2 + of_kernel_3) * blocks * 2 * 2 * 2


def test_candidates_come_in_the_same_order_every_time():
    assert list(SPACE.candidates()) == list(SPACE.candidates())


def test_a_space_with_a_range_has_no_list():
    axes = {"DilatedConvStack.channels": (2, 4), "train.learning_rate": {"low": 1e-4, "high": 1e-2}}
    assert make_space(axes, BASE).candidates() is None
    assert make_space(axes, BASE).n_settings is None


def test_settings_are_counted_without_going_through_them():
    assert SPACE.n_settings == math.prod(len(axis.domain.values) for axis in SPACE.axes)
    assert SPACE.n_settings > len(list(SPACE.candidates()))
    axes = {f"DilatedConvStack.{name}": tuple(range(1, 13)) for name in ("stacks", "channels")}
    axes |= {"train.seed": tuple(range(2000)), "train.steps": tuple(range(2000))}
    assert make_space(axes, BASE).n_settings == 144 * 2000**2


def test_the_base_is_a_candidate_where_the_axes_hold_it():
    assert SPACE.config(SPACE.baseline()) == BASE
    without = make_space({"DilatedConvStack.channels": (2, 4)}, BASE)
    assert without.baseline() is None
    ranged = make_space({"train.learning_rate": {"low": 1e-4, "high": 1e-2}}, BASE)
    assert ranged.baseline() == Candidate.of({"learning_rate": 3e-3})


@pytest.mark.parametrize("run", ["tiny", "demo"])
def test_the_shipped_spaces_hold_ddsp_cnn_tiny(run):
    space = load_run(find_run(run)).space
    assert space.config(space.baseline()).decoder == REFERENCE_DECODER


# --- Domains ---


@given(domain=RANGES, seed=st.integers(0, 10**6))
def test_a_range_holds_what_it_draws(domain, seed):
    value = domain.sample(random.Random(seed))
    assert value in domain
    assert domain.low <= value <= domain.high
    assert isinstance(value, int) == domain.integer


@given(domain=RANGES)
def test_a_range_holds_its_ends_and_nothing_beyond(domain):
    assert domain.low in domain
    assert domain.high in domain
    for value in (domain.low - 1, domain.high + 1, math.nan, "1", None, True):
        assert value not in domain


def test_a_range_of_whole_numbers_holds_no_fraction():
    assert 2.5 not in Range(1, 8)
    assert 2.0 not in Range(1, 8)
    assert 2.5 in Range(1.0, 8)
    assert 2 in Range(1.0, 8)


@pytest.mark.parametrize("log", [False, True])
def test_the_ends_of_a_range_of_whole_numbers_have_their_full_share(log):
    rng, domain = random.Random(0), Range(1, 4, log)
    drawn = Counter(domain.sample(rng) for _ in range(20_000))
    widths = [math.log((n + 0.5) / (n - 0.5)) if log else 1.0 for n in (1, 2, 3, 4)]
    for n, width in zip((1, 2, 3, 4), widths, strict=True):
        assert drawn[n] / 20_000 == pytest.approx(width / sum(widths), abs=0.015)


def test_a_logarithmic_range_gives_each_decade_its_share():
    rng, domain = random.Random(0), Range(1e-4, 1e-1, log=True)
    decades = Counter(math.floor(math.log10(domain.sample(rng))) for _ in range(9000))
    assert set(decades) == {-4, -3, -2}
    assert min(decades.values()) > 2700


def test_every_choice_is_drawn_equally_often():
    rng, domain = random.Random(0), Choice(("a", "b", 3))
    drawn = Counter(domain.sample(rng) for _ in range(9000))
    assert set(drawn) == {"a", "b", 3}
    assert min(drawn.values()) > 2700


def test_a_seed_gives_the_same_candidates():
    first, second = random.Random(7), random.Random(7)
    assert [SPACE.sample(first) for _ in range(20)] == [SPACE.sample(second) for _ in range(20)]


# --- Errors ---


def assert_refused(axes, message, hint=""):
    with pytest.raises(SpaceError, match=message) as caught:
        make_space(axes, BASE)
    assert "\n" not in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "domain",
    [
        (),
        "plain",
        (8, 8),
        ((2,), (4,)),
        (None, 2),
        8,
        {"low": 2},
        {"low": 8, "high": 2},
        {"low": 2, "high": 2},
        {"low": 0, "high": 2, "log": True},
        {"low": 2, "high": 8, "step": 2},
        {"low": "2", "high": 8},
        {"low": 2, "high": math.inf},
        {"low": -math.inf, "high": 2},
        {"low": math.nan, "high": 2},
        {"low": False, "high": True},
        {"low": 2, "high": 8, "log": "no"},
        {"low": 2, "high": 8, "log": 1},
        (2, math.inf),
        (2, math.nan),
        b"ab",
    ],
    ids=repr,
)
def test_a_domain_that_cannot_be_read_is_one_line(domain):
    assert_refused({"DilatedConvStack.channels": domain}, "cannot be read", "'log': True")


@pytest.mark.parametrize(
    ("binding", "nearest"),
    [
        ("DilatedConvStack.chanels", "DilatedConvStack.channels"),
        ("Dilated.channels", "DilatedConvStack.channels"),
        ("channels", ""),
        ("", ""),
        ("sweep.seed", ""),
        (7, ""),
        (("train.seed",), ""),
        ("Dilated\nConv.channels", ""),
    ],
)
def test_an_axis_that_binds_nothing_is_one_line(binding, nearest):
    assert_refused({binding: (2, 4)}, "names no parameter", nearest)


def test_an_axis_of_a_decoder_that_is_not_in_use_is_one_line():
    wanted = "'RnnFc.channels' reaches nothing: the decoder is DilatedConvStack"
    assert_refused({"RnnFc.channels": (2, 4)}, wanted, "model.decoder = @RnnFc()")


def test_an_axis_of_a_recurrent_decoder_that_makes_no_difference_is_left_out():
    axes = {"RnnFc.channels": (2, 4), "RnnFc.layers_per_stack": (0, 1), "Synth.n_harmonics": (5,)}
    space = make_space(axes, dataclasses.replace(BASE, decoder=RnnFcConfig(4)))
    without = space.candidate({"channels": 4, "layers_per_stack": 0, "n_harmonics": 5})
    assert dict(without.values) == {"layers_per_stack": 0, "n_harmonics": 5}
    assert len(list(space.candidates())) == 3
    assert space.config(without).decoder == RnnFcConfig(4, layers_per_stack=0)


@pytest.mark.parametrize(
    ("binding", "domain"),
    [
        ("DilatedConvStack.channels", (8, 0)),
        ("DilatedConvStack.channels", (8, 8.5)),
        ("DilatedConvStack.block", ("plain", "fancy")),
        ("train.learning_rate", {"low": 1e-3, "high": 100.0}),
        ("DilatedConvStack.channels", {"low": 1.0, "high": 8.0}),
        ("train.steps", {"low": 1, "high": 10**400}),
        ("train.seed", (2**63, 10**400)),
    ],
)
def test_a_value_that_the_parameter_refuses_is_one_line(binding, domain):
    assert_refused({binding: domain}, "outside its range", binding.rpartition(".")[2])


def test_two_axes_of_one_name_are_refused():
    axes = {"train.seed": (0, 1), "DilatedConvStack.channels": (2, 4)}
    twice = SearchSpace((Axis("a.seed", Choice((1,))), Axis("b.seed", Choice((1,)))), BASE)
    assert [axis.name for axis in twice.axes] == ["seed", "seed"]
    make_space(axes, BASE)
    assert_refused(axes | {"measure.seed": (0, 1)}, "two axes are named 'seed'")


def test_a_candidate_may_be_anybodys():
    space = make_space(
        {"DilatedConvStack.channels": (2, 4), "train.learning_rate": {"low": 1e-3, "high": 1.0}},
        BASE,
    )
    assert space.holds(Candidate.of({"channels": 4, "learning_rate": 0.5}))
    assert space.holds(Candidate.of({"channels": 4}))
    for name, value in (
        ("channelz", 4), ("channels", 3), ("channels", "4"), ("channels", math.nan),
        ("learning_rate", 2.0), ("learning_rate", math.nan), ("learning_rate", "0.5"),
    ):  # fmt: skip
        assert not space.holds(Candidate.of({name: value}))


def test_a_space_without_axes_is_refused():
    assert_refused({}, "no axes", "gin/spaces")


def test_a_default_decoder_needs_no_gin():
    assert SPACE.config(SPACE.baseline()).decoder == DilatedConvStackConfig()
