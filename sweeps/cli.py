"""The command line: each verb is a thin layer over a function that a notebook can call.

Data goes to stdout, progress and messages to stderr. Exit status: 0 done, 1 something the user can
mend, 2 wrong usage, 3 unexpected, 130 interrupted. Verbs import what they need when they run, so
that help and queries answer without TensorFlow and Ray.
"""

import argparse
import math
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from sweeps import __version__
from sweeps.credentials import safe_uri
from sweeps.door import run
from sweeps.door import say as _say
from sweeps.errors import SweepError, TrialError, nearest
from sweeps.printable import show, show_text
from thesis.errors import ConfigError, OutputError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.advice import Advice
    from sweeps.config import RunConfig
    from sweeps.objectives import Limit
    from sweeps.plan import Plan
    from sweeps.space import SearchSpace
    from thesis.data import Dataset

DEFAULT_RUN = "tiny"
DEFAULT_STORAGE = "runs"
STORAGE_VARIABLE = "SWEEPS_STORAGE"
COUNTED_SETTINGS = 10_000
"""A dry run takes a second or two to count the distinct candidates of this many settings."""
DRAWN_TRIALS = 10_000
"""A figure shows the front and the latest trials, so many in all."""

Verb = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""

    def command() -> None:
        options = _parser().parse_args(arguments)
        options.verb(options)

    return run(command)


# --- Verbs ---------------------------------------------------------------------------------------


def _prepare(options: argparse.Namespace) -> None:
    from thesis.prepare import prepare, prepare_demo

    if options.demo:
        dataset = prepare_demo(options.out, **_prepare_options(options, "--demo"))
    elif options.from_tfrecord:
        from thesis.tfrecord import prepare_from_tfrecord

        with _counting("TFRecords") as counted:
            dataset = prepare_from_tfrecord(
                options.from_tfrecord,
                options.out,
                **_prepare_options(options, "--from-tfrecord"),
                on_progress=lambda done, total, _: counted(done, total),
            )
    else:
        with _counting("pitch and loudness") as counted:
            dataset = prepare(
                options.audio_dir,
                options.out,
                **_prepare_options(options, "AUDIO_DIR"),
                on_progress=lambda done, total, _: counted(done, total),
            )
    _describe(dataset)
    _say(f"next: sweeps launch --name NAME --data {options.out} --trials 16")


def _prepare_options(options: argparse.Namespace, source: str) -> dict[str, Any]:
    """Returns the options that were given, if all of them go with the source of the clips."""
    rates = {"sample_rate", "frame_rate"}
    of_recordings = {
        *rates, "clip_seconds", "clip_hop_seconds", "f0_min_hz", "f0_max_hz", "validation_share",
        "skip_broken", "workers",
    }  # fmt: skip
    of_source = {
        "--demo": {*rates, "clip_seconds"},
        "--from-tfrecord": {*rates, "validation_share", "recompute_loudness"},
        "AUDIO_DIR": of_recordings,
    }
    every = set[str]().union(*of_source.values())
    given = {name: value for name in every if (value := getattr(options, name)) is not None}
    for name in sorted(given.keys() - of_source[source]):
        flag = "--" + name.removesuffix("_hz").replace("_", "-")
        raise ConfigError(
            f"{flag} has no effect with {source}",
            hint="leave it out; 'sweeps prepare --help' shows what goes together",
        )
    return given


def _describe(dataset: "Dataset") -> None:
    from thesis.pitch_names import doubtful_pitches, labelled

    facts, heard = dataset.facts, dataset.facts.statistics
    show(
        f"{dataset.path}: {facts.n_train} training and {facts.n_validation} validation clips of "
        f"{facts.clip_seconds:g} s at {facts.sample_rate} Hz, from {len(facts.sources)} files "
        f"({heard.total_seconds / 60:.1f} min)"
    )
    show(
        f"pitch {heard.f0_p05_hz:.0f} to {heard.f0_p95_hz:.0f} Hz, median "
        f"{heard.f0_median_hz:.0f}; loudness {heard.loudness_mean_db:.0f} dB, "
        f"sd {heard.loudness_std_db:.0f}; {heard.voiced_share:.0%} of frames voiced"
    )
    for file, why in facts.skipped.items():
        show(f"skipped {file}: {why}")
    for line in doubtful_pitches(labelled(dataset)):
        show(f"warning: {line}")


