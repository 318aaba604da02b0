"""Plans of decoders: what they count is what is there, and what they call inactive is."""

import dataclasses
import inspect
import math
import typing
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thesis import reference
from thesis.architecture import (
    INPUTS,
    Add,
    Concat,
    Conv,
    Film,
    Gru,
    Node,
    Take,
    TransposedConv,
    centre_kernels,
    fold_batch_norm,
    initial_weights,
    inputs_seen,
    receptive_field,
)
from thesis.config import (
    DECODERS,
    DecoderConfig,
    DilatedConvStackConfig,
    RnnFcConfig,
    SynthConfig,
)

N_OUTPUTS = st.integers(1, 20)
CHOICES = {
    DilatedConvStackConfig: {
        "channels": (2, 3, 8),
        "layers_per_stack": (1, 2, 3),
        "stacks": (1, 2, 3),
        "kernel_size": (1, 2, 3, 4),
        "dilation_base": (1, 2, 3),
        "block": ("plain", "inverted_bottleneck"),
        "expansion": (1, 2, 3),
        "causal": (False, True),
        "norm": ("none", "frame", "batch", "time"),
        "resample": ("none", "downsample", "upsample"),
        "resample_stride": (2, 3, 8),
        "stacks_per_resample": (1, 2, 3),
        "resample_after_convolve": (False, True),
        "conditioning": ("none", "shift", "scale_and_shift"),
    },
    RnnFcConfig: {
        "rnn_channels": (1, 3, 8),
        "channels": (2, 3, 8),
        "layers_per_stack": (0, 1, 2),
    },
}


def network(config):
    """All that there is to a network: its layers, and which frames each convolution sees."""
    plan = config.plan(5)
    return [unaligned(node) for node in plan], [offsets(node) for node in plan]


def unaligned(node):
    return dataclasses.replace(node, dilation=1, lookahead=0) if isinstance(node, Conv) else node


def offsets(node):
    if not isinstance(node, Conv):
        return [0]
    before, _ = node.padding
    return [tap * node.dilation - before for tap in range(node.kernel_size)]


def variations(config, name):
    return [dataclasses.replace(config, **{name: value}) for value in CHOICES[type(config)][name]]


@given(config=st.from_type(DecoderConfig), n_outputs=N_OUTPUTS)
def test_parameters_are_counted_as_the_weights_that_are_there(config, n_outputs):
    weights = initial_weights(config.plan(n_outputs), seed=0)
    trained = {k: v for k, v in weights.items() if not k.endswith(("/mean", "/variance"))}
    assert config.parameter_count(n_outputs) == sum(array.size for array in trained.values())


@given(config=st.from_type(DecoderConfig), n_outputs=N_OUTPUTS)
def test_macs_are_one_for_each_kernel_weight_and_each_frame_that_it_is_used_on(config, n_outputs):
    plan = config.plan(n_outputs)
    periods = {INPUTS: 1} | {node.name: node.period for node in plan}
    weights = initial_weights(plan, seed=0)
    macs = 0
    for node in plan:
        kernels = [weights[name] for name in node.weight_shapes if name.endswith("kernel")]
        # A transposed kernel is used as a whole on each frame that goes in.
        transposed = isinstance(node, TransposedConv)
        every = periods[node.sources[0]] if transposed else node.period
        macs += Fraction(sum(kernel.size for kernel in kernels), every)
    assert config.macs_per_frame(n_outputs) == math.ceil(macs)


@given(
    ch=st.integers(1, 40),
    layers=st.integers(1, 5),
    stacks=st.integers(1, 5),
    k=st.integers(1, 7),
    n_outputs=N_OUTPUTS,
)
def test_counts_of_plain_decoders_have_a_closed_form(ch, layers, stacks, k, n_outputs):
    config = DilatedConvStackConfig(ch, layers, stacks, k)
    kernels = k * 2 * ch + layers * stacks * k * ch * ch + ch * n_outputs
    assert config.macs_per_frame(n_outputs) == kernels
    scales_and_shifts = 2 * ch * (1 + layers * stacks)
    assert config.parameter_count(n_outputs) == kernels + scales_and_shifts + n_outputs
    without_norm = dataclasses.replace(config, norm="none")
    assert without_norm.parameter_count(n_outputs) == kernels + scales_and_shifts // 2 + n_outputs


