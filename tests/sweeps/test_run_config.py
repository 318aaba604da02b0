"""Runs from gin: every file parses, every axis arrives, and what is wrong is one line."""

import importlib.util
import pickle
import subprocess
import sys
from dataclasses import fields, replace

import gin
import pytest

from sweeps.config import DEFAULT_RUNGS, find_run, gin_root, load_run, parse_candidate, parse_run
from sweeps.errors import MetricError, SpaceError
from sweeps.objectives import MOST_MISSED
from sweeps.space import Choice
from tests.ddsp_chain import CHAIN
from thesis.config import (
    REFERENCE_DECODER,
    RnnFcConfig,
    SpectralLoss,
    SynthConfig,
    stages_of,
)
from thesis.errors import ConfigError, UserError

RUNS = sorted(path.stem for path in (gin_root() / "runs").glob("*.gin"))
SPACES = sorted(path.stem for path in (gin_root() / "spaces").glob("*.gin"))
FILES = sorted(p.relative_to(gin_root()).as_posix() for p in gin_root().rglob("*.gin"))


@pytest.fixture
def run_of(tmp_path):
    """A function: the run of some gin text, read from a file."""

    def run_of(text, overrides=()):
        (tmp_path / "run.gin").write_text(text)
        return load_run(tmp_path / "run.gin", overrides)

    return run_of


SMALLEST = "search_space.axes = {'DilatedConvStack.channels': (2, 4)}\n"


def assert_one_line_with_hint(error):
    assert "\n" not in error.message + error.hint
    assert error.message
    assert error.hint


# --- The files that ship ---


def test_there_are_runs():
    assert {"tiny", "demo"} <= set(RUNS)


def test_gin_files_do_not_shadow_the_gin_library():
    assert not list(gin_root().rglob("*.py"))
    assert importlib.util.find_spec("gin.config") is not None


@pytest.mark.parametrize("file", FILES)
def test_every_shipped_file_parses_strictly_on_its_own(file):
    gin.clear_config()
    gin.add_config_file_search_path(str(gin_root()))
    gin.parse_config_file(str(gin_root() / file), skip_unknown=False)
    gin.finalize()
    assert gin.config_str()
    gin.clear_config()


@pytest.mark.parametrize("name", RUNS)
def test_every_shipped_run_varies_the_published_model(name):
    run = load_run(find_run(name))
    if name == "rnn":
        assert run.model.decoder == RnnFcConfig(256, layers_per_stack=0)
        assert run.model.synth == SynthConfig(reverb_seconds=0.3, reverb_decay_seconds=0.15)
        assert run.sweep.limits.receptive_field_seconds is None
    else:
        assert run.model.decoder == REFERENCE_DECODER
        assert run.model.synth == SynthConfig(reverb_seconds=0.3, reverb_decay_seconds=0.15)
    assert run.sweep.objectives == ("val_loss", "rtf_ratio")
    assert run.sweep.limits.f0_missed_share == MOST_MISSED
    assert run.space.baseline() is not None


@pytest.mark.parametrize("name", RUNS)
def test_a_sweep_from_before_there_was_a_limit_on_missed_pitch_has_none(name):
    run = load_run(find_run(name))
    older = "\n".join(line for line in run.text.splitlines() if "f0_missed" not in line.lower())
    assert "f0_missed" in run.text
    assert parse_run(older).sweep.limits == replace(run.sweep.limits, f0_missed_share=None)
    assert load_run(find_run(name), ["MAX_F0_MISSED_SHARE=None"]).sweep == parse_run(older).sweep


def assert_every_value_arrives(run):
    widest = {axis.name: axis.domain.ends[-1] for axis in run.space.axes}
    # The last values of a space are those that leave no other axis without effect.
    assert {name for name, _ in run.space.candidate(widest).values} == set(widest)
    for axis in run.space.axes:
        domain = axis.domain
        stage, _, parameter = axis.binding.rpartition(".")
        for value in domain.values if isinstance(domain, Choice) else domain.ends:
            candidate = run.space.candidate(widest | {axis.name: value})
            assert candidate[axis.name] == value
            config = parse_candidate(run.text_for(candidate), candidate)
            assert config == run.space.config(candidate)
            assert getattr(stages_of(config)[stage], parameter) == value
            assert f"{axis.binding} = {value!r}" in gin.operative_config_str().splitlines()