def _launch(options: argparse.Namespace) -> None:
    run = _run_to_launch(options)
    if options.dry_run:
        from sweeps.resources import cpus_here

        cpus = None if options.address else cpus_here()
        _print_plan(_plan(run, options, cpus=cpus), run, options)
        return
    from sweeps.launch import launch
    from sweeps.progress import SweepProgress

    with SweepProgress(_stderr_console()) as progress:
        report = launch(
            options.name,
            run,
            dataset=options.data,
            trials=options.trials,
            storage=options.storage,
            seconds=options.time,
            train_steps=options.train_steps,
            warm_start=options.warm_start,
            address=options.address,
            ship=options.ship,
            cpus_per_trial=options.cpus_per_trial,
            gpus_per_trial=options.gpus_per_trial,
            max_concurrent=options.max_concurrent,
            keep_going=options.keep_going,
            log=options.log,
            on_event=progress,
        )
    _say(report.summary())
    if report.interrupted:
        raise KeyboardInterrupt
    report.check()
    _say_next_after(options)


def _say_next_after(options: argparse.Namespace) -> None:
    """Says what to do after a launch: look at the front, unless none of its members sings."""
    from sweeps.advice import Advice, advise
    from sweeps.errors import MetricError
    from sweeps.ledger import Ledger
    from sweeps.objectives import objective

    ledger = Ledger.open(options.storage, options.name)
    try:
        advice = advise(ledger, ledger.front([objective(m) for m in ledger.facts.objectives]))
    except MetricError:  # it has to be asked for by other metrics, which the front says
        advice = Advice()
    if advice.problem:
        _say_advice(advice, options)
    else:
        _say(f"next: sweeps front {options.name}{_storage_flag(options)}")


def _say_advice(advice: "Advice", options: argparse.Namespace) -> None:
    if advice.problem:
        _say(advice.problem)
    if advice.command:
        _say(f"next: {advice.command}{_storage_flag(options)}")


def _run_to_launch(options: argparse.Namespace) -> "RunConfig":
    """Returns the run, and fills in what else is not given, as the sweep has it if there is one."""
    from sweeps.config import find_run, load_run, parse_run
    from sweeps.ledger import Ledger, list_sweeps

    sweeps = list_sweeps(options.storage)
    facts = Ledger.open(options.storage, options.name).facts if options.name in sweeps else None
    if facts:
        options.data = options.data or facts.dataset_path
        options.trials = options.trials or facts.trials_asked
    elif not (options.data and options.trials):
        hint = nearest(options.name, sweeps, otherwise="to start one, give --data and --trials")
        raise SweepError(f"no sweep named '{options.name}' to continue", hint=hint)
    if facts and not options.run:
        return parse_run(facts.gin_config, options.set)
    return load_run(find_run(options.run or DEFAULT_RUN), options.set)


def _plan(run: "RunConfig", options: argparse.Namespace, *, cpus: int | None) -> "Plan":
    """Returns what a launch would do; raises what it would raise before anything starts.

    Args:
      run: The run.
      options: Of the launch.
      cpus: Of the only machine that it runs on; None for a cluster.
    """
    from sweeps.plan import plan
    from sweeps.resources import check_resources

    check_resources(
        options.cpus_per_trial,
        options.gpus_per_trial,
        options.max_concurrent,
        options.address,
        cpus=cpus,
    )
    return plan(
        options.name,
        run,
        dataset=options.data,
        trials=options.trials,
        storage=options.storage,
        warm_start=options.warm_start,
        ship=options.ship,
        log=options.log,
    )


def _size(space: "SearchSpace") -> str:
    """Returns how many candidates there are; only a bound where telling them apart takes long."""
    if space.n_settings is None:
        return "unbounded"
    if space.n_settings > COUNTED_SETTINGS:
        return f"at most {space.n_settings:,}"
    return f"{sum(1 for _ in space.candidates() or ()):,} distinct"


