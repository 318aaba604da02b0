"""TensorFlow's synthesiser and loss: against float64 twins, stock ddsp and finite differences."""

import json

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from thesis import reference
from thesis._ddsp import ddsp, tf
from thesis.config import SynthConfig
from thesis.controls import Outputs, white_noise
from thesis.losses import spectral_loss
from thesis.synthesis import Synthesizer, exp_sigmoid

RATE, HOP = 16_000, 64
AUDIO_TOLERANCE = 1e-4


def glide(n_frames=250, low=200.0, high=900.0):
    """A slow rise with a vibrato: harmonics cross Nyquist all the time."""
    t = np.linspace(0, 1, n_frames)
    return (low * (high / low) ** t * 2 ** (np.sin(40 * t) / 24)).astype(np.float32)


def random_outputs(config, n_frames, seed=0):
    shape = (n_frames, config.n_outputs)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def twin(synth, outputs, f0_hz, noise, response):
    rates = {"sample_rate": synth.sample_rate, "hop_size": synth.hop_size}
    return reference.synthesize(outputs, f0_hz, noise, response, config=synth.config, **rates)


def assert_equals_twin(synth, outputs, f0_hz, response=(), *, atol=AUDIO_TOLERANCE):
    noise = white_noise(0, 1, len(f0_hz) * synth.hop_size)[0]
    response = np.asarray(response, np.float32)
    expected = twin(synth, outputs, f0_hz, noise, response)
    batch = (array[None] for array in (outputs, f0_hz, noise))
    audio = synth(*batch, response).numpy()[0]
    assert audio.shape == expected.shape
    np.testing.assert_allclose(audio, expected, rtol=0, atol=atol)


def random_response(taps, seed=0):
    return np.random.default_rng(seed).normal(scale=0.02, size=taps).astype(np.float32)


# --- Against the float64 twins ---


@pytest.mark.parametrize("n_harmonics", [1, 60])
def test_four_seconds_are_within_a_ten_thousandth_of_float64(n_harmonics):
    synth = Synthesizer(SynthConfig(n_harmonics=n_harmonics), RATE, HOP)
    outputs = random_outputs(synth.config, 1000)
    assert_equals_twin(synth, outputs, glide(1000), random_response(RATE))


def test_exp_sigmoid_equals_its_twin_and_ddsp():
    x = np.linspace(-40, 20, 200).astype(np.float32)
    np.testing.assert_allclose(exp_sigmoid(x), reference.exp_sigmoid(x), rtol=1e-5)
    np.testing.assert_allclose(exp_sigmoid(x), ddsp.core.exp_sigmoid(x), rtol=1e-5)


@settings(max_examples=40)
@given(
    n_frames=st.integers(1, 12),
    hop_size=st.integers(1, 70),
    n_harmonics=st.integers(1, 20),
    bands=st.integers(3, 20),
    taps=st.integers(0, 50),
    seed=st.integers(0, 1000),
)
def test_any_shape_equals_its_twin(n_frames, hop_size, n_harmonics, bands, taps, seed):
    synth = Synthesizer(SynthConfig(n_harmonics, bands), RATE, hop_size)
    f0_hz = np.random.default_rng(seed).uniform(0, 9000, n_frames).astype(np.float32)
    outputs = random_outputs(synth.config, n_frames, seed)
    assert_equals_twin(synth, outputs, f0_hz, random_response(taps, seed))


@settings(max_examples=40)
@given(
    number=st.integers(1, 20),
    ulps=st.lists(st.integers(-3, 3), min_size=1, max_size=6),
    seed=st.integers(0, 9),
)
def test_a_harmonic_a_hair_from_nyquist_is_heard_or_not_as_in_float64(number, ulps, seed):
    synth = Synthesizer(SynthConfig(n_harmonics=20, n_noise_bands=3), RATE, 8)
    limit = np.float32(RATE / 2 / number)
    f0_hz = np.array([limit + n * np.spacing(limit) for n in ulps], np.float32)
    assert_equals_twin(synth, random_outputs(synth.config, len(ulps), seed), f0_hz)


def test_a_harmonic_that_crosses_nyquist_stops_at_the_same_sample_as_in_float64():
    synth = Synthesizer(SynthConfig(), RATE, HOP)
    f0_hz = np.linspace(270, 750, 250, dtype=np.float32)
    amplitudes = np.random.default_rng(0).random((250, 60)).astype(np.float32)
    audio = synth.harmonic(amplitudes[None], f0_hz[None])[0]
    expected = reference.harmonic(amplitudes, f0_hz, sample_rate=RATE, hop_size=HOP)
    np.testing.assert_allclose(audio, expected, atol=AUDIO_TOLERANCE)


