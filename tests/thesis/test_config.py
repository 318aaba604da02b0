"""What can be configured: the published model sizes, and one line for what cannot be."""

import dataclasses
import math
import pickle

import gin
import pytest
from gin.utils import augment_exception_message_and_reraise

from thesis.config import (
    CONFIGS,
    DECODERS,
    REFERENCE_DECODER,
    DilatedConvStackConfig,
    MeasureConfig,
    ModelConfig,
    RnnFcConfig,
    SynthConfig,
    TrainConfig,
    from_gin,
    made_by_gin,
    stages_of,
)
from thesis.errors import BundleError, ConfigError, ExportError, UserError

FIELDS = [(stage, f) for stage, config in CONFIGS.items() for f in dataclasses.fields(config)]
NUMBERS = [(stage, f.name) for stage, f in FIELDS if f.type in (int, float)]


@pytest.fixture
def clean_gin():
    gin.clear_config()
    yield
    gin.clear_config()


def assert_one_line_with_hint(error):
    assert error.message
    assert error.hint
    assert "\n" not in error.message + error.hint


@pytest.mark.parametrize(("channels", "count"), [(8, 2_446), (16, 7_070), (128, 313_726)])
def test_the_thesis_models_have_their_published_parameter_counts(channels, count):
    assert SynthConfig().n_outputs == 126
    assert DilatedConvStackConfig(channels=channels).parameter_count(126) == count


def test_the_reference_is_ddsp_cnn_tiny():
    tiny = DilatedConvStackConfig(8, 3, 2, 3, 3, block="plain", causal=True, norm="frame")
    assert tiny == REFERENCE_DECODER
    assert REFERENCE_DECODER.parameter_count(SynthConfig().n_outputs) < 2_500
    assert REFERENCE_DECODER.dilations == (1, 3, 9, 1, 3, 9)
    assert REFERENCE_DECODER.receptive_field_frames == 55


@pytest.mark.parametrize(("seconds", "taps"), [(1.0, 16_000), (0, 0), (0.25, 4_000)])
def test_reverb_taps_follow_from_the_sample_rate(seconds, taps):
    assert SynthConfig(reverb_seconds=seconds).reverb_length(16_000) == taps


@pytest.mark.parametrize(("stage", "name"), NUMBERS)
@pytest.mark.parametrize("value", [-1, 10**10])
def test_a_number_outside_its_range_is_refused_in_one_line(stage, name, value):
    with pytest.raises(ConfigError, match=rf"^{stage}\.{name} = .* outside its range") as caught:
        CONFIGS[stage](**{name: value})
    assert name in caught.value.hint
    assert_one_line_with_hint(caught.value)


def test_calls_at_the_most_are_no_fewer_than_at_the_least():
    with pytest.raises(
        ConfigError, match=r"measure\.max_calls = 49 is outside its range"
    ) as caught:
        MeasureConfig(min_calls=50, max_calls=49)
    assert "between 50 and" in caught.value.hint
    assert MeasureConfig(min_calls=50, max_calls=50).max_calls == 50


def test_nan_is_outside_every_range():
    with pytest.raises(ConfigError, match="learning_rate = nan is outside its range"):
        TrainConfig(learning_rate=math.nan)


@pytest.mark.parametrize(("stage", "field"), FIELDS, ids=lambda v: getattr(v, "name", v))
@pytest.mark.parametrize("value", [None, "8", [8]], ids=["none", "text", "list"])
def test_a_value_of_another_type_is_refused_in_one_line(stage, field, value):
    with pytest.raises(ConfigError, match=rf"^{stage}\.{field.name} = ") as caught:
        CONFIGS[stage](**{field.name: value})
    assert field.name in caught.value.hint
    assert_one_line_with_hint(caught.value)


@pytest.mark.parametrize(("stage", "name"), NUMBERS)
def test_true_is_no_number(stage, name):
    with pytest.raises(ConfigError, match="wrong type"):
        CONFIGS[stage](**{name: True})


def test_a_whole_number_may_stand_for_any_number():
    assert SynthConfig(reverb_seconds=1) == SynthConfig(reverb_seconds=1.0)


def test_a_fraction_may_not_stand_for_a_whole_number():
    with pytest.raises(ConfigError, match=r"channels = 8\.0 has the wrong type"):
        DilatedConvStackConfig(channels=8.0)


