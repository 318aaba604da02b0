"""A Pareto front over many trials: the ledger against pandas, on the same compacted files.

The records are made up and go through `Ledger.extend` in twenty parts, then `Ledger.compact`.
The reference is what an analyst would write: pandas reads the columns in question, and only those,
sorts the completed trials and keeps the running minima. Both must find the same trials.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks import _harness as harness
from benchmarks._records import OBJECTIVES, synthetic_ledger, synthetic_trials
from sweeps.ledger import Ledger
from sweeps.objectives import objective
from sweeps.tables import print_table

NAME = "ledger_query"
_BATCHES = 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    quick = harness.is_quick(NAME, __doc__, arguments)
    count = 10_000 if quick else 1_000_000
    with harness.scratch_folder() as storage:
        ledger, written, compacted = _fill(storage, count)
        ours, theirs = _our_front(ledger), _pandas_front(storage)
        if ours != theirs:
            raise RuntimeError("the ledger and pandas disagree about the front")
        calls = [lambda: _our_front(ledger), lambda: _pandas_front(storage)]
        wall = harness.interleaved(calls, 5 if quick else 10).wall.T
        mebibytes = sum(file.stat().st_size for file in storage.rglob("*.parquet")) / 2**20
    seconds, reference = map(harness.floor_interval, wall)
    print_table(
        [f"{count:,} records", "s [95%]"],
        [
            ["front, ledger", str(seconds)],
            ["front, pandas", str(reference)],
            ["writing, once", f"{written:.1f}"],
            ["compaction, once", f"{compacted:.1f}"],
        ],
    )
    details = {
        "records": count,
        "on_front": len(ours),
        "mebibytes": mebibytes,
        "seconds": seconds,
        "pandas_seconds": reference,
        "pandas_over_ledger": harness.ratio_interval(wall[1], wall[0]),
        "write_seconds": written,
        "compact_seconds": compacted,
    }
    against = f"pandas, the same files and columns: {reference.value:.3f} s"
    result = harness.Result(NAME, seconds.value, "s", "lower", against, details)
    harness.emit(result, quick=quick)


def _fill(storage: Path, count: int) -> tuple[Ledger, float, float]:
    """Returns a compacted ledger, and the seconds that writing and compaction took."""
    ledger = synthetic_ledger(storage)
    start = time.perf_counter()
    for first in range(0, count, count // _BATCHES):
        harness.say(f"writing records from {first:,}")
        ledger.extend(synthetic_trials(count // _BATCHES, first=first))
    written = time.perf_counter() - start
    harness.say("compacting")
    ledger.compact()
    return ledger, written, time.perf_counter() - start - written


def _our_front(ledger: Ledger) -> list[str]:
    front = ledger.front([objective(name) for name in OBJECTIVES])
    return sorted(trial.id for trial in front.members)


def _pandas_front(storage: Path) -> list[str]:
    files = [*storage.rglob("*.parquet")]
    columns = ["trial_id", "reason", *OBJECTIVES]
    table = pd.concat(pd.read_parquet(file, columns=columns) for file in files)
    done = table[table.reason.isna()].dropna(subset=OBJECTIVES).sort_values([*OBJECTIVES])
    best_so_far = done[OBJECTIVES[1]].cummin().shift(fill_value=float("inf"))
    return sorted(done.trial_id[done[OBJECTIVES[1]] < best_so_far])


if __name__ == "__main__":
    main()
