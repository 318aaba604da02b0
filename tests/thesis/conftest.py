"""A small model and its training: one synthesiser, so that one trace serves all tests."""

import pytest

from thesis.config import DecoderConfig, MeasureConfig, ModelConfig, SynthConfig, TrainConfig

RATES = {"sample_rate": 16_000, "hop_size": 64}


@pytest.fixture(scope="session")
def rates():
    return RATES


@pytest.fixture(scope="session")
def small():
    """A decoder of a hundred weights with a synthesiser to match, trained for six steps."""
    return ModelConfig(
        DecoderConfig(channels=4, layers_per_stack=2, stacks=1, dilation_base=2),
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
def spectral_loss_of():
    """A function: the multi-scale spectral loss by its definition, in float64, frame by frame."""
    import numpy as np

    def magnitudes(audio, size):
        hop = size // 4
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
        padded = np.append(audio.astype(np.float64), np.zeros(size))
        starts = range(0, len(audio), hop)
        return np.array([abs(np.fft.rfft(padded[at : at + size] * window)) for at in starts])

    def log(x):
        return np.log(np.where(x <= 0, 1e-5, x))

    def spectral_loss_of(target, audio):
        loss = 0.0
        for size in (2048, 1024, 512, 256, 128, 64):
            a, b = magnitudes(target, size), magnitudes(audio, size)
            loss += abs(a - b).mean() + abs(log(a) - log(b)).mean()
        return loss

    return spectral_loss_of