@pytest.mark.parametrize("name", RUNS)
def test_every_value_of_every_axis_of_a_run_reaches_the_operative_configuration(name):
    assert_every_value_arrives(load_run(find_run(name)))


@pytest.mark.parametrize("name", SPACES)
def test_every_value_of_every_axis_of_a_space_reaches_the_operative_configuration(name, run_of):
    model = {"rnn": "ddsp-rnn-tiny"}.get(name, "ddsp-cnn-tiny")
    text = f"include 'models/{model}.gin'\ninclude 'spaces/{name}.gin'\n"
    assert_every_value_arrives(run_of(text))


@pytest.mark.parametrize("name", RUNS)
def test_the_resolved_text_is_the_whole_run(name):
    run = load_run(find_run(name), ["STEPS=7", "LEARNING_RATE=1e-05"])
    gin.clear_config()
    again = parse_run(run.text)
    assert (again.text, again.model, again.sweep) == (run.text, run.model, run.sweep)
    assert set(again.space.axes) == set(run.space.axes)
    assert (again.model.train.steps, again.model.train.learning_rate) == (7, 1e-5)
    assert "include" not in run.text


@pytest.mark.parametrize("name", ["tiny", "rnn"])
def test_the_knobs_in_the_header_of_a_run_exist(name):
    header = (gin_root() / "runs" / f"{name}.gin").read_text().partition("include")[0]
    knobs = header.partition("Public knobs:")[2].replace("#", "").replace(".", "").split(",")
    assert len(knobs) > 8
    text = load_run(find_run(name)).text
    for knob in knobs:
        assert f"\n{knob.strip()} = " in text


# --- Overrides ---


@pytest.mark.parametrize("override", ["STEPS=123", "train.steps=123", " STEPS = 123 "])
def test_an_override_wins(override):
    assert load_run(find_run("tiny"), [override]).model.train.steps == 123


def test_the_last_override_wins():
    assert load_run(find_run("tiny"), ["STEPS=1", "STEPS=2"]).model.train.steps == 2


def test_an_axis_can_be_narrowed():
    run = load_run(find_run("tiny"), ["CHANNELS=(4, 8)", "BLOCK=('plain',)"])
    domains = {axis.name: axis.domain.values for axis in run.space.axes}
    assert (domains["channels"], domains["block"]) == ((4, 8), ("plain",))


def test_a_bare_word_is_a_string_but_none_and_true_are_not():
    run = load_run(find_run("tiny"), ["SAMPLER=random", "MAX_RTF_RATIO=None"])
    assert run.sweep.sampler == "random"
    assert run.sweep.limits.rtf_ratio is None
    run = load_run(find_run("tiny"), ["DilatedConvStack.causal=False"])
    assert run.model.decoder.causal is False


