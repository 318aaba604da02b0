"""Every runtime keeps the contract of `thesis.runtimes.contract`; what is absent is skipped."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest

from thesis import runtimes
from thesis.architecture import Add, Conv
from thesis.config import REFERENCE_DECODER, DilatedConvStackConfig, RnnFcConfig, SynthConfig
from thesis.controls import decoder_inputs
from thesis.errors import ExportError, MissingRuntimeError
from thesis.runtimes.contract import Quantisation, TrainedDecoder

SYNTH = SynthConfig(n_harmonics=3, n_noise_bands=4)
SMALL = DilatedConvStackConfig(channels=4, layers_per_stack=2, stacks=2, dilation_base=2)
WIDE = DilatedConvStackConfig(channels=128, layers_per_stack=1, stacks=1)
MODELS = {
    "tiny": REFERENCE_DECODER,
    "no norm": replace(SMALL, norm="none"),
    "batch norm": replace(SMALL, norm="batch"),
    "norm over time": replace(SMALL, norm="time"),
    "inverted bottleneck": replace(SMALL, block="inverted_bottleneck", causal=False),
    "conditioned": replace(SMALL, conditioning="scale_and_shift"),
    "upsampled": replace(SMALL, resample="upsample", norm="time"),
    "downsampled": replace(SMALL, resample="downsample", conditioning="shift", causal=False),
    "recurrent": RnnFcConfig(rnn_channels=3, channels=4, layers_per_stack=1),
}


@pytest.fixture(params=runtimes.NAMES)
def runtime(request):
    found = runtimes.runtime(request.param)
    if found.version is None:
        pytest.skip(f"{found.title} is not installed: {found.install}")
    return found


@pytest.fixture
def trained(weights_of, rates):
    def trained(config, synth=SYNTH):
        return TrainedDecoder(config, synth, weights_of(config.plan(synth.n_outputs)), **rates)

    return trained


@pytest.fixture
def loaded(runtime, trained, tmp_path):
    return runtime.load(runtime.convert(trained(SMALL), tmp_path))


@pytest.fixture(scope="module")
def features(dataset):
    """Inputs of the training clips, [n_clips, frames, 2]."""
    clips = dataset.clips("train")
    return decoder_inputs(clips.f0_hz, clips.loudness_db)


def inputs_of(n_frames, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1, (1, n_frames, 2)).astype(np.float32)


# --- What it computes ---


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_decoder_equals_its_float64_twin_or_is_refused_with_the_reason(
    runtime, trained, assert_equals_twin, tmp_path, name
):
    model = trained(MODELS[name])
    missing = {type(node) for node in model.folded[0]} - runtime.takes
    if missing:
        with pytest.raises(ExportError, match=f"{runtime.title} cannot run .*, a ") as error:
            runtime.convert(model, tmp_path)
        assert any(error.value.message.endswith(kind.__name__) for kind in missing)
        return
    session = runtime.load(runtime.convert(model, tmp_path))
    for n_frames in (50, 1, 7, 200):
        inputs = inputs_of(n_frames)
        outputs = session.decode(inputs)
        assert outputs.shape == (1, n_frames, SYNTH.n_outputs)
        assert outputs.dtype == np.float32
        assert_equals_twin(outputs[0], inputs[0], model.weights, model.config)


def test_every_runtime_takes_what_a_stack_of_dilated_convolutions_is_made_of():
    assert all({Conv, Add} <= runtime.takes for runtime in runtimes.runtimes())


def test_outputs_are_repeated_exactly_and_not_written_to_by_later_calls(loaded):
    first = loaded.decode(inputs_of(30, seed=1))
    kept = first.copy()
    other = loaded.decode(inputs_of(30, seed=2))
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(loaded.decode(inputs_of(30, seed=1)), kept)


def test_sessions_do_not_disturb_each_other(runtime, trained, tmp_path):
    models = [trained(SMALL), trained(replace(SMALL, channels=3))]
    sessions = [
        runtime.load(runtime.convert(model, tmp_path / str(i))) for i, model in enumerate(models)
    ]
    alone = [session.decode(inputs_of(20)) for session in sessions]
    again = [session.decode(inputs_of(20)) for session in sessions]
    assert not np.array_equal(*alone)
    np.testing.assert_array_equal(again, alone)


def test_a_call_takes_time(loaded):
    assert loaded.seconds(loaded.arranged(inputs_of(20))) > 0


# --- In 8-bit integers ---


LEAST_SNR_DB = {"dynamic": 30, "minmax": 30, "percentile": 30, "entropy": 10}
"""Entropy cuts off what is rare, be it loud."""


def snr_db(outputs, expected):
    return 10 * np.log10((expected**2).sum() / ((outputs - expected) ** 2).sum())


def size(path):
    """Bytes of a file and of those of the same name beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*"))


