"""ONNX graphs in integers: what is quantised, by which ranges, and what is left as it was."""

import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from thesis.config import DilatedConvStackConfig, SynthConfig
from thesis.quantise import quantised_onnx
from thesis.runtimes.contract import Quantisation, TrainedDecoder
from thesis.runtimes.onnx_runtime import Session

SYNTH = SynthConfig(n_harmonics=3, n_noise_bands=4)
CONFIG = DilatedConvStackConfig(channels=6, layers_per_stack=2, stacks=1, dilation_base=2)


@pytest.fixture
def model(weights_of, rates):
    return TrainedDecoder(CONFIG, SYNTH, weights_of(CONFIG.plan(SYNTH.n_outputs)), **rates)


@pytest.fixture
def inputs():
    return np.random.default_rng(0).uniform(0, 1, (2, 300, 2)).astype(np.float32)


def quantised(model, how, inputs):
    return onnx.load_from_string(quantised_onnx(model, how, inputs))


def kinds(graph, ending):
    return {node.op_type for node in graph.node if ending in node.name}


def scales(integers):
    """Name -> scale of every activation."""
    return {
        x.name: float(numpy_helper.to_array(x))
        for x in integers.graph.initializer
        if x.name.endswith("_scale") and not x.dims
    }


@pytest.mark.parametrize("float_norm", [True, False])
@pytest.mark.parametrize("ranges", ["dynamic", "minmax"])
def test_norms_are_left_in_floats_where_that_is_asked_for(model, inputs, ranges, float_norm):
    graph = quantised(model, Quantisation(ranges, "operators", float_norm), inputs).graph
    layer = {"dynamic": "ConvInteger", "minmax": "QLinearConv"}[ranges]
    assert layer in kinds(graph, "block_0/conv")
    assert (layer in kinds(graph, "block_0/variance")) is not float_norm
    assert ("Conv" in kinds(graph, "block_0/variance")) is float_norm


def test_weights_have_a_scale_for_each_output_channel(model, inputs):
    integers = quantised(model, Quantisation("minmax", "operators"), inputs)
    tensors = {x.name: x for x in integers.graph.initializer}
    for layer, channels in (("input", 6), ("block_1", 6), ("output", 8)):
        kernel = tensors[f"{layer}/W_quantized"]
        assert (kernel.data_type, kernel.dims[0]) == (TensorProto.INT8, channels)
        assert list(tensors[f"{layer}/W_scale"].dims) == [channels]
        assert not numpy_helper.to_array(tensors[f"{layer}/W_zero_point"]).any()


def test_what_is_rare_widens_the_range_of_minmax_and_not_that_of_the_others(model, inputs):
    inputs = np.tile(inputs, (1, 25, 1))
    inputs[0, 0] = 20.0  # one frame of 15,000
    of = {
        ranges: scales(quantised(model, Quantisation(ranges, "operators"), inputs))["inputs_scale"]
        for ranges in ("minmax", "entropy", "percentile")
    }
    assert of["minmax"] == pytest.approx(20 / 255)
    assert of["entropy"] < 0.5 * of["minmax"]
    assert of["percentile"] < 0.95 * of["minmax"]


def test_an_integer_decoder_says_what_the_float_one_does_and_what_it_is(model, inputs):
    for how in (Quantisation("minmax", "qdq"), Quantisation("dynamic", "operators")):
        data = quantised_onnx(model, how, inputs)
        metadata = Session(model.onnx).metadata | {"quantisation": how.name}
        assert Session(data).metadata == metadata
        graph = onnx.load_from_string(data)
        assert {x.domain for x in graph.opset_import} == {"", *(n.domain for n in graph.graph.node)}


def test_nothing_is_printed_where_data_is_printed(model, inputs, capfd):
    for ranges in ("dynamic", "minmax", "percentile"):
        quantised_onnx(model, Quantisation(ranges, "operators"), inputs)
    assert capfd.readouterr() == ("", "")


def test_what_gin_includes_is_found_after_a_quantisation(model, inputs):
    from sweeps.config import find_run, load_run

    before = list(sys.path)
    quantised_onnx(model, Quantisation("dynamic", "operators"), inputs)
    assert sys.path == before
    load_run(find_run("tiny"))


def test_without_a_norm_to_leave_in_floats_all_convolutions_are_of_integers(model, inputs):
    config = replace(CONFIG, norm="batch")
    rng = np.random.default_rng(0)
    weights = {
        name: rng.uniform(0.5, 1.5, shape).astype(np.float32)
        for node in config.plan(SYNTH.n_outputs)
        for name, shape in (node.weight_shapes | node.moment_shapes).items()
    }
    model = replace(model, config=config, weights=weights)
    graph = quantised(model, Quantisation("minmax", "operators"), inputs).graph
    assert [x.op_type for x in graph.node if "Conv" in x.op_type] == ["QLinearConv"] * 4
