"""A gin text is data: what it may say, that nothing in it acts, and that gin meets nothing else."""

from pathlib import Path

import pytest
from gin import config_parser
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.config import gin_root
from sweeps.gin_text import GinText, Key, Macro, Reference, read_file, read_text
from thesis.errors import ConfigError

STEPS = Key("", "train", "steps")


def assert_refused(read, *words):
    with pytest.raises(ConfigError) as caught:
        read()
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    for word in words:
        assert word in caught.value.message
    return caught.value


# --- What is read ---


def test_a_text_is_its_bindings_and_imports_and_the_last_of_a_key_counts():
    text = read_text(
        "import thesis.from_ddsp\nSTEPS = 5\ntrain.steps = 1\na/SpectralLoss.mag_weight = -0.5\n"
        "train.losses = (@a/losses.SpectralLoss(), @core.exp_sigmoid)\ntrain.steps = %STEPS"
    )
    assert text.imports == ("import thesis.from_ddsp",)
    assert dict(text.bindings) == {
        Key("", "STEPS", ""): 5,
        Key("a", "SpectralLoss", "mag_weight"): -0.5,
        Key("", "train", "losses"): (
            Reference("a/losses.SpectralLoss", called=True),
            Reference("core.exp_sigmoid", called=False),
        ),
        STEPS: Macro("STEPS"),
    }
    assert list(text.bindings)[-1] == STEPS


@pytest.mark.parametrize(
    "spelt",
    [
        "train.steps = 7\r\n",
        "\x0c train.steps = \\\n  7",
        "train:\n\tsteps = 7  # so many\n",
        "  train.steps = (\n7 # as many\n)",
        "# before\n\n train.steps\t=\t7",
    ],
)
def test_however_it_is_spelt_it_says_the_same(spelt):
    assert dict(read_text(spelt).bindings) == {STEPS: 7}


@pytest.mark.parametrize("statement", ["import thesis.from_ddsp", "from thesis import from_ddsp"])
def test_both_spellings_of_the_one_import_are_those_of_this_project(statement):
    text = read_text(f"{statement}\ntrain.losses = (@losses.SpectralLoss(),)")
    text.require_ours()
    assert str(text).startswith(f"{statement}\n")


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | st.text()
    | st.builds(Macro, st.sampled_from(["STEPS", "a/STEPS"]))
    | st.builds(Reference, st.sampled_from(["RnnFc", "a/b/thesis.config.RnnFc"]), st.booleans()),
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.lists(parts, max_size=3).map(tuple)
        | st.dictionaries(st.text(), parts, max_size=3)
    ),
    max_leaves=6,
)


@given(plain_values)
@settings(deadline=None)
def test_any_plain_value_is_what_is_read_of_what_is_written(value):
    text = GinText({STEPS: value})
    assert len(str(text).splitlines()) == 1
    assert repr(read_text(str(text)).bindings[STEPS]) == repr(value)


WORDS = [
    "train", ".steps", " = ", "=", "5", "-", "1e9", "'x'", "b''", "(", ")", ",", "{", "}", ":", "[",
    "]", "\n", "\r", "\\\n", " ", "\t", "\x0c", "#", "@", "%", "/", "RnnFc", "STEPS", "()", ";",
    "import ", "from ", "include ", "os", " as ", "thesis", ".from_ddsp", "__gin__", "gin.macro",
    "é", "\0",
]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=25).map("".join))
@settings(deadline=None, max_examples=300)
def test_gin_meets_what_was_checked_and_nothing_else(text):
    try:
        said = read_text("train.steps = 5\n" + text)
        said.require_ours()
    except ConfigError:
        return

    class Delegate(config_parser.ParserDelegate):
        def configurable_reference(self, scoped_configurable_name, evaluate):
            return Reference(scoped_configurable_name, evaluate)

        def macro(self, macro_name):
            return Macro(macro_name)

    for statement in config_parser.ConfigParser(str(said), Delegate()):
        if isinstance(statement, config_parser.ImportStatement):
            assert statement.module == "thesis.from_ddsp"
        else:
            assert isinstance(statement, config_parser.BindingStatement)
            assert said.bindings[Key(*statement[:3])] == statement.value


