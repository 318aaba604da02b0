"""A sweep as a job of a real SLURM: two nodes on this machine, and an evaluator of a second.

SLURM's daemons listen on this machine only, as far as they can, and obey only who has the key that
the test makes. Its jobs have numbers, hence ports and folders in /tmp, that no other test's have.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps.evaluate import Progress
from sweeps.ledger import Ledger
from sweeps.trial import Status
from tests.e2e.test_continue import Sweep, wait_until
from tests.sweeps.fakes import STEPS, make_dataset, slow

DAEMONS = ("munged", "slurmctld", "slurmd")
MUNGE_FILES = ("socket", "pid-file", "log-file", "seed-file")
NODES = ("n1", "n2")
TRIALS = 10
HERE = Path(__file__).parents[2]

# Of the script that runs on the nodes, only the evaluator is a stand-in.
SWEEPS = """#!{python}
import functools, sys
import sweeps.launch
from sweeps.cli import main
sweeps.launch.launch = functools.partial(sweeps.launch.launch, evaluator={evaluator!r})
sys.exit(main())
"""

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
FirstJobId={first_job}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters={listen}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=8000
PartitionName=main Nodes=n1,n2 Default=YES
"""


def on_both_nodes(task, *, workdir, measure):
    """As `slow`, as soon as both nodes of the job have had a trial."""
    nodes = Path(task.dataset) / os.environ["SLURM_JOB_ID"]
    nodes.mkdir(exist_ok=True)
    (nodes / os.environ["SLURMD_NODENAME"]).touch()
    while len(list(nodes.iterdir())) < len(NODES):
        yield Progress("build", 0, STEPS)
        time.sleep(0.05)
    return (yield from slow(task, workdir=workdir, measure=measure))


def free_ports(count):
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in taken]
    for server in taken:
        server.close()
    return ports


class Slurm:
    """The commands of a cluster's users."""

    def __init__(self, config):
        self.environment = os.environ | {"SLURM_CONF": str(config)}

    def __call__(self, *command, **options):
        done = subprocess.run(
            command, env=self.environment, text=True, capture_output=True, timeout=30, **options
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def idle_nodes(self):
        """Number of nodes; 0 while the controller does not answer yet."""
        command = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True)
        return int(done.stdout or 0)

    def submit(self, script):
        return self("sbatch", "--parsable", str(script), cwd=script.parent)

    def facts(self, job):
        words = self("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job, seconds=120):
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_until(lambda: self.facts(job)["JobState"] in ended, seconds)
        return self.facts(job)


@pytest.fixture
def slurm(tmp_path):
    if os.getuid() or not all(map(shutil.which, DAEMONS)):
        pytest.skip("takes root, and slurm-wlm and munge installed")
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "state").mkdir()
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    # They listen where their host's name leads to, or everywhere.
    loopback = socket.gethostbyname(host).startswith("127.")
    config = folder / "slurm.conf"
    config.write_text(
        CONFIG.format(
            folder=folder,
            host=host,
            ports=free_ports(3),
            first_job=os.getpid(),
            listen="NoInAddrAny,NoCtldInAddrAny" if loopback else "NoCtldInAddrAny",
        )
    )
    cluster, daemons = Slurm(config), []

    def start(*command):
        with (folder / f"{len(daemons)}-{command[0]}.log").open("w") as log:
            daemons.append(
                subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log)
            )

    try:
        files = {name: folder / f"munge.{name.partition('-')[0]}" for name in MUNGE_FILES}
        start("munged", "--foreground", "--force", f"--key-file={folder}/key",
            *(f"--{name}={file}" for name, file in files.items()))  # fmt: skip
        wait_until(files["socket"].exists)
        start("slurmctld", "-D")
        for node in NODES:
            start("slurmd", "-D", "-N", node)
        wait_until(lambda: cluster.idle_nodes() == len(NODES))
        yield cluster
        cluster("scancel", "--user=root")
        wait_until(lambda: not cluster("squeue", "--noheader"))
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


@pytest.fixture
def script(tmp_path):
    """A job's script, as the command line writes it, in a folder that all nodes share."""
    shared = tmp_path / "shared"
    make_dataset(shared / "data")
    (shared / "run.gin").write_text(
        f"search_space.axes = {{'DilatedConvStack.channels': {tuple(range(1, 41))}}}"
    )
    program = shared / "bin" / "sweeps"
    program.parent.mkdir()
    program.write_text(SWEEPS.format(python=sys.executable, evaluator=f"{__file__}:on_both_nodes"))
    program.chmod(0o755)
    path = f"{program.parent}:{Path(sys.executable).parent}"
    job = ["--out", "job.sbatch", "--nodes", "2", "--cpus-per-node", "1", "--time-limit", "10"]
    setup = ["--setup", f"export PATH={path}:$PATH PYTHONPATH={HERE}"]
    line = ["run.gin", "--name", "mine", "--data", "data", "--trials", str(TRIALS)]
    subprocess.run(
        [sys.executable, "-m", "sweeps.cli", "slurm", *job, *setup, "--", *line],
        cwd=shared,
        env=os.environ | {"PYTHONPATH": str(HERE)},
        check=True,
    )
    return shared / "job.sbatch"


def left_of(job):
    """What a job has left behind: its folder, and processes that have a file open in it."""
    left = list(Path("/tmp").glob(f"sweep-{job}-*"))
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            files = [str(file.readlink()) for file in (process / "fd").iterdir()]
            if any(file.startswith(f"/tmp/sweep-{job}-") for file in files):
                left.append(process)
    return left


@pytest.mark.timeout(400)
def test_a_job_that_is_stopped_in_time_is_continued_by_the_same_script(slurm, script):
    sweep = Sweep(script.parent / "runs" / "mine")
    first = slurm.submit(script)
    wait_until(lambda: len(sweep.records()) >= 3 and sweep.in_training(), 120)
    # As at a time limit; waiting for one takes minutes.
    slurm("scancel", "--batch", "--signal=TERM", first)
    ended = slurm.wait(first)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "130:0")
    assert left_of(first) == []
    log = (script.parent / f"sweep-mine-{first}.log").read_text()
    assert "2 of 2 nodes have joined\n" in log
    assert "interrupted, launch again to continue\n" in log
    at_stop, in_flight = sweep.records(), sweep.started()
    assert 3 <= len(at_stop) < TRIALS

    second, third = slurm.submit(script), slurm.submit(script)
    wait_until(lambda: slurm.facts(second)["JobState"] == "RUNNING")
    assert slurm.facts(third)["Reason"] == "Dependency"  # one at a time
    slurm("scancel", third)
    assert slurm.wait(second)["JobState"] == "COMPLETED"
    assert left_of(second) == []

    at_end = sweep.records()
    assert len(at_end) == TRIALS
    assert in_flight <= set(at_end)
    assert {trial_id: at_end[trial_id] for trial_id in at_stop} == at_stop
    trials = Ledger.open(script.parent / "runs", "mine").trials()
    assert [trial.status for trial in trials] == [Status.COMPLETED] * TRIALS
    for job in (first, second):
        used = (script.parent / "data" / job).iterdir()
        assert {node.name for node in used} == set(NODES)
