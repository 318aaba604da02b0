"""What goes into a decoder: as ddsp scales it, and the same noise for everyone."""

import numpy as np
import pytest

from thesis import reference
from thesis.config import SynthConfig
from thesis.controls import (
    Outputs,
    absolute_levels,
    decoder_inputs,
    initial_outputs,
    noise_key,
    white_noise,
)


def test_inputs_are_scaled_as_ddsp_scales_them():
    from thesis._ddsp import ddsp

    f0_hz = np.geomspace(20, 8000, 50).astype(np.float32)
    loudness_db = np.linspace(-80, 0, 50).astype(np.float32)
    inputs = decoder_inputs(f0_hz, loudness_db)
    assert inputs.shape == (50, 2)
    assert inputs.dtype == np.float32
    loudness_scaled = loudness_db / ddsp.spectral_ops.DB_RANGE + 1
    f0_scaled = ddsp.core.hz_to_midi(f0_hz) / ddsp.spectral_ops.F0_RANGE
    np.testing.assert_allclose(inputs[:, 0], loudness_scaled, atol=1e-6)
    np.testing.assert_allclose(inputs[:, 1], f0_scaled, atol=1e-6)


def test_a440_is_note_69_and_loudness_runs_from_0_to_1():
    inputs = decoder_inputs(np.array([440.0, 880.0]), np.array([-80.0, 0.0]))
    np.testing.assert_allclose(inputs * [1, 127], [[0, 69], [1, 81]], atol=1e-5)


@pytest.mark.parametrize("f0_hz", [0.0, -1.0])
def test_no_pitch_is_note_zero(f0_hz):
    assert decoder_inputs(np.array([f0_hz]), np.array([-40.0])).tolist() == [[0.5, 0.0]]


def test_a_batch_is_its_clips():
    rng = np.random.default_rng(0)
    f0_hz, loudness_db = rng.uniform(50, 500, (3, 7)), rng.uniform(-80, 0, (3, 7))
    batch = decoder_inputs(f0_hz, loudness_db)
    for i in range(3):
        np.testing.assert_array_equal(batch[i], decoder_inputs(f0_hz[i], loudness_db[i]))


def test_noise_is_uniform_and_follows_the_seed():
    noise = white_noise(1, 2, 50_000)
    assert noise.shape == (2, 50_000)
    assert noise.dtype == np.float32
    assert -1 <= noise.min() < -0.999
    assert 0.999 < noise.max() < 1
    np.testing.assert_allclose(noise.mean(), 0, atol=0.01)
    np.testing.assert_allclose(noise.var(), 1 / 3, atol=0.01)
    np.testing.assert_array_equal(noise, white_noise(1, 2, 50_000))
    assert (noise != white_noise(2, 2, 50_000)).mean() > 0.99
    assert (noise[0] != noise[1]).mean() > 0.99


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_noise_is_white(seed):
    noise = white_noise(seed, 1, 2**16)[0].astype(np.float64)
    # Of white noise, a mean of 512 bins of a periodogram is within 5 standard errors of the level.
    power = abs(np.fft.rfft(noise))[1:] ** 2 / len(noise)
    bands = power.reshape(64, 512).mean(1) * 3
    np.testing.assert_allclose(bands, 1, atol=5 / np.sqrt(512))
    # Neighbours fill the square evenly.
    counts, *_ = np.histogram2d(noise[::2], noise[1::2], bins=16, range=[[-1, 1]] * 2)
    expected = len(noise) / 2 / 256
    assert ((counts - expected) ** 2 / expected).sum() < 400  # chi-squared: 255 +- 23


def test_a_sample_of_noise_is_the_hash_of_its_number():
    def lowbias32(x):
        x = ((x ^ x >> 16) * 0x7FEB352D) % 2**32
        x = ((x ^ x >> 15) * 0x846CA68B) % 2**32
        return x ^ x >> 16

    key = noise_key(seed=3)
    expected = [(lowbias32(i ^ key) >> 8) / 2**23 - 1 for i in range(100)]
    assert white_noise(3, 1, 100)[0].tolist() == expected


def test_one_clip_has_the_noise_of_the_first_of_many():
    np.testing.assert_array_equal(white_noise(0, 1, 64)[0], white_noise(0, 3, 64)[0])


def test_outputs_are_split_in_order_and_nothing_is_left():
    synth = SynthConfig(n_harmonics=3, n_noise_bands=5)
    outputs = np.arange(2 * synth.n_outputs).reshape(2, synth.n_outputs)
    split = Outputs.split(outputs, synth)
    parts = [split.amplitude, split.harmonic_distribution, split.noise_magnitudes]
    assert [part.shape for part in parts] == [(2, 1), (2, 3), (2, 5)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), outputs)


@pytest.mark.parametrize("column", [0, 1])
def test_nan_is_not_taken_for_silence_or_no_pitch(column):
    loudness_db, f0_hz = np.full(3, -20.0), np.full(3, 440.0)
    (loudness_db, f0_hz)[column][1] = np.nan
    assert np.isnan(decoder_inputs(f0_hz, loudness_db)).tolist() == [
        [False, False],
        [column == 0, column == 1],
        [False, False],
    ]


def test_levels_follow_loudness_a_db_for_a_db():
    config = SynthConfig(n_harmonics=5, n_noise_bands=4)
    loudness_db = np.array([-50.0, -40.0, -30.0])
    inputs = decoder_inputs(np.full(3, 440.0), loudness_db)
    outputs = np.broadcast_to(initial_outputs(config), (3, config.n_outputs))
    levels = Outputs.split(absolute_levels(outputs, inputs, config), config)
    for raw in (levels.amplitude, levels.noise_magnitudes + reference.NOISE_BIAS):
        db = 20 * np.log10(reference.exp_sigmoid(raw))[:, 0]
        np.testing.assert_allclose(np.diff(db), 10, atol=1)
    np.testing.assert_array_equal(levels.harmonic_distribution, outputs[:, 1:6])


def test_a_new_decoder_s_harmonics_fall_by_some_8_db_an_octave():
    config = SynthConfig(n_harmonics=64)
    raw = Outputs.split(initial_outputs(config), config).harmonic_distribution
    shares_db = 20 * np.log10(reference.exp_sigmoid(raw))
    np.testing.assert_allclose(shares_db[[15, 31, 63]] - shares_db[[7, 15, 31]], -8, atol=0.6)


def test_absolute_levels_are_left_as_they_are():
    config = SynthConfig(levels="absolute")
    outputs = np.ones((3, config.n_outputs))
    assert absolute_levels(outputs, np.ones((3, 2)), config) is outputs
    assert not initial_outputs(config).any()
