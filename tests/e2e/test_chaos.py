"""Whatever is killed, and whenever: no trial is lost, none is doubled, every front is right.

Three nodes on one machine, sweeps of short trials one after another, and a storm of SIGKILLs over
workers, nodes, the driver's own node among them, drivers and heads. Every other launch, by chance,
has a cluster of its own. In every other sweep trials wait at a rung, or are stopped there. A launch
whose node or head is killed ends by itself within half a minute.
`make chaos` has a long storm; here is a short one.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sweeps.lease import LeaseWatch
from sweeps.ledger import Ledger
from sweeps.objectives import objective
from sweeps.trial import Reason
from tests.e2e.cluster import ENVIRONMENT, Cluster, processes_of, wait_until
from tests.sweeps.fakes import evaluator, make_dataset

KILLS = int(os.environ.get("SWEEPS_CHAOS_KILLS", "6"))
SEED = int(os.environ.get("SWEEPS_CHAOS_SEED", "0"))
TRIALS = 10
"""Of each sweep. One takes a second and a half."""

CLUSTER, HERE = "cluster", "here"

SWEEPS = (("slowly_halfway", "defer"), ("slow", "none"))
"""Evaluator and stopping rule of one sweep after the other."""

VICTIMS = {
    CLUSTER: {"worker": 5, "node": 2, "own node": 2, "driver": 2, "head": 1},
    HERE: {"worker": 3, "own node": 2, "driver": 1, "head": 1},
}
"""What is killed, and how often in proportion. The own node is the one that the driver is on."""

NAMES = {
    "worker": "Worker.train",
    "node": "raylet/raylet",
    "own node": "raylet/raylet",
    "head": "gcs/gcs_server",
}
"""What is in the command lines of the victims."""

MOST_SECONDS = 30
"""How long a launch may take to end when its node or head is gone."""

DRIVER = """
import sys
from sweeps.launch import launch
from tests.sweeps.fakes import run_of
from thesis.errors import UserError

name, dataset, storage, evaluator, trials, address, stopping = sys.argv[1:]
run = run_of(
    {"DilatedConvStack.channels": tuple(range(1, 41))},
    f"sweep.stopping = '{stopping}'", "train.steps = 4",
)
try:
    report = launch(name, run, dataset=dataset, trials=int(trials), storage=storage,
                    evaluator=evaluator, address=address or None)
except UserError as error:
    sys.exit(f"error: {error.message}")
