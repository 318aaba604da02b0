"""Launches on a cluster that was started by somebody else: code, data and driver get there."""

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from sweeps.ledger import Ledger
from tests.e2e.cluster import ENVIRONMENT, Cluster, wait_until
from tests.sweeps.fakes import evaluator, make_dataset

ROOT = Path(__file__).parents[2]

DRIVER = """
import sys
from sweeps.launch import launch
from sweeps.progress import SweepProgress
from tests.sweeps.fakes import run_of
from thesis.errors import UserError

name, dataset, storage, evaluator, measurer, address, ship = sys.argv[1:]
run = run_of({"DilatedConvStack.channels": tuple(range(1, 41))})
try:
    with SweepProgress() as show:
        report = launch(name, run, dataset=dataset, trials=8, storage=storage, ship=ship == "ship",
                        evaluator=evaluator, measurer=measurer, address=address,
                        log=["tensorboard"], on_event=show)
except UserError as error:
    sys.exit(f"error: {error.message}")
print(report.summary())
sys.exit(130 if report.interrupted else 0)
"""


@pytest.fixture(scope="module")
def nodes():
    with tempfile.TemporaryDirectory(prefix="nodes", dir="/tmp") as folder:  # short, for sockets
        port = 32100 + os.getpid() % 300 * 2
        cache = {"XDG_CACHE_HOME": f"{folder}/cache"}
        cluster = Cluster(Path(folder, "ray"), port, others=1, **cache)
        yield cluster
        cluster.stop()


@pytest.fixture
def storage(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def start(storage, tmp_path):
    """Starts a driver; `within` is a command that runs it."""
    drivers = []

    def start(dataset, evaluate, address, *ship, within=()):
        functions = [evaluator(evaluate), evaluator("measure_drifting")]
        arguments = ["s", dataset, str(storage), *functions, address, *(ship or ["no"])]
        drivers.append(
            subprocess.Popen(
                [*within, sys.executable, "-c", DRIVER, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                cwd=tmp_path,  # Ray's workers would look for code in the driver's
                env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
            )
        )
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.kill()
        driver.communicate()


@pytest.mark.timeout(280)
def test_through_a_client_server_the_driver_runs_on_the_cluster(nodes, start, storage, tmp_path):
    dataset = make_dataset(tmp_path / "data")
    address = nodes.serve_clients()
    driver = start(dataset, "slow", address)
    wait_until(lambda: len(list(storage.glob("s/trials/[!_]*"))) >= 1, 120)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, output
    assert "[1/8]" in output
    assert "launch again to continue" in output

    output, _ = start(dataset, "slow", address).communicate(timeout=120)
    assert "'s' has 8 of 8 trials" in output
    ids = Ledger.open(storage, "s").ids()
    assert len(ids) == 8
    logged = {file.parent.name for file in storage.glob("s/logs/tensorboard/*/events.*")}
    assert ids == logged


@pytest.fixture
def elsewhere(tmp_path):
    """A dataset that only the driver sees, as if it ran on another machine: path, command."""
    private = tmp_path / "private"
    dataset = make_dataset(tmp_path / "data", seed=uuid.uuid4().int % 2**32)
    private.mkdir()
    within = ["unshare", "--mount", "sh", "-c"]
    mount = 'mount -t tmpfs none "$0"'
    try:
        subprocess.run([*within, mount, private], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("folders of one process only (mount namespaces) need root")
    moved = f'{mount} && mv "$1" "$0/data" && shift && exec "$@"'
    return str(private / "data"), [*within, moved, str(private), dataset]


@pytest.mark.timeout(280)
def test_code_and_data_can_be_sent_along(nodes, start, storage, elsewhere):
    dataset, within = elsewhere
    driver = start(dataset, "whereabouts", nodes.address, "ship", within=within)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, output
    assert "cluster of 2 nodes; code and data are sent along" in output
    for trial in Ledger.open(storage, "s").trials():
        code, data = trial.detail.split()
        assert "runtime_resources" in code
        assert "cache/ddsp-sweeps" in data


@pytest.mark.timeout(120)
def test_a_node_that_lacks_what_trials_need_is_named(nodes, start, elsewhere):
    dataset, within = elsewhere
    driver = start(dataset, "quick", nodes.address, within=within)
    output, _ = driver.communicate(timeout=90)
    assert driver.returncode == 1, output
    assert "cannot run trials: the dataset" in output
    assert "Traceback" not in output


@pytest.mark.timeout(240)
def test_what_drifts_on_one_node_is_measured_on_another(nodes, start, storage, tmp_path):
    driver = start(make_dataset(tmp_path / "data"), "measured", nodes.address)
    output, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, output
    trials = Ledger.open(storage, "s").trials()
    assert {trial.provenance.host for trial in trials} == {"node"}
    assert {trial.measurement.reference_drift for trial in trials} == {0.0}
