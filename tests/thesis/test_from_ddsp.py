"""ddsp's processors and losses in gin: what they become, that it is the same, what is refused."""

from dataclasses import asdict, replace

import gin
import numpy as np
import pytest

from tests import ddsp_chain
from thesis import from_ddsp
from thesis import train as stage
from thesis._ddsp import ddsp, tf
from thesis.architecture import OUTPUT_GAIN
from thesis.config import OF_DDSP, SpectralLoss, SynthConfig, TrainConfig, from_gin
from thesis.controls import Outputs, absolute_levels, decoder_inputs
from thesis.errors import ConfigError
from thesis.losses import training_loss
from thesis.synthesis import Synthesizer

CHAIN = f"""{ddsp_chain.CHAIN}Harmonic.n_samples = 64000
Harmonic.sample_rate = 16000
Harmonic.scale_fn = @core.exp_sigmoid
FilteredNoise.n_samples = 64000
FilteredNoise.window_size = 0
Reverb.name = 'reverb'
Reverb.reverb_length = 48000
Reverb.trainable = True
"""


def parsed(text):
    gin.clear_config()
    gin.parse_config(text)
    gin.finalize()
    return from_gin()


def test_the_names_of_ddsp_that_are_known_without_it_are_those_that_it_has():
    registered = [name for name, _ in gin.config._REGISTRY.items() if name.startswith("ddsp.")]
    assert sorted(OF_DDSP) == sorted(registered)


def test_the_chain_of_a_solo_instrument_is_this_project_s():
    assert parsed(CHAIN).synth == SynthConfig(reverb_seconds=3.0)


def test_a_chain_without_reverb_is_one_without_reverb():
    text = CHAIN.replace("  (@effects.Reverb(), ['add/signal']),\n", "")
    assert parsed(text).synth == SynthConfig(reverb_seconds=0.0)


def test_names_and_order_of_processors_make_no_difference():
    text = """
import thesis.from_ddsp
Synth.processor_group = @processors.ProcessorGroup()
ProcessorGroup.dag = [
  (@synths.FilteredNoise(), ['noise_magnitudes']),
  (@synths.Harmonic(), ['amps', 'harmonic_distribution', 'inputs/f0_hz']),
  (@processors.Add(), ['tone/signal', 'hiss/signal']),
]
Harmonic.name = 'tone'
FilteredNoise.name = 'hiss'
"""
    assert parsed(text).synth == SynthConfig(reverb_seconds=0.0)