# --- What acts ---


@pytest.mark.parametrize(
    "text",
    [
        "import canary_module",
        "import canary_module as thesis",
        "import canary_module.from_ddsp",
        "import\\\n  canary_module",
        "import\tcanary_module",
        "\x0cimport canary_module",
        "  import canary_module  # as it was",
        "train.steps = 5\r\nimport canary_module\r\n",
        "from canary_module import from_ddsp",
        "from canary_module import a as thesis",
        "from thesis import canary_module",
        "import thesis.from_ddsp.canary_module",
        "import thesis",
        "import thesis.from_ddsp\nimport canary_module",
        "from __gin__ import dynamic_registration",
        "import __gin__.dynamic_registration",
        "from __gin__ import dynamic_registration\nimport os\ntrain.steps = @os.getcwd()",
    ],
)
def test_a_text_imports_nothing_but_what_this_project_does(text, tmp_path, canary):
    (tmp_path / "run.gin").write_bytes(text.encode())
    assert_refused(lambda: read_text(text), "is imported", "'thesis.from_ddsp'")
    assert_refused(lambda: read_file(tmp_path / "run.gin", []), "is imported")
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    [
        "train.steps = @sweep()",
        "train.steps = @gin_text.read_text",
        "train.losses = (1, {'a': [@losses.PretrainedCREPEEmbeddingLoss()]})",
        "Harmonic.scale_fn = @losses.TWMLoss",
        "model.decoder = @a/config.Synth()",
        "X = @DilatedConvStackConfig()",
    ],
)
def test_a_stored_text_refers_to_what_has_a_place_here_only(text):
    read = read_text("import thesis.from_ddsp\n" + text)
    assert_refused(read.require_ours, "may not refer to @")


@pytest.mark.parametrize(
    "text",
    [
        "train.steps = @X/macro()",
        "train.steps = @gin.singleton",
        "train.steps = @a/gin.constant()",
        "X/macro.value = 3",
        "a/gin.macro.value = 3",
        "singleton.constructor = 3",
        "REQUIRED = 3",
    ],
)
def test_what_belongs_to_gin_is_left_to_it(text):
    assert_refused(lambda: read_text(text), "gin's own")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("os.system = 3", "'os.system' is no parameter"),
        ("subprocess.run.cmd = 3", "no parameter"),
        ("config.trains.steps = 3", "no parameter"),
        ("tr\u0430in.steps = 3", "no parameter"),  # a Cyrillic letter
        ("x/y.z = 3", "no parameter"),
        ("train.steps = %X", "%X, which is not there"),
        ("train.steps = %gin.REQUIRED", "which is not there"),
        ("a/X = 3\ntrain.steps = %X", "which is not there"),
    ],
)
def test_a_stored_text_binds_and_names_what_is_there_only(text, word):
    assert_refused(read_text(text).require_ours, word)


def test_what_gin_prints_of_the_runs_that_ship_is_ours():
    for own in ("config.train.steps = 3", "thesis.config.train.steps = 3", "a/X=3\nY = %a/X"):
        read_text(own).require_ours()


def test_ddsp_is_named_only_where_it_is_imported():
    assert_refused(lambda: read_text("Harmonic.name = 'x'"), "not imported")
    assert_refused(lambda: read_text("train.losses = @losses.SpectralLoss()"), "not imported")


