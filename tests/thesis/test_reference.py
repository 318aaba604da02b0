"""The float64 twins: against loops that follow the definitions, and tones known in closed form."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thesis import reference
from thesis.architecture import Add, Concat, Conv, Film, Gru, Take, TransposedConv
from thesis.config import DecoderConfig, SynthConfig
from thesis.controls import Outputs

RATE = 16_000


def decode_frame_by_frame(inputs, weights, config):
    """The decoder with a loop for every index."""
    controls = [[float(v) for v in frame] for frame in inputs]
    values = {"inputs": controls}
    for node in config.plan(len(weights["output/bias"])):
        sources = [values[source] for source in node.sources]
        n_frames = math.ceil(len(inputs) / node.period)
        if isinstance(node, Conv | TransposedConv):
            summed = [
                convolved(*sources, t, node, weights[f"{node.name}/kernel"].astype(float))
                for t in range(n_frames)
            ]
            y = [[normed(summed, t, c, node, weights) for c in range(node.ch_out)]
                 for t in range(n_frames)]  # fmt: skip
        elif isinstance(node, Film):
            y = [
                [
                    modulated(sources[0][t][c], controls[t * node.period], c, node, weights)
                    for c in range(node.ch_out)
                ]
                for t in range(n_frames)
            ]
        elif isinstance(node, Gru):
            y, state = [], [0.0] * node.ch_out
            for frame in sources[0]:
                state = [recurrent(frame, state, c, node, weights) for c in range(node.ch_out)]
                y.append(state)
        elif isinstance(node, Take):
            y = [[frame[node.first + c] for c in range(node.ch_out)] for frame in sources[0]]
        elif isinstance(node, Concat):
            y = [[v for frame in frames for v in frame] for frames in zip(*sources, strict=True)]
        else:
            assert isinstance(node, Add)
            y = [
                [sum(numbers) for numbers in zip(*frames, strict=True)]
                for frames in zip(*sources, strict=True)
            ]
        last = ACTIVATIONS[getattr(node, "activation", "none")]
        values[node.name] = [[last(v) for v in frame] for frame in y]
    return np.array(values["output"])


ACTIVATIONS = {
    "none": lambda v: v,
    "relu6": lambda v: min(max(v, 0.0), 6.0),
    "leaky_relu": lambda v: max(v, 0.2 * v),
}


def recurrent(x, state, c, gru, weights):
    """One channel of the next state of a GRU."""
    kernel, recurrent_kernel, bias = (
        weights[f"{gru.name}/{name}"].astype(float)
        for name in ("kernel", "recurrent_kernel", "bias")
    )

    def linear(gate):
        at = gate * gru.ch_out + c
        from_input = sum(v * kernel[i, at] for i, v in enumerate(x)) + bias[0, at]
        from_state = sum(v * recurrent_kernel[i, at] for i, v in enumerate(state)) + bias[1, at]
        return from_input, from_state

    update, reset = (1 / (1 + math.exp(-sum(linear(gate)))) for gate in (0, 1))
    from_input, from_state = linear(2)
    new = math.tanh(from_input + reset * from_state)
    return update * state[c] + (1 - update) * new


def convolved(x, t, conv, kernel):
    """One frame of a convolution: the sum over all frames that a tap leads to."""
    y = [0.0] * conv.ch_out
    for at, frame in enumerate(x):
        if isinstance(conv, TransposedConv):
            tap = t + conv.lookahead - at * conv.stride
        else:
            last = t * conv.stride + conv.lookahead
            tap, between = divmod(at - last, conv.dilation)
            tap += len(kernel) - 1
            if between:
                continue
        if not 0 <= tap < len(kernel):
            continue
        for out in range(conv.ch_out):
            if getattr(conv, "depthwise", False):
                y[out] += frame[out] * kernel[tap, 0, out]
            else:
                y[out] += sum(v * kernel[tap, c, out] for c, v in enumerate(frame))
    return y


def modulated(x, controls, c, film, weights):
    def linear(name):
        kernel = weights[f"{film.name}/{name}_kernel"].astype(float)
        of_controls = sum(v * kernel[i, c] for i, v in enumerate(controls))
        return of_controls + float(weights[f"{film.name}/{name}"][c])

    return (x * linear("scale") if film.scaled else x) + linear("shift")


def normed(y, t, c, layer, weights):
    def weight(name):
        return float(weights[f"{layer.name}/{name}"][c])

    if layer.bias:
        bias = weights[f"{layer.name}/bias"].astype(float)
        y = [[v + b for v, b in zip(frame, bias, strict=True)] for frame in y]
    x = y[t][c]
    if layer.norm == "none":
        return x + weight("bias") if layer.affine else x
    if layer.norm == "batch":
        mean, variance, epsilon = weight("mean"), weight("variance"), 1e-3
    else:
        over = y[t] if layer.norm == "frame" else [v for frame in y for v in frame]
        mean, epsilon = sum(over) / len(over), 1e-3 if layer.bias else 1e-5
        variance = sum((v - mean) ** 2 for v in over) / len(over)
    x = (x - mean) / math.sqrt(variance + epsilon)
    return x * weight("scale") + weight("shift") if layer.affine else x


@settings(max_examples=20)
@given(config=st.from_type(DecoderConfig), n_frames=st.integers(1, 20), seed=st.integers(0, 99))
def test_decode_follows_its_definition_frame_by_frame(weights_of, config, n_frames, seed):
    weights = weights_of(config.plan(4), seed)
    inputs = np.random.default_rng(seed).normal(size=(n_frames, 2))
    expected = decode_frame_by_frame(inputs, weights, config)
    np.testing.assert_allclose(reference.decode(inputs, weights, config), expected, atol=1e-10)


@pytest.mark.parametrize("x", [-30.0, -1.0, 0.0, 0.7, 5.0])
def test_exp_sigmoid_follows_its_definition(x):
    expected = 2 * (1 / (1 + math.exp(-x))) ** math.log(10) + 1e-7
    assert reference.exp_sigmoid(np.array(x)) == pytest.approx(expected, rel=1e-12)


def test_a_steady_pitch_is_a_sum_of_sines():
    amplitudes = np.tile([0.5, 0.25, 0.125], (20, 1))
    audio = reference.harmonic(amplitudes, np.full(20, 440.0), sample_rate=RATE, hop_size=64)
    t = np.arange(1, 20 * 64 + 1) / RATE  # the phase has moved on by the first sample
    expected = sum(0.5**k * np.sin(2 * np.pi * 440 * k * t) for k in (1, 2, 3))
    np.testing.assert_allclose(audio, expected, atol=1e-9)


def test_after_a_minute_the_phase_is_still_exact():
    amplitudes, f0_hz = np.ones((60, 1)), np.full(60, 441.3)
    audio = reference.harmonic(amplitudes, f0_hz, sample_rate=RATE, hop_size=RATE)
    t = np.arange(59 * RATE, 60 * RATE) + 1
    expected = np.sin(2 * np.pi * 441.3 * t / RATE)
    np.testing.assert_allclose(audio[59 * RATE :], expected, atol=1e-5)


def harmonic_sample_by_sample(amplitudes, f0_hz, hop_size):
    n_frames, n_harmonics = amplitudes.shape
    audio, cycles = [], 0.0
    for n in range(n_frames * hop_size):
        t, h = divmod(n, hop_size)
        ahead = min(t + 1, n_frames - 1)
        f0 = f0_hz[t] + (f0_hz[ahead] - f0_hz[t]) * h / hop_size
        w = math.sin(math.pi * h / hop_size / 2) ** 2
        cycles += f0 / RATE
        sample = 0.0
        for k in range(1, n_harmonics + 1):
            if k * f0 < RATE / 2:
                a = amplitudes[t, k - 1] * (1 - w) + amplitudes[ahead, k - 1] * w
                sample += a * math.sin(2 * math.pi * k * cycles)
        audio.append(sample)
    return np.array(audio)


@pytest.mark.parametrize("n_frames", [1, 2, 9])
@pytest.mark.parametrize("hop_size", [1, 7, 32])
def test_harmonic_follows_its_definition_sample_by_sample(n_frames, hop_size):
    rng = np.random.default_rng(n_frames)
    amplitudes, f0_hz = rng.random((n_frames, 5)), rng.uniform(0, 4000, n_frames)
    audio = reference.harmonic(amplitudes, f0_hz, sample_rate=RATE, hop_size=hop_size)
    expected = harmonic_sample_by_sample(amplitudes, f0_hz, hop_size)
    np.testing.assert_allclose(audio, expected, atol=1e-9)


def test_harmonics_above_nyquist_are_silent_and_the_rest_share_the_amplitude():
    outputs = Outputs(np.full((2, 1), 3.0), np.zeros((2, 4)), np.zeros((2, 3)))
    f0_hz = np.array([2500.0, 9000.0])  # 3 x 2,500 < 8,000 < 4 x 2,500
    amplitudes = reference.harmonic_amplitudes(outputs, f0_hz, RATE)
    total = reference.exp_sigmoid(np.array(3.0))
    np.testing.assert_allclose(amplitudes[0], [total / 3] * 3 + [0])
    assert not amplitudes[1].any()


def test_noise_filters_are_symmetric_about_their_delay():
    raw = np.random.default_rng(0).normal(size=(3, 9))
    responses = reference.noise_impulse_responses(raw)
    assert responses.shape == (3, 16)
    assert not responses[:, 0].any()
    np.testing.assert_allclose(responses[:, 1:], responses[:, :0:-1], atol=1e-15)


def test_a_flat_noise_filter_delays_by_less_than_the_filter_and_keeps_the_noise():
    raw = np.full((10, 9), 50.0)  # exp_sigmoid(50 - 5) = 2
    noise = np.random.default_rng(0).uniform(-1, 1, 10 * 32)
    audio = reference.filtered_noise(raw, noise)
    # ddsp takes out one sample less than the delay of the filter's centre.
    delay = 16 // 2 - ((16 - 1) // 2 - 1)
    np.testing.assert_allclose(audio[delay:], 2 * noise[:-delay], atol=1e-6)


@pytest.mark.parametrize("hop_size", [5, 32])
def test_filtered_noise_follows_its_definition(hop_size):
    rng = np.random.default_rng(0)
    raw, noise = rng.normal(size=(6, 9)) + 5, rng.uniform(-1, 1, 6 * hop_size)
    responses = reference.noise_impulse_responses(raw)
    expected = np.zeros(noise.size)
    for n in range(noise.size):
        for i in range(responses.shape[1]):
            at = n + 6 - i  # group delay (16 - 1) // 2 - 1
            if 0 <= at < noise.size:
                expected[n] += noise[at] * responses[at // hop_size, i]
    np.testing.assert_allclose(reference.filtered_noise(raw, noise), expected, atol=1e-12)


@pytest.mark.parametrize("taps", [1, 2, 30, 400])
def test_reverb_is_the_dry_signal_and_its_convolution(taps):
    rng = np.random.default_rng(0)
    audio, response = rng.normal(size=100), rng.normal(size=taps)
    expected = audio.copy()
    for n in range(100):
        for i in range(1, min(taps, n + 1)):  # the first tap is the dry signal's place
            expected[n] += response[i] * audio[n - i]
    np.testing.assert_allclose(reference.reverb(audio, response), expected, atol=1e-10)


@pytest.mark.parametrize("sample_rate", [8000, 44_100])
def test_the_envelope_of_the_reverb_falls_by_60_db_in_its_time_at_any_sample_rate(sample_rate):
    config = SynthConfig(reverb_seconds=1.0, reverb_decay_seconds=0.25)
    envelope = reference.reverb_envelope(config, sample_rate)
    assert envelope.shape == (sample_rate,)
    level_db = 20 * np.log10(envelope)
    assert level_db[0] == 0
    assert level_db[sample_rate // 4] == pytest.approx(-60)
    np.testing.assert_allclose(np.diff(level_db), -60 / (0.25 * sample_rate))


def test_without_a_decay_the_response_is_heard_as_it_is():
    envelope = reference.reverb_envelope(SynthConfig(reverb_seconds=0.1), RATE)
    assert envelope.tolist() == [1.0] * 1600
    none = SynthConfig(reverb_seconds=0.0, reverb_decay_seconds=0.5)
    assert reference.reverb_envelope(none, RATE).size == 0


def test_without_a_response_there_is_no_reverb():
    audio = np.arange(5.0)
    np.testing.assert_array_equal(reference.reverb(audio, np.empty(0)), audio)


def test_synthesize_is_reverb_of_harmonics_and_noise():
    config = SynthConfig(n_harmonics=4, n_noise_bands=5)
    rng = np.random.default_rng(0)
    outputs, f0_hz = rng.normal(size=(7, config.n_outputs)), rng.uniform(100, 3000, 7)
    noise, response = rng.uniform(-1, 1, 7 * 16 + 3), rng.normal(size=40)
    rates = {"sample_rate": RATE, "hop_size": 16}
    audio = reference.synthesize(outputs, f0_hz, noise, response, config=config, **rates)
    split = Outputs.split(outputs, config)
    amplitudes = reference.harmonic_amplitudes(split, f0_hz, RATE)
    dry = harmonic_sample_by_sample(amplitudes, f0_hz, 16)
    dry += reference.filtered_noise(split.noise_magnitudes, noise[:112])
    np.testing.assert_allclose(audio, reference.reverb(dry, response), atol=1e-9)


def spectral_loss_bin_by_bin(target, audio):
    loss = 0.0
    for size in (2048, 1024, 512, 256, 128, 64):
        t = np.arange(size)
        waves = np.exp(-2j * np.pi * np.outer(t, np.arange(size // 2 + 1)) / size)
        windowed = (0.5 - 0.5 * np.cos(2 * np.pi * t / size))[:, None] * waves
        padded = [np.append(x, np.zeros(size)) for x in (target, audio)]
        linear, logarithmic = [], []
        for start in range(0, len(target), size // 4):
            a, b = (np.abs(x[start : start + size] @ windowed) for x in padded)
            linear.append(abs(a - b))
            logarithmic.append(abs(np.log(a) - np.log(b)))
        loss += np.mean(linear) + np.mean(logarithmic)
    return loss


def test_the_spectral_loss_follows_its_definition_bin_by_bin():
    target, audio = np.random.default_rng(0).normal(size=(2, 2999))
    expected = spectral_loss_bin_by_bin(target, audio)
    assert reference.spectral_loss(target, audio) == pytest.approx(expected, rel=1e-9)


def test_an_impulse_against_silence_has_a_loss_in_closed_form():
    # Its magnitude is that of the window in every bin; the logarithm of silence is that of 1e-5.
    impulse, at, level = np.zeros(4096), 700, 1e-3
    impulse[at] = level
    expected = 0.0
    for size in (2048, 1024, 512, 256, 128, 64):
        starts = range(0, 4096, size // 4)
        seen = [
            level * math.sin(math.pi * (at - s) / size) ** 2 for s in starts if 0 < at - s < size
        ]
        expected += sum(m + abs(math.log(m / 1e-5)) for m in seen) / len(starts)
    assert reference.spectral_loss(np.zeros(4096), impulse) == pytest.approx(expected, rel=1e-9)