def test_limits_come_from_the_run():
    limits = load_run(
        find_run("tiny"),
        ["MAX_RTF_RATIO=2.5", "sweep.max_parameters=900", "sweep.max_receptive_field_seconds=0.5"],
    ).sweep.limits
    assert (limits.rtf_ratio, limits.parameters, limits.receptive_field_seconds) == (2.5, 900, 0.5)


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("STEP=5", "no knob named 'STEP'", "did you mean 'STEPS'"),
        ("NOTHING_LIKE_IT=5", "no knob named 'NOTHING_LIKE_IT'", "CHANNELS"),
        ("STEPS", "is no key=value", "STEPS=500"),
        ("STEPS=", "is no key=value", "STEPS=500"),
        ("=5", "is no key=value", "STEPS=500"),
        ("STEPS=abc", "train.steps = 'abc' has the wrong type", "int"),
        ("STEPS=1.5", "train.steps = 1.5 has the wrong type", "int"),
        ("STEPS=-1", "train.steps = -1 is outside its range", "between"),
        ("LEARNING_RATE=1e9", "train.learning_rate = 1000000000.0 is outside", "between"),
        ("DilatedConvStack.norm=group", "norm = 'group' is not a choice", "'frame'"),
        ("STEPS=(", "gin: ", "parameters belong to"),
        ("train.stepps=5", "gin: ", "parameters belong to"),
        ("training.steps=5", "gin: ", "parameters belong to"),
        ("STEPS=%UNSET", "gin: ", "parameters belong to"),
        ("STEPS=@nothing()", "gin: ", "parameters belong to"),
        ("SAMPLER=tpee", "no sampler named 'tpee'", "did you mean 'tpe'"),
        ("CHANNELS=()", "domain that cannot be read", "distinct values"),
        ("CHANNELS=(8, 8)", "domain that cannot be read", "distinct values"),
        ("CHANNELS=(8, 0)", "axis 'channels' holds 0", "between 1 and 1024"),
        ("search_space.axes={}", "no axes", "gin/spaces"),
        ("search_space.axes=(1, 2)", "search_space.axes = (1, 2) has the wrong", "dictionary"),
        ("sweep.rungs=0.5", "sweep.rungs = 0.5 has the wrong type", "tuple of shares"),
        ("sweep.rungs=(0.2, 0.1)", "no rising shares", "(0.1, 0.2, 0.4)"),
        ("sweep.rungs=(0.2, 1.0)", "no rising shares", "the end is validated anyway"),
        ("sweep.rungs=(1, 2)", "no rising shares", "(0.1, 0.2, 0.4)"),
        ("sweep.population_size=9", "population_size has no effect with sampler 'tpe'", "nsga2"),
        ("sweep.grid_points=9", "grid_points has no effect with sampler 'tpe'", "leave it out"),
        ("sweep.startup_trials=0", "sweep.startup_trials = 0 is outside", "between 1 and"),
        ("sweep.startup_trials=9.5", "startup_trials = 9.5 has the wrong type", "whole number"),
        ("sweep.confidence=0.9", "confidence has no effect with stopping 'none'", "bound"),
        ("sweep.stopping=bond", "no stopping named 'bond'", "did you mean 'bound'"),
        ("sweep.baselines=({'channels': 5},)", "axis 'channels' has no value 5", "it takes"),
        ("sweep.baselines=({'channel': 4},)", "no axis named 'channel'", "did you mean"),
        ("sweep.baselines=(4,)", "sweep.baselines = (4,) has the wrong", "({'channels': 4}"),
        ("sweep.seed=1.5", "sweep.seed = 1.5 has the wrong type", "whole number"),
        ("sweep.sampler=3", "sweep.sampler = 3 has the wrong type", "word"),
        ("MAX_RTF_RATIO=fast", "sweep.max_rtf_ratio = 'fast' has the wrong type", "number"),
        ("MAX_RTF_RATIO=True", "sweep.max_rtf_ratio = True has the wrong type", "number"),
        ("sweep.objectives=val_loss", "sweep.objectives = 'val_loss' has the wrong", "tuple"),
        ("sweep.objectives=('val_loss',)", "two objectives or more", "sweep.objectives"),
        ("sweep.objectives=('val_los', 'rtf')", "no metric named 'val_los'", "val_loss"),
        ("sweep.objectives=(1, 2)", "no metric named 1", "val_loss"),
        ("sweep.objectives=(['val_loss'], {})", "no metric named ['val_loss']", "metrics: "),
        ("sweep.objectives=('rtf', 'rtf')", "has one of them twice", "leave it out"),
        ("MAX_RTF_RATIO=0", "sweep.max_rtf_ratio = 0 is no limit", "above 0"),
        ("MAX_F0_MISSED_SHARE=0", "sweep.max_f0_missed_share = 0 is no limit", "above 0"),
        ("MAX_F0_MISSED_SHARE=30", "max_f0_missed_share = 30 limits nothing", "0.3 for 30%"),
        ("MAX_F0_MISSED_SHARE=few", "= 'few' has the wrong type", "a number"),
        ("sweep.max_parameters=-1", "sweep.max_parameters = -1 is no limit", "above 0"),
        ("train.learning_rate=1e999", "'train.learning_rate' holds inf", "values are numbers"),
        ("LEARNING_RATE=-1e999", "'LEARNING_RATE' holds -inf", "values are numbers"),
        ("sweep.max_parameters=1e999", "'sweep.max_parameters' holds inf", "values are numbers"),
        ("sweep.baselines=({'channels': 1e999},)", "holds inf", "values are numbers"),
        ("sweep.baselines=({1: 4},)", "a key that is no string", "values are numbers"),
        ("sweep.baselines=({'channels': [4]},)", "axis 'channels' has no value [4]", "it takes"),
        ("search_space.axes={'train.seed': (0, 1e999)}", "holds inf", "values are numbers"),
        ("search_space.axes={7: (0, 1)}", "a key that is no string", "values are numbers"),
        ("train.learning_rate=nan", "train.learning_rate = 'nan' has the wrong type", "float"),
        ("STEPS=99999999999999999999", "'STEPS' holds a whole number of more than", "numbers"),
        ("STEPS=-%SEED", "'-' goes before a number", "parameters belong to"),
        ("STEPS=%STEPS", "%STEPS refers to itself", "a value"),
        ("STEPS=5\nimport os", "'os' is imported", "'import thesis.from_ddsp'"),
        ("STEPS=5\nSEED=3", "is no key=value", "STEPS=500"),
        ("x/train.steps=5", "'x/train.steps' reaches nothing", "leave out 'x/'"),
        ("model.decoder=@train()", "is no decoder", "@DilatedConvStack()"),
        ("train.losses=(1,)", "holds no SpectralLoss", "@losses.SpectralLoss()"),
    ],
)
def test_an_override_that_cannot_be_used_is_one_line_with_a_hint(override, message, hint):
    with pytest.raises((ConfigError, SpaceError, MetricError)) as caught:
        load_run(find_run("tiny"), [override])
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert_one_line_with_hint(caught.value)


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ("('val_loss', 'f0_missed_share')", "not against f0_missed_share"),
        ("('rtf_ratio', 'parameters')", "stopping needs val_loss"),
    ],
)
def test_trials_are_stopped_only_where_a_rung_can_tell_where_they_will_stand(objectives, message):
    overrides = [f"sweep.objectives={objectives}", "sweep.stopping=bound"]
    with pytest.raises(ConfigError) as caught:
        load_run(find_run("tiny"), overrides)
    assert message in caught.value.message
    assert_one_line_with_hint(caught.value)


