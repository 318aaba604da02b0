"""The command line: what it prints, how it ends, what it imports."""

import csv
import dataclasses
import inspect
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sweeps.cli import main
from sweeps.config import find_run, load_run
from sweeps.lease import leased
from sweeps.ledger import Ledger, SweepFacts
from sweeps.trial import Attempt, Candidate, Measurement, Provenance, Reason, Trial
from tests.sweeps.fakes import make_dataset
from thesis.bench import BenchReport, BenchRow, bench
from thesis.bench_variants import Skipped
from thesis.data import load_facts

QUERY = """
import sys
from sweeps.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as leaving:
    status = leaving.code
heavy = {"tensorflow", "ray", "optuna", "librosa", "matplotlib"} & set(sys.modules)
print("heavy:", sorted(heavy), file=sys.stderr)
sys.exit(status)
"""


def trial(channels: int, loss: float, ratio: float, **extra: object) -> Trial:
    return Trial(
        "tiny",
        Candidate.of({"channels": channels}),
        Measurement(
            val_loss=loss,
            rtf=ratio * 3e-5,
            rtf_ratio=ratio,
            rtf_ratio_low=ratio - 0.01,
            rtf_ratio_high=ratio + 0.01,
            parameters=channels * 100,
        ),
        provenance=Provenance(host="here", host_fingerprint="h1", gin_config="# config"),
        **extra,  # type: ignore[arg-type]
    )


FRONT = [trial(2, 10.0, 0.3), trial(4, 9.0, 0.5), trial(8, 8.0, 1.0)]
DOMINATED = trial(16, 9.5, 2.0)
FAILED = Trial("tiny", Candidate.of({"channels": 32}), reason=Reason.DIVERGED, detail="step 3")


@pytest.fixture
def storage(tmp_path: Path) -> str:
    root = str(tmp_path / "runs")
    facts = SweepFacts(
        name="tiny",
        gin_config=load_run(find_run("tiny")).text,
        dataset_fingerprint="f",
        objectives=("val_loss", "rtf_ratio"),
        trials_asked=8,
    )
    ledger = Ledger.create(root, "tiny", facts)
    for record in (*FRONT, DOMINATED, FAILED):
        ledger.append(record)
    return root


def run(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)


def assert_one_error(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """One error line, one hint, nothing on stdout."""
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert out == ""
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], err
    for word in words:
        assert word in err


