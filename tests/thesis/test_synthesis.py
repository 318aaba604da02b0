"""TensorFlow's synthesiser and loss: against float64 twins, stock ddsp and finite differences."""

from functools import partial

import numpy as np
import pytest
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


# What a dataset, a space or a user may ask for: common rates, hops that divide nothing, noise
# filters of several hops, reverbs shorter and longer than the clip.
SETTINGS = {
    "sample_rate": st.sampled_from([8000, 16_000, 22_050, 44_100, 48_000]),
    "hop_size": st.sampled_from([64, 80, 96, 128, 256, 63, 221]) | st.integers(1, 300),
    "n_harmonics": st.integers(1, 200),
    "bands": st.integers(3, 257),
    "taps": st.sampled_from([0, 1, 20_000]) | st.integers(2, 3000),
    "f0_hz": st.lists(
        st.floats(20, 2000, width=32) | st.sampled_from([0.0, -1.0, 3999.0, 4000.0, 30_000.0]),
        min_size=1,
        max_size=9,
    ),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=15)
@given(**SETTINGS)
def test_every_part_equals_its_twin_at_every_setting(
    sample_rate, hop_size, n_harmonics, bands, taps, f0_hz, seed
):
    synth = Synthesizer(SynthConfig(n_harmonics, bands), sample_rate, hop_size)
    f0_hz = np.array(f0_hz, np.float32)
    outputs = random_outputs(synth.config, len(f0_hz), seed)
    split, response = Outputs.split(outputs, synth.config), random_response(taps, seed)
    noise = white_noise(seed, 1, len(f0_hz) * hop_size)[0]

    def close(ours, expected):
        np.testing.assert_allclose(ours[0], expected, rtol=0, atol=AUDIO_TOLERANCE)

    amplitudes = reference.harmonic_amplitudes(split, f0_hz, sample_rate)
    close(synth.harmonic_amplitudes(as_batch(split), f0_hz[None]), amplitudes)
    close(
        synth.harmonic(amplitudes[None].astype(np.float32), f0_hz[None]),
        reference.harmonic(amplitudes, f0_hz, sample_rate=sample_rate, hop_size=hop_size),
    )
    loud = split.noise_magnitudes + 5.0
    close(synth.filtered_noise(loud[None], noise[None]), reference.filtered_noise(loud, noise))
    close(synth.reverb(noise[None], response), reference.reverb(noise.astype(float), response))
    assert_equals_twin(synth, outputs, f0_hz, response)


def as_batch(split):
    return Outputs(*(array[None] for array in vars(split).values()))


def test_a_minute_is_as_exact_as_a_second():
    synth = Synthesizer(SynthConfig(n_harmonics=3), RATE, HOP)
    n_frames = 60 * RATE // HOP
    f0_hz, amplitudes = glide(n_frames, 500, 2600), np.ones((n_frames, 3), np.float32)
    audio = synth.harmonic(amplitudes[None], f0_hz[None]).numpy()[0]
    expected = reference.harmonic(amplitudes, f0_hz, sample_rate=RATE, hop_size=HOP)
    errors = abs(audio - expected).reshape(60, RATE).max(axis=1)
    assert errors.max() < 5e-6
    assert errors[-1] < 3 * errors[0]


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
        pytest.param(np.full(20, -440.0), id="negative"),
        pytest.param(np.repeat([0, 440, 0, 9000, -1, 440], 5), id="coming-and-going"),
        pytest.param(np.array([440.0]), id="one-frame"),
    ],
)
def test_extreme_pitches_equal_their_twin(f0_hz):
    synth = Synthesizer(SynthConfig(n_harmonics=7, n_noise_bands=5), RATE, HOP)
    outputs = random_outputs(synth.config, len(f0_hz))
    assert_equals_twin(synth, outputs, f0_hz.astype(np.float32), random_response(30))


def compiled(synth):
    """The synthesiser of one clip, compiled as in training."""
    function = tf.function(synth, jit_compile=True)

    def render(outputs, f0_hz, noise, response):
        batch = (tf.constant(array[None]) for array in (outputs, f0_hz, noise))
        return function(*batch, tf.constant(response))[0].numpy()

    return render