@pytest.mark.parametrize(
    ("runtime", "how"),
    [
        pytest.param(name, how, id=f"{name}-{how.name}")
        for name in runtimes.NAMES
        for how in runtimes.runtime(name).quantisations
    ],
    indirect=["runtime"],
)
def test_a_quantised_decoder_is_smaller_and_close_to_the_float_one(
    runtime, how, trained, features, tmp_path
):
    model = trained(WIDE)
    floats = runtime.convert(model, tmp_path)
    path = runtime.quantise(model, tmp_path, how, features)
    assert size(path) < 0.6 * size(floats)
    session, original = runtime.load(path), runtime.load(floats)
    for inputs in (features[:1], features[1:2, :50]):
        outputs, expected = session.decode(inputs), original.decode(inputs)
        assert outputs.shape == expected.shape
        # As fine as 8 bits are, and no finer.
        assert LEAST_SNR_DB[how.ranges] < snr_db(outputs, expected) < 60


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_decoder_that_is_taken_can_be_quantised(
    runtime, trained, features, tmp_path, name
):
    model = trained(MODELS[name])
    if not runtime.quantisations or {type(node) for node in model.folded[0]} - runtime.takes:
        pytest.skip(f"{runtime.title} does not quantise this decoder")
    how = next(how for how in runtime.quantisations if how.ranges == "minmax")
    path = runtime.quantise(model, tmp_path, how, features)
    expected = runtime.load(runtime.convert(model, tmp_path)).decode(features[:1])
    assert snr_db(runtime.load(path).decode(features[:1]), expected) > 20


# --- What it refuses ---


@pytest.mark.parametrize("shape", [(10, 2), (2, 10, 2), (1, 2, 10), (1, 0, 2), (1, 10, 2, 1)])
def test_inputs_of_another_shape_are_refused_and_named(loaded, shape):
    with pytest.raises(ValueError, match=rf"are \[1, frames, 2\], not \[{shape[0]}, {shape[1]}"):
        loaded.decode(np.zeros(shape, np.float32))


def test_inputs_of_another_type_are_refused_and_named(loaded):
    with pytest.raises(ValueError, match="float32, not float64"):
        loaded.decode(np.zeros((1, 10, 2)))


def test_a_file_that_is_no_decoder_is_one_error_of_one_line(runtime, trained, tmp_path):
    name = runtime.convert(trained(SMALL), tmp_path / "good").name
    bad = tmp_path / name
    bad.write_text("no decoder\n" * 100)
    with pytest.raises(ExportError, match="is no decoder") as error:
        runtime.load(bad)
    assert error.value.hint
    assert "\n" not in error.value.message


def test_a_file_that_is_not_there_is_an_error(runtime, tmp_path):
    with pytest.raises(ExportError, match="is not there"):
        runtime.load(tmp_path / "nothing")


def test_a_quantisation_that_a_runtime_does_not_have_is_refused_with_those_it_has(
    runtime, trained, tmp_path
):
    unknown = Quantisation("entropy", "operators", float_norm=False)
    if unknown in runtime.quantisations:
        unknown = Quantisation("hope")
    with pytest.raises(ExportError, match=f"{runtime.title} has no quantisation '{unknown.name}'"):
        runtime.quantise(trained(SMALL), tmp_path, unknown, inputs_of(10))


# --- What it leaves alone ---


def test_the_environment_is_left_as_it_was(runtime, trained, tmp_path):
    import thesis._ddsp  # noqa: F401  sets what TensorFlow reads

    before = dict(os.environ)
    runtime.load(runtime.convert(trained(SMALL), tmp_path)).decode(inputs_of(10))
    assert dict(os.environ) == before


def test_packages_of_runtimes_are_imported_when_they_are_used():
    heavy = "{'tensorflow', 'torch', 'openvino', 'nncf', 'tvm', 'ai_edge_litert'}"
    code = "import sys, thesis.runtimes as r; [x.version for x in r.runtimes()]"
    code += f"; print(sorted({heavy} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


# --- The list ---


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_what_is_not_installed_is_listed_and_refused_with_the_command_that_installs_it(
    monkeypatch, trained, tmp_path, name
):
    found = runtimes.runtime(name)
    monkeypatch.setattr(type(found), "version", None)
    assert found in runtimes.runtimes()
    for use in (lambda: found.convert(trained(SMALL), tmp_path), lambda: found.load(tmp_path)):
        with pytest.raises(MissingRuntimeError, match=f"{found.title} is not installed") as error:
            use()
        assert error.value.hint == found.install


def test_a_package_that_is_not_there_has_no_version(monkeypatch):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    assert runtimes.runtime("litert").version is None


def test_an_unknown_runtime_is_an_error_that_offers_the_nearest():
    with pytest.raises(MissingRuntimeError, match="no runtime named 'openvin'") as error:
        runtimes.runtime("openvin")
    assert error.value.hint.startswith("did you mean 'openvino'?")