@pytest.mark.parametrize("arguments", [["--help"], ["front", "tiny", "--storage", "{storage}"]])
def test_help_and_front_load_neither_tensorflow_nor_ray(storage: str, arguments: list[str]) -> None:
    arguments = [a.format(storage=storage) for a in arguments]
    done = subprocess.run(
        [sys.executable, "-c", QUERY, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stderr
    assert "sweeps" in done.stdout or "Pareto front of 'tiny'" in done.stdout


def test_every_verb_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    run("--help")
    verbs = [
        line.split()[0]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("    ") and not line.strip().startswith(("VERB", "sweeps"))
    ]
    assert len(verbs) >= 9
    for verb in verbs:
        assert run(verb, "--help") == 0
        assert f"sweeps {verb}" in capsys.readouterr().out.partition("example:")[2]


def test_front_lists_members_by_cost_and_counts_the_others(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("front", "tiny", "--storage", storage) == 0
    out, err = capsys.readouterr()
    ids = [line.split()[0] for line in out.splitlines() if line[:6] in {t.id[:6] for t in FRONT}]
    assert ids == [t.id[:6] for t in FRONT]
    assert "3 of 5 finished trials" in out
    assert "1 dominated" in out
    assert "1 failed (loss became NaN or exploded)" in out
    assert err.startswith("next: sweeps promote ")
    assert "hosts" not in out


def test_a_front_over_several_hosts_says_what_compares(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    there = Provenance(host="there", host_fingerprint="h2")
    Ledger.open(storage, "tiny").append(replace(trial(1, 11.0, 0.2), provenance=there))
    assert run("front", "tiny", "--storage", storage) == 0
    out, _ = capsys.readouterr()
    assert "there" in out.split()
    assert out.splitlines()[-1].startswith("measured on 2 hosts: rtf_ratio, ")


def missing(record: Trial, share: float | None, **changes: Any) -> Trial:
    """A trial that misses so much of the pitch, as measured by this release."""
    measured = replace(record.measurement, f0_missed_share=share, loudness_error_db=3.0)
    return replace(record, measurement=measured, **changes)


SILENT = {"reason": Reason.MISSED_PITCH, "detail": "f0_missed_share is 1, the limit 0.3"}


def sweep_of(root: Path, *records: Trial, limits: dict[str, float] | None = None) -> str:
    """Storage of a sweep 'tiny' with these records; by default without a limit on the pitch."""
    data = make_dataset(root / "data")
    facts = SweepFacts(
        name="tiny",
        gin_config=load_run(find_run("tiny"), ["STEPS=150"]).text,
        dataset_fingerprint=load_facts(data).fingerprint,
        objectives=("val_loss", "rtf_ratio"),
        dataset_path=data,
        trials_asked=len(records),
        limits=limits or {},
    )
    ledger = Ledger.create(str(root / "runs"), "tiny", facts)
    for record in records:
        ledger.append(record)
    return str(root / "runs")


def next_line(err: str) -> str:
    """The last line of stderr, which is what to do next."""
    line = err.strip().splitlines()[-1]
    assert line.startswith("next: sweeps ")
    return line.removeprefix("next: sweeps ")


def test_front_shows_the_pitch_that_is_missed_and_offers_a_member_that_sings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The knee of all three would be the second, of which no note is right.
    records = [missing(t, share) for t, share in zip(FRONT, (0.104, 1.0, 0.02), strict=True)]
    storage = sweep_of(tmp_path, *records)
    assert run("front", "tiny", "--storage", storage) == 0
    out, err = capsys.readouterr()
    assert all(share in out for share in ("f0_missed", "10.4%", "100%", "2%"))
    assert max(map(len, out.splitlines())) <= 100
    assert next_line(err).startswith(f"promote {FRONT[2].id[:6]} --to ")
    assert run("front", "tiny", "--storage", storage, "--max", "f0_missed_share=0.05") == 0
    out, err = capsys.readouterr()
    assert "1 of 3 finished trials" in out
    assert "excluded: 2 completed (f0_missed_share over 0.05)" in out
    assert next_line(err).startswith(f"promote {FRONT[2].id[:6]} --to ")
    assert run("front", "tiny", "--storage", storage, "--json") == 0
    shares = [t["f0_missed_share"] for t in json.loads(capsys.readouterr().out)["front"]]
    assert shares == [0.104, 1.0, 0.02]


def test_the_limit_of_a_sweep_decides_who_is_offered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [missing(t, share) for t, share in zip(FRONT, (0.9, 0.5, 0.8), strict=True)]
    storage = sweep_of(tmp_path, *records, limits={"f0_missed_share": 0.6})
    assert run("front", "tiny", "--storage", storage) == 0
    assert next_line(capsys.readouterr().err).startswith(f"promote {FRONT[1].id[:6]} --to ")


@pytest.mark.parametrize("metrics", [(), ("val_loss", "parameters", "rtf_ratio"), ("val_loss",)])
def test_a_front_of_any_number_of_objectives_offers_a_member(
    storage: str, capsys: pytest.CaptureFixture[str], metrics: tuple[str, ...]
) -> None:
    asked = ["--metrics", *metrics] if metrics else []
    assert run("front", "tiny", "--storage", storage, *asked) == 0
    offered = next_line(capsys.readouterr().err).split()[1]
    assert offered in {t.id[:6] for t in FRONT}


def test_where_those_that_sing_were_beaten_front_says_how_to_see_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = sweep_of(tmp_path, *(missing(t, 1.0) for t in FRONT), missing(DOMINATED, 0.1))
    assert run("front", "tiny", "--storage", storage) == 0
    problem, following = capsys.readouterr().err.strip().splitlines()
    assert problem == (
        "no member of the front sings: f0_missed_share is over 0.3 in all; other trials do"
    )
    command = following.removeprefix("next: sweeps ").split()
    assert command[:4] == ["front", "tiny", "--max", "f0_missed_share=0.3"]
    assert run(*command) == 0
    assert next_line(capsys.readouterr().err).startswith(f"promote {DOMINATED.id[:6]} --to ")


@pytest.mark.parametrize("infeasible", [False, True], ids=["of before", "with a limit"])
def test_where_nothing_sings_front_and_launch_say_so_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], infeasible: bool
) -> None:
    changes: dict[str, Any] = SILENT if infeasible else {}
    storage = sweep_of(
        tmp_path,
        *(missing(t, 1.0, **changes) for t in FRONT),
        limits={"f0_missed_share": 0.3} if infeasible else {},
    )
    words = "no trial sings: f0_missed_share over 0.3 in 3" if infeasible else (
        "no member of the front sings: f0_missed_share is over 0.3 in all"
    )  # fmt: skip
    # Nothing is left to do for a launch, so that it ends at once.
    for verb in (["front", "tiny"], ["launch", "--name", "tiny"]):
        assert run(*verb, "--storage", storage) == 0
        out, err = capsys.readouterr()
        lines = err.strip().splitlines()
        assert (
            lines[-2]
            == f"{words}; train longer, as a new sweep with the same run file and settings"
        )
        assert "promote" not in err
        assert next_line(err) == (
            f"launch --name tiny-600 --data {tmp_path}/data --trials 3 --set STEPS=600 "
            f"--storage {storage}"
        )
        if verb[0] == "front":
            account = "3 infeasible (f0_missed_share over 0.3)" if infeasible else "none"
            assert out.splitlines()[-1] == f"excluded: {account}"
    assert run(*next_line(err).split(), "--dry-run") == 0
    assert "3 trials of 600 steps" in capsys.readouterr().out


def test_a_launch_that_ends_well_offers_its_front(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = sweep_of(tmp_path, *(missing(t, 0.1) for t in FRONT))
    assert run("launch", "--name", "tiny", "--storage", storage) == 0
    assert next_line(capsys.readouterr().err) == f"front tiny --storage {storage}"


def test_where_there_is_no_pitch_none_is_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drums: no frame of the clips is voiced."""
    drums = [missing(t, None) for t in FRONT]
    storage = sweep_of(tmp_path, *drums, limits={"f0_missed_share": 0.3})
    for limit in ([], ["--max", "f0_missed_share=0.1"]):
        assert run("front", "tiny", "--storage", storage, *limit) == 0
        out, err = capsys.readouterr()
        assert "3 of 3 finished trials" in out
        assert next_line(err).startswith("promote ")


def test_a_figure_of_a_front_on_which_nothing_sings_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = sweep_of(
        tmp_path,
        *(missing(t, 1.0, **SILENT) for t in FRONT),  # type: ignore[arg-type]
        limits={"f0_missed_share": 0.3},
    )
    figure = tmp_path / "front.png"
    assert run("front", "tiny", "--storage", storage, "--figure", str(figure)) == 1
    assert_one_error(capsys, "no trial sings", "hint: sweeps launch --name tiny-600")
    assert not figure.exists()


def test_a_figure_of_three_objectives_is_refused(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = str(tmp_path / "front.png")
    asked = ("--metrics", "val_loss", "rtf_ratio", "parameters", "--figure", figure)
    assert run("front", "tiny", "--storage", storage, *asked) == 1
    assert_one_error(capsys, "two objectives, not 3", "--metrics")


@pytest.mark.parametrize("changes", [{}, SILENT], ids=["of before", "with a limit"])
def test_a_trial_that_does_not_sing_is_promoted_only_if_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    silent = missing(FRONT[0], 1.0, **changes)
    storage = sweep_of(tmp_path, silent)
    out = tmp_path / "bundle"
    promote = ("promote", silent.id[:6], "--to", str(out), "--storage", storage)
    assert run(*promote) == 1
    assert_one_error(
        capsys, "does not sing: f0_missed_share is 1, the limit 0.3", "--allow-missed-pitch"
    )
    assert not out.exists()
    # What is wrong with this record comes next: it is of no dataset.
    assert run(*promote, "--allow-missed-pitch") == 1
    assert_one_error(capsys, "is not the dataset that trial")


def test_front_as_json_has_stable_keys(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("front", "tiny", "--storage", storage, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"sweep", "objectives", "front", "finished", "dominated", "excluded"}
    assert [record["id"] for record in document["front"]] == [t.id for t in FRONT]
    assert {"val_loss", "rtf_ratio", "x_real_time", "axis_channels", "host"} <= set(
        document["front"][0]
    )
    assert document["excluded"] == [
        {"status": "failed", "why": "loss became NaN or exploded", "count": 1}
    ]


def test_front_as_csv_reads_back(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("front", "tiny", "--storage", storage, "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["val_loss"]) for row in rows] == [10.0, 9.0, 8.0]


def test_a_limit_leaves_out_and_says_so(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("front", "tiny", "--storage", storage, "--max", "rtf_ratio=0.6") == 0
    out = capsys.readouterr().out
    assert FRONT[2].id[:6] not in out
    assert "rtf_ratio over 0.6" in out


def test_front_takes_any_metrics(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--metrics", "val_loss", "parameters", "rtf_ratio")
    assert run("front", "tiny", "--storage", storage, *arguments) == 0
    assert "val_loss against parameters against rtf_ratio" in capsys.readouterr().out


def test_front_draws_a_figure(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "front.png"
    assert run("front", "tiny", "--storage", storage, "--figure", str(figure)) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["front.pdf", "front", "nowhere/front.png", "."])
def test_a_figure_of_a_front_that_cannot_be_written_is_one_error_before_anything_is_read(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "there.png").mkdir()
    for figure in (name, "there.png"):
        assert run("front", "none", "--storage", storage, "--figure", str(tmp_path / figure)) == 1
        assert_one_error(capsys, figure)


def test_without_a_home_folder_a_figure_is_drawn_without_a_word(
    storage: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", "front", "tiny", "--storage", storage,
         "--figure", str(tmp_path / "front.png")],
        env={"HOME": "/dev/null/home"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == ["wrote", "next:"]


def test_a_front_without_members_is_no_error(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("front", "tiny", "--storage", storage, "--max", "rtf_ratio=0.1") == 0
    assert "0 of 5 finished trials" in capsys.readouterr().out


def test_status_counts_each_outcome(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status", "--storage", storage, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["finished"], row["completed"], row["failed"]) == (5, 4, 1)
    assert row["asked"] == 8
    assert row["best_val_loss"] == 8.0


def test_show_prints_the_reason_of_a_failure(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("show", FAILED.id[:5], "--storage", storage) == 0
    out = capsys.readouterr().out
    assert "failed" in out
    assert "step 3" in out


def test_show_prints_how_far_a_stopped_trial_came(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = Trial(
        "tiny",
        Candidate.of({"channels": 64}),
        reason=Reason.PRUNED,
        detail="step 80 of 300",
        curve={80: 7.5, 40: 9.125},
    )
    Ledger.open(storage, "tiny").append(stopped)
    assert run("show", stopped.id, "--storage", storage) == 0
    out = capsys.readouterr().out
    assert "stopped early: step 80 of 300" in out
    assert "learning curve\n  step 40  9.125\n  step 80  7.5\n" in out
    assert run("show", stopped.id, "--storage", storage, "--json") == 0
    assert json.loads(capsys.readouterr().out)["curve"] == {"40": 9.125, "80": 7.5}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("1h30m", 5400), ("2h", 7200), ("45s", 45)]
)
def test_a_time_is_read_in_its_units(
    text: str, seconds: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data")
    budgets = ["--trials", "4", "--time", text, "--train-steps", "900"]
    assert run("launch", "--name", "s", "--data", data, *budgets, "--dry-run") == 0
    expected = f"budget: 4 trials of 1600 steps, {seconds} s, 900 training steps"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    "asked",
    ["--cpus-per-trial=-1", "--cpus-per-trial=1e9", "--gpus-per-trial=nan", "--address=ray://"],
)
def test_a_dry_run_refuses_what_a_launch_refuses(
    asked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data")
    launch = ("launch", "--name", "s", "--data", data, "--trials", "4", asked)
    assert run(*launch, "--dry-run") == 1
    said = capsys.readouterr()
    assert [line.partition(":")[0] for line in said.err.splitlines()] == ["error", "hint"]
    assert said.out == ""


@pytest.mark.parametrize("text", ["90", "m", "1.5h", "", "0m", "30m1h", "9" * 400 + "h"])
def test_a_time_without_a_unit_is_wrong_usage(text: str) -> None:
    assert run("launch", "--name", "s", "--time", text) == 2


@pytest.mark.parametrize("option", ["--trials", "--train-steps", "--max-concurrent"])
@pytest.mark.parametrize("text", ["0", "-1", "nan", "1" + "0" * 400, "9" * 5000, ""])
def test_a_count_that_cannot_be_is_wrong_usage(option: str, text: str) -> None:
    assert run("launch", "--name", "s", f"{option}={text}") == 2


def test_show_as_json_is_the_full_record(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", FRONT[0].id, "--storage", storage, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["gin_config"] == "# config"
    assert record["axis_channels"] == 2


def test_dry_run_prints_the_plan_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    assert run("prepare", "--demo", "--out", str(data), "--clip-seconds", "1") == 0
    capsys.readouterr()
    storage = tmp_path / "runs"
    arguments = ("--name", "n", "--data", str(data), "--trials", "3", "--storage", str(storage))
    assert run("launch", *arguments, "--set", "CHANNELS=(4, 8)", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "DilatedConvStack.channels" in out
    assert "3 trials of 1600 steps" in out
    assert "train.batch_size" in out
    assert "distinct; objectives" in out
    seeds = f"search_space.axes={{'train.seed': {tuple(range(10_001))}}}"
    assert run("launch", *arguments, "--set", seeds, "--dry-run") == 0
    assert "at most 10,001; objectives" in capsys.readouterr().out
    assert not storage.exists()


REFUSED = {
    "a name that is a path": (["--name", "../n"], "cannot be the name of a sweep"),
    "no dataset": (["--data", "nowhere"], "no dataset at 'nowhere'"),
    "a truncated dataset": (["--data", "truncated"], "altered, cut short"),
    "an altered dataset": (["--data", "altered"], "altered, cut short"),
    "no sweep to learn from": (["--warm-start", "other"], "no sweep named 'other'"),
    "a storage that is a file": (["--storage", "file"], "file"),
    "a storage below a file": (["--storage", "file/runs"], "file"),
    "too many CPUs": (["--cpus-per-trial", "10000"], "a trial asks for 10000 CPUs"),
    "nothing to log to": (["--log", "paper"], "nothing named 'paper' to log to"),
}
"""What a launch refuses before anything starts: options, and what it says."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with what a launch may be given."""
    monkeypatch.chdir(tmp_path)
    for name in ("data", "truncated", "altered"):
        make_dataset(tmp_path / name)
    clips = tmp_path / "truncated" / "clips.arrow"
    os.truncate(clips, clips.stat().st_size // 2)
    content = bytearray((tmp_path / "altered" / "clips.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "altered" / "clips.arrow").write_bytes(content)
    (tmp_path / "file").touch()
    return tmp_path


def tree(folder: Path) -> dict[str, bytes]:
    """All that is in a folder."""
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("verb", ["launch", "dry run", "slurm"])
def test_what_a_launch_refuses_a_dry_run_and_a_job_refuse_in_the_same_words(
    verb: str, options: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(here)
    line = ["--name", "n", "--data", "data", "--trials", "3", "--storage", "runs", *options]
    job = ["slurm", "--out", "j.sbatch", "--cpus-per-node", "4", "--", *line]
    commands = {"launch": ["launch", *line], "dry run": ["launch", *line, "--dry-run"]}
    assert run(*commands.get(verb, job)) == 1
    assert_one_error(capsys, message)
    assert tree(here) == before


@pytest.mark.parametrize(
    "options",
    [
        ["--clip-seconds", "inf"],
        ["--clip-seconds", "nan"],
        ["--clip-seconds", "1e300"],
        ["--clip-seconds", "1e-300"],
        ["--clip-seconds", "-1"],
        ["--clip-hop-seconds", "inf"],
        ["--clip-hop-seconds", "nan"],
        ["--clip-hop-seconds", "-1"],
        ["--f0-min", "nan"],
        ["--f0-min=-inf"],
        ["--f0-max", "inf"],
        ["--f0-max", "nan"],
        ["--validation-share", "nan"],
        ["--validation-share", "inf"],
        ["--sample-rate", "0"],
        ["--sample-rate", "-16000"],
        ["--sample-rate", "9" * 30],
        ["--frame-rate", "0"],
        ["--frame-rate", "-1"],
        ["--frame-rate", "9" * 30],
    ],
    ids=" ".join,
)
def test_clips_that_cannot_be_are_refused_before_any_work(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recordings").mkdir()
    out = ["--out", str(tmp_path / "data")]
    assert run("prepare", str(tmp_path / "recordings"), *options, *out) == 1
    assert_one_error(capsys)
    if options[0] in ("--clip-seconds", "--sample-rate", "--frame-rate"):
        assert run("prepare", "--demo", *options, *out) == 1
        assert_one_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["recordings"]


def failed_sweep(storage: Path) -> list[Trial]:
    """A sweep 'f' of one completed and two failed trials; returns these."""
    facts = SweepFacts(
        name="f", gin_config="", dataset_fingerprint="f", objectives=("val_loss", "rtf"),
        trials_asked=3,
    )  # fmt: skip
    ledger = Ledger.create(str(storage), "f", facts)
    failed = [
        Trial("f", Candidate.of({"channels": n}), reason=reason, detail="died")
        for n, reason in enumerate([Reason.CRASHED, Reason.OUT_OF_MEMORY])
    ]
    for trial in [*failed, Trial("f", Candidate.of({"channels": 9}))]:
        ledger.append(trial)
    return failed


def test_failed_trials_are_forgotten_and_kept_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "runs"
    failed = failed_sweep(storage)
    assert run("retry", "f", "--failed", "--storage", str(storage)) == 0
    printed = capsys.readouterr()
    assert "2 failed trials of 'f' are off the books (1 crashed, 1 out of memory)" in printed.out
    assert str(storage / "f" / "forgotten") in printed.out
    assert printed.err == f"next: sweeps launch --name f --storage {storage}\n"
    ledger = Ledger.open(str(storage), "f")
    assert len(ledger.ids()) == 1
    assert not any(ledger.holds(trial.id) for trial in failed)
    assert run("retry", "f", "--failed", "--storage", str(storage)) == 0
    assert "no trial of 'f' has failed" in capsys.readouterr().out


def test_a_retry_says_what_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed_sweep(tmp_path)
    assert run("retry", "f", "--storage", str(tmp_path)) == 2
    assert "--failed" in capsys.readouterr().err
    assert len(Ledger.open(str(tmp_path), "f").ids()) == 3
    assert run("retry", "g", "--failed", "--storage", str(tmp_path)) == 1
    assert_one_error(capsys, "no sweep named 'g'")


def test_nothing_is_retried_under_a_running_launch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed_sweep(tmp_path)
    with leased(Ledger.open(str(tmp_path), "f").location, "f"):
        assert run("retry", "f", "--failed", "--storage", str(tmp_path)) == 1
    assert_one_error(capsys, "is being launched already")
    assert len(Ledger.open(str(tmp_path), "f").ids()) == 3


@pytest.fixture
def begun(tmp_path: Path) -> list[str]:
    """What continues a sweep: begun with a run file that nobody has any more."""
    run_file = tmp_path / "mine.gin"
    run_file.write_text(
        "search_space.axes = {'train.seed': (3, 4)}\nSTEPS = 7\ntrain.steps = %STEPS"
    )
    config = load_run(run_file)
    run_file.unlink()
    data = make_dataset(tmp_path / "data")
    facts = SweepFacts(
        name="begun",
        gin_config="# As another release of gin prints it.\n" + config.text,
        dataset_fingerprint=load_facts(data).fingerprint,
        objectives=config.sweep.objectives,
        dataset_path=data,
        trials_asked=5,
    )
    Ledger.create(str(tmp_path / "runs"), "begun", facts)
    return ["launch", "--name", "begun", "--storage", str(tmp_path / "runs")]


def test_a_sweep_is_continued_with_what_it_was_started_with(
    begun: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*begun, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "5 trials of 7 steps" in out
    assert f"data: {tmp_path / 'data'}" in out
    assert Ledger.open(str(tmp_path / "runs"), "begun").facts.gin_config in out
    assert run(*begun, "--dry-run", "--trials", "9") == 0
    assert "9 trials of 7 steps" in capsys.readouterr().out


@pytest.mark.parametrize("differing", [["tiny"], ["--set", "STEPS=8"]])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_sweep_that_would_be_another_says_how_to_continue_it(
    begun: list[str], capsys: pytest.CaptureFixture[str], differing: list[str], dry: list[str]
) -> None:
    assert run(*begun, *differing, *dry) == 1
    assert_one_error(capsys, "'begun' exists and differs", "leave out the run file, --set")


def test_there_is_nothing_to_continue_under_another_name(
    begun: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*begun, "--name", "begin") == 1
    assert_one_error(capsys, "no sweep named 'begin'", "did you mean 'begun'?", "--data and --tr")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["front", "tny"], ["no sweep named 'tny'", "did you mean 'tiny'?"]),
        (["front", "tiny", "--metrics", "val_los", "rtf"], ["val_los", "did you mean 'val_loss'"]),
        (["front", "tiny", "--max", "rtf_ratio"], ["rtf_ratio", "METRIC=NUMBER"]),
        (["show", "zzz"], ["no trial 'zzz'"]),
        (["promote", "zzz", "--to", "out"], ["no trial 'zzz'"]),
        (["promote", FAILED.id, "--to", "out"], ["failed", "sweeps front tiny"]),
        (["status", "tny"], ["did you mean 'tiny'?"]),
    ],
)
def test_unknown_names_are_one_error_with_the_nearest_as_hint(
    storage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, "--storage", storage) == 1
    assert_one_error(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_a_nearly_right_trial_id_is_offered(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = FRONT[0].id[:-1] + "z"
    assert run("show", wrong, "--storage", storage) == 1
    assert_one_error(capsys, f"did you mean '{FRONT[0].id}'?")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.step=3", ["train", "step"]),
        ("foo.bar=3", ["foo"]),
        ("STEP=3", ["did you mean 'STEPS'?"]),
        ("CHANNELS=(0, 4)", ["'channels' holds 0", "between 1 and 1024"]),
        ("sweep.sampler=tpp", ["did you mean 'tpe'?"]),
        ("sweep.objectives=('val_los', 'rtf_ratio')", ["val_los", "did you mean 'val_loss'"]),
        ("nonsense", ["key=value"]),
    ],
)
def test_a_bad_setting_is_one_error_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, words: list[str]
) -> None:
    storage = tmp_path / "runs"
    arguments = ("--name", "n", "--data", "d", "--trials", "1", "--storage", str(storage))
    assert run("launch", *arguments, "--set", override) == 1
    assert_one_error(capsys, *words)
    assert not storage.exists()


def test_launching_without_a_dataset_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ("--name", "n", "--trials", "1", "--storage", str(tmp_path / "runs"))
    assert run("launch", *arguments, "--data", str(tmp_path / "empty")) == 1
    assert_one_error(capsys, "no dataset at", "sweeps prepare")
    assert not (tmp_path / "runs").exists()


def test_a_dataset_of_another_schema_version_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    assert run("prepare", "--demo", "--out", str(data), "--clip-seconds", "1") == 0
    capsys.readouterr()
    facts = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(facts | {"schema_version": 99}))
    arguments = ("--name", "n", "--trials", "1", "--storage", str(tmp_path / "runs"))
    assert run("launch", *arguments, "--data", str(data)) == 1
    assert_one_error(capsys, "schema version 99")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no recording in"]),
        (("notes.txt", b"hello"), ["no recording in"]),
        (("a.wav", b""), ["a.wav"]),
        (("a.wav", b"this is text, not sound"), ["a.wav"]),
    ],
)
def test_a_folder_that_holds_no_sound_is_one_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: tuple[str, bytes] | None,
    words: list[str],
) -> None:
    folder = tmp_path / "audio"
    folder.mkdir()
    if content:
        (folder / content[0]).write_bytes(content[1])
    assert run("prepare", str(folder), "--out", str(tmp_path / "out")) == 1
    assert_one_error(capsys, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["audio"]


def test_tfrecords_of_ddsp_become_a_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from thesis._ddsp import tf

    rng = np.random.default_rng(0)
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord-00000-of-00001")) as writer:
        for _ in range(3):
            values = {
                "audio": rng.uniform(-0.5, 0.5, 16_000),
                "f0_hz": np.full(251, 440.0),
                "f0_confidence": np.full(251, 0.9),
                "loudness_db": np.zeros(251),
            }
            feature = {
                name: tf.train.Feature(float_list=tf.train.FloatList(value=v))
                for name, v in values.items()
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
    arguments = ("prepare", "--from-tfrecord", f"{tmp_path}/a.tfrecord*", "--out")
    out = str(tmp_path / "dataset")
    assert run(*arguments, out) == 1
    progress, error, hint = capsys.readouterr().err.splitlines()
    assert progress == "TFRecords: 1 of 1"
    assert error.startswith("error: the stored loudness is 1")
    assert hint.endswith("--recompute-loudness")
    assert run(*arguments, out, "--recompute-loudness", "--frame-rate", "200") == 1
    assert capsys.readouterr().err.endswith("hint: what would fit: --frame-rate 250\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tfrecord-00000-of-00001"]
    assert run(*arguments, out, "--recompute-loudness") == 0
    printed, said = capsys.readouterr()
    assert "training and" in printed
    assert "1 s at 16000 Hz, from 1 files" in printed
    assert "median 440" in printed
    assert said.endswith(f"next: sweeps launch --name NAME --data {out} --trials 16\n")


@pytest.mark.parametrize(
    ("source", "option", "words"),
    [
        (
            ["--from-tfrecord", "x*"],
            ["--f0-min", "50"],
            "--f0-min has no effect with --from-tfrecord",
        ),
        (["--demo"], ["--skip-broken"], "--skip-broken has no effect with --demo"),
        (["folder"], ["--recompute-loudness"], "--recompute-loudness has no effect with AUDIO_DIR"),
    ],
)
def test_an_option_that_the_source_does_not_have_is_one_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: list[str],
    option: list[str],
    words: str,
) -> None:
    assert run("prepare", *source, "--out", str(tmp_path / "out"), *option) == 1
    assert_one_error(capsys, words)


def test_preparing_into_an_existing_folder_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "audio"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.zeros(16000), 16000)
    assert run("prepare", str(folder), "--out", str(folder)) == 1
    assert_one_error(capsys, "exists already")


# --- bench ---


def report(*bundles: Path) -> BenchReport:
    """A bench of decoders, as floats and as integers, and a runtime that is not there."""

    def row(bundle: Path, form: str, ratio: float, **more: Any) -> BenchRow:
        return BenchRow(
            bundle=str(bundle), artifact="decoder", runtime="onnx_runtime", version="1.32",
            quantisation=form, block=256, block_samples=256, deadline_seconds=0.016,
            rtf=1e-3 * ratio,
            rtf_ratio=ratio, rtf_ratio_low=ratio - 0.01, rtf_ratio_high=ratio + 0.01,
            p50_seconds=1e-5, p95_seconds=2e-5, p99_seconds=3e-5, max_seconds=4e-5,
            p99_share_of_deadline=3e-5 / 0.016, calls=500, first_call_seconds=1e-3,
            start_seconds=0.1, load_seconds=0.01, peak_memory_bytes=98_000_000, size_bytes=17_087,
            **more,
        )  # fmt: skip

    return BenchReport(
        tuple(
            row(bundle, form, ratio, is_reference=form == "float", val_loss=loss)
            for bundle in bundles
            for form, ratio, loss in (("float", 1.0, None), ("dynamic-operators", 0.5, 6.25))
        ),
        (Skipped("TVM is not installed", "pip install tvm", runtime="tvm"),),
        {"processor": "AMD", "cores": 2, "load_average": [0.1, 0.2, 0.3]},
    )


@pytest.fixture
def benched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of the benches that were asked for; none is run."""
    asked = []

    def bench(bundles: list[Path], **options: Any) -> BenchReport:
        asked.append({"bundles": bundles, **options})
        options["on_progress"](1, 1)
        return report(*bundles)

    monkeypatch.setattr("thesis.bench.bench", bench)
    return asked


def test_bench_prints_a_line_for_each_block_and_each_model_and_what_was_left_out(
    benched: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("bench", "tiny") == 0
    out, err = capsys.readouterr()
    blocks, models = ([*map(str.split, part.splitlines())] for part in out.split("\n\n"))
    floats = ["decoder", "onnx_runtime", "float", "256", "1,000", "reference"]
    assert blocks[2] == [*floats, "0.010", "0.020", "0.030", "0.040", "0.2%", "1.00"]
    assert blocks[3][4:8] == ["2,000", "0.500", "[0.490,", "0.510]"]
    assert models[3] == ["decoder", "onnx_runtime", "dynamic-operators", "1.32", "17.1", "100",
                         "10.0", "98", "6.25"]  # fmt: skip
    assert "left out: tvm: TVM is not installed (pip install tvm)" in out
    assert err.endswith("next: sweeps bench tiny --figure bench.png\n")


def test_bench_names_the_bundles_where_there_are_several(
    benched: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("bench", "tiny", "full") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["bundle", "artifact"]
    assert {line.split()[0] for line in lines if " 256 " in line} == {"tiny", "full"}


def test_bench_hands_its_options_on(benched: list[dict[str, Any]], tmp_path: Path) -> None:
    run("bench", "tiny")
    run("bench", "tiny", "--artifacts", "decoder", "--runtimes", "all", "--quantise", "dynamic",
        "--blocks", "128", "clip", "--seconds", "2", "--data", "cello")  # fmt: skip
    usual, given = benched
    defaults = inspect.signature(bench).parameters
    for name in ("artifacts", "runtimes", "quantisations", "blocks", "seconds", "dataset"):
        default = defaults[name].default
        assert usual[name] == (list(default) if isinstance(default, tuple) else default)
    given.pop("on_progress")
    assert given == {
        "bundles": [Path("tiny")], "artifacts": ["decoder"], "runtimes": ["all"],
        "quantisations": ["dynamic"], "blocks": [128, "clip"], "seconds": 2.0,
        "dataset": Path("cello"),
    }  # fmt: skip


def test_bench_as_json_has_rows_what_was_skipped_and_the_machine(
    benched: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("bench", "tiny", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document.keys() == {"machine", "rows", "skipped"}
    assert [row["rtf_ratio"] for row in document["rows"]] == [1.0, 0.5]
    assert document["rows"][0]["x_real_time"] == 1000
    assert document["skipped"][0]["runtime"] == "tvm"


def test_bench_draws_a_figure(benched: list[dict[str, Any]], tmp_path: Path) -> None:
    assert run("bench", "tiny", "--figure", str(tmp_path / "bench.png")) == 0
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["bench.pdf", "nowhere/bench.png"])
def test_a_figure_that_cannot_be_written_is_one_error_before_anything_is_benched(
    benched: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run("bench", "tiny", "--figure", str(tmp_path / name)) == 1
    assert_one_error(capsys, name)
    assert not benched


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "is no model bundle"),
        (["--artifacts", "synth"], "no artefact named 'synth'"),
        (["--blocks", "1k"], "no block of '1k'"),
        (["--runtimes", "openvin"], "did you mean 'openvino'?"),
    ],
)
def test_what_cannot_be_benched_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert run("bench", str(tmp_path), *options) == 1
    assert_one_error(capsys, words)


# --- What others wrote ---

ODD = "\x1b[2J\x1b]0;mine\x07[/x][red]\n\u202e\x9b"
"""Clears a terminal, changes its title, is markup of rich's that fails, and turns text around."""


@pytest.fixture
def strange(tmp_path: Path, canary: Path) -> tuple[str, list[Trial]]:
    """A stranger's storage, and its trials. What is stored imports the canary."""
    data = make_dataset(tmp_path / "data")
    facts = SweepFacts(
        name="strange",
        gin_config=f"import canary_module\n{load_run(find_run('tiny')).text}# {ODD}",
        dataset_fingerprint=load_facts(data).fingerprint,
        objectives=("val_loss", "rtf_ratio"),
        dataset_path=data,
        trials_asked=8,
    )
    ledger = Ledger.create(str(tmp_path / "runs"), "strange", facts)
    odd = Provenance(
        host=f"h{ODD}",
        host_fingerprint=ODD,
        gin_config=facts.gin_config,
        versions={f"v{ODD}": ODD},
        measure_conditions={f"c{ODD}": 1.5},
        dataset_fingerprint=facts.dataset_fingerprint,
    )
    completed = replace(FRONT[0], sweep="strange", provenance=odd)
    other_axes = Candidate.of({f"a{ODD}": ODD, "channels": 4})
    trials = [
        completed,
        replace(completed, candidate=other_axes, measurement=FRONT[1].measurement),
        replace(FAILED, sweep="strange", detail=ODD, provenance=odd),
    ]
    for each in trials:
        ledger.append(each)
    return str(tmp_path / "runs"), trials


def assert_nothing_acted(canary: Path, capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert not canary.exists()
    assert all(c.isprintable() or c == "\n" for c in out + err)
    assert "Traceback" not in err
    return out + err


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "strange"],
        ["status", "--json"],
        ["front", "strange"],
        ["front", "strange", "--csv"],
        ["front", "strange", "--json"],
        ["front", "strange", "--figure", "front.png"],
        ["ledger", "export", "strange", "--csv", "all.csv"],
    ],
    ids=" ".join,
)
def test_looking_at_a_stranger_s_sweep_runs_nothing_of_it(
    strange: tuple[str, list[Trial]],
    canary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, "--storage", strange[0]) == 0
    assert_nothing_acted(canary, capsys)


