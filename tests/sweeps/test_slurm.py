"""The script of a SLURM job, run by bash with stand-ins for SLURM and Ray.

tests/e2e/test_slurm.py runs it on a real SLURM.
"""

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from sweeps.errors import LedgerError, SweepError
from sweeps.slurm import SlurmJob, memory_of, sbatch_script, write_script

STANDINS = {
    "scontrol": "echo '   NodeAddr=127.0.0.1 NodeHostName=n1'",
    "scancel": "kill $(cat workers)",
    "srun": 'echo $$ > workers; echo "$*" > srun; exec sleep 60',
    "ray": 'echo $$ > head; echo "$*" > ray; env | grep RAY_AUTH > token; exec sleep "$(cat life)"',
    "python": "exit 0",
    "sweeps": 'printf "%s\\n" "$@" > words; exec bash command',
}
COMMAND = ("sweeps", "launch", "--name", "mine", "--set", "CHANNELS=(4, 8)", "it's $HOME")


def job(folder=Path("/project"), **changes):
    values = {"nodes": 2, "cpus_per_node": 3, "storage": "my runs", **changes}
    return SlurmJob("mine", COMMAND, folder, **values)


class Run:
    """A job's script, in a folder with a blank and a quote in its name."""

    def __init__(self, root, **changes):
        self.folder = root / "it's here"
        self.folder.mkdir()
        (self.folder / "life").write_text("60")
        for name, text in STANDINS.items():
            file = self.folder / name
            file.write_text(f"#!/bin/bash\n{text}\n")
            file.chmod(file.stat().st_mode | stat.S_IXUSR)
        self.script = root / "mine.sbatch"
        setup = ('export PATH="$PWD:$PATH"',)
        text = sbatch_script(job(self.folder, setup=setup, **changes), script="mine.sbatch")
        self.script.write_text(text)
        self.id = str(os.getpid())  # for a folder in /tmp that nobody else has

    def start(self, command):
        (self.folder / "command").write_text(command)
        told = {
            "SLURM_JOB_ID": self.id,
            "SLURM_JOB_NAME": "sweep-mine",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURMD_NODENAME": "n1",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "3",
        }
        return subprocess.Popen(["bash", self.script], env=os.environ | told)

    def end(self, process):
        """The exit status, when all that was started has ended."""
        status = process.wait(timeout=30)
        for started in ("head", "workers"):
            assert not Path("/proc", self.told(started).strip()).exists()
        assert not list(Path("/tmp").glob(f"sweep-{self.id}-*"))
        return status

    def told(self, name):
        file = self.folder / name
        return file.read_text() if file.exists() else ""


def test_the_command_gets_its_words_and_the_address(tmp_path):
    run = Run(tmp_path)
    assert run.end(run.start("pwd > where; echo $SWEEPS_STORAGE > storage")) == 0
    *words, option, address = run.told("words").splitlines()
    assert ("sweeps", *words) == COMMAND
    assert option == "--address"
    assert f"--address={address}" in run.told("srun")
    host, port = address.split(":")
    assert {f"--node-ip-address={host}", f"--port={port}", "--num-cpus=3"} <= set(
        run.told("ray").split()
    )
    assert run.told("where").strip() == str(run.folder)
    assert run.told("storage").strip() == "my runs"


def test_the_end_of_the_command_is_the_end_of_the_job(tmp_path):
    run = Run(tmp_path)
    assert run.end(run.start("exit 7")) == 7


def test_a_signal_reaches_the_command_which_may_take_its_time(tmp_path):
    run = Run(tmp_path)
    process = run.start("trap 'sleep 2; echo drained > ended; exit 130' TERM; sleep 60 & wait")
    while not run.told("words"):
        time.sleep(0.05)
    time.sleep(0.5)  # until its trap is set
    process.send_signal(signal.SIGTERM)
    assert run.end(process) == 130
    assert run.told("ended") == "drained\n"