def _print_plan(plan: "Plan", run: "RunConfig", options: argparse.Namespace) -> None:
    from sweeps.resources import cpus_here
    from sweeps.tables import print_table

    print_table(["axis", "values"], [[axis.binding, str(axis.domain)] for axis in run.space.axes])
    show()
    show(f"candidates: {_size(run.space)}; objectives: {', '.join(run.sweep.objectives)}")
    show(f"sampler: {run.sweep.sampler}, seed {run.sweep.seed}; stopping: {run.sweep.stopping}")
    limits = [f"{options.trials} trials of {run.model.train.steps} steps"]
    limits += [f"{options.time:g} s"] if options.time else []
    limits += [f"{options.train_steps} training steps"] if options.train_steps else []
    show(f"budget: {', '.join(limits)}")
    show(
        f"resources: {options.cpus_per_trial:g} CPU a trial, {cpus_here()} here, "
        + (f"cluster {options.address}" if options.address else "local cluster")
    )
    show(f"data: {options.data}, {plan.data.n_train} + {plan.data.n_validation} clips")
    show(f"storage: {safe_uri(options.storage)}")
    show()
    show_text(run.text)


def _slurm(options: argparse.Namespace) -> None:
    from sweeps.slurm import SlurmJob, memory_of, sbatch_script, write_script
    from sweeps.storage import check_no_credentials

    launch = _parser().parse_args(["launch", *options.launch])
    if launch.address or launch.dry_run:
        raise SweepError(
            f"a job takes no {'--address' if launch.address else '--dry-run'}",
            hint="leave it out: a job starts a cluster of its own",
        )
    if launch.cpus_per_trial > options.cpus_per_node:
        raise SweepError(
            f"a trial asks for {launch.cpus_per_trial:g} CPUs, a node has {options.cpus_per_node}",
            hint="raise --cpus-per-node, or lower --cpus-per-trial",
        )
    check_no_credentials(launch.storage)
    # What is wrong with it is said now, and not when the job's turn comes.
    _plan(_run_to_launch(launch), launch, cpus=None)
    job = SlurmJob(
        launch.name,
        ("sweeps", "launch", *options.launch),
        folder=Path.cwd(),
        storage=launch.storage,
        nodes=options.nodes,
        cpus_per_node=options.cpus_per_node,
        memory_gb=memory_of(
            options.cpus_per_node,
            launch.cpus_per_trial,
            launch.max_concurrent,
            options.memory_per_trial,
        ),
        time_limit=options.time_limit,
        options=tuple(options.sbatch),
        setup=tuple(options.setup) or (f"export PATH={shlex.quote(sys.prefix)}/bin:$PATH",),
    )
    write_script(options.out, sbatch_script(job, script=str(options.out)))
    show(f"{options.out}: '{launch.name}' on {job.nodes} nodes of {job.cpus_per_node} CPUs")
    _say(f"next: sbatch {shlex.quote(str(options.out))}")


def _status(options: argparse.Namespace) -> None:
    from sweeps.status import StatusReader, read_all
    from sweeps.tables import print_json, print_status, print_statuses

    if options.watch is not None:
        _watch(options)
        return
    statuses, errors = (
        ([StatusReader(options.storage, options.sweep).read()], list[UserError]())
        if options.sweep
        else read_all(options.storage)
    )
    if options.json:
        print_json([status.to_record() for status in statuses])
    elif options.sweep:
        print_status(statuses[0])
    elif statuses:
        print_statuses(statuses)
    for line in (line for status in statuses for line in status.damaged):
        _say(f"warning: {line}")
    if errors:
        raise errors[0]
    if options.json:
        return
    if not statuses:
        _say(f"no sweeps in '{options.storage}'")
        _say("next: sweeps launch --name NAME --data DATASET --trials 16")
        return
    _say(f"next: sweeps front {statuses[0].sweep}{_storage_flag(options)}")


def _watch(options: argparse.Namespace) -> None:
    """Shows a sweep until it is complete: in place on a terminal, else in a line each time."""
    from rich.console import Console
    from rich.live import Live

    from sweeps.progress import SHOWN
    from sweeps.status import StatusReader, watch
    from sweeps.tables import json_line, status_line, status_picture

    if not options.sweep:
        raise SweepError("which sweep?", hint="sweeps status NAME --watch")
    statuses = watch(StatusReader(options.storage, options.sweep), options.watch)
    console = Console()
    if options.json or not console.is_terminal:
        for status in statuses:
            show(json_line(status.to_record()) if options.json else status_line(status))
    else:
        with Live(console=console, auto_refresh=False) as live:
            for status in statuses:
                live.update(status_picture(status, SHOWN), refresh=True)
    _say(f"next: sweeps front {options.sweep}{_storage_flag(options)}")