def test_what_a_stranger_wrote_is_spelled_out(
    strange: tuple[str, list[Trial]], canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, trials = strange
    for each in trials:
        for options in ([], ["--gin"], ["--json"]):
            assert run("show", each.id, *options, "--storage", storage) == 0
            said = assert_nothing_acted(canary, capsys)
            if "--json" not in options:
                assert r"h\x1b[2J\x1b]0;mine\x07[/x][red]\n\u202e\x9b" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["launch", "--name", "strange", "--dry-run"],
        ["launch", "--name", "strange"],
        ["launch", "--name", "strange", "--set", "STEPS=1"],
        ["ledger", "export", "strange", "--optuna", "study.db"],
        [
            "slurm",
            *["--out", "j", "--nodes", "1", "--cpus-per-node", "2", "--", "--name", "strange"],
        ],
    ],
    ids=" ".join,
)
def test_what_needs_a_stranger_s_configuration_is_one_error(
    strange: tuple[str, list[Trial]],
    canary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, "--storage", strange[0]) == 1
    lines = assert_nothing_acted(canary, capsys).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
    assert "'canary_module' is imported" in lines[0]
    assert not (tmp_path / "study.db").exists()
    assert not (tmp_path / "j").exists()


@pytest.mark.parametrize(
    "setting",
    [
        "train.learning_rate=1e999",
        "STEPS=1\nimport canary_module",
        "STEPS=%STEPS",
        "CHANNELS=(" * 9_000,
        "sweep.objectives=(1, {})",
        f"{ODD}=1",
        f"STEPS='{ODD}'",
        "SAMPLER='" + "a" * 100_000 + "'",
    ],
    ids=lambda setting: repr(setting[:20]),
)
def test_a_setting_that_is_none_is_one_error(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data")
    where = ["--data", data, "--storage", str(tmp_path / "runs"), "--dry-run"]
    assert run("launch", "--name", "n", "--trials", "1", *where, "--set", setting) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]
    assert len(err) < 5_000