def test_every_field_is_varied_here():
    assert set(CHOICES) == set(DECODERS.values())
    for decoder, choices in CHOICES.items():
        assert set(choices) == {f.name for f in dataclasses.fields(decoder)}
        for name, hint in typing.get_type_hints(decoder).items():
            if typing.get_origin(hint) is typing.Literal:
                assert set(choices[name]) == set(typing.get_args(hint))


@given(config=st.from_type(DecoderConfig))
def test_an_inactive_parameter_makes_no_difference(config):
    for name in config.inactive_parameters():
        assert all(network(other) == network(config) for other in variations(config, name))


@given(config=st.from_type(DecoderConfig))
def test_every_other_parameter_makes_a_difference(config):
    for name in CHOICES[type(config)].keys() - config.inactive_parameters():
        assert any(network(other) != network(config) for other in variations(config, name))


@given(config=st.from_type(DecoderConfig))
def test_names_of_weights_are_unique(config):
    plan = config.plan(3)
    names = [name for node in plan for name in node.weight_shapes | node.moment_shapes]
    assert len(names) == len(set(names))


@given(config=st.from_type(DecoderConfig), n_outputs=N_OUTPUTS)
def test_a_plan_is_in_the_order_of_the_forward_pass_and_channels_and_rates_fit(config, n_outputs):
    channels, periods = {INPUTS: 2}, {INPUTS: 1}
    for node in config.plan(n_outputs):
        assert node.name not in channels
        taken = [(channels[source], periods[source]) for source in node.sources]
        if isinstance(node, Take):
            assert node.first + node.ch_out <= taken[0][0]
        if isinstance(node, Concat):
            assert sum(ch for ch, _ in taken) == node.ch_out
        expected = {
            Take: lambda n: [(channels[INPUTS], n.period)],
            Concat: lambda n: [(channels[source], n.period) for source in n.sources],
            Gru: lambda n: [(n.ch_in, n.period)],
            Conv: lambda n: [(n.ch_in, Fraction(n.period, n.stride))],
            TransposedConv: lambda n: [(n.ch_in, n.period * n.stride)],
            Film: lambda n: [(n.ch_out, n.period), (n.ch_in, 1)],
            Add: lambda n: [(n.ch_out, n.period)] * 2,
        }[type(node)](node)
        assert taken == expected
        channels[node.name], periods[node.name] = node.ch_out, node.period
    assert (channels[node.name], periods[node.name]) == (n_outputs, 1)


@given(config=st.from_type(DilatedConvStackConfig))
def test_padding_makes_a_frame_for_every_stride_begun(config):
    for conv in (node for node in config.plan(3) if isinstance(node, Conv)):
        before, after = conv.padding
        assert before >= 0
        assert after >= 0
        assert after == 0 or not config.causal
        for n_frames in range(1, 20):
            made = (before + n_frames + after - conv.reach - 1) // conv.stride + 1
            assert made == math.ceil(n_frames / conv.stride)