def test_a_command_does_not_outlive_the_head(tmp_path):
    run = Run(tmp_path)
    (run.folder / "life").write_text("2")
    assert run.end(run.start("exec sleep 60")) == 128 + signal.SIGKILL


def test_what_cannot_be_removed_from_tmp_ends_no_job(tmp_path):
    run = Run(tmp_path)
    rm = run.folder / "rm"
    rm.write_text('#!/bin/bash\n/bin/rm "$@"; exit 1\n')  # as where another user has put it there
    rm.chmod(0o755)
    assert run.end(run.start("true")) == 0


def test_ray_asks_for_a_secret_that_no_file_and_no_command_line_shows(tmp_path):
    secrets = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        run = Run(folder)
        assert run.end(run.start("true")) == 0
        said = dict(line.split("=") for line in run.told("token").splitlines())
        assert said["RAY_AUTH_MODE"] == "token"
        secrets.append(said["RAY_AUTH_TOKEN"])
        shown = run.script.read_text() + run.told("ray") + run.told("srun") + run.told("words")
        assert secrets[-1] not in shown
    assert len(set(secrets)) == 2
    assert all(len(secret) == 64 for secret in secrets)


def test_what_slurm_is_asked_for():
    script = sbatch_script(
        job(time_limit="2-12", options=("partition=long", "exclusive")), script="mine.sbatch"
    )
    head = script[: script.index("\nset -e")].splitlines()
    assert all(line.startswith("#") for line in head)  # SLURM reads no further than comments
    asked = {line.removeprefix("#SBATCH --") for line in head if line.startswith("#SBATCH")}
    assert {
        "job-name=sweep-mine", "nodes=2", "ntasks-per-node=1", "cpus-per-task=3", "time=2-12",
        "partition=long", "exclusive", "requeue", "no-kill", "signal=B:TERM@120",
        "dependency=singleton",
    } <= asked  # fmt: skip


@pytest.mark.parametrize("limit", ["90", "90:00", "8:00:00", "2-0", "2-12:30", "2-12:30:00"])
def test_time_limits_as_slurm_writes_them(limit):
    assert f"#SBATCH --time={limit}\n" in sbatch_script(job(time_limit=limit), script="s")


@pytest.mark.parametrize(
    ("arguments", "memory"),
    [
        ((16, 1.0), 58),
        ((16, 1.0, 4), 16),
        ((16, 1.0, 99), 58),
        ((16, 5.0), 13),
        ((1, 1.0), 6),
        ((16, 0.5), 114),
        ((16, 0.0), 58),
        ((16, 1.0, None, 2.5), 42),
    ],
)
def test_a_node_is_asked_for_the_memory_of_the_trials_that_fit_on_it(arguments, memory):
    assert memory_of(*arguments) == memory


@pytest.mark.parametrize("option", ["mem=64G", "mem=0", "mem-per-cpu=4G", "mem-per-gpu=20G"])
def test_memory_is_asked_for_once(option):
    assert "#SBATCH --mem=58G\n" in sbatch_script(job(memory_gb=58), script="s")
    asked = sbatch_script(job(memory_gb=58, options=(option,)), script="s")
    assert f"#SBATCH --{option}\n" in asked
    assert asked.count("#SBATCH --mem") == 1
    assert "#SBATCH --mem" not in sbatch_script(job(), script="s")


# --- Nothing of it is a line of its own ---

LIVE = "x\ntouch sprung\n"


@pytest.mark.parametrize("script", [LIVE, "a\rb", "a\x00b", "a\u2028touch sprung", "\x1b[2J"])
def test_a_script_is_not_named_in_more_than_a_line(script):
    with pytest.raises(SweepError, match="holds a line break") as raised:
        sbatch_script(job(), script=script)
    assert raised.value.message.isprintable()
    assert raised.value.hint