# --- How it ends ---


@pytest.mark.parametrize(
    "arguments", [["fron"], ["launch"], ["front", "x", "--json", "--csv"], ["prepare"]]
)
def test_wrong_usage_ends_with_two(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(*arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["launch", "--name=--"],
        ["launch", "--name", "s", "--set=--"],
        ["slurm", "--out=--", "--cpus-per-node", "2", "--", "--name", "s"],
        ["slurm", "--out", "j.sbatch", "--cpus-per-node", "2", "--", "--name=--"],
        ["slurm", "--out", "j.sbatch", f"--cpus-per-node={'9' * 400}", "--", "--name", "s"],
        ["prepare", "--demo", "--out=--"],
        # As a shell leaves of "$NAME" where there is no such variable.
        ["status", "--storage", ""],
        ["status", ""],
        ["launch", "--name", "s", "--warm-start", ""],
        ["launch", "", "--name", "s"],
        ["promote", "", "--to", "bundle"],
        ["prepare", "", "--out", "data"],
        ["prepare", "--demo", "--out", ""],
    ],
    ids=" ".join,
)
def test_a_value_that_is_none_is_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"]


def test_a_name_that_is_no_text_is_one_error_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"n\xff")
    for arguments in (
        ("prepare", "--demo", "--clip-seconds", "1", "--out", f"{tmp_path}/{name}"),
        ("status", "--storage", f"{tmp_path}/{name}"),
    ):
        assert run(*arguments) == 1
        lines = capsys.readouterr().err.splitlines()
        assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
    assert not list(tmp_path.iterdir())


