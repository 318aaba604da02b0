"""What users take from docs/cluster is what Ray, KubeRay and the command line of today accept."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

import sweeps
from sweeps.cli import _parser
from sweeps.slurm import SlurmJob, sbatch_script

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "docs" / "cluster"

RAY_START = {option for parameter in start.params for option in parameter.opts}

DEFAULTS = {"upscaling_speed", "idle_timeout_minutes"}

# Fields of KubeRay 1.5.1, https://ray-project.github.io/kuberay/reference/api/, and of Kubernetes'
# pods, as far as these files have a use for them.
RAY_JOB = {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
           "rayClusterSpec"}  # fmt: skip
RAY_CLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
HEAD_GROUP = {"serviceType", "rayStartParams", "template"}
WORKER_GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
CONTAINER = {"name", "image", "resources", "envFrom", "volumeMounts"}


def locked(package):
    (version,) = re.findall(
        rf"^{package}==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    )
    return version


@pytest.fixture(scope="module")
def job():
    return yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())


@pytest.fixture(scope="module")
def machines():
    return yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())


def groups(job):
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def commands(text):
    """Lines that begin with 'sweeps', a backslash at their end having them go on."""
    joined = text.replace("\\\n", " ")
    lines = [line.partition(" #")[0] for line in joined.splitlines() if line.startswith("sweeps ")]
    return [shlex.split(line)[1:] for line in lines]


def test_ray_accepts_the_cluster_of_machines_and_adds_nothing_to_it(machines):
    complete = prepare_config(machines)
    validate_config(complete)
    assert all(complete[key] == machines[key] for key in machines.keys() - {"available_node_types"})
    assert {key for key in complete if complete[key]} <= machines.keys() | DEFAULTS
    workers = machines["available_node_types"]["worker"]
    assert workers["min_workers"] == workers["max_workers"] == machines["max_workers"]


def test_options_for_ray_start_exist(machines, job):
    started = machines["head_start_ray_commands"] + machines["worker_start_ray_commands"]
    given = {word.partition("=")[0] for line in started for word in line.split() if word[0] == "-"}
    given |= {f"--{name}" for group in groups(job) for name in group["rayStartParams"]}
    script = sbatch_script(
        SlurmJob("s", (), Path("/"), storage="s", nodes=1, cpus_per_node=1), script="s"
    )
    (shared,) = re.findall(r"options=\((.*?)\)", script, re.DOTALL)
    calls = re.findall(r"ray start (.*?)&>", script.replace("\\\n", ""))
    assert len(calls) == 2
    given |= set(re.findall(r"--[a-z-]+", " ".join([shared, *calls])))
    assert given <= RAY_START


def test_the_ray_job_has_fields_that_kuberay_documents(job):
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job.keys() == {"apiVersion", "kind", "metadata", "spec"}
    cluster = job["spec"]["rayClusterSpec"]
    assert job["spec"].keys() <= RAY_JOB
    assert cluster.keys() <= RAY_CLUSTER
    assert cluster["authOptions"] == {"mode": "token"}
    head, *workers = groups(job)
    assert head.keys() <= HEAD_GROUP
    for group in workers:
        assert group.keys() <= WORKER_GROUP
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    for group in (head, *workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (pod,) = (group["template"][key] for key in group["template"])
        (container,) = pod["containers"]
        assert container.keys() <= CONTAINER
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_versions_are_those_of_this_project(job, machines):
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(job)}
    assert images | {machines["docker"]["image"]} == {f"REGISTRY/ddsp-sweeps:{sweeps.__version__}"}
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == locked("ray")
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{locked('ray')}-py311\n" in dockerfile
    assert f"ddsp-sweeps:{sweeps.__version__} " in dockerfile


def test_the_command_line_takes_what_is_written(job):
    written = commands((ROOT / "docs" / "cluster.md").read_text())
    comments = (CLUSTER / "ray-cluster.yaml").read_text().replace("\n#", "")
    (executed,) = re.findall(r"'(sweeps .*?)'", comments)
    assert written
    for arguments in [*written, shlex.split(executed)[1:], job["spec"]["entrypoint"].split()[1:]]:
        options = _parser().parse_args(arguments)
        if arguments[0] == "slurm":
            _parser().parse_args(["launch", *options.launch])
