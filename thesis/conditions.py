"""What the machine does while something is measured on it, as far as the system tells."""

import os
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path("/")
_COUNTERS = frozenset({"preemptions", "stolen_seconds", "throttled_periods"})


def observe(root: Path = _ROOT) -> dict[str, float]:
    """Returns the state of the machine, and of the core that this process is pinned to.

    What the system does not tell is left out; none of it is needed.

    Args:
      root: Where `proc` and `sys` are.

    Returns:
      load_average: Of the last minute.
      running_processes: That run or wait for a core; this one is one of them.
      cpu_mhz: The core's frequency.
      preemptions: How often this process has had to make room for another.
      stolen_seconds: In which a virtual machine's host gave the core to others.
      throttled_periods: In which the control group had used up its share of the processors.
    """
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    found: dict[str, float] = {}
    words = _text(root / "proc/loadavg").split()
    if words:
        found["load_average"] = float(words[0])
        found["running_processes"] = float(words[3].partition("/")[0])
    found |= _frequency(root, core)
    for line in _text(root / "proc/self/status").splitlines():
        if line.startswith("nonvoluntary_ctxt_switches:"):
            found["preemptions"] = float(line.split()[1])
    for line in _text(root / "proc/stat").splitlines():
        words = line.split()
        if words[0] == f"cpu{core}":  # user, nice, system, idle, iowait, irq, softirq, steal
            found["stolen_seconds"] = float(words[8]) / os.sysconf("SC_CLK_TCK")
    for line in _cpu_stat(root).splitlines():
        if line.startswith("nr_throttled "):
            found["throttled_periods"] = float(line.split()[1])
    return found


def conditions(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Returns what held when something began, and how far counters went until it ended."""
    elapsed = {
        name: after[name] - before[name] for name in _COUNTERS & before.keys() & after.keys()
    }
    return {name: round(value, 6) for name, value in sorted((dict(before) | elapsed).items())}


def _frequency(root: Path, core: int) -> dict[str, float]:
    khz = _text(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq")
    if khz:
        return {"cpu_mhz": float(khz) / 1000}
    lines = _text(root / "proc/cpuinfo").splitlines()
    of_cores = [line.partition(":")[2] for line in lines if line.startswith("cpu MHz")]
    return {"cpu_mhz": float(of_cores[core])} if core < len(of_cores) else {}


def _cpu_stat(root: Path) -> str:
    """Returns the counters of this process's control group, of version 2 or 1; '' without any."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            folder = root / "sys/fs/cgroup" / controllers / group.lstrip("/")
            if found := _text(folder / "cpu.stat"):
                return found
    return ""


def _text(file: Path) -> str:
    """Returns what the system wrote; '' where it does not."""
    try:
        return file.read_text()
    except OSError:
        return ""
