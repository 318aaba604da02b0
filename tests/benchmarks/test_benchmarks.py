import importlib
import json
from pathlib import Path

import numpy as np
import pytest

import benchmarks
from benchmarks import _harness as harness
from benchmarks._records import OBJECTIVES, synthetic_ledger, synthetic_trials
from sweeps.objectives import objective
from sweeps.pareto import pareto_front

FOLDER = Path(benchmarks.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
KEYS = {"benchmark", "value", "unit", "better", "reference", "machine", "command"}


def test_there_are_benchmarks():
    assert "train_step" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_explains_itself(name, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"python -m benchmarks.{name} [-h] [--quick]" in printed
    assert module.__doc__.splitlines()[0] in printed


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_is_named_as_its_module_and_documented(name):
    assert name == importlib.import_module(f"benchmarks.{name}").NAME
    assert f"`{name}`" in (FOLDER.parent / "docs" / "benchmarks.md").read_text()


def test_quick_is_the_one_option():
    assert harness.is_quick("name", "What.", ["--quick"])
    assert not harness.is_quick("name", "What.", [])
    with pytest.raises(SystemExit):
        harness.is_quick("name", "What.", ["--fast"])


def test_last_line_is_one_json_object(capsys):
    details = {"interval": harness.Interval(2.0, 1.5, 2.5), "count": np.int64(3)}
    result = harness.Result("name", 2.0, "x", "higher", "something else", details)
    harness.emit(result, quick=True)
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record.keys() >= KEYS
    assert record["command"] == "python -m benchmarks.name --quick"
    assert record["details"] == {"interval": [2.0, 1.5, 2.5], "count": 3}
    assert record["machine"].keys() >= {"processor", "cores", "load_average", "versions"}


def test_calls_take_turns_and_the_first_one_changes():
    called = []
    calls = [lambda: called.append("a"), lambda: called.append("b")]
    times = harness.interleaved(calls, 3)
    assert "".join(called) == "abbaab"
    assert times.wall.shape == times.cpu.shape == (3, 2)


def test_ratio_survives_noise_that_only_adds():
    rng = np.random.default_rng(1)
    a, b = (seconds + rng.exponential(0.3, 200) for seconds in (3.0, 1.0))
    ratio = harness.ratio_interval(a, b)
    assert ratio.low < ratio.value < ratio.high
    assert ratio.value == pytest.approx(3.0, rel=0.06)


def test_interval_of_equal_times_is_a_point():
    assert harness.floor_interval([2.0, 2.0]) == harness.Interval(2.0, 2.0, 2.0)


def test_synthetic_records_have_distinct_ids_and_a_front(tmp_path):
    trials = [*synthetic_trials(200), *synthetic_trials(200, first=200)]
    assert len({trial.id for trial in trials}) == 400
    ledger = synthetic_ledger(tmp_path)
    assert ledger.extend(trials) == 400
    objectives = [objective(name) for name in OBJECTIVES]
    found, expected = ledger.front(objectives), pareto_front(trials, objectives)
    assert {t.id for t in found.members} == {t.id for t in expected.members}
    assert 1 < len(found.members) < 50
    assert synthetic_ledger(tmp_path).ids() == {trial.id for trial in trials}