@given(config=st.from_type(DilatedConvStackConfig))
def test_conditioning_starts_as_what_it_stands_in_for(weights_of, config):
    plan = dataclasses.replace(config, conditioning="none").plan(5)
    weights = weights_of(plan)
    # What conditioning takes the place of, as it is when new.
    ends = {node.sources[1] for node in plan if isinstance(node, Add)}
    new = {
        f"{name}/{kind}": np.full_like(weights[f"{name}/{kind}"], kind == "scale")
        for name in ends
        for kind in ("bias", "scale", "shift")
        if f"{name}/{kind}" in weights
    }
    inputs = np.random.default_rng(0).normal(size=(20, 2))
    expected = reference.run(plan, weights | new, inputs)
    for conditioning in ("shift", "scale_and_shift"):
        conditioned = dataclasses.replace(config, conditioning=conditioning).plan(5)
        theirs = initial_weights(conditioned, seed=0)
        both = theirs | {name: value for name, value in weights.items() if name in theirs}
        np.testing.assert_allclose(reference.run(conditioned, both, inputs), expected)


# --- Resampling ---


def periods(**config):
    """Input frames for each frame of the blocks of three stacks of one layer each."""
    plan = DilatedConvStackConfig(4, 1, 3, **config).plan(5)
    by_name = {node.name: node.period for node in plan}
    return [by_name[f"block_{i}"] for i in range(3)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"resample": "none"}, [1, 1, 1]),
        ({"resample": "downsample"}, [1, 2, 4]),
        ({"resample": "downsample", "resample_after_convolve": False}, [2, 4, 8]),
        ({"resample": "downsample", "stacks_per_resample": 2}, [1, 1, 2]),
        ({"resample": "upsample"}, [8, 4, 2]),
        ({"resample": "upsample", "resample_after_convolve": False}, [4, 2, 1]),
        ({"resample": "upsample", "stacks_per_resample": 2}, [2, 2, 1]),
        # As many stacks as there are, and no factor beyond 64.
        ({"resample": "upsample", "stacks_per_resample": 9}, [2, 2, 2]),
        ({"resample": "downsample", "resample_stride": 8}, [1, 8, 64]),
        (
            {"resample": "downsample", "resample_stride": 8, "resample_after_convolve": False},
            [8, 64, 64],
        ),
    ],
    ids=str,
)
def test_each_stack_runs_at_its_own_rate(config, expected):
    assert periods(**config) == expected


def test_new_weights_are_glorot_uniform_and_follow_the_seed():
    plan = DilatedConvStackConfig(channels=64).plan(126)
    weights = initial_weights(plan, seed=3)
    kernel = weights["block_0/kernel"]
    limit = np.sqrt(6 / (3 * 64 + 3 * 64))
    assert 0.99 * limit < abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.02)
    assert (weights["block_0/scale"] == 1).all()
    assert not weights["block_0/shift"].any()
    assert not weights["output/bias"].any()
    np.testing.assert_array_equal(kernel, initial_weights(plan, seed=3)["block_0/kernel"])
    assert (kernel != initial_weights(plan, seed=4)["block_0/kernel"]).any()


def test_new_recurrent_kernels_are_orthogonal_and_glorot_uniform():
    weights = initial_weights(RnnFcConfig(rnn_channels=32).plan(126), seed=3)
    recurrent = weights["rnn/recurrent_kernel"]
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(32), atol=1e-6)
    kernel = weights["rnn/kernel"]
    limit = np.sqrt(6 / sum(kernel.shape))
    assert 0.99 * limit < abs(kernel).max() <= limit
    assert not weights["rnn/bias"].any()


def test_new_running_moments_are_those_of_what_is_normed_already():
    weights = initial_weights(DilatedConvStackConfig(norm="batch").plan(5), seed=0)
    assert not weights["block_0/mean"].any()
    assert (weights["block_0/variance"] == 1).all()


# --- Batch norm, folded ---


@settings(max_examples=40)
@given(config=st.from_type(DilatedConvStackConfig), seed=st.integers(0, 99))
def test_a_folded_batch_norm_is_the_same_function(weights_of, config, seed):
    plan = dataclasses.replace(config, norm="batch").plan(5)
    weights = weights_of(plan, seed)
    inputs = np.random.default_rng(seed).normal(size=(30, 2))
    expected = reference.run(plan, weights, inputs)
    folded, rest = fold_batch_norm(plan, weights)
    outputs = reference.run(folded, rest, inputs)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5 * max(1, abs(expected).max()))
    assert [node.name for node in folded] == [node.name for node in plan]
    assert not any(node.moment_shapes for node in folded)
    assert {name: array.shape for name, array in rest.items()} == {
        name: shape for node in folded for name, shape in node.weight_shapes.items()
    }


