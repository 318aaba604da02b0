"""Every .gin file as a model: it trains, exports, and the export is what was trained."""

from dataclasses import replace

import gin
import numpy as np
import pytest

from sweeps.config import gin_root, load_model
from thesis.config import SynthConfig

FILES = sorted(p.relative_to(gin_root()).as_posix() for p in gin_root().rglob("*.gin"))
SYNTH = SynthConfig(n_harmonics=8, n_noise_bands=9, reverb_seconds=0.05)


@pytest.fixture(scope="module")
def trained(dataset):
    """A function: the model of a configuration after a step, and what it shipped as."""
    from thesis._ddsp import tf
    from thesis.build import build
    from thesis.export import decoder_onnx
    from thesis.runtimes.onnx_runtime import Session
    from thesis.train import train

    # For one step of many models, compiling each costs more than it saves.
    tf.config.run_functions_eagerly(True)
    made = {}
    rates = {"sample_rate": dataset.facts.sample_rate, "hop_size": dataset.facts.hop_size}

    def trained(config):
        key = (config.decoder, config.synth)
        if key not in made:  # many files describe one model
            model = build(config, **rates)
            before = model.decoder.named_weights()
            list(train(model, dataset.clips("train"), config.train))
            exported = decoder_onnx(
                config.decoder, config.synth, model.decoder.named_weights(), **rates
            )
            made[key] = before, model.decoder, Session(exported)
        return made[key]

    yield trained
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize("file", FILES)
def test_the_model_of_every_file_trains_and_exports(file, trained, dataset):
    from thesis.controls import decoder_inputs

    config = load_model(gin_root() / file)
    gin.clear_config()
    config = replace(config, synth=SYNTH, train=replace(config.train, steps=1, batch_size=2))
    before, decoder, session = trained(config)
    after = decoder.named_weights()
    assert all(np.isfinite(weight).all() for weight in after.values())
    assert any((before[name] != after[name]).any() for name in before)
    clips = dataset.clips("validation")
    for inputs in decoder_inputs(clips.f0_hz, clips.loudness_db):
        expected = decoder(inputs[None]).numpy()
        assert abs(expected).max() > 0
        allowed = 1e-5 * max(1, abs(expected).max())
        np.testing.assert_allclose(session.decode(inputs[None]), expected, rtol=0, atol=allowed)
