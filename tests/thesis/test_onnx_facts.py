"""Models of strangers: what they say of themselves is checked, and they do nothing but compute."""

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from thesis.architecture import initial_weights
from thesis.config import DilatedConvStackConfig, SynthConfig
from thesis.errors import ExportError
from thesis.export import decoder_onnx, decoder_stream_onnx, synth_stream_onnx
from thesis.runtimes import onnx_runtime
from thesis.runtimes.onnx_runtime import Session
from thesis.stream import DecoderStream, SynthStream

DECODER = DilatedConvStackConfig(channels=2, layers_per_stack=1, stacks=1)
SYNTH = SynthConfig(n_harmonics=2, n_noise_bands=3)
WEIGHTS = initial_weights(DECODER.plan(SYNTH.n_outputs), seed=0)
RATES = {"sample_rate": 16_000, "hop_size": 64}
RESPONSE = np.zeros(100, np.float32)

MODELS: dict[str, tuple[type, bytes]] = {
    "decoder": (Session, decoder_onnx(DECODER, SYNTH, WEIGHTS, **RATES)),
    "decoder_stream": (DecoderStream, decoder_stream_onnx(DECODER, SYNTH, WEIGHTS, **RATES)),
    "synth_stream": (SynthStream, synth_stream_onnx(DECODER, SYNTH, WEIGHTS, RESPONSE, **RATES)),
}


def metadata_of(artifact: str) -> dict[str, str]:
    model = onnx.load_from_string(MODELS[artifact][1])
    return {entry.key: entry.value for entry in model.metadata_props}


def with_metadata(artifact: str, metadata: dict[str, str]) -> bytes:
    model = onnx.load_from_string(MODELS[artifact][1])
    del model.metadata_props[:]
    helper.set_model_props(model, metadata)
    return model.SerializeToString()


def assert_refused(artifact: str, model: bytes, words: str = ".") -> None:
    with pytest.raises(ExportError, match=words) as caught:
        _ = MODELS[artifact][0](model).facts.decoder
    assert caught.value.hint
    assert "\n" not in caught.value.message


# --- Metadata ---

NEEDED = [
    *(("decoder", key) for key in ("decoder", "synth", "sample_rate", "hop_size")),
    *(
        (artifact, key)
        for artifact in ("decoder_stream", "synth_stream")
        for key in (
            *("artifact", "decoder", "synth", "sample_rate", "hop_size"),
            *("cycle", "delay_frames", "states"),
        )
    ),
]


@pytest.mark.parametrize("artifact", MODELS)
def test_exported_models_are_taken(artifact: str) -> None:
    kind, model = MODELS[artifact]
    assert kind(model).facts.sample_rate == 16_000


@pytest.mark.parametrize(("artifact", "key"), NEEDED)
def test_what_a_model_does_not_say_is_one_line(artifact: str, key: str) -> None:
    metadata = metadata_of(artifact)
    del metadata[key]
    assert_refused(artifact, with_metadata(artifact, metadata))


def test_a_model_without_a_word_is_refused() -> None:
    for artifact in MODELS:
        assert_refused(artifact, with_metadata(artifact, {}), "something else")


WRONG = [
    *("", "{", "null", "true", "-1", "0", "1.5", '"1"', "[]", "[1]", "{}", '{"a": 1}', "NaN"),
    *("1e999", "Infinity", "1" + "0" * 99, "9" * 9999, "[" * 99_999, '{"a":' * 9999),
]


@pytest.mark.parametrize(("artifact", "key"), NEEDED)
def test_what_a_model_says_is_of_the_right_type_and_range(artifact: str, key: str) -> None:
    metadata = metadata_of(artifact)
    right = {("decoder", "{}"), ("synth", "{}")}  # all by default: a model of other shapes
    right |= {("delay_frames", "0"), ("cycle", "1")}
    for value in WRONG:
        if (key, value) not in right:
            assert_refused(artifact, with_metadata(artifact, metadata | {key: value}))


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("decoder", {"channels": True}),
        ("decoder", {"channels": 10**30}),
        ("decoder", {"norm": ["frame"]}),
        ("decoder", {"more": 1}),
        ("synth", {"n_harmonics": 2.5}),
        ("synth", {"reverb_seconds": "1"}),
        ("synth", {"processor_group": {"a": 1}}),
        ("states", {"f0": {"shape": [1], "dtype": "float32"}}),
        ("states", {"noise_key": {"shape": [2], "dtype": "int64"}}),
        ("states", {"noise_key": {"shape": [1], "dtype": "float32"}}),
        ("states", {"noise_key": {"shape": [1], "dtype": "object"}}),
        ("states", {"noise_key": {"shape": [10**6, 10**6], "dtype": "int64"}}),
        ("states", {"noise_key": {"shape": [-1], "dtype": "int64"}}),
        ("states", {"noise_key": [1]}),
    ],
)
def test_parts_of_what_it_says_are_checked_too(key: str, change: dict[str, Any]) -> None:
    metadata = metadata_of("synth_stream")
    value = json.loads(metadata[key]) | change
    assert_refused(
        "synth_stream", with_metadata("synth_stream", metadata | {key: json.dumps(value)})
    )