@given(config=st.from_type(DilatedConvStackConfig).filter(lambda config: config.norm != "batch"))
def test_other_norms_are_left_as_they_are(weights_of, config):
    plan = config.plan(5)
    weights = weights_of(plan)
    folded, rest = fold_batch_norm(plan, weights)
    assert (folded, rest.keys()) == (plan, weights.keys())
    assert all(rest[name] is weights[name] for name in weights)


@given(config=st.from_type(DecoderConfig), seed=st.integers(0, 1000))
def test_centred_kernels_are_the_same_function_and_leave_no_mean_to_take_out(
    weights_of, assert_equals_twin, config, seed
):
    plan = config.plan(5)
    weights = weights_of(plan, seed)
    inputs = np.random.default_rng(seed).normal(size=(30, 2))
    centred = centre_kernels(plan, weights)
    assert_equals_twin(reference.run(plan, centred, inputs), inputs, weights, config)
    for node in plan:
        for name, shape in node.weight_shapes.items():
            assert centred[name].shape == shape
            if getattr(node, "centred", False) and name.endswith(("kernel", "bias")):
                np.testing.assert_allclose(centred[name].mean(-1), 0, atol=1e-7)
            else:
                assert centred[name] is weights[name]


# --- What an output sees ---


def test_what_is_seen_spans_all_ways_through_the_graph():
    plan = (
        Conv("back", (INPUTS,), 2, 2, 4),
        Conv("ahead", (INPUTS,), 2, 2, 3, dilation=5, lookahead=10),
        Add("sum", ("back", "ahead"), 2),
        Conv("last", ("sum",), 1, 2, 2, lookahead=1),
    )
    assert inputs_seen(plan, 100) == (97, 111)