@pytest.mark.parametrize("reverb", [True, False])
def test_the_chain_renders_what_ddsp_s_own_renders(monkeypatch, reverb):
    n_frames, hop_size, n_samples = 100, 64, 6400
    rng = np.random.default_rng(0)
    text = CHAIN.replace("64000", str(n_samples)).replace("48000", "800")
    # Otherwise ddsp's phase drifts too far in as few samples.
    text += "Harmonic.use_angular_cumsum = True\n"
    if not reverb:
        text = text.replace("  (@effects.Reverb(), ['add/signal']),\n", "")
    config = parsed(text).synth
    group = gin.get_configurable("ProcessorGroup")()
    outputs = tf.constant(rng.normal(size=(2, n_frames, config.n_outputs)), tf.float32)
    split = Outputs.split(outputs, config)
    f0_hz = tf.constant(300 + 50 * np.sin(np.arange(2 * n_frames) / 9).reshape(2, -1), tf.float32)
    noise = tf.constant(rng.uniform(-1, 1, (2, n_samples)), tf.float32)
    response = tf.constant(rng.normal(0, 0.05, 800 if reverb else 0), tf.float32)
    if reverb:
        group.reverb.build(None)
        group.reverb._ir.assign(response)
    monkeypatch.setattr(ddsp.synths.tf.random, "uniform", lambda *_, **__: noise)
    theirs = group(
        {
            "amps": split.amplitude,
            "harmonic_distribution": split.harmonic_distribution,
            "noise_magnitudes": split.noise_magnitudes,
            "f0_hz": f0_hz[..., None],
        }
    )
    ours = Synthesizer(config, 16_000, hop_size)(outputs, f0_hz, noise, response)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert np.abs(theirs).max() > 0.1


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("Harmonic.scale_fn = @core.sym_exp_sigmoid", "Harmonic.scale_fn", "@core.exp_sigmoid"),
        ("Harmonic.scale_fn = None", "Harmonic.scale_fn = None", "@core.exp_sigmoid"),
        ("Harmonic.scale_fn = @RnnFc", "Harmonic.scale_fn", "@core.exp_sigmoid"),
        ("exp_sigmoid.exponent = 'x'", "Harmonic.scale_fn", "@core.exp_sigmoid"),
        ("FilteredNoise.window_size = None", "window_size = None", "0, or 128 and more for 65"),
        ("exp_sigmoid.max_value = 1.0", "Harmonic.scale_fn", "@core.exp_sigmoid"),
        ("Harmonic.amp_resample_method = 'linear'", "amp_resample_method = 'linear'", "'window'"),
        ("Harmonic.normalize_below_nyquist = False", "normalize_below_nyquist", "True"),
        ("FilteredNoise.initial_bias = -10.0", "initial_bias = -10.0 has no counterpart", "-5"),
        ("FilteredNoise.window_size = 127", "window_size = 127", "0, or 128 and more for 65 bands"),
        ("Reverb.trainable = False", "Reverb.trainable = False", "True"),
        ("Reverb.add_dry = False", "Reverb.add_dry = False", "True"),
        ("Reverb.reverb_length = 80000", "reverb_seconds = 5.0 is outside", "between 0 and 4"),
        ("Reverb.reverb_length = 0", "reverb_length = 0 has no", "a whole number above 0"),
        ("Reverb.reverb_length = 'x'", "reverb_length = 'x' has no", "a whole number above 0"),
        ("Harmonic.sample_rate = 0", "sample_rate = 0 has no", "a whole number above 0"),
        ("Synth.processor_group = 3", "= 3 is no ProcessorGroup", "@processors.ProcessorGroup()"),
        ("ProcessorGroup.dag = [('x',)]", "no processor with inputs", "a chain has one"),
        ("ProcessorGroup.dag = [(3, ['x'])]", "no processor with inputs", "a chain has one"),
        ("ProcessorGroup.dag = [('x', 3)]", "no processor with inputs", "a chain has one"),
        ("ProcessorGroup.dag = [('x', [3])]", "no processor with inputs", "a chain has one"),
        ("ProcessorGroup.dag = [('call', ['x'])]", "'call' of the chain", "a chain has one"),
        ("ProcessorGroup.dag = [('no', ['x'])]", "'no' of the chain", "a chain has one"),
    ],
)
def test_a_setting_without_counterpart_is_one_error(line, message, hint):
    with pytest.raises(ConfigError) as raised:
        parsed(CHAIN + line)
    assert message in raised.value.message
    assert hint in raised.value.hint
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    "bound", ["Synth.reverb_seconds = 1.0", "S = 0\nSynth.reverb_seconds = %S"]
)
def test_a_reverb_of_another_length_than_the_chain_s_is_one_error(bound):
    with pytest.raises(ConfigError, match=r"processor_group has 3 s of reverb") as raised:
        parsed(CHAIN + bound)
    assert "Synth.reverb_seconds = 3.0" in raised.value.hint


def test_a_reverb_of_the_chain_s_length_may_be_bound_too():
    assert parsed(CHAIN + "Synth.reverb_seconds = 3").synth == SynthConfig(reverb_seconds=3.0)


@pytest.mark.parametrize("size", [0, -1, 128, 129, 257])
def test_a_window_that_leaves_the_filter_whole_is_none(size):
    assert parsed(CHAIN + f"FilteredNoise.window_size = {size}").synth.reverb_seconds == 3.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("@effects.Reverb()", "@effects.ExpDecayReverb()", "a ddsp ExpDecayReverb"),
        ("@synths.Harmonic()", "@synths.Wavetable()", "a ddsp Wavetable"),
        ("['add/signal']", "['harmonic/signal']", "wired"),
        ("'harmonic/signal'])", "'filtered_noise/signal'])", "wired"),
        ("'harmonic_distribution', 'f0_hz'", "'f0_hz', 'harmonic_distribution'", "wired"),
        ("  (@synths.FilteredNoise(), ['noise_magnitudes']),\n", "", "no FilteredNoise"),
        ("  (@effects.Reverb()", "  (@processors.Add(), ['a', 'b']),\n  (@effects.Reverb()", "Add"),
    ],
)
def test_a_chain_without_counterpart_is_one_error(old, new, message):
    assert old in CHAIN
    with pytest.raises(ConfigError, match=message) as raised:
        parsed(CHAIN.replace(old, new))
    assert "effects.Reverb of the sum" in raised.value.hint