# --- What never ends ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A = %B\nB = (1, {'x': %A})", "refers to itself"),
        ("A = %A", "refers to itself"),
        ("DilatedConvStack.channels = @a/DilatedConvStack()", "refers to itself"),
        ("RnnFc.channels = %A\nA = [@thesis.config.RnnFc()]", "refers to itself"),
        ("A300 = 1\n" + "".join(f"A{i} = %A{i + 1}\n" for i in range(300)), "nested too deeply"),
        ("".join(f"A{i} = %A{i + 1}\n" for i in reversed(range(300))), "nested too deeply"),
        (
            "A9 = 1\n" + "".join(f"A{i} = ({f'%A{i + 1},' * 9})\n" for i in range(9)),
            "too many values",
        ),
        (f"train.losses = ({'@RnnFc(),' * 200})", "too many values"),
        (
            f"A = ({'1,' * 90_000})\n" + "".join(f"search_space.a{i} = %A\n" for i in range(2)),
            "too many values",
        ),
        (f"train.steps = {'(' * 10_000}1{')' * 10_000}", "nested too deeply"),
        (f"train.losses = {'[' * 100}1{']' * 100}", "nested too deeply"),
        (f"train.losses = {'{' * 50}", ""),
        (f"sweep.sampler = {chr(39) * 2} {(chr(39) * 2 + ' ') * 9_000}", "pieces"),
        ("# so much\n" * 60_000, "larger than 512 KiB"),
        ("train.steps = " + "9" * 5_000, ""),
        ("train.steps = 0x" + "f" * 5_000, "more than 64 bits"),
    ],
)
def test_what_would_not_end_is_one_line_at_once(text, words):
    assert_refused(lambda: read_text(text), words)


# --- What is no value ---


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("1e999", "holds inf, and numbers are finite"),
        ("-1e999", "holds -inf"),
        ("(1, [2, {'a': 1e999}])", "holds inf"),
        ("9223372036854775808", "more than 64 bits"),
        ("b'x'", "of type bytes"),
        ("1j", "of type complex"),
        ("(1, ({'a': b''},))", "of type bytes"),
        ("{1: 2}", "a key that is no string"),
        ("{('a',): 2}", "a key that is no string"),
        ("{@train: 2}", "a key that is no string"),
        ("{[1]: 2}", "unhashable"),
        (r"'\ud800'", "no Unicode"),
        (r"{'\ud800': 1}", "a key that is no string"),
        ("-%STEPS", "'-' goes before a number"),
        ("-@train()", "'-' goes before a number"),
        ("...", ""),
        ("", ""),
        ("5 6", ""),
        ("5;import os", ""),
        ("f'x'", ""),
    ],
)
def test_what_is_no_plain_value_is_one_line(value, words):
    assert_refused(lambda: read_text(f"STEPS = 1\ntrain.steps = {value}"), words)
    assert_refused(lambda: read_text("STEPS = 1").overridden([f"STEPS={value}"]), words)


@pytest.mark.parametrize("text", [None, 5, b"train.steps = 5", "train.steps = '\ud800'", "\0"])
def test_what_is_no_text_is_one_line(text):
    assert_refused(lambda: read_text(text))


# --- Overrides ---


@pytest.mark.parametrize(
    "override",
    [
        "STEPS=1\nimport os",
        "STEPS=1\nSEED=2",
        "STEPS=1\ninclude 'x'",
        "train:\n steps=1",
        "include 'x'=1",
        "import x=1",
        "STEPS=1;SEED=2",
        "=",
        "\n=\n",
        "STEPS=\\",
        "\ufeffSTEPS=1",
        "STEPS=1=2",
        "STEPS",
    ],
)
def test_an_override_is_one_binding(override):
    text = read_text("STEPS = 1\nSEED = 0")
    assert_refused(lambda: text.overridden([override]))


def test_an_override_may_span_lines_and_hold_a_comment():
    text = read_text("STEPS = 1").overridden(["STEPS=(1,\n 2)  # two", "train.seed=3"])
    assert dict(text.bindings) == {Key("", "STEPS", ""): (1, 2), Key("", "train", "seed"): 3}


def test_an_override_that_closes_a_circle_is_refused():
    text = read_text("A = %B\nB = 1")
    assert_refused(lambda: text.overridden(["B=%A"]), "refers to itself")
    assert text.overridden(["B=2"]).bindings[Key("", "B", "")] == 2


