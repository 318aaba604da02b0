"""A small model and its training: one synthesiser, so that one trace serves all tests."""

import numpy as np
import pytest

from thesis.config import (
    DilatedConvStackConfig,
    MeasureConfig,
    ModelConfig,
    SynthConfig,
    TrainConfig,
)

RATES = {"sample_rate": 16_000, "hop_size": 64}


@pytest.fixture(scope="session")
def rates():
    return RATES


@pytest.fixture(scope="session")
def small():
    """A decoder of a hundred weights with a synthesiser to match, trained for six steps."""
    return ModelConfig(
        DilatedConvStackConfig(channels=4, layers_per_stack=2, stacks=1, dilation_base=2),
        SynthConfig(n_harmonics=8, n_noise_bands=9, reverb_seconds=0.05),
        TrainConfig(steps=6, batch_size=2, checkpoint_every=2),
        MeasureConfig(seconds=0.02, min_calls=10, max_calls=20),
    )


@pytest.fixture
def make_model(small, rates):
    """A function: the small model, new, with the decoder or the seed replaced."""
    from dataclasses import replace

    from thesis.build import build

    def make_model(seed=0, **decoder):
        config = replace(
            small,
            decoder=replace(small.decoder, **decoder),
            train=replace(small.train, seed=seed),
        )
        return build(config, **rates)

    return make_model


@pytest.fixture(scope="session")
def ramps():
    """A function: clips whose frames and samples tell where they are from, clip * 1000 + frame."""
    from thesis.data import Clips

    def ramps(n_clips, n_frames=40, hop_size=4):
        f0_hz = (1000 * np.arange(n_clips)[:, None] + np.arange(n_frames)).astype(np.float32)
        audio = np.repeat(f0_hz, hop_size, axis=1)
        ids = tuple(map(str, range(n_clips)))
        return Clips(audio, f0_hz, f0_hz, f0_hz, ids, ids)

    return ramps


@pytest.fixture(scope="session")
def export(weights_of, rates):
    """A function: an exported decoder with weights as after training, and those weights."""
    from thesis.export import decoder_onnx

    def export(decoder, synth, seed=0):
        weights = weights_of(decoder.plan(synth.n_outputs), seed)
        return decoder_onnx(decoder, synth, weights, **rates), weights

    return export


@pytest.fixture(scope="session")
def assert_equals_twin():
    """A function: compares outputs, [frames, n_outputs], with those of the float64 twin.

    All of them, or the first `frames` ones.

    Float32 may be off by 1e-5. Where a norm divides by next to nothing, as over channels that
    happen to be equal, it may be off by what some last bits of the weights decide there.
    """
    from thesis import reference

    def assert_equals_twin(outputs, inputs, weights, config, frames=None):
        expected = reference.decode(inputs, weights, config)[:frames]
        rng = np.random.default_rng(0)
        rounding = np.zeros((len(expected), 1))
        for _ in range(3):
            nudged = {k: w * (1 + rng.choice([-1e-6, 1e-6], w.shape)) for k, w in weights.items()}
            moved = abs(reference.decode(inputs, nudged, config)[:frames] - expected)
            rounding = np.maximum(rounding, moved.max(-1, keepdims=True))
        assert outputs.shape == expected.shape
        allowed = 1e-5 * max(1, abs(expected).max()) + 10 * np.maximum(rounding - 1e-5, 0)
        assert (abs(outputs - expected) <= allowed).all(), abs(outputs - expected).max()

    return assert_equals_twin


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory, small, export, rates):
    """What a finished trial keeps: decoder, reverb, weights and configuration."""
    from thesis import bundle

    folder = tmp_path_factory.mktemp("artifacts")
    decoder, weights = export(small.decoder, small.synth)
    rng = np.random.default_rng(0)
    response = rng.normal(0, 0.01, small.synth.reverb_length(rates["sample_rate"]))
    (folder / bundle.DECODER_FILE).write_bytes(decoder)
    (folder / bundle.CONFIG_FILE).write_text("train.steps = 6\n")
    np.savez(folder / bundle.WEIGHTS_FILE, **weights)
    bundle.write_audio(folder / bundle.REVERB_FILE, response, rates["sample_rate"])
    return folder


@pytest.fixture(scope="session")
def write_small_bundle(artifacts, dataset):
    """A function: writes the bundle of a small model, with a clip of the dataset, to a path."""
    from thesis.bundle import Controls, write_bundle

    clips = dataset.clips("validation")

    def write_small_bundle(path, folder=artifacts):
        return write_bundle(
            path,
            folder,
            trial={"id": "3fa91c", "val_loss": 10.5, "detail": None},
            card="# A model\n",
            clip=clips.audio[0],
            controls=Controls(clips.f0_hz[0], clips.loudness_db[0]),
        )

    return write_small_bundle