def test_a_rule_that_stops_has_rungs_and_none_needs_none():
    assert load_run(find_run("tiny"), ["sweep.stopping=none"]).sweep.rungs == ()
    assert (
        load_run(find_run("tiny"), ["sweep.stopping=bound"]).sweep.rungs == DEFAULT_RUNGS["bound"]
    )
    mine = ["sweep.stopping=asha", "sweep.rungs=(0.25, 0.5)", "sweep.reduction_factor=4"]
    sweep = load_run(find_run("tiny"), mine).sweep
    assert (sweep.rungs, sweep.reduction_factor) == ((0.25, 0.5), 4)


@pytest.mark.parametrize("override", ["STEPS=-1", "STEPS=(", "SAMPLER=tpee", "CHANNELS=()"])
def test_an_error_can_be_sent_to_another_process(override):
    with pytest.raises(UserError) as caught:
        load_run(find_run("tiny"), [override])
    error = pickle.loads(pickle.dumps(caught.value))
    assert type(error) is type(caught.value)
    assert (error.message, error.hint) == (caught.value.message, caught.value.hint)
    assert str(error) == str(caught.value) == error.message


@pytest.mark.parametrize("name", RUNS)
def test_an_override_of_a_resolved_run_wins_and_one_that_changes_nothing_leaves_its_text(name):
    run = load_run(find_run(name), ["STEPS=7"])
    assert parse_run(run.text, ["STEPS=7"]).text == run.text
    other = parse_run(run.text, ["STEPS=8"])
    assert other.model.train.steps == 8
    assert other.text == load_run(find_run(name), ["STEPS=8"]).text


# --- Files ---


def test_a_run_is_found_by_name_and_by_path(tmp_path):
    assert find_run("tiny") == find_run("tiny.gin") == gin_root() / "runs" / "tiny.gin"
    (tmp_path / "mine.gin").write_text(SMALLEST)
    assert find_run(str(tmp_path / "mine.gin")) == tmp_path / "mine.gin"


def test_an_unknown_run_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="no run file 'tinny'") as caught:
        find_run("tinny")
    assert "did you mean 'tiny'" in caught.value.hint
    assert "demo" in caught.value.hint


def test_a_run_may_include_files_beside_it_and_shipped_ones(tmp_path, run_of):
    (tmp_path / "mine.gin").write_text("DilatedConvStack.channels = 4\n")
    run = run_of("include 'train/adam.gin'\ninclude 'mine.gin'\nSTEPS = 9\n" + SMALLEST)
    assert (run.model.train.steps, run.model.decoder.channels) == (9, 4)