def test_compiled_synthesis_equals_its_twin_too():
    synth = Synthesizer(SynthConfig(n_harmonics=200, n_noise_bands=257), 44_100, 63)
    f0_hz = np.repeat([0, 440, -1, 9000, 30_000, 50], 5).astype(np.float32)
    arguments = (random_outputs(synth.config, 30), f0_hz, white_noise(0, 1, 30 * 63)[0])
    response = random_response(3000)
    expected = twin(synth, *arguments, response)
    audio = compiled(synth)(*arguments, response)
    np.testing.assert_allclose(audio, expected, rtol=0, atol=AUDIO_TOLERANCE)


@pytest.mark.parametrize("pitch", [0.0, -440.0, 8000.0, 12_000.0])
def test_without_an_audible_harmonic_only_the_noise_is_heard(pitch):
    synth = Synthesizer(SynthConfig(n_harmonics=3, n_noise_bands=5), RATE, HOP)
    outputs = random_outputs(synth.config, 9)[None]
    split = Outputs.split(outputs, synth.config)
    f0_hz = np.full((1, 9), pitch, np.float32)
    assert not np.any(synth.harmonic_amplitudes(split, f0_hz))
    assert not np.any(synth.harmonic(np.ones((1, 9, 3), np.float32), f0_hz))
    noise = white_noise(0, 1, 9 * HOP)
    expected = synth.filtered_noise(split.noise_magnitudes, noise)
    np.testing.assert_array_equal(synth(outputs, f0_hz, noise, np.empty(0, "f4")), expected)


def test_frames_without_pitch_among_others_are_silent_and_leave_no_offset():
    synth = Synthesizer(SynthConfig(n_harmonics=7), RATE, HOP)
    outputs = random_outputs(synth.config, 30)[None]
    f0_hz = np.repeat([440.0, 0.0, 330.0], 10).astype(np.float32)[None]
    amplitudes = synth.harmonic_amplitudes(Outputs.split(outputs, synth.config), f0_hz)
    frames = synth.harmonic(amplitudes, f0_hz).numpy().reshape(30, HOP)
    assert not frames[10:19].any()  # frame 19 already rises to the pitch of frame 20
    assert frames[:9].any(axis=1).all()
    assert frames[20:].any(axis=1).all()


@pytest.mark.parametrize("spoilt", ["outputs", "f0_hz", "noise", "response"])
def test_nan_comes_out_where_nan_goes_in(spoilt):
    # A trial whose loss is NaN says so; a number in its place would hide what went wrong.
    synth = Synthesizer(SynthConfig(n_harmonics=3, n_noise_bands=5), RATE, HOP)
    arrays = {
        "outputs": random_outputs(synth.config, 9),
        "f0_hz": glide(9),
        "noise": white_noise(0, 1, 9 * HOP)[0],
        "response": random_response(50),
    }
    arrays[spoilt][-1] = np.nan  # the last: there is no later one to be spoilt, too
    outputs, f0_hz, noise, response = arrays.values()
    for audio in (
        twin(synth, *arrays.values()),
        synth(outputs[None], f0_hz[None], noise[None], response)[0],
        compiled(synth)(*arrays.values()),
    ):
        assert np.isnan(audio).any()


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