def _front(options: argparse.Namespace) -> None:
    from sweeps.advice import advise
    from sweeps.ledger import Ledger
    from sweeps.objectives import objective
    from sweeps.tables import front_json, front_record, print_csv, print_front, print_json

    _check_figure(options.figure)
    limits = _limits(options)
    ledger = Ledger.open(options.storage, options.sweep)
    names = options.metrics or ledger.facts.objectives
    front = ledger.front([objective(name) for name in names], limits)
    advice = advise(ledger, front, limits)
    if options.figure:
        from analysis.front_figure import draw_front
        from sweeps.status import limits_and_baseline

        if not front.members:
            raise TrialError(
                f"the front is empty: {advice.problem or 'there is nothing to draw'}",
                hint=advice.command or "'sweeps status' shows what became of trials",
            )

        _, baseline = limits_and_baseline(ledger.facts)
        draw_front(
            front,
            ledger.history(front.objectives, DRAWN_TRIALS),
            options.figure,
            title=f"{options.sweep}: {len(front.members)} of {front.finished} trials on the front",
            knee=advice.trial,
            baseline_id=baseline,
        )
        _say(f"wrote {options.figure}")
    if options.json:
        print_json(front_json(front, options.sweep))
    elif options.csv:
        print_csv([front_record(trial) for trial in front.members])
    else:
        print_front(front, options.sweep)
        _say_advice(advice, options)


def _limits(options: argparse.Namespace) -> list["Limit"]:
    from sweeps.objectives import at_least, at_most

    return [*map(at_most, options.max), *map(at_least, options.min)]


def _show(options: argparse.Namespace) -> None:
    from sweeps.ledger import find_trial
    from sweeps.tables import print_json, print_trial

    _, trial = find_trial(options.storage, options.trial, options.sweep)
    if options.json:
        print_json(trial.to_record())
        return
    print_trial(trial)
    if options.gin:
        show()
        show_text(trial.provenance.gin_config)


def _promote(options: argparse.Namespace) -> None:
    from sweeps.objectives import MISSED_PITCH
    from sweeps.promote import promote
    from sweeps.standing import percent

    bundle = promote(
        options.storage,
        options.trial,
        options.to,
        sweep=options.sweep,
        dataset=options.data,
        allow_missed_pitch=options.allow_missed_pitch,
    )
    measured, missed = bundle.trial["promotion"], bundle.trial[MISSED_PITCH]
    show(
        f"{bundle.path}: trial {bundle.trial['id']}, val_loss {bundle.trial['val_loss']:.3f}, "
        + ("" if missed is None else f"f0_missed {percent(missed)}, ")
        + f"rtf_ratio {measured['rtf_ratio']:.3f} "
        f"[{measured['rtf_ratio_low']:.3f}, {measured['rtf_ratio_high']:.3f}], "
        f"{1 / measured['rtf']:,.0f}x real time; verified"
    )
    _say(f"next: sweeps verify {options.to}; listen to {options.to}/rendering.wav")


def _verify(options: argparse.Namespace) -> None:
    from sweeps.bundles import verify

    bundle = verify(options.bundle, on_note=lambda note: _say(f"note: {note}"))
    show(
        f"{options.bundle}: all checksums match, all parts are of one model, rendering reproduced "
        f"(trial {bundle.trial['id']})"
    )
    _say(f"next: sweeps render {options.bundle} in.wav out.wav")


def _render(options: argparse.Namespace) -> None:
    from thesis.bundle import load_bundle
    from thesis.render import render_recording

    seconds = render_recording(
        load_bundle(options.bundle),
        options.recording,
        options.out,
        semitones=options.transpose,
        on_note=lambda note: _say(f"note: {note}"),
    )
    show(f"{options.out}: {seconds:.1f} s")


def _bench(options: argparse.Namespace) -> None:
    from sweeps.tables import bench_json, print_bench, print_json
    from thesis.bench import bench

    _check_figure(options.figure)
    with _counting("rounds, processes") as counted:
        report = bench(
            options.bundles,
            artifacts=options.artifacts,
            runtimes=options.runtimes,
            quantisations=options.quantise,
            blocks=[int(b) if re.fullmatch(r"[0-9]{1,9}", b) else b for b in options.blocks],
            seconds=options.seconds,
            dataset=options.data,
            on_progress=counted,
        )
    found = bench_json(report)
    if options.figure:
        from analysis.bench_figure import draw_bench

        draw_bench(
            found["rows"], options.figure, title=f"One thread of {found['machine']['processor']}"
        )
        _say(f"wrote {options.figure}")
    if options.json:
        print_json(found)
    else:
        print_bench(report)
        if not options.figure:
            _say(f"next: sweeps bench {' '.join(map(str, options.bundles))} --figure bench.png")