@given(config=st.from_type(DilatedConvStackConfig))
def test_without_resampling_what_is_seen_has_a_closed_form(config):
    config = dataclasses.replace(config, resample="none")
    taps = config.kernel_size - 1
    reaches = [taps] + [taps * dilation for dilation in config.dilations]
    if config.norm == "time":
        assert (config.receptive_field_frames, config.lookahead_frames) == (None, None)
        assert not config.streamable
        return
    assert config.receptive_field_frames == 1 + sum(reaches)
    assert config.lookahead_frames == (0 if config.causal else sum(r // 2 for r in reaches))
    assert config.streamable == (config.lookahead_frames == 0)


def frames_seen(config, weights, outputs, inputs):
    """Which of the input frames each output frame depends on: NaN there is NaN here.

    Unlike a small change, NaN passes a ReLU and is never rounded away, whatever the weights.
    """
    clip = np.random.default_rng(0).normal(size=(inputs.stop + 1, 2))
    seen = {frame: [] for frame in outputs}
    for frame in inputs:
        spoiled = clip.copy()
        spoiled[frame] = np.nan
        reached = np.isnan(reference.decode(spoiled, weights, config)).all(axis=1)
        for output in outputs:
            seen[output] += [frame] * bool(reached[output])
    return seen


SMALL = st.from_type(DilatedConvStackConfig).filter(
    lambda config: config.norm != "time" and config.receptive_field_frames <= 40
)


@settings(max_examples=40)
@given(config=SMALL)
def test_what_is_seen_is_what_an_output_depends_on(weights_of, config):
    plan = config.plan(3)
    field, ahead = config.receptive_field_frames, config.lookahead_frames
    cycle = max(node.period for node in plan)
    first = cycle * math.ceil(field / cycle)
    outputs = range(first, first + cycle)
    inputs = range(first - field, outputs.stop + ahead + 1)
    seen = frames_seen(config, weights_of(plan), outputs, inputs)
    # From first to last: where the dilation outgrows the kernel there are gaps between them.
    spans = {frame: (frames[0], frames[-1]) for frame, frames in seen.items()}
    assert spans == {frame: inputs_seen(plan, frame) for frame in outputs}
    assert field == max(last - first for first, last in spans.values()) + 1
    assert ahead == max(last - frame for frame, (_, last) in spans.items())
    assert config.streamable == (ahead == 0)
    if config.causal:
        assert config.streamable


@given(config=st.from_type(RnnFcConfig), at=st.integers(0, 9))
def test_a_recurrent_decoder_sees_all_frames_before_and_none_after(weights_of, config, at):
    assert (config.receptive_field_frames, config.lookahead_frames) == (None, 0)
    assert config.streamable
    weights = weights_of(config.plan(3))
    seen = frames_seen(config, weights, outputs=range(10), inputs=range(10))
    assert seen[at] == list(range(at + 1))


def test_an_unbounded_field_stays_unbounded_through_any_layer():
    plan = (
        Conv("down", (INPUTS,), 2, 2, 4, stride=2, period=2),
        Gru("rnn", ("down",), 3, 2, period=2),
        TransposedConv("up", ("rnn",), 2, 3, 2),
        Conv("last", ("up",), 1, 2, 3, lookahead=1),
    )
    assert inputs_seen(plan, 101) == (-math.inf, 102)
    assert receptive_field(plan) == (None, 1)


# --- Three implementations ---


def kinds_of(base):
    """Every class below this one that a plan may hold."""
    every = {kind for child in base.__subclasses__() for kind in {child, *kinds_of(child)}}
    return {kind for kind in every if not inspect.isabstract(kind)}


SMALLEST = {
    Conv: (Conv("x", (INPUTS,), 3, 2, 3, 2),),
    TransposedConv: (
        Conv("half", (INPUTS,), 3, 2, 2, stride=2, period=2),
        TransposedConv("x", ("half",), 3, 3, 2),
    ),
    Film: (Film("x", (INPUTS, INPUTS), 2, 2),),
    Add: (Add("x", (INPUTS, INPUTS), 2),),
    Take: (Take("x", (INPUTS,), 1, 1),),
    Concat: (Concat("x", (INPUTS, INPUTS), 4),),
    Gru: (Gru("x", (INPUTS,), 3, 2),),
}
"""The smallest plan with a node of each kind, but for its output layer."""


@dataclasses.dataclass(frozen=True)
class OfNodes(DilatedConvStackConfig):
    """A decoder of any nodes."""

    nodes: tuple[Node, ...] = ()

    def plan(self, n_outputs):
        last = self.nodes[-1]
        return (*self.nodes, Conv("output", (last.name,), n_outputs, last.ch_out))


@pytest.mark.parametrize("kind", sorted(kinds_of(Node), key=lambda kind: kind.__name__))
def test_every_kind_of_node_is_the_same_in_tensorflow_onnx_and_numpy(kind, export):
    from thesis.decoder import Decoder
    from thesis.runtimes.onnx_runtime import Session

    assert kind in SMALLEST, "give a plan that holds it"
    config, synth = OfNodes(nodes=SMALLEST[kind]), SynthConfig(n_harmonics=2, n_noise_bands=3)
    assert kind in map(type, config.nodes)
    exported, weights = export(config, synth)
    inputs = np.random.default_rng(0).uniform(0, 1, (9, 2)).astype(np.float32)
    expected = reference.decode(inputs, weights, config)

    decoder = Decoder(config, synth.n_outputs)
    for name, weight in decoder.weights.items():
        weight.assign(weights[name])
    np.testing.assert_allclose(decoder(inputs[None])[0], expected, atol=1e-5)
    np.testing.assert_allclose(Session(exported).decode(inputs[None])[0], expected, atol=1e-5)