@pytest.mark.parametrize(
    "f0_hz",
    [
        pytest.param(np.zeros(20), id="no-pitch"),
        pytest.param(np.full(20, 8000.0), id="at-nyquist"),
        pytest.param(np.full(20, 12_000.0), id="above-nyquist"),
        pytest.param(np.repeat([0, 440, 0, 9000], 5), id="coming-and-going"),
        pytest.param(np.array([440.0]), id="one-frame"),
    ],
)
def test_extreme_pitches_equal_their_twin(f0_hz):
    synth = Synthesizer(SynthConfig(n_harmonics=7, n_noise_bands=5), RATE, HOP)
    outputs = random_outputs(synth.config, len(f0_hz))
    assert_equals_twin(synth, outputs, f0_hz.astype(np.float32), random_response(30))


def test_above_nyquist_only_the_noise_is_heard():
    synth = Synthesizer(SynthConfig(n_harmonics=3, n_noise_bands=5), RATE, HOP)
    outputs = random_outputs(synth.config, 9)[None]
    split = Outputs.split(outputs, synth.config)
    f0_hz = np.full((1, 9), 8000.0, np.float32)
    assert not np.any(synth.harmonic_amplitudes(split, f0_hz))
    noise = white_noise(0, 1, 9 * HOP)
    expected = synth.filtered_noise(split.noise_magnitudes, noise)
    np.testing.assert_array_equal(synth(outputs, f0_hz, noise, np.empty(0, "f4")), expected)


def test_extreme_outputs_stay_finite():
    synth = Synthesizer(SynthConfig(n_harmonics=7, n_noise_bands=5), RATE, HOP)
    for value in (-1e4, 1e4):
        outputs = np.full((10, synth.config.n_outputs), value, np.float32)
        assert_equals_twin(synth, outputs, glide(10), atol=1e-3)


def test_clips_of_a_batch_do_not_mix():
    synth = Synthesizer(SynthConfig(n_harmonics=7, n_noise_bands=5), RATE, HOP)
    outputs = np.stack([random_outputs(synth.config, 30, seed) for seed in range(3)])
    f0_hz = np.stack([glide(30), glide(30, 100, 120), glide(30, 3000, 900)])
    noise, response = white_noise(0, 3, 30 * HOP), random_response(100)
    batch = synth(outputs, f0_hz, noise, response)
    for i in range(3):
        alone = synth(outputs[i : i + 1], f0_hz[i : i + 1], noise[i : i + 1], response)
        np.testing.assert_allclose(batch[i], alone[0], atol=1e-5)


# --- Against stock ddsp ---


def test_harmonics_are_nearer_to_float64_than_those_of_stock_ddsp():
    f0_hz = np.stack([glide(1000), glide(1000, 400, 420)])
    amplitudes = np.random.default_rng(0).random((2, 1000, 60)).astype(np.float32) / 60
    amplitudes *= f0_hz[..., None] * np.arange(1, 61) < RATE / 2 - 50
    expected = [
        reference.harmonic(a, f0, sample_rate=RATE, hop_size=HOP)
        for a, f0 in zip(amplitudes, f0_hz, strict=True)
    ]
    total = amplitudes.sum(-1, keepdims=True)
    stock = ddsp.core.harmonic_synthesis(
        f0_hz[..., None],
        total,
        harmonic_distribution=amplitudes / total,
        n_samples=1000 * HOP,
        sample_rate=RATE,
        amp_resample_method="window",
    )
    ours = Synthesizer(SynthConfig(), RATE, HOP).harmonic(amplitudes, f0_hz)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    # The same sound as ddsp's before its phase drifts.
    np.testing.assert_allclose(ours[:, :1600], stock[:, :1600], atol=1e-3)
    assert abs(stock.numpy() - expected).max() > 100 * abs(ours.numpy() - expected).max()


def test_amplitudes_are_those_of_stock_ddsp():
    synth = Synthesizer(SynthConfig(), RATE, HOP)
    outputs, f0_hz = random_outputs(synth.config, 250)[None], glide()[None]
    split = Outputs.split(outputs, synth.config)
    stock = ddsp.synths.Harmonic(n_samples=250 * HOP, sample_rate=RATE).get_controls(
        split.amplitude, split.harmonic_distribution, f0_hz[..., None]
    )
    expected = stock["amplitudes"] * stock["harmonic_distribution"]
    np.testing.assert_allclose(synth.harmonic_amplitudes(split, f0_hz), expected, atol=1e-6)


@pytest.mark.parametrize("hop_size", [64, 100])
def test_noise_is_that_of_stock_ddsp(hop_size):
    raw = np.random.default_rng(0).normal(2, 2, (2, 50, 65)).astype(np.float32)
    noise = white_noise(0, 2, 50 * hop_size)
    ours = Synthesizer(SynthConfig(), RATE, hop_size).filtered_noise(raw, noise)
    magnitudes = ddsp.synths.FilteredNoise(window_size=0).get_controls(raw)["magnitudes"]
    stock = ddsp.core.frequency_filter(noise, magnitudes, window_size=0)
    np.testing.assert_allclose(ours, stock, atol=1e-5)
    expected = [reference.filtered_noise(a, b) for a, b in zip(raw, noise, strict=True)]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("taps", [1, 700, 9000])