def test_a_binding_in_a_scope_that_nothing_enters_reaches_nothing():
    entered = "train.losses = (@a/b/RnnFc(), %c/X)\nc/X = 1\n"
    for scope in ("a", "a/b", "c", "c/X"):
        read_text(f"{entered}{scope}/train.steps = 1").require_reached()
    for scope in ("b", "a/b/c", "X", "train"):
        text = read_text(f"{entered}{scope}/train.steps = 1")
        assert_refused(text.require_reached, f"'{scope}/train.steps' reaches nothing")


def test_what_a_text_says_and_another_does_not_is_found():
    text = read_text("STEPS = 5\nthesis.config.train.steps = {'b': 1, 'a': %STEPS}")
    text.require_equal(read_text("train.steps = {'a': %STEPS, 'b': 1}\nSTEPS = 5"))
    for other in ("STEPS = 5", "STEPS = 5\ntrain.steps = {'a': 5, 'b': 1}"):
        changed = read_text(other)
        assert_refused(lambda changed=changed: text.require_equal(changed), "train.steps")


# --- Files ---


def test_included_files_stand_where_they_are_included(tmp_path):
    (tmp_path / "a.gin").write_text("A = 1\ninclude 'b.gin'  # in between\nC = 3\nB = 4\n")
    (tmp_path / "b.gin").write_text("A = 2\nB = 2\n")
    text = read_file(tmp_path / "a.gin", [tmp_path])
    assert str(text) == "A = 2\nC = 3\nB = 4\n"


def test_a_folder_earlier_in_the_list_is_not_shadowed_by_a_later_one(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "adam.gin").write_text("STEPS = 666")
    (tmp_path / "a.gin").write_text("include 'train/adam.gin'")
    monkeypatch.chdir(tmp_path)
    text = read_file(Path("a.gin"), [gin_root(), Path()])
    assert text.bindings[Key("", "STEPS", "")] == 1600


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": "include 'a.gin'"}, "'a.gin' includes itself"),
        ({"a": "include 'b.gin'", "b": "A = 1\ninclude './a.gin'"}, "'a.gin' includes itself"),
        ({"a": "include 'b.gin'\n" * 101, "b": ""}, "more than 100 files"),
        ({"a": "include 'c.gin'"}, "'a.gin' includes 'c.gin', which is not there"),
        ({"a": r"include 'c\0.gin'"}, "which is not there"),
        ({"a": f"include '{'c' * 5_000}'"}, "which is not there"),
        ({"a": "include '/dev/zero'"}, "which is not there"),
        ({"a": "include '/'"}, "which is not there"),
        ({"a": "include 5"}, "(a.gin, line 1)"),
        ({"a": "include b'c.gin'"}, "(a.gin, line 1)"),
        ({"a": "A = 1\nA = ("}, "EOF"),
        ({"a": b"A = '\xff'"}, "no text in UTF-8 (byte 5)"),
        ({"a": "A = 1".encode("utf-16")}, "no text in UTF-8"),
        ({"a": bytes(range(32))}, ""),
        ({"a": "A = 1\0"}, ""),
        ({"a": b"#" * 600_000}, "a.gin is larger than 512 KiB"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, files, words):
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / f"{name}.gin").write_bytes(data)
    assert_refused(lambda: read_file(tmp_path / "a.gin", [tmp_path]), words)


def test_what_is_no_file_is_one_line(tmp_path):
    assert_refused(lambda: read_file(tmp_path, []), "cannot read")
    assert_refused(lambda: read_file(tmp_path / "no.gin", []), "cannot read")
    assert_refused(lambda: read_file(Path("a\0b"), []), "cannot read")


def test_files_of_other_systems_are_read(tmp_path):
    for data in (b"\xef\xbb\xbfA = 1\r\nB = 2", b"# of old\rA = 1\rB = 2\r"):
        (tmp_path / "a.gin").write_bytes(data)
        assert str(read_file(tmp_path / "a.gin", [])) == "A = 1\nB = 2\n"