def test_an_empty_variable_is_no_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWEEPS_STORAGE", "")
    monkeypatch.chdir(tmp_path)
    assert run("status") == 0
    assert "no sweeps in 'runs'" in capsys.readouterr().err


def test_an_unexpected_error_ends_with_three(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("sweeps.status.list_sweeps", broken)
    assert run("status") == 3
    assert "boom" in capsys.readouterr().err


def slurm(tmp_path: Path, *arguments: str) -> int:
    job = ["--out", str(tmp_path / "j.sbatch"), "--nodes", "2", "--cpus-per-node", "4"]
    return run("slurm", *job, *arguments)


def test_a_slurm_job_launches_as_the_line_after_the_dashes_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_dataset(tmp_path / "data")
    line = ["--name", "mine", "--data", data, "--trials", "9", "--set", "CHANNELS=(4, 8)"]
    extra = ["--time-limit", "2:00:00", "--sbatch", "partition=long", "--setup", "module load py"]
    assert slurm(tmp_path, *extra, "--", *line, "--storage", "my runs") == 0
    printed = capsys.readouterr()
    assert printed.err == f"next: sbatch {tmp_path}/j.sbatch\n"
    script = (tmp_path / "j.sbatch").read_text()
    words = f"sweeps launch --name mine --data {data} --trials 9 --set 'CHANNELS=(4, 8)'"
    assert f"\nattend {words} --storage 'my runs' --address \"$host:$port\"\n" in script
    for part in (
        f"cd {tmp_path}",
        "module load py",
        "export SWEEPS_STORAGE='my runs'",
        "#SBATCH --nodes=2",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=16G",
        "#SBATCH --time=2:00:00",
        "#SBATCH --partition=long",
    ):
        assert f"\n{part}\n" in script


@pytest.mark.parametrize(
    ("line", "status", "error"),
    [
        (["--name", "new"], 1, "no sweep named 'new' to continue"),
        (["--name", "tiny", "--address", "auto"], 1, "a job takes no --address"),
        (["--name", "tiny", "--cpus-per-trial", "8"], 1, "a trial asks for 8 CPUs, a node has 4"),
        (["--name", "tiny", "--set", "NONE=1"], 1, "NONE"),
        (["--name", "n", "--data", "gone", "--trials", "1"], 1, "no dataset at 'gone'"),
        (["--name", "tiny", "--data", "gone"], 1, "no dataset at 'gone'"),
        (["--name", "tiny", "--trails", "8"], 2, "unrecognized arguments: --trails"),
    ],
)
def test_a_slurm_job_that_would_fail_is_not_written(
    line: list[str],
    status: int,
    error: str,
    storage: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SWEEPS_STORAGE", storage)
    assert slurm(tmp_path, "--", *line) == status
    assert error in capsys.readouterr().err
    assert not (tmp_path / "j.sbatch").exists()


def test_status_of_one_sweep_tells_what_runs_where(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger.open(storage, "tiny")
    candidate = Candidate.of({"channels": 3})
    ledger.mark_started(Attempt(candidate, "node-7", began_at=time.time() - 600, losses=2))
    assert run("status", "tiny", "--storage", storage) == 0
    assert "tiny: 5/8 · front 3" in (out := capsys.readouterr().out)
    assert "no launch is running" in out
    assert "node-7" not in out
    with leased(ledger.location, "tiny"):
        assert run("status", "tiny", "--storage", storage) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.split() == [candidate.id[:6], "node-7", "10", "min", "2"]


def complete(storage: str) -> None:
    facts = dataclasses.replace(Ledger.open(storage, "tiny").facts, trials_asked=5)
    Ledger.create(storage, "tiny", facts)


def test_a_watch_prints_a_line_each_time_and_ends_with_the_sweep(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    complete(storage)
    assert run("status", "tiny", "--watch", "--storage", storage) == 0
    out, err = capsys.readouterr()
    assert out == "tiny: 5/5 · front 3 · best val_loss 8 · 1 failed\n"
    assert err.startswith("next: sweeps front tiny")
    assert run("status", "tiny", "--watch", "--json", "--storage", storage) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["finished"] == 5


def test_a_watch_on_a_terminal_lists_some_of_what_runs(
    storage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(storage)
    ledger = Ledger.open(storage, "tiny")
    for channels in range(100, 120):
        candidate = Candidate.of({"channels": channels})
        ledger.mark_started(Attempt(candidate, f"node-{channels}", began_at=time.time() - channels))
    monkeypatch.setenv("FORCE_COLOR", "1")
    with leased(ledger.location, "tiny"):
        assert run("status", "tiny", "--watch", "--storage", storage) == 0
    out = capsys.readouterr().out
    assert "node-119 for 2 min" in out
    assert "node-100" not in out
    assert "and 12 more" in out


def test_an_interrupted_watch_leaves_its_last_line(storage: str) -> None:
    arguments = ["status", "tiny", "--watch", "0.05", "--json", "--storage", storage]
    # As from a terminal: a shell has jobs in the background ignore interrupts.
    code = f"import signal; signal.signal(2, signal.default_int_handler)\n{QUERY}"
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout
        lines = [watching.stdout.readline() for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert err.splitlines() == ["interrupted", "heavy: []"]
    times = [json.loads(line)["at"] for line in lines]
    assert times == sorted(set(times))


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--watch"], 1, "which sweep?"),
        (["tiny", "--watch", "0"], 2, "0 is not a time above 0"),
        (["tiny", "--watch", "nan"], 2, "nan is not a time above 0"),
        (["tny", "--watch"], 1, "did you mean 'tiny'?"),
    ],
)
def test_a_watch_that_cannot_be_is_refused(
    storage: str,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    assert run("status", *arguments, "--storage", storage) == status
    assert_one_error(capsys, words)


def test_ledger_is_exported_and_compacted(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "tiny.csv"
    export = ("ledger", "export", "tiny", "--csv", str(table), "--storage", storage)
    assert run(*export) == 0
    assert capsys.readouterr().out == f"{table}: 5 trials of 'tiny'\n"
    with table.open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert {row["axis_channels"] for row in rows.values()} == {"2", "4", "8", "16", "32"}
    assert rows[FAILED.id]["reason"] == "diverged"
    assert run(*export) == 1
    assert_one_error(capsys, "exists", "--force")
    assert run(*export, "--force") == 0
    capsys.readouterr()
    assert run("ledger", "compact", "tiny", "--storage", storage) == 0
    assert capsys.readouterr().out == "'tiny': 5 files merged\n"
    assert len([*Path(storage, "tiny", "trials").rglob("*.parquet")]) == 1
    assert run("ledger", "export", "tiny", "--storage", storage) == 2


def test_a_sweep_is_exported_as_an_optuna_study(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "tiny.db"
    export = ("ledger", "export", "tiny", "--optuna", str(study), "--storage", storage)
    assert run(*export) == 0
    out, err = capsys.readouterr()
    assert out == f"{study}: 5 trials of 'tiny'\n"
    assert err == f"next: optuna-dashboard sqlite:///{study}\n"
    assert study.read_bytes().startswith(b"SQLite format 3")
    assert run(*export) == 1
    assert_one_error(capsys, "exists", "--force")


def _listen() -> None:
    """Has a new process obey signals that a shell or `nohup` may have these tests ignore."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def preparing(tmp_path: Path) -> "subprocess.Popen[str]":
    """A `prepare` in two processes of its own, which is at its work."""
    audio = tmp_path / "audio"
    audio.mkdir()
    for number in range(20):
        tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(16_000) / 16_000)
        soundfile.write(audio / f"{number}.wav", tone, 16_000)
    command = [sys.executable, "-m", "sweeps.cli", "prepare", str(audio), "--workers", "2"]
    running = subprocess.Popen(
        [*command, "--out", str(tmp_path / "dataset")],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_listen,
    )
    assert running.stderr is not None
    assert "pitch and loudness" in running.stderr.readline()
    return running


@pytest.mark.parametrize(
    ("number", "to"),
    [
        (signal.SIGINT, os.killpg),  # as a terminal does
        (signal.SIGTERM, os.kill),
        (signal.SIGHUP, os.killpg),  # as a terminal that is closed
    ],
)
def test_an_interrupted_prepare_says_so_in_a_line_and_leaves_nothing(
    number: signal.Signals, to: Callable[[int, int], None], tmp_path: Path
) -> None:
    with preparing(tmp_path) as running:
        assert running.stderr is not None
        to(running.pid, number)
        *progress, last = running.stderr.read().splitlines()
    assert (running.returncode, last) == (130, "interrupted")
    assert all(line.startswith("pitch and loudness") for line in progress)
    assert [path.name for path in tmp_path.iterdir()] == ["audio"]


def test_the_workers_of_a_killed_prepare_end_with_it(tmp_path: Path) -> None:
    with preparing(tmp_path) as running:
        assert running.stderr is not None
        running.kill()
        running.stderr.read()  # ends when nobody is left who could write to it
    assert [path.name for path in tmp_path.iterdir()] == ["audio"]


# --- What others wrote, and what nobody else shall read


def with_key(uri: str) -> str:
    return uri.replace("s3://", "s3://AKIAKEY:hushhush@")


@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_key_in_the_storage_s_uri_is_printed_nowhere(
    given: str, s3: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    uri = s3(f"cli-{given}")
    dataset = make_dataset(tmp_path / "data")
    facts = SweepFacts(
        name="tiny",
        gin_config=load_run(find_run("tiny")).text,
        dataset_fingerprint=load_facts(dataset).fingerprint,
        objectives=("val_loss", "rtf_ratio"),
        trials_asked=8,
        dataset_path=dataset,
    )
    option: list[str] = []
    if given == "environment":
        monkeypatch.setenv("SWEEPS_STORAGE", with_key(uri))
    else:
        option = ["--storage", with_key(uri)]
    assert run("status", *option) == 0
    ledger = Ledger.create(uri, "tiny", facts)
    for record in FRONT:
        ledger.append(record)
    for arguments in (
        ["status"],
        ["status", "tiny", "--json"],
        ["status", "none"],
        ["front", "tiny"],
        ["front", "none"],
        ["show", FRONT[0].id],
        ["show", "zzz"],
        ["promote", FRONT[0].id, "--to", str(tmp_path / "b")],
        ["ledger", "compact", "tiny"],
        ["ledger", "export", "tiny", "--csv", str(tmp_path / "x.csv")],
        ["launch", "--name", "tiny", "--dry-run"],
        ["launch", "--name", "none"],
    ):
        run(*arguments, *option)
    with ledger.location.filesystem.open_output_stream(ledger.location.at("tiny/lease.json")) as f:
        f.write(b"[")
    run("status", *option)
    job = ["--out", str(tmp_path / "j.sbatch"), "--cpus-per-node", "1", "--", "--name", "tiny"]
    assert run("slurm", *job, *option) == 1
    run("status", "tiny", "--storage", "s3://AKIAKEY:hush%hush@bucket")
    run("status", with_key("s3://bucket"))  # where a name is asked for
    printed = "".join(capfd.readouterr())
    assert "no sweeps in" in printed
    assert "storage: s3://bucket/cli-" in printed
    assert "may hold a key" in printed
    assert "hush" not in printed
    assert "AKIAKEY:" not in printed
    assert not any(b"hush" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_hint_can_be_pasted_where_the_storage_has_options(
    s3: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = s3("cli-hint")
    facts = SweepFacts(
        name="s", gin_config="", dataset_fingerprint="f", objectives=("rtf", "p50_seconds")
    )
    Ledger.create(uri, "s", facts)
    assert run("status", "s", "--storage", uri) == 0
    command = capsys.readouterr().err.removeprefix("next: ")
    assert shlex.split(command) == ["sweeps", "front", "s", "--storage", uri]


READING = [
    ["status", "tiny"],
    ["front", "tiny"],
    ["show", FRONT[1].id],
    ["promote", FRONT[1].id, "--to", "{tmp}/x"],
    ["ledger", "export", "tiny", "--csv", "{tmp}/x"],
    ["ledger", "export", "tiny", "--optuna", "{tmp}/x"],
]


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
@pytest.mark.parametrize("damage", ["half", "copy", "number", "facts", "deep", "link"])
def test_damage_to_a_ledger_is_one_error_with_a_hint(
    storage: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    damage: str,
) -> None:
    sweep = Path(storage, "tiny")
    record = sweep / "trials" / f"{FRONT[1].id}.parquet"
    match damage:
        case "half":
            record.write_bytes(record.read_bytes()[:-60])
        case "copy":
            record.rename(record.with_name("0123456789ab.parquet"))
        case "number":
            record.rename(record.with_name("abc.parquet"))
        case "facts":
            (sweep / "sweep.json").write_text('{"name": ["tiny"], "objectives": 3}')
        case "deep":
            (sweep / "sweep.json").write_text("[" * 10**6)
        case "link":
            record.unlink()
            record.symlink_to("/etc/passwd")
    arguments = [word.format(tmp=tmp_path) for word in arguments]
    assert run(*arguments, "--storage", storage) == 1
    assert_one_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_compaction_says_what_it_passes_over(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Path(storage, "tiny", "trials", f"{FRONT[1].id}.parquet")
    record.write_bytes(b"")
    assert run("ledger", "compact", "tiny", "--storage", storage) == 0
    out, err = capsys.readouterr()
    assert "4 files merged" in out
    assert err.startswith(f"warning: {record} is not a readable record")
    assert len(err.splitlines()) == 1
    assert record.read_bytes() == b""


def test_status_shows_the_sweeps_that_can_be_read_and_the_error_of_another(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(storage) / "broken").mkdir()
    (Path(storage) / "broken" / "sweep.json").write_text("{}")
    assert run("status", "--storage", storage) == 1
    out, err = capsys.readouterr()
    assert "tiny" in out
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]
    assert "broken" in err


def test_status_says_which_started_mark_is_damaged(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = Path(storage, "tiny", "started", "0123456789ab.json")
    mark.parent.mkdir()
    mark.write_text("[")
    for arguments in (["status"], ["status", "tiny"]):
        assert run(*arguments, "--storage", storage) == 0
        assert f"warning: {mark} cannot be read" in capsys.readouterr().err
    assert run("status", "tiny", "--json", "--storage", storage) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert str(mark) in record["damaged"][0]