# --- Losses ---

LOSSES = """
import thesis.from_ddsp
train.losses = (@losses.SpectralLoss(), @quiet/losses.SpectralLoss())
SpectralLoss.logmag_weight = 1
quiet/SpectralLoss.loss_type = 'L2'
quiet/SpectralLoss.fft_sizes = (512, 64)
quiet/SpectralLoss.delta_time_weight = 0.5
"""


def test_losses_are_kept_as_their_settings():
    assert parsed(LOSSES).train == TrainConfig(
        losses=(
            SpectralLoss(logmag_weight=1.0),
            SpectralLoss((512, 64), "L2", delta_time_weight=0.5, logmag_weight=1.0),
        )
    )


def test_every_setting_of_ddsp_s_loss_has_its_place():
    given = {
        "fft_sizes": (256,),
        "loss_type": "l2",
        **{name: 0.25 * i for i, name in enumerate(SpectralLoss.WEIGHTS, start=1)},
    }
    made = from_ddsp.spectral_loss(ddsp.losses.SpectralLoss(**given))
    assert made == SpectralLoss(**{**given, "loss_type": "L2"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("SpectralLoss.loss_type = 'COSINE'", "loss_type = 'COSINE' is not a choice"),
        ("SpectralLoss.mag_weight = 0\nSpectralLoss.logmag_weight = 0", "compares nothing"),
        ("SpectralLoss.mag_weight = 'much'", "mag_weight = 'much' is no number"),
        ("SpectralLoss.fft_sizes = (512, 2)", "fft_sizes"),
        ("SpectralLoss.fft_sizes = ()", "fft_sizes"),
        ("SpectralLoss.fft_sizes = (512, 1000000000000)", "fft_sizes"),
        (f"SpectralLoss.fft_sizes = ({'8,' * 33})", "fft_sizes"),
        ("train.losses = (@losses.SpectralLoss,)", "no SpectralLoss"),
        ("train.losses = (@losses.FilteredNoiseConsistencyLoss(),)", "no SpectralLoss"),
        ("train.losses = @losses.SpectralLoss()", "has the wrong type"),
    ],
)
def test_a_loss_that_cannot_be_trained_with_is_one_error(line, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as raised:
        parsed(LOSSES + line)
    assert raised.value.hint
    assert "\n" not in raised.value.message


def test_the_loss_of_the_default_settings_is_the_project_s_own():
    assert training_loss((SpectralLoss(logmag_weight=1.0),)) == training_loss(())
    assert training_loss((SpectralLoss(),)) != training_loss(())


def test_training_minimises_the_sum_of_ddsp_s_losses(make_model, dataset, small, monkeypatch):
    monkeypatch.setattr(stage, "REPORT_EVERY", 1)
    clips = dataset.clips("train")
    losses = (
        SpectralLoss((256,), "L2", cumsum_freq_weight=0.01, logmag_weight=0.1),
        SpectralLoss((64,), "L1", delta_time_weight=0.5, delta_freq_weight=0.5),
    )
    config = replace(small.train, steps=30, batch_size=len(clips), losses=losses)
    model = make_model()
    # With its noise silenced, a rendering is no matter of chance; but in bins that harmonics leave
    # empty a logarithm shows what is left of it. Loud harmonics that vary leave fewer.
    kernel = model.decoder.weights["output/kernel"]
    kernel.assign(kernel / OUTPUT_GAIN)
    bias = model.decoder.weights["output/bias"]
    silent = np.arange(small.synth.n_outputs) > small.synth.n_harmonics
    bias.assign(tf.where(silent, -50.0, 0.0))
    inputs = decoder_inputs(clips.f0_hz, clips.loudness_db)
    response = tf.convert_to_tensor(model.impulse_response)
    outputs = absolute_levels(model.decoder(inputs), inputs, small.synth)
    rendered = model.synthesizer(outputs, clips.f0_hz, np.zeros_like(clips.audio), response)
    expected = sum(
        ddsp.losses.SpectralLoss(**asdict(loss))(clips.audio, rendered) for loss in losses
    )
    reports = [report.loss for report in stage.train(model, clips, config)]
    assert reports[0] == pytest.approx(float(expected), rel=1e-4)
    assert reports[-1] < reports[0]