def _check_figure(path: Path | None) -> None:
    """Raises OutputError before long work whose figure could not be written."""
    from thesis.files import check_output_file

    if path:
        check_output_file(path, OutputError, suffix=".png", replace=True)


def _retry(options: argparse.Namespace) -> None:
    from sweeps.ledger import Ledger

    ledger = Ledger.open(options.storage, options.sweep)
    forgotten = ledger.forget(waiting=lambda line: _say(f"warning: {line}"))
    if not forgotten:
        show(f"no trial of '{options.sweep}' has failed")
        return
    reasons = ", ".join(
        f"{count} {reason.name.lower().replace('_', ' ')}"
        for reason, count in forgotten.most_common()
    )
    show(
        f"{forgotten.total()} failed trials of '{options.sweep}' are off the books ({reasons}); "
        f"their records are kept in {ledger.location.show(f'{options.sweep}/forgotten')}"
    )
    _say(f"next: sweeps launch --name {options.sweep}{_storage_flag(options)}")


def _ledger_export(options: argparse.Namespace) -> None:
    from sweeps.ledger import Ledger

    ledger = Ledger.open(options.storage, options.sweep)
    path = options.parquet or options.csv or options.optuna
    if options.optuna:
        from sweeps.study import export_study

        count = export_study(ledger, path, replace=options.force)
    else:
        from sweeps.export import export_table

        form: Literal["parquet", "csv"] = "parquet" if options.parquet else "csv"
        count = export_table(ledger, path, form, replace=options.force)
    show(f"{path}: {count:,} trials of '{options.sweep}'")
    if options.optuna:
        _say(f"next: optuna-dashboard sqlite:///{path}")


def _ledger_compact(options: argparse.Namespace) -> None:
    from sweeps.ledger import Ledger

    ledger = Ledger.open(options.storage, options.sweep)
    merged = ledger.compact(fully=True, tell=lambda line: _say(f"warning: {line}"))
    show(f"'{options.sweep}': {merged:,} files merged")


def _demo(options: argparse.Namespace) -> None:
    from sweeps.demo import run_demo

    run_demo(options.out, trials=options.trials, console=_stderr_console())


