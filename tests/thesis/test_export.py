"""The exported decoder: the float64 twin's equal, and self-describing."""

from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from thesis.config import (
    REFERENCE_DECODER,
    DecoderConfig,
    DilatedConvStackConfig,
    RnnFcConfig,
    SynthConfig,
)
from thesis.errors import ExportError
from thesis.export import reference_onnx
from thesis.runtimes.onnx_runtime import Session

SYNTH = SynthConfig(n_harmonics=3, n_noise_bands=4)


def decoded(session, n_frames, seed=0):
    """Inputs of so many frames and what a session makes of them."""
    inputs = np.random.default_rng(seed).uniform(0, 1, (n_frames, 2)).astype(np.float32)
    return session.decode(inputs[None])[0], inputs


# --- Parity ---


@settings(max_examples=60)
@given(
    config=st.from_type(DecoderConfig),
    n_frames=st.lists(st.integers(1, 200), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_any_decoder_equals_its_float64_twin_for_any_number_of_frames(
    export, assert_equals_twin, config, n_frames, seed
):
    model, weights = export(config, SYNTH, seed)
    session = Session(model)
    for n in n_frames:
        assert_equals_twin(*decoded(session, n, seed), weights, config)


@pytest.mark.parametrize("channels", [8, 16])
def test_the_thesis_models_equal_their_float64_twins(export, assert_equals_twin, channels):
    config = replace(REFERENCE_DECODER, channels=channels)
    model, weights = export(config, SynthConfig())
    assert_equals_twin(*decoded(Session(model), 1000), weights, config)


def test_the_exported_decoder_equals_tensorflows(make_model, small, rates):
    from thesis.export import decoder_onnx

    model = make_model()
    exported = decoder_onnx(small.decoder, small.synth, model.decoder.named_weights(), **rates)
    inputs = np.random.default_rng(0).uniform(0, 1, (1, 300, 2)).astype(np.float32)
    np.testing.assert_allclose(Session(exported).decode(inputs), model.decoder(inputs), atol=1e-5)


# --- The graph ---


KINDS_OF_NORM = {
    "none": set(),
    "frame": {"Mul", "Sqrt", "Div"},
    "batch": set(),
    "time": {"Reshape", "InstanceNormalization", "Mul"},
}


@pytest.mark.parametrize("norm", KINDS_OF_NORM)
@pytest.mark.parametrize("block", ["plain", "inverted_bottleneck"])
def test_the_graph_is_channels_first_and_made_of_few_kinds_of_nodes(export, norm, block):
    config = replace(REFERENCE_DECODER, norm=norm, block=block)
    model = onnx.load_from_string(export(config, SYNTH)[0])
    kinds = {"Conv", "Clip", "Add"} | KINDS_OF_NORM[norm]
    if block == "inverted_bottleneck" and norm == "frame":
        kinds |= {"Sub"}  # a depthwise kernel cannot hold the mean over channels
    assert {node.op_type for node in model.graph.node} == kinds
    shapes = [
        [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [[1, 2, "frames"], [1, SYNTH.n_outputs, "frames"]]


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_without_norm_or_with_batch_norm_a_layer_is_a_convolution_a_clip_and_a_sum(export, norm):
    model = onnx.load_from_string(export(replace(REFERENCE_DECODER, norm=norm), SYNTH)[0])
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["Conv", "Clip"] + 6 * ["Conv", "Clip", "Add"] + ["Conv"]


def test_the_norm_over_channels_costs_six_nodes_a_layer(export):
    model = onnx.load_from_string(export(REFERENCE_DECODER, SYNTH)[0])
    kinds = [node.op_type for node in model.graph.node]
    layer = ["Conv", "Mul", "Conv", "Sqrt", "Div", "Mul", "Add", "Clip"]
    assert kinds == layer + 6 * [*layer, "Add"] + ["Conv"]


@pytest.mark.parametrize("block", ["plain", "inverted_bottleneck"])
def test_without_norm_the_model_holds_the_weights_and_nothing_else(export, block):
    config = DilatedConvStackConfig(norm="none", block=block)
    model = onnx.load_from_string(export(config, SYNTH)[0])
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    limits_of_relu6 = sizes.pop("zero") + sizes.pop("six")
    assert limits_of_relu6 == 2
    # Every convolution has a bias here, which those that a norm follows do not count.
    assert sum(sizes.values()) == config.parameter_count(SYNTH.n_outputs)


@pytest.mark.parametrize(("layers", "n_nodes"), [(0, 9), (1, 9 + 3 * 8)])
def test_the_graph_of_a_gru_is_one_node_between_two_layouts(export, layers, n_nodes):
    model = onnx.load_from_string(export(RnnFcConfig(4, 5, layers), SYNTH)[0])
    kinds = [node.op_type for node in model.graph.node]
    at = kinds.index("GRU")
    assert kinds[at - 1 : at + 4] == ["Transpose", "GRU", "Squeeze", "Transpose", "Concat"]
    assert len(kinds) == n_nodes
    layer = ["Conv", "Mul", "Conv", "Sqrt", "Div", "Mul", "Add", "LeakyRelu"]
    assert kinds[1:9] == layer or not layers


def test_the_metadata_tell_a_recurrent_decoder_from_others(export):
    config = RnnFcConfig(4, 5, 1)
    metadata = Session(export(config, SYNTH)[0]).metadata
    assert metadata["decoder_type"] == "RnnFc"
    assert RnnFcConfig(**metadata["decoder"]) == config
    assert metadata["receptive_field_frames"] is None


def test_the_metadata_says_what_goes_in_and_what_comes_out(export, rates):
    metadata = Session(export(REFERENCE_DECODER, SYNTH)[0]).metadata
    assert metadata == {
        "decoder_type": "DilatedConvStack",
        "decoder": asdict(REFERENCE_DECODER),
        "synth": asdict(SYNTH),
        "receptive_field_frames": 55,
        "artifact": "decoder",
        "states": {},
        "inputs": ["loudness_db / 80 + 1", "midi(f0_hz) / 127"],
        "outputs": {"amplitude": 1, "harmonic_distribution": 3, "noise_magnitudes": 4},
        **rates,
    }
    assert SynthConfig(**metadata["synth"]) == SYNTH
    assert DilatedConvStackConfig(**metadata["decoder"]) == REFERENCE_DECODER


def test_equal_models_are_equal_bytes(export):
    assert export(REFERENCE_DECODER, SYNTH)[0] == export(REFERENCE_DECODER, SYNTH)[0]


def test_the_reference_is_ddsp_cnn_tiny_at_the_rates_of_the_candidate():
    session = Session(reference_onnx(sample_rate=8000, hop_size=80))
    assert (session.sample_rate, session.hop_size) == (8000, 80)
    assert DilatedConvStackConfig(**session.metadata["decoder"]) == REFERENCE_DECODER
    assert session(np.zeros((1, 2, 9), np.float32)).shape == (1, 126, 9)


# --- The session ---


def test_a_session_computes_as_an_audio_callback_would(export):
    options = Session(export(REFERENCE_DECODER, SYNTH)[0])._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    for entry, value in {
        "session.intra_op.allow_spinning": "0",
        "session.inter_op.allow_spinning": "0",
        "session.set_denormal_as_zero": "1",
    }.items():
        assert options.get_session_config_entry(entry) == value


def test_a_model_is_the_same_from_bytes_and_from_a_file(export, tmp_path):
    model, _ = export(REFERENCE_DECODER, SYNTH)
    (tmp_path / "decoder.onnx").write_bytes(model)
    inputs = np.random.default_rng(0).random((1, 2, 20)).astype(np.float32)
    from_bytes, from_file = Session(model), Session(tmp_path / "decoder.onnx")
    np.testing.assert_array_equal(from_bytes(inputs), from_file(inputs))
    np.testing.assert_array_equal(
        from_bytes.decode(inputs.transpose(0, 2, 1)), from_bytes(inputs).transpose(0, 2, 1)
    )


def foreign_model(operator):
    """A model of one operator, that is none of ours."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("a", "b")]
    graph = helper.make_graph(
        [helper.make_node(operator, ["a"], ["b"])], "g", *[[v] for v in values]
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda model: model[: len(model) // 2], id="truncated"),
        pytest.param(lambda model: model[:-1], id="one-byte-short"),
        pytest.param(lambda model: b"", id="empty"),
        pytest.param(lambda model: b"no model\n" * 100, id="text"),
        pytest.param(lambda model: foreign_model("Identity"), id="another-model"),
        pytest.param(lambda model: foreign_model("Unheard"), id="unsupported-operator"),
    ],
)
def test_what_is_no_decoder_is_one_line_with_a_hint(export, spoil, tmp_path):
    spoiled = spoil(export(REFERENCE_DECODER, SYNTH)[0])
    (tmp_path / "decoder.onnx").write_bytes(spoiled)
    for model, name in ((spoiled, "model"), (tmp_path / "decoder.onnx", "decoder.onnx")):
        with pytest.raises(ExportError, match=f"^{name} is no decoder") as caught:
            Session(model)
        assert "\n" not in caught.value.message
        assert caught.value.hint


def test_a_missing_file_is_one_line_with_a_hint(tmp_path):
    with pytest.raises(ExportError, match=r"^gone\.onnx is no decoder .* No such file") as caught:
        Session(tmp_path / "gone.onnx")
    assert caught.value.hint