def test_reverb_is_that_of_stock_ddsp(taps):
    audio = white_noise(0, 2, 4000)
    response = random_response(taps)
    ours = Synthesizer(SynthConfig(), RATE, HOP).reverb(audio, response)
    stock = ddsp.effects.Reverb(reverb_length=taps)(audio, np.stack([response] * 2))
    np.testing.assert_allclose(ours, stock, atol=1e-5)
    expected = [reference.reverb(clip, response.astype(float)) for clip in audio]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


# --- Gradients ---


def test_gradients_are_the_slopes_of_the_float64_twin():
    synth = Synthesizer(SynthConfig(n_harmonics=5, n_noise_bands=4), RATE, 16)
    rng = np.random.default_rng(0)
    outputs, f0_hz = random_outputs(synth.config, 6), glide(6)
    noise, response = white_noise(0, 1, 96)[0], random_response(20)
    weight = rng.normal(size=96)

    with tf.GradientTape() as tape:
        inputs = [tf.constant(outputs[None]), tf.constant(response)]
        tape.watch(inputs)
        audio = synth(inputs[0], f0_hz[None], noise[None], inputs[1])
        total = tf.reduce_sum(audio * weight.astype(np.float32))
    of_outputs, of_response = (g.numpy() for g in tape.gradient(total, inputs))

    def slope(direction, at_response):
        def total(step):
            moved = outputs + step * direction, response + step * at_response
            return weight @ twin(synth, moved[0], f0_hz, noise, moved[1])

        return (total(1e-5) - total(-1e-5)) / 2e-5

    for _ in range(10):
        direction, at_response = rng.normal(size=outputs.shape), rng.normal(size=20)
        expected = (of_outputs[0] * direction).sum() + of_response @ at_response
        assert slope(direction, at_response) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_the_gradient_of_the_loss_is_its_slope():
    target, audio = white_noise(0, 2, 3000)
    direction = np.random.default_rng(1).normal(size=3000)
    with tf.GradientTape() as tape:
        x = tf.constant(audio[None])
        tape.watch(x)
        loss = spectral_loss(target[None], x)
    gradient = tape.gradient(loss, x).numpy()[0]
    up, down = (reference.spectral_loss(target, audio + step * direction) for step in (1e-6, -1e-6))
    assert (up - down) / 2e-6 == pytest.approx(gradient @ direction, rel=1e-2)


@pytest.mark.parametrize("level", [1e-8, 1e-3])
def test_a_silent_target_has_the_gradient_that_ddsp_gives_it(level):
    # Its logarithm is that of 1e-5, so softer audio is pulled up although it is above the target.
    audio = tf.constant(level * white_noise(0, 2, 3000))
    gradients = []
    for loss_of in (spectral_loss, ddsp.losses.SpectralLoss(logmag_weight=1.0)):
        with tf.GradientTape() as tape:
            tape.watch(audio)
            loss = tf.reduce_mean(loss_of(tf.zeros_like(audio), audio))
        gradients.append(tape.gradient(loss, audio).numpy())
    ours, theirs = gradients
    # Nearly empty bins have gradients that differ by rounding; all others agree.
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999


def test_silence_has_a_finite_gradient():
    x = tf.zeros([1, 3000])
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = spectral_loss(white_noise(0, 1, 3000), x)
    assert np.isfinite(loss).all()
    assert np.isfinite(tape.gradient(loss, x)).all()


# --- The loss ---


def test_the_loss_is_that_of_stock_ddsp():
    target, audio = white_noise(0, 3, 8000), 0.3 * white_noise(1, 3, 8000)
    audio[2, 2000:] = 0
    stock = ddsp.losses.SpectralLoss(mag_weight=1.0, logmag_weight=1.0)(target, audio)
    assert spectral_loss(target, audio).numpy().mean() == pytest.approx(float(stock), rel=1e-5)


def test_the_loss_of_each_clip_is_that_of_its_twin():
    target, audio = white_noise(0, 2, 4999), 0.3 * white_noise(1, 2, 4999)
    expected = [reference.spectral_loss(a, b) for a, b in zip(target, audio, strict=True)]
    np.testing.assert_allclose(spectral_loss(target, audio), expected, rtol=1e-4)


def test_a_clip_is_at_no_distance_from_itself():
    audio = white_noise(0, 1, 4000)
    assert spectral_loss(audio, audio).numpy().tolist() == [0.0]


@pytest.mark.parametrize("clip", ["clip_10", "clip_16"])
def test_the_losses_of_the_thesis_are_reproduced(violin, clip):
    def audio_of(path):
        return soundfile.read(path, dtype="float32")[0][None]

    losses = json.loads((violin / "thesis_losses.json").read_text())[clip]
    target = audio_of(violin / "reference" / f"{clip}.wav")
    assert len(losses) == 5
    for model, expected in losses.items():
        rendering = audio_of(violin / "renders" / f"{clip}.{model}.wav")
        assert spectral_loss(target, rendering).numpy()[0] == pytest.approx(expected, abs=1e-3)