@contextmanager
def _counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how much of something is done: a bar on a terminal, a line each tenth elsewhere."""
    console = _stderr_console()
    if not console.is_terminal:

        def line(done: int, total: int) -> None:
            if done * 10 // total > (done - 1) * 10 // total:
                _say(f"{what}: {done} of {total}")

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # No thread that draws: it would disturb what is timed.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total, refresh=True)


def _stderr_console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


def _storage_flag(options: argparse.Namespace) -> str:
    if options.storage == _default_storage():
        return ""
    return f" --storage {shlex.quote(safe_uri(options.storage))}"


# --- Options -------------------------------------------------------------------------------------


def _default_storage() -> str:
    return os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like all others."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses arguments; see argparse, which in this version fails of the value '--'."""
        args = sys.argv[1:] if args is None else list(args)
        options = args[: args.index("--")] if "--" in args else args
        for option in options:
            if re.fullmatch("--[a-z0-9-]+=--", option):
                self.error(f"argument {option.removesuffix('=--')}: '--' is no value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        _say(f"error: {message}")
        _say(f"hint: '{self.prog} --help' shows an example")
        sys.exit(2)


def verbs() -> list[str]:
    """Returns every verb, with its action where it has several: 'launch', 'ledger export'."""
    return _verbs(_parser())


def _verbs(parser: argparse.ArgumentParser, *before: str) -> list[str]:
    # argparse itself keeps no list of them in public.
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        return [" ".join(before)]
    return [
        verb
        for group in groups
        for name, of_name in group.choices.items()
        for verb in _verbs(of_name, *before, name)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sweeps",
        description="Find the smallest, fastest neural audio decoders that still sound right.",
        epilog=_example("sweeps demo"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sweeps {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def add(
        name: str, verb: Verb | None, summary: str, *examples: str, among: Any = verbs
    ) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = among.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=_example(*examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(verb=verb)
        return added

    _add_prepare(add("prepare", _prepare, "make a dataset of recordings",
        "sweeps prepare recordings/ --out datasets/cello",
        "sweeps prepare --from-tfrecord 'strings.tfrecord*' --out datasets/strings",
        "sweeps prepare --demo --out datasets/demo"))  # fmt: skip
    _add_launch(add("launch", _launch, "start or continue a sweep",
        "sweeps launch --name cello --data datasets/cello --trials 32",
        "sweeps launch --name cello  # continues it: what is not given is as it was",
        "sweeps launch tiny.gin --name c2 --data datasets/cello --trials 8 --set STEPS=500",
        "sweeps launch --name cello --data datasets/cello --trials 32 --dry-run"))  # fmt: skip
    _add_slurm(add("slurm", _slurm, "write a SLURM job that starts or continues a sweep",
        "sweeps slurm --out cello.sbatch --nodes 4 --cpus-per-node 16 --time-limit 8:00:00 \\",
        "  -- --name cello --data datasets/cello --trials 256",
        "sbatch cello.sbatch  # again: continues it"))  # fmt: skip
    status = add("status", _status, "show what became of the trials of each sweep",
        "sweeps status", "sweeps status cello --json", "sweeps status cello --watch",
        "sweeps status cello --watch 60 --storage s3://bucket/sweeps --json")  # fmt: skip
    status.add_argument("sweep", nargs="?", type=_given, help="one sweep; by default all")
    status.add_argument("--watch", nargs="?", type=_seconds, const=5.0, metavar="SECONDS",
        help="look again every so often, 5 s by default, until it is complete")  # fmt: skip
    _add_storage(status)
    _add_json(status)
    _add_front(add("front", _front, "show the Pareto front of a sweep",
        "sweeps front cello", "sweeps front cello --max rtf_ratio=1 --figure front.png",
        "sweeps front cello --metrics val_loss parameters --json"))  # fmt: skip
    show = add("show", _show, "show one trial in full",
        "sweeps show 3fa91c", "sweeps show 3fa91c --gin")  # fmt: skip
    _add_trial(show)
    _add_json(show)
    show.add_argument("--gin", action="store_true", help="also print its configuration")
    promote = add("promote", _promote, "measure a trial again and write its model bundle",
        "sweeps promote 3fa91c --to bundles/tiny")  # fmt: skip
    _add_trial(promote)
    promote.add_argument("--to", required=True, type=Path, metavar="DIR", help="folder to make")
    promote.add_argument("--data", type=_given, metavar="DATASET",
        help="the dataset, if it has moved")  # fmt: skip
    promote.add_argument("--allow-missed-pitch", action="store_true",
        help="even if it does not sing, by its f0_missed_share")  # fmt: skip
    verify = add("verify", _verify, "check that a bundle is whole, and all of it of one model",
        "sweeps verify bundles/tiny")  # fmt: skip
    verify.add_argument("bundle", type=Path, metavar="DIR")
    _add_render(add("render", _render, "play a recording through a model bundle",
        "sweeps render bundles/tiny flute.wav flute-as-cello.wav --transpose -12"))  # fmt: skip
    _add_bench(add("bench", _bench, "measure model bundles in runtimes and sizes of blocks",
        "sweeps bench bundles/tiny",
        "sweeps bench bundles/tiny --runtimes onnx_runtime c --artifacts synth_stream",
        "sweeps bench bundles/tiny bundles/full --blocks 256 1024",
        "sweeps bench bundles/tiny --runtimes all --quantise all --data datasets/cello",
        "sweeps bench bundles/tiny --figure bench.png --json > bench.json"))  # fmt: skip
    retry = add("retry", _retry, "have the next launch try failed trials again",
        "sweeps retry cello --failed",
        "sweeps launch --name cello")  # fmt: skip
    retry.add_argument("sweep", metavar="NAME", help="of the sweep")
    retry.add_argument("--failed", action="store_true", required=True,
        help="forget its failed trials; their records are kept beside the others")  # fmt: skip
    _add_storage(retry)
    ledger = add("ledger", None, "keep a sweep's records, and read them elsewhere",
        "sweeps ledger export cello --parquet cello.parquet",
        "sweeps ledger compact cello")  # fmt: skip
    actions = ledger.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_ledger_export(add("export", _ledger_export, "write all finished trials as one file",
        "sweeps ledger export cello --parquet cello.parquet",
        "sweeps ledger export cello --csv cello.csv --force",
        "sweeps ledger export cello --optuna cello.db", among=actions))  # fmt: skip
    compact = add("compact", _ledger_compact, "merge a sweep's small files, which launches do, too",
        "sweeps ledger compact cello", among=actions)  # fmt: skip
    compact.add_argument("sweep", metavar="NAME", help="of the sweep")
    _add_storage(compact)
    demo = add("demo", _demo, "run the whole thing on a synthetic instrument, in minutes",
        "sweeps demo --out demo")  # fmt: skip
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: demo")
    demo.add_argument("--trials", type=_positive, default=12, metavar="K", help="default: 12")
    return parser


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "audio_dir",
        nargs="?",
        type=_given,
        metavar="AUDIO_DIR",
        help="wav, flac, mp3, ogg; any rate",
    )
    source.add_argument("--demo", action="store_true", help="a synthetic instrument instead")
    source.add_argument(
        "--from-tfrecord", nargs="+", metavar="PATTERN", help="what ddsp_prepare_tfrecord wrote"
    )
    parser.add_argument(
        "--out", required=True, type=_given, metavar="DATASET", help="folder to make"
    )
    # None where not given: which of them have an effect depends on the source.
    number, whole = partial(parser.add_argument, type=float), partial(parser.add_argument, type=int)
    whole("--sample-rate", metavar="HZ", help="default: 16000")
    whole("--frame-rate", metavar="HZ", help="of f0, loudness; default: 250")
    number("--clip-seconds", metavar="S", help="default: 4")
    number("--clip-hop-seconds", metavar="S", help="default: as long as a clip")
    number("--f0-min", dest="f0_min_hz", metavar="HZ", help="lowest pitch; default: 50")
    number("--f0-max", dest="f0_max_hz", metavar="HZ", help="highest pitch; default: 2000")
    number("--validation-share", metavar="X", help="default: 0.1")
    whole("--workers", metavar="N", help="processes; default: one for each CPU there is")
    switch = partial(parser.add_argument, action="store_const", const=True)
    switch("--skip-broken", help="leave out files that cannot be read")
    switch("--recompute-loudness", help="of a TFRecord, where it is on another scale")


def _add_launch(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", nargs="?", type=_given, metavar="RUN.gin",
        help=f"default: the shipped {DEFAULT_RUN}.gin")  # fmt: skip
    add("--name", required=True, type=_given, help="of the sweep; an existing one is continued")
    add("--data", type=_given, metavar="DATASET", help="folder that 'prepare' made")
    add("--trials", type=_positive, metavar="K", help="finished trials to reach")
    add(
        "--time",
        type=_duration,
        metavar="T",
        help="of this launch at the most: 90m, 2h, 1h30m, 45s",
    )
    add("--train-steps", type=_positive, metavar="N", help="of all trials together at the most")
    add("--warm-start", type=_given, metavar="SWEEP",
        help="another sweep, whose trials inform the search")  # fmt: skip
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="gin binding or knob")
    add("--address", metavar="A",
        help="of a Ray cluster: auto, host:port, ray://host:port; default: one here")  # fmt: skip
    add("--ship", action="store_true", help="send code and dataset to the cluster's nodes")
    add("--cpus-per-trial", type=float, default=1.0, metavar="N", help="default: 1")
    add("--gpus-per-trial", type=float, default=0.0, metavar="N", help="default: 0")
    add("--max-concurrent", type=_positive, metavar="N", help="trials at a time at the most")
    add("--keep-going", action="store_true", help="even where all trials crash alike")
    add("--log", nargs="+", default=[], metavar="L", help="also to wandb, mlflow, tensorboard")
    add("--dry-run", action="store_true", help="show axes, budget, resources and resolved gin")
    _add_storage(parser)


def _add_slurm(parser: argparse.ArgumentParser) -> None:
    add, several = parser.add_argument, partial(parser.add_argument, action="append", default=[])
    add("--out", required=True, type=Path, metavar="FILE.sbatch", help="the script to write")
    add("--nodes", type=_positive, default=1, metavar="N", help="default: 1")
    add("--cpus-per-node", type=_positive, required=True, metavar="N", help="for trials")
    add("--memory-per-trial", type=_gigabytes, default=3.5, metavar="GB",
        help="of a node, for each trial that runs there; default: 3.5. "
        "--sbatch mem=.. asks for another sum")  # fmt: skip
    add("--time-limit", default="", metavar="T", help="such as 8:00:00; default: the partition's")
    several("--sbatch", metavar="OPTION", help="any other of sbatch's, such as partition=long")
    several("--setup", metavar="COMMAND",
        help="of the shell, before the sweep, such as 'module load python'; "
        "default: put this Python's programs on the path")  # fmt: skip
    add("launch", nargs="+", metavar="LAUNCH_OPTION", help="after '--': what 'sweeps launch' takes")


def _add_front(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sweep", help="name of the sweep")
    add("--metrics", nargs="+", metavar="M", help="two or more; default: the sweep's objectives")
    add("--max", action="append", default=[], metavar="M=X", help="leave out trials above")
    add("--min", action="append", default=[], metavar="M=X", help="leave out trials below")
    add("--figure", type=Path, metavar="FILE.png", help="also draw it")
    _add_storage(parser)
    output = parser.add_mutually_exclusive_group()
    _add_json(output)
    output.add_argument("--csv", action="store_true", help="records as CSV")


def _add_ledger_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="NAME", help="of the sweep")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--parquet", type=Path, metavar="FILE", help="types as in the ledger")
    form.add_argument("--csv", type=Path, metavar="FILE", help="an empty cell is no value")
    form.add_argument("--optuna", type=Path, metavar="FILE", help="a study for optuna-dashboard")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    _add_storage(parser)


def _add_render(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", type=Path, metavar="DIR")
    add("recording", type=Path, metavar="IN", help="wav, flac, mp3 or ogg")
    add("out", type=Path, metavar="OUT.wav")
    add("--transpose", type=float, default=0.0, metavar="SEMITONES",
        help="-120 to 120; default: 0")  # fmt: skip


def _add_bench(parser: argparse.ArgumentParser) -> None:
    add, several = parser.add_argument, partial(parser.add_argument, nargs="+")
    several("bundles", type=Path, metavar="DIR", help="what others are compared with first")
    several("--artifacts", default=["decoder", "decoder_stream", "synth_stream"], metavar="A",
        help="of decoder, decoder_stream, synth_stream; default: all")  # fmt: skip
    several("--runtimes", default=["onnx_runtime"], metavar="R",
        help="names, c, or all that are there; default: onnx_runtime")  # fmt: skip
    several("--quantise", default=[], metavar="Q", help="decoders, too, in this way, or in all")
    several("--blocks", default=["64", "256", "1024", "2048", "clip"], metavar="N",
        help="samples, or clip for a whole one; default: 64 256 1024 2048 clip")  # fmt: skip
    add("--seconds", type=float, default=0.5, metavar="S",
        help="of calls for each line of the table; default: 0.5")  # fmt: skip
    add("--data", type=Path, metavar="DATASET", help="calibrates on it, and reports its val_loss")
    add("--figure", type=Path, metavar="FILE.png", help="also draw it")
    _add_json(parser)


def _add_trial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trial", type=_given, metavar="TRIAL",
        help="its id, or a unique beginning of it")  # fmt: skip
    parser.add_argument("--sweep", type=_given, metavar="NAME", help="look in this sweep only")
    _add_storage(parser)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        type=_given,
        default=_default_storage(),
        metavar="URI",
        help=f"where sweeps are kept; default: ${STORAGE_VARIABLE} or {DEFAULT_STORAGE}",
    )


def _add_json(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument("--json", action="store_true", help="for programs, keys are stable")


_MOST = 10**15
"""Largest count that makes sense; floats and the columns of files hold it exactly."""


def _positive(text: str) -> int:
    value = int(text)
    if not 1 <= value <= _MOST:
        raise argparse.ArgumentTypeError(f"{text} is not within 1 and {_MOST:,}")
    return value


def _given(text: str) -> str:
    """Returns a name or a place; an empty one is a variable of the shell that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def _gigabytes(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1024:
        raise argparse.ArgumentTypeError(f"{text} is not within 0 and 1024 GB")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a time above 0")
    return value


def _duration(text: str) -> float:
    """Returns the seconds of '90m', '1h30m', '45s'."""
    found = re.fullmatch(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", text, re.ASCII)
    counts = [int(count or 0) for count in found.groups()] if found else [0]
    seconds = float(sum(n * unit for n, unit in zip(counts, (3600, 60, 1), strict=False)))
    if not seconds:
        raise argparse.ArgumentTypeError(f"'{text}' is no time such as 90m, 1h30m or 45s")
    return seconds


def _example(*lines: str) -> str:
    return "example:\n" + textwrap.indent("\n".join(lines), "  ")


if __name__ == "__main__":
    sys.exit(main())
