"""Plans of decoders: what they count is what is there, and what they call inactive is."""

import dataclasses
import typing

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from thesis.architecture import convs_of, initial_weights
from thesis.config import DecoderConfig

N_OUTPUTS = st.integers(1, 20)
CHOICES = {
    "channels": (2, 3, 8),
    "layers_per_stack": (1, 2, 3),
    "stacks": (1, 2, 3),
    "kernel_size": (1, 2, 3, 4),
    "dilation_base": (1, 2, 3),
    "block": ("plain", "inverted_bottleneck"),
    "expansion": (1, 2, 3),
    "causal": (False, True),
    "norm": ("none", "frame"),
}


def network(config):
    """All that there is to a network: its blocks, and which frames each convolution sees."""
    plan = config.blocks(5)
    undilated = [[dataclasses.replace(conv, dilation=1) for conv in block.convs] for block in plan]
    return undilated, [b.residual for b in plan], [offsets(c, config) for c in convs_of(plan)]


def offsets(conv, config):
    before, _ = conv.padding(config.causal)
    return [tap * conv.dilation - before for tap in range(conv.kernel_size)]


def variations(config, name):
    return [dataclasses.replace(config, **{name: value}) for value in CHOICES[name]]


@given(config=st.from_type(DecoderConfig), n_outputs=N_OUTPUTS)
def test_parameters_are_counted_as_the_weights_that_are_there(config, n_outputs):
    weights = initial_weights(config.blocks(n_outputs), seed=0)
    assert config.parameter_count(n_outputs) == sum(array.size for array in weights.values())


@given(config=st.from_type(DecoderConfig), n_outputs=N_OUTPUTS)
def test_macs_are_one_for_each_kernel_weight(config, n_outputs):
    weights = initial_weights(config.blocks(n_outputs), seed=0)
    kernels = [array for name, array in weights.items() if name.endswith("/kernel")]
    assert config.macs_per_frame(n_outputs) == sum(array.size for array in kernels)


@given(
    ch=st.integers(1, 40),
    layers=st.integers(1, 5),
    stacks=st.integers(1, 5),
    k=st.integers(1, 7),
    n_outputs=N_OUTPUTS,
)
def test_counts_of_plain_decoders_have_a_closed_form(ch, layers, stacks, k, n_outputs):
    config = DecoderConfig(ch, layers, stacks, k)
    kernels = k * 2 * ch + layers * stacks * k * ch * ch + ch * n_outputs
    assert config.macs_per_frame(n_outputs) == kernels
    scales_and_shifts = 2 * ch * (1 + layers * stacks)
    assert config.parameter_count(n_outputs) == kernels + scales_and_shifts + n_outputs
    without_norm = dataclasses.replace(config, norm="none")
    assert without_norm.parameter_count(n_outputs) == kernels + scales_and_shifts // 2 + n_outputs


def test_every_field_is_varied_here():
    assert set(CHOICES) == {f.name for f in dataclasses.fields(DecoderConfig)}
    hints = typing.get_type_hints(DecoderConfig)
    for name in ("block", "norm"):
        assert set(CHOICES[name]) == set(typing.get_args(hints[name]))


@given(config=st.from_type(DecoderConfig))
def test_an_inactive_parameter_makes_no_difference(config):
    for name in config.inactive_parameters():
        assert all(network(other) == network(config) for other in variations(config, name))


@given(config=st.from_type(DecoderConfig))
def test_every_other_parameter_makes_a_difference(config):
    for name in CHOICES.keys() - config.inactive_parameters():
        assert any(network(other) != network(config) for other in variations(config, name))


@given(config=st.from_type(DecoderConfig))
def test_names_of_weights_are_unique(config):
    names = [name for conv in convs_of(config.blocks(3)) for name in conv.weight_shapes]
    assert len(names) == len(set(names))


@given(config=st.from_type(DecoderConfig))
def test_padding_keeps_the_length(config):
    for conv in convs_of(config.blocks(3)):
        before, after = conv.padding(config.causal)
        assert before + after == (conv.kernel_size - 1) * conv.dilation
        assert before >= after >= 0
        assert after == 0 or not config.causal


def test_new_weights_are_glorot_uniform_and_follow_the_seed():
    blocks = DecoderConfig(channels=64).blocks(126)
    weights = initial_weights(blocks, seed=3)
    kernel = weights["block_0/kernel"]
    limit = np.sqrt(6 / (3 * 64 + 3 * 64))
    assert 0.99 * limit < abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.02)
    assert (weights["block_0/scale"] == 1).all()
    assert not weights["block_0/shift"].any()
    assert not weights["output/bias"].any()
    np.testing.assert_array_equal(kernel, initial_weights(blocks, seed=3)["block_0/kernel"])
    assert (kernel != initial_weights(blocks, seed=4)["block_0/kernel"]).any()