def gradients_of(function, *inputs):
    """The gradients of a sum in TensorFlow, compiled as in training, as float64."""

    @tf.function(jit_compile=True)
    def gradients(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            total = function(*inputs)
        none = tf.UnconnectedGradients.ZERO
        return tape.gradient(total, inputs, unconnected_gradients=none)

    found = gradients(*(tf.constant(x, tf.float32) for x in inputs))
    return [gradient.numpy().astype(np.float64) for gradient in found]


def assert_slopes(gradients, total, *inputs, step=1e-5, tolerance=1e-4, tries=5):
    """Checks gradients against central differences of a float64 function in random directions.

    Along a direction of independent normal numbers the slope is normal too, with the gradient's
    norm as its spread: that norm is what an error is measured by. float64 leaves an error of about
    1e-10 / step from cancellation and step ** 2 from curvature; the rest of the tolerance is
    TensorFlow's float32, whose phases are off by up to 4e-5 at the 200th harmonic.
    """
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
    assert np.isfinite(norm)
    rng = np.random.default_rng(0)
    for _ in range(tries):
        directions = [rng.normal(size=x.shape) for x in inputs]
        up, down = (
            total(*(x + sign * step * d for x, d in zip(inputs, directions, strict=True)))
            for sign in (1, -1)
        )
        expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        assert abs((up - down) / (2 * step) - expected) <= tolerance * norm


GRADIENT_SETTINGS = pytest.mark.parametrize(
    ("sample_rate", "hop_size", "n_harmonics", "bands", "taps"),
    [(8000, 64, 1, 3, 0), (44_100, 221, 200, 257, 3000)],
    ids=["least", "most"],
)
UNVOICED_AND_INAUDIBLE = np.array([440, 300, 0, 0, 30_000, -1, 5000, 800], np.float32)


@GRADIENT_SETTINGS
def test_gradients_are_the_slopes_of_the_float64_twin(
    sample_rate, hop_size, n_harmonics, bands, taps
):
    f0_hz, n_frames = UNVOICED_AND_INAUDIBLE, 8
    synth = Synthesizer(SynthConfig(n_harmonics, bands), sample_rate, hop_size)
    rates = {"sample_rate": sample_rate, "hop_size": hop_size}
    outputs, response = random_outputs(synth.config, n_frames), random_response(taps)
    split = Outputs.split(outputs, synth.config)
    noise = white_noise(0, 1, n_frames * hop_size)[0]
    weight = np.random.default_rng(1).normal(size=noise.size)

    def check(ours, expected, *inputs):
        of_weight = np.float32(weight)
        found = gradients_of(lambda *x: tf.reduce_sum(ours(*x) * of_weight), *inputs)
        assert_slopes(found, lambda *x: weight @ expected(*x), *inputs)

    def harmonics(module, *parts):
        return module.harmonic_amplitudes(Outputs(*parts, None), *f0_and_rate(module))

    def f0_and_rate(module):
        return (f0_hz[None],) if module is synth else (f0_hz, sample_rate)

    check(
        lambda *x: synth.harmonic(harmonics(synth, *(part[None] for part in x)), f0_hz[None]),
        lambda *x: reference.harmonic(harmonics(reference, *x), f0_hz, **rates),
        split.amplitude,
        split.harmonic_distribution,
    )
    check(
        lambda x: synth.filtered_noise(x[None], noise[None]),
        lambda x: reference.filtered_noise(x, noise),
        split.noise_magnitudes + 5,
    )
    check(lambda x, h: synth.reverb(x[None], h), reference.reverb, noise, response)
    check(
        lambda x, h: synth(x[None], f0_hz[None], noise[None], h),
        lambda x, h: twin(synth, x, f0_hz, noise, h),
        outputs,
        response,
    )


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_outputs_have_finite_gradients(value):
    synth = Synthesizer(SynthConfig(n_harmonics=7, n_noise_bands=5), RATE, HOP)
    outputs = np.full((1, 8, synth.config.n_outputs), value)
    f0_hz, noise = UNVOICED_AND_INAUDIBLE[None], white_noise(0, 1, 8 * HOP)
    (gradient,) = gradients_of(
        lambda x: tf.reduce_sum(synth(x, f0_hz, noise, random_response(9)) ** 2), outputs
    )
    assert np.isfinite(gradient).all()


def test_the_gradient_of_the_loss_is_its_slope():
    target, audio = white_noise(0, 2, 3000)
    found = gradients_of(lambda x: spectral_loss(target[None], x[None])[0], audio)
    # A smaller step: the loss has a kink wherever a magnitude equals its target's. A larger
    # tolerance: along a spectrum the slope is 1 / magnitude, and float32 leaves little of a bin
    # that is nearly empty.
    slope_of = partial(reference.spectral_loss, target)
    assert_slopes(found, slope_of, audio, step=1e-8, tolerance=1e-3)


def test_the_gradient_of_the_loss_of_the_whole_chain_is_its_slope():
    synth = Synthesizer(SynthConfig(n_harmonics=30, n_noise_bands=33), 22_050, 63)
    outputs, f0_hz, response = random_outputs(synth.config, 40), glide(40), random_response(500)
    outputs[:, -33:] += 6  # noise to be heard in every bin, see above
    target, noise = white_noise(0, 2, 40 * 63)

    def ours(x, h):
        return spectral_loss(target[None], synth(x[None], f0_hz[None], noise[None], h))[0]

    def expected(x, h):
        return reference.spectral_loss(target, twin(synth, x, f0_hz, noise, h))

    found = gradients_of(ours, outputs, response)
    assert_slopes(found, expected, outputs, response, step=1e-8, tolerance=1e-3)


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
