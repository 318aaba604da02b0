"""What the system tells of itself, from folders that look like `proc` and `sys`."""

import os

import pytest

from thesis.conditions import conditions, observe

CORE = min(os.sched_getaffinity(0))


def write(root, files):
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def linux(tmp_path):
    """A machine's files, with control groups of version 2."""
    ticks = os.sysconf("SC_CLK_TCK")
    cores = range(CORE + 1)
    write(
        tmp_path,
        {
            "proc/loadavg": "1.50 0.64 1.02 3/98 27588\n",
            "proc/cpuinfo": "".join(f"cpu MHz\t\t: {2000 + core}.5\n" for core in cores),
            "proc/self/status": "Name:\tx\nnonvoluntary_ctxt_switches:\t41\n",
            "proc/stat": "cpu  9 9 9 9 9 9 9 9 9 9\n"
            + "".join(f"cpu{core} 1 2 3 4 5 6 7 {(8 + core) * ticks} 0 0\n" for core in cores)
            + "intr 5\n",
            "proc/self/cgroup": "0::/slice/mine\n",
            "sys/fs/cgroup/slice/mine/cpu.stat": "usage_usec 5\nnr_periods 9\nnr_throttled 7\n",
        },
    )
    return tmp_path


def test_what_the_system_tells_is_read(linux):
    assert observe(linux) == {
        "load_average": 1.5,
        "running_processes": 3.0,
        "cpu_mhz": 2000.5 + CORE,
        "preemptions": 41.0,
        "stolen_seconds": 8.0 + CORE,
        "throttled_periods": 7.0,
    }


def test_a_frequency_that_is_read_from_the_governor_is_preferred(linux):
    governor = f"sys/devices/system/cpu/cpu{CORE}/cpufreq/scaling_cur_freq"
    write(linux, {governor: "3400000\n"})
    assert observe(linux)["cpu_mhz"] == 3400.0


def test_control_groups_of_version_one_are_read(linux):
    groups = "4:memory:/other\n3:cpu,cpuacct:/mine\n"
    counters = "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n"
    write(
        linux,
        {"proc/self/cgroup": groups, "sys/fs/cgroup/cpu,cpuacct/mine/cpu.stat": counters},
    )
    assert observe(linux)["throttled_periods"] == 2.0


def test_what_the_system_does_not_tell_is_left_out(tmp_path):
    assert observe(tmp_path) == {}


def test_counters_are_differences_and_the_rest_is_what_held_before():
    before = {"load_average": 1.0, "cpu_mhz": 2000.0, "preemptions": 5.0}
    after = {"load_average": 9.0, "cpu_mhz": 1000.0, "preemptions": 8.0, "stolen_seconds": 4.0}
    assert conditions(before, after) == {
        "load_average": 1.0,
        "cpu_mhz": 2000.0,
        "preemptions": 3.0,
    }


def test_this_machine_tells_its_load():
    assert observe()["load_average"] >= 0