@given(
    key=st.sampled_from(sorted(metadata_of("synth_stream"))),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
)
def test_whatever_a_model_says_it_is_taken_or_refused(key: str, value: Any) -> None:
    metadata = metadata_of("synth_stream") | {key: json.dumps(value)}
    with suppress(ExportError):
        _ = SynthStream(with_metadata("synth_stream", metadata)).facts.decoder


def test_a_model_of_another_architecture_plays_all_the_same() -> None:
    metadata = metadata_of("decoder") | {"decoder": '{"layers": [1, 2]}'}
    session = Session(with_metadata("decoder", metadata))
    assert session.decode(np.zeros((1, 3, 2), np.float32)).shape == (1, 3, SYNTH.n_outputs)
    with pytest.raises(ExportError, match="'layers' is no parameter"):
        _ = session.decoder_config


# --- Graphs ---


def changed(change: Callable[[onnx.ModelProto], None], artifact: str = "decoder") -> bytes:
    model = onnx.load_from_string(MODELS[artifact][1])
    change(model)
    return model.SerializeToString()


def graph_of(*nodes: onnx.NodeProto, **constants: Any) -> bytes:
    """The small decoder with other nodes, from 'inputs' to 'outputs'."""

    def change(model: onnx.ModelProto) -> None:
        del model.graph.node[:]
        del model.graph.initializer[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
        )

    return changed(change)


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_in_a_node(model: onnx.ModelProto) -> None:
    tensor = copy.deepcopy(model.graph.initializer[0])
    model.graph.node.append(helper.make_node("Identity", ["inputs"], ["x"], name="x"))
    external_tensor = model.graph.node[-1].attribute.add(name="value", type=4).t
    external_tensor.CopyFrom(tensor)
    external_tensor.external_data.add(key="location", value="../secret")


def function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="d")


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["x"], body=body))


def subgraph(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="body", type=5).g.name = "body"


def custom(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "evil.com"


def contributed(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def other_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


@pytest.mark.parametrize(
    "change",
    [
        external, external_in_a_node, function, loop, subgraph, custom, contributed, other_input,
    ],
)  # fmt: skip
def test_what_no_exported_model_has_is_refused(change: Callable[[onnx.ModelProto], None]) -> None:
    assert_refused("decoder", changed(change))


NUMBERS = {"none": 0, "one": 1, "many": 10**13}


def test_a_graph_that_asks_for_terabytes_is_one_line() -> None:
    session = Session(
        graph_of(
            helper.make_node("Range", ["none", "many", "one"], ["numbers"]),
            helper.make_node("Cast", ["numbers"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["floats"], ["largest"], keepdims=0),
            helper.make_node("Conv", ["inputs", "kernel"], ["x"]),
            helper.make_node("Add", ["x", "largest"], ["outputs"]),
            kernel=np.zeros((SYNTH.n_outputs, 2, 1), np.float32),
            **{name: np.array(n, np.int64) for name, n in NUMBERS.items()},
        )
    )
    with pytest.raises(ExportError, match="cannot be run") as caught:
        session.decode(np.zeros((1, 9, 2), np.float32))
    assert caught.value.hint


def test_a_model_that_gives_fewer_frames_than_it_takes_is_one_line() -> None:
    one = {name: np.array([n], np.int64) for name, n in (("first", 0), ("end", 1), ("ax", 2))}
    kernel = np.zeros((SYNTH.n_outputs, 2, 1), np.float32)
    model = graph_of(
        helper.make_node("Conv", ["inputs", "kernel"], ["x"]),
        helper.make_node("Slice", ["x", "first", "end", "ax"], ["outputs"]),
        kernel=kernel,
        **one,
    )
    with pytest.raises(ExportError, match=r"gives .* values"):
        Session(model).decode(np.zeros((1, 9, 2), np.float32))


def test_models_share_a_bounded_memory() -> None:
    options = onnx_runtime.session_options()
    assert options.get_session_config_entry("session.use_env_allocators") == "1"


def test_a_model_that_does_not_say_has_absolute_levels() -> None:
    metadata = metadata_of("decoder")
    assert Session(with_metadata("decoder", metadata)).synth.levels == "loudness"
    synth = json.loads(metadata["synth"])
    del synth["levels"]
    old = with_metadata("decoder", metadata | {"synth": json.dumps(synth)})
    assert Session(old).synth.levels == "absolute"