@pytest.mark.parametrize(
    "changes",
    [{"setup": (LIVE,)}, {"options": (f"comment={LIVE}",)}, {"time_limit": LIVE}],
)
def test_what_is_a_line_of_the_script_has_no_line_breaks(changes):
    with pytest.raises(SweepError):
        job(**changes)


def test_what_is_a_word_of_the_script_is_one_word(tmp_path):
    run = Run(tmp_path, storage=LIVE + "@SETUP@ $(touch sprung)")
    words = ("--set", LIVE, "@SETUP@", "@NONE@", "$(touch sprung)", "`touch sprung`", "'")
    told = sbatch_script(
        SlurmJob(
            "mine",
            ("sweeps", "launch", *words),
            run.folder,
            LIVE,
            2,
            3,
            setup=('export PATH="$PWD:$PATH" WORD=@FOLDER@',),
        ),
        script="it's $(touch sprung) @SBATCH@ `touch sprung`",
    )
    run.script.write_text(told)
    assert run.end(run.start('printf %s "$SWEEPS_STORAGE" > storage')) == 0
    assert run.told("words").startswith("launch\n" + "\n".join(words) + "\n--address\n")
    assert run.told("storage") == LIVE
    assert not [*tmp_path.rglob("sprung")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 0}, "0 nodes"),
        ({"cpus_per_node": -1}, "-1 CPUs of a node"),
        ({"time_limit": "8h"}, "'8h' is not a time limit"),
        ({"time_limit": "1:00\n#SBATCH --wckey=x"}, "is not a time limit"),
        ({"options": ("--account=x",)}, "'--account=x' is not an option for sbatch"),
        ({"options": ("comment=a b",)}, "'comment=a b' is not an option for sbatch"),
        ({"options": ('comment="a',)}, "is not an option for sbatch"),
        ({"options": ("comment=a#b",)}, "'comment=a#b' is not an option for sbatch"),
        ({"options": ("nodes=8",)}, "has an option 'nodes' already"),
    ],
)
def test_what_slurm_would_not_take_is_one_error(changes, message):
    with pytest.raises(SweepError, match=message) as raised:
        job(**changes)
    assert raised.value.hint


def test_a_script_is_not_lost_to_another(tmp_path):
    script = tmp_path / "mine.sbatch"
    write_script(script, "mine\n")
    write_script(script, "mine\n")
    with pytest.raises(SweepError, match="is there already, and differs"):
        write_script(script, "yours\n")
    assert script.read_text() == "mine\n"
    with pytest.raises(SweepError, match="cannot write"):
        write_script(tmp_path / "none" / "mine.sbatch", "mine\n")
    assert list(tmp_path.iterdir()) == [script]


KEYS = ["s3://AKIA:hush@bucket/f", "s3://bucket/f?secret_key=hush", "abfs://a:hush@c/f"]


@pytest.mark.parametrize("uri", KEYS)
def test_key_in_a_uri_is_not_written_into_a_script(uri):
    with pytest.raises(LedgerError, match="may hold a key") as caught:
        job(storage=uri)
    assert "environment" in caught.value.hint
    assert "hush" not in caught.value.message + caught.value.hint
    values = {"nodes": 1, "cpus_per_node": 1, "folder": Path("/x"), "storage": "runs"}
    for words in (("--storage", uri), (f"--storage={uri}",), ("--set", f"A='{uri}'")):
        with pytest.raises(LedgerError, match="may hold a key"):
            SlurmJob("mine", ("sweeps", "launch", *words), **values)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.write_bytes(b"\xff")])
def test_a_script_takes_no_place_that_is_taken(tmp_path, make):
    make(tmp_path / "mine.sbatch")
    with pytest.raises(SweepError, match="is there already"):
        write_script(tmp_path / "mine.sbatch", "mine\n")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_whose_name_is_no_text_is_named_all_the_same(tmp_path):
    script = tmp_path / "mine.sbatch"
    write_script(script, sbatch_script(job(Path("/a\udcff")), script="mine.sbatch"))
    assert b"\ncd '/a\xff'\n" in script.read_bytes()