@pytest.mark.parametrize(
    "text",
    [
        "DilatedConvStack.chanels = 8",
        "DilatedConvStack.channels = ",
        "Dilated.channels = 8",
        "include 'missing.gin'",
        "import no_such_module",
        "DilatedConvStack.channels = %MISSING",
        "DilatedConvStack.channels = 'eight'",
        "DilatedConvStack.channels = 0",
        "sweep.sampler = 'gird'",
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_with_a_hint(run_of, text):
    with pytest.raises(ConfigError) as caught:
        run_of(SMALLEST + text)
    assert_one_line_with_hint(caught.value)


def test_a_run_file_acts_no_more_than_a_stored_text_does(run_of, tmp_path, canary):
    (tmp_path / "more.gin").write_text("import canary_module")
    for text in ("import canary_module", "include 'more.gin'"):
        with pytest.raises(ConfigError, match="'canary_module' is imported") as caught:
            run_of(SMALLEST + text)
        assert_one_line_with_hint(caught.value)
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    [
        "include 'more.gin'",
        "import os",
        "train.steps = @train()",
        "train.steps = %X",
        "no.such = 3",
    ],
)
def test_a_resolved_text_that_nobody_here_writes_is_one_line(text, tmp_path):
    run = load_run(find_run("tiny"))
    for read in (
        lambda: parse_run(run.text + text),
        lambda: parse_candidate(run.text + text, run.space.baseline()),
    ):
        with pytest.raises(ConfigError, match="gin: ") as caught:
            read()
        assert_one_line_with_hint(caught.value)


def test_whatever_gin_raises_is_one_line(monkeypatch):
    for error in (
        KeyError("x"),
        TypeError(),
        RecursionError("deep"),
        MemoryError(),
        StopIteration(),
    ):

        def broken(*_, error=error):
            raise error

        monkeypatch.setattr(gin, "parse_config", broken)
        with pytest.raises(ConfigError, match="gin: ") as caught:
            parse_run(SMALLEST)
        assert_one_line_with_hint(caught.value)


def test_what_gin_would_not_print_is_an_error(monkeypatch):
    printed = gin.config_str

    def forgetful(**options):
        return "\n".join(li for li in printed(**options).splitlines() if "train.seed" not in li)

    monkeypatch.setattr(gin, "config_str", forgetful)
    assert parse_run(SMALLEST + "train.steps = 5").model.train.steps == 5
    with pytest.raises(ConfigError, match=r"'train.seed' = 3 cannot be written down") as caught:
        parse_run(SMALLEST + "train.seed = 3")
    assert_one_line_with_hint(caught.value)


def test_a_required_value_may_be_given_by_an_override(tmp_path):
    (tmp_path / "run.gin").write_text(SMALLEST + "train.steps = %gin.REQUIRED")
    assert load_run(tmp_path / "run.gin", ["train.steps=5"]).model.train.steps == 5
    with pytest.raises(ConfigError, match="REQUIRED") as caught:
        load_run(tmp_path / "run.gin")
    assert_one_line_with_hint(caught.value)


def test_a_name_that_no_file_can_have_is_one_line():
    for name in ("a" * 5_000, "a\0b", ".", ""):
        with pytest.raises(ConfigError, match="no run file") as caught:
            find_run(name)
        assert caught.value.hint


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_run(tmp_path / "missing.gin")
    assert_one_line_with_hint(caught.value)


def test_an_error_leaves_no_trace_in_the_next_run(run_of):
    expected = run_of(SMALLEST)
    with pytest.raises(ConfigError):
        run_of(SMALLEST + "DilatedConvStack.channels = 7\nDilatedConvStack.kernel_size = 99")
    assert run_of(SMALLEST) == expected
    assert expected.model.decoder.channels == 8


def test_a_run_leaves_no_trace_in_the_next(run_of):
    run_of(SMALLEST + "train.steps = 1\nDilatedConvStack.stacks = 1\nsweep.seed = 4")
    run = run_of(SMALLEST)
    assert (run.model.train.steps, run.model.decoder.stacks, run.sweep.seed) == (300, 2, 0)


def test_a_parsed_configuration_can_no_longer_be_changed(run_of):
    run_of(SMALLEST)
    with pytest.raises(RuntimeError):
        gin.parse_config("train.steps = 1")


def test_log_records_are_let_through_again_after_an_error(run_of, caplog):
    import logging

    with pytest.raises(ConfigError):
        run_of("include 'missing.gin'")
    logging.getLogger("somebody").error("heard")
    assert "heard" in caplog.messages


# --- Candidates ---


def test_an_axis_that_does_not_reach_the_model_is_an_error(run_of):
    run = run_of(SMALLEST)
    candidate = run.space.candidate({"channels": 4})
    with pytest.raises(ConfigError, match=r"'channels' does not reach .* 4 was asked for, 8 is"):
        parse_candidate(run.text, candidate)


def test_a_candidates_text_is_the_runs_with_its_values(run_of):
    run = run_of(SMALLEST)
    candidate = run.space.candidate({"channels": 4})
    text = run.text_for(candidate)
    assert text.startswith(run.text)
    assert candidate.id in text
    expected = replace(run.model, decoder=replace(run.model.decoder, channels=4))
    assert parse_candidate(text, candidate) == expected


@pytest.mark.parametrize("value", [1e-05, 0.1 + 0.2, 2.5e-3])
def test_a_number_between_two_ends_reaches_the_model_exactly(run_of, value):
    run = run_of("search_space.axes = {'train.learning_rate': {'low': 1e-6, 'high': 1.0}}")
    candidate = run.space.candidate({"learning_rate": value})
    config = parse_candidate(run.text_for(candidate), candidate)
    assert config.train.learning_rate == value


def test_any_parameter_of_any_stage_can_be_an_axis(run_of):
    stages = stages_of(run_of(SMALLEST).model)
    for stage, config in stages.items():
        for name in (f.name for f in fields(config)):
            value = getattr(config, name)
            if isinstance(value, tuple):  # Losses, which gin refers to.
                continue
            run = run_of(f"search_space.axes = {{'{stage}.{name}': ({value!r},)}}")
            candidate = run.space.baseline()
            assert parse_candidate(run.text_for(candidate), candidate) == run.model


# --- Spaces that add up ---


def test_a_run_may_include_several_spaces(run_of):
    run = run_of("include 'runs/tiny.gin'\ninclude 'spaces/synthesis.gin'\nN_HARMONICS = (30, 60)")
    domains = {axis.name: axis.domain.values for axis in run.space.axes}
    assert {"channels", "norm", "n_noise_bands"} < domains.keys()
    assert (domains["n_harmonics"], domains["hop_multiple"]) == ((30, 60), (1, 2, 4))
    assert run.space.baseline() is not None


def test_each_axis_of_the_synthesis_space_reaches_the_model(run_of):
    run = run_of("include 'spaces/synthesis.gin'")
    for values in ((20, 17, 4), (100, 65, 1)):
        candidate = run.space.candidate(
            dict(zip(("n_harmonics", "n_noise_bands", "hop_multiple"), values, strict=True))
        )
        synth = parse_candidate(run.text_for(candidate), candidate).synth
        assert (synth.n_harmonics, synth.n_noise_bands, synth.hop_multiple) == values


def test_two_spaces_with_one_axis_are_an_error(run_of):
    with pytest.raises(
        ConfigError, match=r"search_space\.more holds 'DilatedConvStack\.ch"
    ) as caught:
        run_of(SMALLEST + "search_space.more = {'DilatedConvStack.channels': (8,)}")
    assert_one_line_with_hint(caught.value)


# --- What names ddsp ---

FROM_DDSP = f"""{CHAIN}Reverb.reverb_length = 8000
Reverb.trainable = True
train.losses = (@losses.SpectralLoss(), @second/losses.SpectralLoss())
SpectralLoss.loss_type = 'L2'
second/SpectralLoss.mag_weight = 0.25
"""


def test_a_run_that_names_ddsp_is_read_in_another_process_from_its_text_alone(run_of):
    run = run_of(SMALLEST + FROM_DDSP)
    assert run.model.synth == SynthConfig(reverb_seconds=0.5)
    assert run.model.train.losses == (
        SpectralLoss(loss_type="L2"),
        SpectralLoss(loss_type="L2", mag_weight=0.25),
    )
    candidate = run.space.candidate({"channels": 4})
    # As a worker does it, with nothing imported before.
    code = """
import pickle, sys
text, candidate = pickle.loads(sys.stdin.buffer.read())
from sweeps.config import parse_candidate
config = parse_candidate(text, candidate)
sys.stdout.buffer.write(pickle.dumps(config))
"""
    sent = pickle.dumps((run.text_for(candidate), candidate))
    done = subprocess.run(
        [sys.executable, "-c", code], input=sent, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    decoder = replace(run.model.decoder, channels=4)
    assert pickle.loads(done.stdout) == replace(run.model, decoder=decoder)


@pytest.mark.parametrize("line", ["import ddsp", "import ddsp.training", "from ddsp import synths"])
def test_ddsp_is_imported_by_way_of_this_project(run_of, line):
    with pytest.raises(ConfigError, match="gin") as caught:
        run_of(SMALLEST + "import thesis.from_ddsp\n" + line)
    assert_one_line_with_hint(caught.value)
    assert "import thesis.from_ddsp" in caught.value.hint


def test_what_has_no_counterpart_here_is_one_line_with_a_hint(run_of):
    with pytest.raises(ConfigError, match="a ddsp ExpDecayReverb") as caught:
        run_of(SMALLEST + FROM_DDSP.replace("effects.Reverb", "effects.ExpDecayReverb"))
    assert_one_line_with_hint(caught.value)


@pytest.mark.parametrize("lengths", [(0.5, 0.25), (0.25, 0.5)])
def test_an_axis_that_a_chain_of_ddsp_s_overrules_is_one_line_with_a_hint(run_of, lengths):
    axes = f"search_space.axes = {{'Synth.reverb_seconds': {lengths}}}"
    with pytest.raises(ConfigError, match=r"reverb_seconds = 0\.25, .* has 0\.5 s of") as caught:
        run_of(axes + FROM_DDSP)
    assert_one_line_with_hint(caught.value)
    assert "no axis" in caught.value.hint


@pytest.mark.parametrize(
    "named",
    [
        "train.losses = (@losses.SpectralLoss(),)",
        "SpectralLoss.loss_type = 'L2'",
        "LOSSES = (@quiet/losses.SpectralLoss(),)\ntrain.losses = %LOSSES",
    ],
)
def test_a_file_that_names_ddsp_imports_it_whatever_was_read_before(run_of, named):
    text = SMALLEST + named
    assert run_of(text + "\nimport thesis.from_ddsp").model.decoder == REFERENCE_DECODER
    # In a process where nothing was read before:
    code = """
import sys
from sweeps.config import parse_run
from thesis.errors import ConfigError
try:
    parse_run(sys.argv[1])
except ConfigError as error:
    print(error.hint)
"""
    fresh = subprocess.run(
        [sys.executable, "-c", code, text], capture_output=True, text=True, check=True
    )
    for read in (run_of, parse_run):
        with pytest.raises(ConfigError) as caught:
            read(text)
        assert_one_line_with_hint(caught.value)
        assert "'import thesis.from_ddsp'" in caught.value.hint
        assert fresh.stdout == caught.value.hint + "\n"


def test_the_example_for_users_of_ddsp_is_a_run(run_of):
    page = (gin_root().parent / "docs" / "coming-from-ddsp.md").read_text()
    (example,) = (block for block in page.split("```") if "\nimport thesis.from_ddsp" in block)
    run = run_of(example)
    assert run.model.synth.reverb_seconds == 3.0
    assert run.model.train.losses == (SpectralLoss(logmag_weight=1.0, delta_time_weight=0.5),)


# --- What has changed once ---


def test_a_resolved_text_says_what_releases_do_differently(run_of):
    run = run_of(SMALLEST)
    assert "Synth.levels = 'loudness'" in run.text
    assert "train.schedule = 'cosine'" in run.text
    assert (run.model.synth.levels, run.model.train.schedule) == ("loudness", "cosine")


def test_a_text_of_a_release_that_did_not_say_means_what_it_meant_then(run_of):
    old = "\n".join(
        line
        for line in run_of(SMALLEST).text.splitlines()
        if "levels" not in line and "schedule" not in line
    )
    run = parse_run(old)
    assert (run.model.synth.levels, run.model.train.schedule) == ("absolute", "exponential")
    assert run.text == old  # what continues a sweep is compared with what it was started with
    candidate = run.space.candidate({"channels": 2})
    assert parse_candidate(run.text_for(candidate), candidate).synth.levels == "absolute"
    assert parse_run(old, ["Synth.levels='loudness'"]).model.synth.levels == "loudness"


def test_who_binds_ddsp_s_decay_has_it(run_of):
    run = run_of(SMALLEST + "train.decay_rate = 0.5\n")
    assert (run.model.train.schedule, run.model.train.decay_rate) == ("exponential", 0.5)
    run = run_of(SMALLEST + "train.decay_rate = 0.5\ntrain.schedule = 'cosine'\n")
    assert run.model.train.schedule == "cosine"