def test_a_configuration_is_the_sum_of_its_stages():
    for name, decoder in DECODERS.items():
        stages = (decoder(channels=3), SynthConfig(n_harmonics=4), TrainConfig(), MeasureConfig())
        config = ModelConfig(*stages)
        assert list(stages_of(config)) == [name, "Synth", "train", "measure", "export"]
        assert ModelConfig.of_stages(stages_of(config)) == config


def test_bindings_reach_every_stage(clean_gin):
    gin.parse_config(
        """
        DilatedConvStack.channels = 5
        Synth.n_harmonics = 7
        train.steps = 11
        measure.min_calls = 13
        """
    )
    config = from_gin()
    assert config.decoder == DilatedConvStackConfig(channels=5)
    assert config.synth == SynthConfig(n_harmonics=7)
    assert config.train == TrainConfig(steps=11)
    assert config.measure == MeasureConfig(min_calls=13)


def test_a_model_has_the_decoder_that_gin_chooses(clean_gin):
    gin.parse_config("model.decoder = @RnnFc()\nRnnFc.rnn_channels = 5")
    assert from_gin().decoder == RnnFcConfig(rnn_channels=5)
    gin.clear_config()
    gin.parse_config("model.decoder = @DilatedConvStack()\nDilatedConvStack.channels = 5")
    assert from_gin().decoder == DilatedConvStackConfig(channels=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RnnFc.channels = 5", "RnnFc.channels reaches nothing: the decoder is DilatedConvStack"),
        (
            "model.decoder = @RnnFc()\nDilatedConvStack.stacks = 5",
            "DilatedConvStack.stacks reaches nothing: the decoder is RnnFc",
        ),
        ("model.decoder = 'RnnFc'", "model.decoder = 'RnnFc' is no decoder"),
        ("model.decoder = @Synth()", "model.decoder = SynthConfig(.*) is no decoder"),
        ("model.decoder = @RnnFc()\nRnnFc.channels = 0", "RnnFc.channels = 0 is outside its range"),
    ],
)
def test_a_decoder_that_cannot_be_is_one_line_with_a_hint(clean_gin, text, message):
    gin.parse_config(text)
    with pytest.raises(ConfigError, match=message) as caught:
        from_gin()
    assert_one_line_with_hint(caught.value)
    assert type(pickle.loads(pickle.dumps(caught.value))) is ConfigError


def test_without_bindings_everything_has_its_default(clean_gin):
    gin.parse_config("DilatedConvStack.channels = 5")
    gin.clear_config()
    assert from_gin() == ModelConfig(
        DilatedConvStackConfig(), SynthConfig(), TrainConfig(), MeasureConfig()
    )


def test_the_dataclasses_themselves_know_nothing_of_gin(clean_gin):
    gin.parse_config("DilatedConvStack.channels = 5")
    assert DilatedConvStackConfig().channels == 8


@pytest.mark.parametrize("kind", [UserError, ConfigError, ExportError, BundleError])
def test_an_error_keeps_its_hint_on_the_way_to_another_process(kind):
    error = pickle.loads(pickle.dumps(kind("what is wrong", hint="what to do")))
    assert type(error) is kind
    assert (error.message, error.hint, str(error)) == (
        "what is wrong",
        "what to do",
        "what is wrong",
    )


def test_the_hop_of_a_decoder_is_a_multiple_of_the_datasets():
    assert SynthConfig().hop_size(64) == 64
    assert SynthConfig(hop_multiple=3).hop_size(63) == 189


@pytest.mark.parametrize(("seconds", "inactive"), [(0, {"Synth.reverb_decay_seconds"}), (1, set())])
def test_without_a_reverb_its_decay_makes_no_difference(seconds, inactive):
    synth = SynthConfig(reverb_seconds=seconds, reverb_decay_seconds=0.5)
    config = ModelConfig(DilatedConvStackConfig(), synth, TrainConfig(), MeasureConfig())
    assert {name for name in config.inactive_parameters() if "Synth" in name} == inactive


def test_an_error_that_passed_two_of_gin_s_wrappers_is_as_it_was():
    def make():
        try:
            try:
                raise ConfigError("what", hint="why")
            except ConfigError as error:
                augment_exception_message_and_reraise(error, " in one")
        except ConfigError as error:
            augment_exception_message_and_reraise(error, " in another")

    with pytest.raises(ConfigError) as caught:
        made_by_gin(make)
    assert type(caught.value) is ConfigError
    assert (str(caught.value), caught.value.hint) == ("what", "why")
