"""Trials and fronts as text for people and as JSON or CSV for programs."""

import csv
import io
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from sweeps.objectives import MISSED_PITCH, metric
from sweeps.pareto import ParetoFront
from sweeps.printable import printable, show
from sweeps.standing import duration, percent
from sweeps.trial import METRICS, Attempt, AxisValue, Trial

if TYPE_CHECKING:
    from sweeps.status import SweepStatus
    from thesis.bench import BenchReport, BenchRow

ID_DIGITS = 6
_SHORT = {
    "channels": "ch",
    "layers_per_stack": "layers",
    "stacks": "stacks",
    "kernel_size": "kernel",
    "dilation_base": "base",
    "parameters": "params",
    "x_real_time": "x real\ntime",
    MISSED_PITCH: "f0_missed",
}
"""Heads of columns that would be too wide; axes among these come first, in this order."""


_MOST_OF_A_CELL = 80
"""Characters: one cell that is longer would leave no room for the others."""
_WRITTEN_OUT = 1e15
"""Numbers from here on have an exponent."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table to stdout, numbers to the right; never cut to the width of a pipe."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for i, name in enumerate(columns):
        # As texts: rich would read strings as its own markup.
        head = Text("\n").join(map(_cell_text, name.split("\n")))
        justify: JustifyMethod = "left" if i == 0 else "right"
        table.add_column(head, justify=justify, no_wrap=True, vertical="bottom")
    for row in rows:
        table.add_row(*map(_cell_text, row))
    Console(width=None if sys.stdout.isatty() else 250, highlight=False).print(table)


def _cell_text(cell: str) -> Text:
    shown = printable(cell[:_MOST_OF_A_CELL])
    cut = len(cell) > _MOST_OF_A_CELL or len(shown) > _MOST_OF_A_CELL
    return Text(f"{shown[: _MOST_OF_A_CELL - 1]}…" if cut else shown)


def print_json(value: Any) -> None:
    """Prints one JSON document to stdout."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def json_line(value: Any) -> str:
    """Returns one JSON document in a line."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    """Returns a value with None in place of numbers that JSON cannot hold, however deep."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def print_csv(records: Sequence[Mapping[str, Any]]) -> None:
    """Prints records as CSV to stdout; the columns are those of all records together."""
    columns = list(dict.fromkeys(printable(key) for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({printable(k): _csv_cell(v) for k, v in record.items()})
    print(text.getvalue(), end="")  # whose cells are printable


def _csv_cell(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)
    return printable(value) if isinstance(value, str) else value


def front_columns(front: ParetoFront) -> list[str]:
    """Returns what a front's table shows: id, axes, size, objectives, pitch, speed, host.

    Axes and hosts in which all members are alike are left to `_alike`, to keep the table narrow.
    """
    present = dict.fromkeys(axis for trial in front.members for axis, _ in trial.candidate.values)
    axes = [axis for axis in _SHORT if axis in present]
    axes += [axis for axis in present if axis not in axes]
    objectives = [o.metric for o in front.objectives]
    return [
        "trial",
        *(axis for axis in axes if axis not in _alike(front)),
        *(name for name in ("parameters",) if name not in objectives),
        *objectives,
        *(name for name in (MISSED_PITCH, "x_real_time") if name not in objectives),
        *(["host"] if len(front.hosts) > 1 else []),
    ]


def _alike(front: ParetoFront) -> dict[str, AxisValue]:
    """Returns the axes in which all of several members have one value."""
    shared = set(front.members[0].candidate.values) if len(front.members) > 1 else set()
    return dict(sorted(shared.intersection(*(t.candidate.values for t in front.members))))


def print_front(front: ParetoFront, sweep: str) -> None:
    """Prints a front as a table, with an account of the trials that are not on it."""
    names = " against ".join(o.metric for o in front.objectives)
    goals = " and ".join(dict.fromkeys(o.goal.value for o in front.objectives))
    show(
        f"Pareto front of '{sweep}': {names} ({goals} is better), "
        f"{len(front.members)} of {front.finished} finished trials"
    )
    show()
    columns = front_columns(front)
    heads = [f"{_SHORT.get(c, c)} [95%]" if c == "rtf_ratio" else _SHORT.get(c, c) for c in columns]
    print_table(heads, [[_cell(trial, column) for column in columns] for trial in front.members])
    alike = [f"{axis} {_axis_cell(value)}" for axis, value in _alike(front).items()]
    alike += [f"host {host}" for host in front.hosts if host and len(front.hosts) == 1]
    if alike:
        show(f"all members: {', '.join(alike)}")
    account = [f"{front.dominated} dominated"] if front.dominated else []
    excluded = " · ".join([*account, *filter(None, [front.excluded_line()])]) or "none"
    show(f"excluded: {excluded}")
    if len(front.hosts) > 1:
        show(
            f"measured on {len(front.hosts)} hosts: rtf_ratio, against the same reference model on "
            "each, compares across them; x real time is each host's own"
        )


def front_json(front: ParetoFront, sweep: str) -> dict[str, Any]:
    """Returns a front for programs, with stable keys."""
    return {
        "sweep": sweep,
        "objectives": [
            {"metric": o.metric, "goal": o.goal.value, "unit": o.unit, "limit": o.limit}
            for o in front.objectives
        ],
        "front": [front_record(trial) for trial in front.members],
        "finished": front.finished,
        "dominated": front.dominated,
        "excluded": [
            {"status": e.status.value, "why": e.why, "count": e.count} for e in front.excluded
        ],
    }


def front_record(trial: Trial) -> dict[str, Any]:
    """Returns a trial's record without the configuration text, which `sweeps show` gives."""
    speed = metric("x_real_time").of(trial)
    known = speed is not None and math.isfinite(speed)
    record = trial.to_record() | {"x_real_time": speed if known else None}
    return {key: value for key, value in record.items() if key != "gin_config"}


def print_trial(trial: Trial) -> None:
    """Prints one trial in full."""
    show(f"trial {trial.id} of '{trial.sweep}': {trial.status.value}")
    if trial.reason:
        show(f"  {trial.reason.value}: {trial.detail}")
    for title, values in (
        ("candidate", dict(trial.candidate.values)),
        ("measured", {name: _value(trial, name) for name in METRICS}),
        ("learning curve", {f"step {s}": f"{trial.curve[s]:.4g}" for s in sorted(trial.curve)}),
        ("provenance", _provenance(trial)),
    ):
        if not values:
            continue
        show()
        show(title)
        width = max(map(len, values))
        for name, value in values.items():
            if value not in ("", None):
                show(f"  {name:{width}}  {value}")


def _provenance(trial: Trial) -> dict[str, Any]:
    p = trial.provenance
    return {
        "host": f"{p.host} ({p.host_fingerprint})" if p.host_fingerprint else p.host,
        "dataset": p.dataset_fingerprint[:12],
        "seed": p.seed,
        "train_steps": p.train_steps,
        "train_seconds": f"{p.train_seconds:.1f}",
        "measure_seconds": f"{p.measure_seconds:.1f}",
        "measured_at": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(p.measured_at))
        if p.measured_at
        else "",
        "measure_attempts": p.measure_attempts or "",
        "measure_conditions": ", ".join(f"{k} {v:g}" for k, v in p.measure_conditions.items()),
        "versions": ", ".join(f"{k} {v}" for k, v in p.versions.items()),
    }


def print_statuses(statuses: Sequence["SweepStatus"]) -> None:
    """Prints where sweeps stand, a line each."""
    hidden = {"hypervolume_reference", "seconds_left", "launched_on", "running", "damaged", "at"}
    records = [status.to_record() for status in statuses]
    columns = [name for name in dict.fromkeys(chain(*records)) if name not in hidden]
    rows = [[_status_cell(record, column) for column in columns] for record in records]
    heads = {f"best_{MISSED_PITCH}": "f0_missed"}
    print_table([heads.get(column, column.replace("_", " ")) for column in columns], rows)


def _status_cell(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    if column == f"best_{MISSED_PITCH}" and value is not None:
        return percent(value)
    return _plain(value)


def print_status(status: "SweepStatus") -> None:
    """Prints where one sweep stands, and what runs where since when."""
    show(status_line(status))
    if status.running:
        show()
        columns = ["trial", "host", "for", "workers lost"]
        print_table(columns, [_attempt_row(attempt, status.at) for attempt in status.running])


def status_line(status: "SweepStatus") -> str:
    """Returns where a sweep stands in a line."""
    done = f"{status.sweep}: {status.standing.finished}/{status.asked}"
    return " · ".join(filter(None, [done, status.summary()]))


def status_picture(status: "SweepStatus", shown: int) -> Group:
    """Returns where a sweep stands, with so many of its running trials, for a display in place."""
    lines = [status_line(status)]
    for attempt in status.running[:shown]:
        trial, host, since, lost = _attempt_row(attempt, status.at)
        again = f", {lost} workers lost before" if lost else ""
        lines.append(f"  {trial} on {host or 'no host yet'} for {since}{again}")
    if (others := len(status.running) - shown) > 0:
        lines.append(f"  and {others} more")
    return Group(*(Text(printable(line)) for line in lines))


def _attempt_row(attempt: Attempt, now: float) -> list[str]:
    since = duration(max(0.0, now - attempt.began_at)) if attempt.began_at else "?"
    lost = attempt.deaths + attempt.losses
    return [attempt.candidate.id[:ID_DIGITS], attempt.host, since, str(lost or "")]


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else format_number(value)


def print_bench(report: "BenchReport") -> None:
    """Prints what a bench found: each size of blocks, then each model, then what was left out."""
    several = len({row.bundle for row in report.rows}) > 1
    whose = ["bundle"] * several + ["artifact", "runtime", "quantisation"]

    def names(row: "BenchRow") -> list[str]:
        return [str(getattr(row, name)) for name in whose]

    print_table(
        [
            *whose, "block", "x real time", "ratio [95%]", "p50 ms", "p95 ms", "p99 ms", "max ms",
            "p99 of deadline", "first ms",
        ],
        [
            [
                *names(row),
                str(row.block),
                format_number(row.x_real_time),
                _ratio_cell(row),
                *(f"{1e3 * seconds:.3f}" for seconds in (
                    row.p50_seconds, row.p95_seconds, row.p99_seconds, row.max_seconds,
                )),
                f"{row.p99_share_of_deadline:.1%}",
                f"{1e3 * row.first_call_seconds:.2f}",
            ]
            for row in report.rows
        ],
    )  # fmt: skip
    show()
    models = {tuple(names(row)): row for row in report.rows}
    peaks = {
        key: max(row.peak_memory_bytes for row in report.rows if tuple(names(row)) == key)
        for key in models
    }
    print_table(
        [*whose, "version", "size kB", "start ms", "load ms", "peak MB", "val_loss"],
        [
            [
                *key,
                row.version,
                f"{row.size_bytes / 1e3:,.1f}",
                f"{1e3 * row.start_seconds:,.0f}",
                f"{1e3 * row.load_seconds:,.1f}",
                f"{peaks[key] / 1e6:,.0f}",
                "-" if row.val_loss is None else format_number(row.val_loss),
            ]
            for key, row in models.items()
        ],
    )
    for why, hint in dict.fromkeys((each.why, each.hint) for each in report.skipped):
        alike = [each for each in report.skipped if (each.why, each.hint) == (why, hint)]
        of = dict.fromkeys(name for each in alike if (name := each.artifact or each.runtime))
        show(f"left out: {', '.join(of)}: {why}" + (f" ({hint})" if hint else ""))


def bench_json(report: "BenchReport") -> dict[str, Any]:
    """Returns what a bench found for programs, with stable keys."""
    return {
        "machine": dict(report.machine),
        "rows": [row.to_record() for row in report.rows],
        "skipped": [asdict(each) for each in report.skipped],
    }


def _ratio_cell(row: "BenchRow") -> str:
    if row.is_reference or row.rtf_ratio is None:
        return "reference" if row.is_reference else "-"
    return f"{row.rtf_ratio:.3f} [{row.rtf_ratio_low:.3f}, {row.rtf_ratio_high:.3f}]"


def _value(trial: Trial, name: str) -> str:
    value, unit = trial.metric(name), METRICS[name].metadata["unit"]
    if value is None:
        return ""
    return " ".join(filter(None, [format_number(value), unit]))


def format_number(value: float) -> str:
    """Returns a number with four digits that count, whole ones with thousands separated."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < _WRITTEN_OUT else f"{value:.4g}"


def _cell(trial: Trial, column: str) -> str:
    if column == "trial":
        return trial.id[:ID_DIGITS]
    if column == "host":
        return trial.provenance.host
    axis = trial.candidate.get(column)
    if axis is not None:
        return _axis_cell(axis)
    if column not in METRICS and column != "x_real_time":
        return "-"  # an axis that makes no difference to this model
    value = metric(column).of(trial)
    if value is None:
        return "-"
    m = trial.measurement
    if column == "rtf_ratio" and m.rtf_ratio_low is not None and m.rtf_ratio_high is not None:
        return f"{value:.3f} [{m.rtf_ratio_low:.3f}, {m.rtf_ratio_high:.3f}]"
    return percent(value) if column == MISSED_PITCH else format_number(value)


def _axis_cell(value: AxisValue) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