print(report.summary())
"""


class Storm:
    """Sweeps on a cluster, and what is killed meanwhile."""

    def __init__(self, folder, port):
        self.folder, self.port = folder, port
        self.dataset = make_dataset(folder / "data")
        self.random = random.Random(SEED)
        self.killed = Counter()
        self.launches = Counter()
        self.seen = {}
        self.longest = 0.0
        self.sweep = self.clusters = 0
        self.cluster = Cluster(folder / "ray0", port, others=2)
        self.driver, self.place = None, ""

    @property
    def name(self):
        return f"s{self.sweep}"

    def launch(self):
        """Starts, or continues, the sweep; the next one where it is complete."""
        if self.driver is not None and self.driver.poll() is None:
            return
        if self.driver is not None and self.driver.returncode == 0:
            self.sweep += 1
        self.launches[self.name] += 1
        evaluate, stopping = SWEEPS[self.sweep % len(SWEEPS)]
        self.place = self.random.choice((CLUSTER, HERE))
        address = self.cluster.address if self.place == CLUSTER else ""
        with (self.folder / "drivers.log").open("a") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-c", DRIVER, self.name, self.dataset, str(self.folder / "runs"),
                 evaluator(evaluate), str(TRIALS), address, stopping],
                stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **ENVIRONMENT},
            )  # fmt: skip

    def kill(self):
        """Kills one process, and mends what a supervisor would."""
        chances = VICTIMS[self.place]
        kind = self.random.choices([*chances], [*chances.values()])[0]
        victims = self.victims(kind)
        if not victims:
            return
        node, victim = self.random.choice(victims)
        on_cluster = self.place == CLUSTER
        if kind == "own node" and on_cluster:
            node.keep()  # of its processes this one only is gone, and the head lives
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.killed[f"{kind} ({self.place})"] += 1
        match kind:
            case "driver":
                self.driver.wait()
            case "node":
                node.stop()
                self.cluster.others.remove(node)
                self.cluster.join()
            case "own node" | "head":
                self.see_it_end(kind)
                if on_cluster:
                    self.renew_cluster()

    def see_it_end(self, killed):
        """Waits until the launch has ended, and all of its processes."""
        began = time.monotonic()
        try:
            self.driver.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            said = (self.folder / "drivers.log").read_text().splitlines()[-8:]
            left = list(processes_of(self.driver.pid).values())
            pytest.fail(f"{killed} ({self.place}) is killed, the launch goes on: {said}, {left}")
        wait_until(lambda: not processes_of(self.driver.pid), MOST_SECONDS)
        self.longest = max(self.longest, time.monotonic() - began)

    def renew_cluster(self):
        """Has another cluster in place of one whose head is no good."""
        self.cluster.stop()
        self.clusters += 1
        port = self.port + 2 * self.clusters
        self.cluster = Cluster(self.folder / f"ray{self.clusters}", port, others=2)

    def victims(self, kind):
        """Pairs of a node and a process of it. A launch here is its own node, without an object."""
        if kind == "driver":
            return [(None, self.driver.pid)] if self.driver.poll() is None else []
        name = NAMES[kind]
        if self.place == HERE:
            found = processes_of(self.driver.pid)
            return [(None, pid) for pid, line in found.items() if name in line]
        nodes = {
            "worker": self.cluster.nodes,
            "node": self.cluster.others,
            # Ray has a driver that finds several nodes on its machine use the head's.
            "own node": [self.cluster.head],
            "head": [self.cluster.head],
        }[kind]
        return [(node, pid) for node in nodes for pid in node.processes(name)]

    def look(self):
        """Remembers every record; none may ever change or go."""
        for file in (self.folder / "runs").glob("*/trials/[!_]*.parquet"):
            key = (file.parents[1].name, file.stem)
            content = file.read_bytes()
            assert self.seen.setdefault(key, content) == content

    def rage(self, kills):
        while sum(self.killed.values()) < kills:
            self.launch()
            # Mostly in the middle of things, now and then at a start.
            if self.random.random() < 0.8:
                wait_until(lambda: self.trains() or self.driver.poll() is not None, 180)
            time.sleep(self.random.uniform(0.0, 2.0))
            self.look()
            self.kill()

    def trains(self):
        """Whether a trial has got somewhere."""
        return any((self.folder / "runs" / self.name / "work").glob("*/step"))

    def finish(self):
        """Lets the last sweep end in peace."""
        while True:
            self.launch()
            name, sweep = self.name, self.sweep
            assert self.driver.wait(240) in (0, 1)
            if self.driver.returncode == 0:
                self.look()
                return sweep + 1
            assert self.launches[name] < 100

    def stop(self):
        if self.driver is not None:
            self.driver.kill()
            self.driver.wait()
        self.cluster.stop()


@pytest.fixture
def storm():
    with tempfile.TemporaryDirectory(prefix="storm", dir="/tmp") as folder:  # short, for sockets
        storm = Storm(Path(folder), port=24000 + os.getpid() % 8000)
        yield storm
        storm.stop()


def front_from_scratch(folder):
    """Ids of the trials that no other dominates, from the files alone."""
    rows = [
        row for f in folder.glob("trials/[!_]*.parquet") for row in pq.read_table(f).to_pylist()
    ]
    points = {r["trial_id"]: (r["val_loss"], r["rtf_ratio"]) for r in rows if r["reason"] is None}
    return {
        name
        for name, p in points.items()
        if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points.values())
    }


@pytest.mark.timeout(120 + 60 * KILLS)
def test_a_storm_of_kills_loses_and_doubles_nothing(storm):
    storm.rage(KILLS)
    sweeps = storm.finish()
    driver = storm.driver

    reasons = Counter()
    for number in range(sweeps):
        folder = storm.folder / "runs" / f"s{number}"
        files = list(folder.glob("trials/[!_]*.parquet"))
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        ids = [row["trial_id"] for row in rows]
        assert len(ids) == len(set(ids)) == TRIALS
        assert {key[1] for key in storm.seen if key[0] == f"s{number}"} == set(ids)
        reasons.update(row["reason"] or "completed" for row in rows)

        ledger = Ledger.open(storm.folder / "runs", f"s{number}")
        front = ledger.front([objective("val_loss"), objective("rtf_ratio")])
        assert {trial.id for trial in front.members} == front_from_scratch(folder)
        assert ledger.started() == []
        assert all(ledger.has_artifacts(t.id) for t in ledger.trials() if t.reason is None)
        assert LeaseWatch(ledger.location, ledger.name).host() == ""
        assert list((folder / "work").iterdir()) == []
    # A candidate whose workers were shot three times is given up, and nothing else may fail.
    assert set(reasons) <= {"completed", Reason.PRUNED.name, Reason.CRASHED.name}

    said = (storm.folder / "drivers.log").read_text()
    assert "Traceback" not in said
    assert "state-dump" not in said
    assert "ERROR tune" not in said

    wait_until(lambda: not processes_of(driver.pid))
    nodes = storm.cluster.nodes
    for ours in ("_Worker", "Worker.train", "MeterActor"):
        wait_until(lambda ours=ours: not [p for node in nodes for p in node.processes(ours)])
    storm.stop()
    assert [node.processes() for node in nodes] == [[], [], []]
    print(
        f"\n{sum(storm.killed.values())} kills: {dict(storm.killed)}; {sweeps} sweeps of {TRIALS} "
        f"trials in {sum(storm.launches.values())} launches; {dict(reasons)}; without their node "
        f"or head launches ended within {storm.longest:.0f} s; "
        "0 lost, 0 doubled, every front as from scratch, no process left"
    )
