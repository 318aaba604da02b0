"""The whole thing once, on a synthetic instrument: data, sweep, front, figure, bundle."""

import shlex
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from analysis.front_figure import draw_front
from sweeps.advice import advise
from sweeps.bundles import verify
from sweeps.config import find_run, load_run
from sweeps.errors import TrialError
from sweeps.launch import launch
from sweeps.ledger import Ledger
from sweeps.objectives import objective
from sweeps.printable import show
from sweeps.progress import SweepProgress
from sweeps.promote import promote
from sweeps.tables import print_front
from thesis.data import load_dataset
from thesis.prepare import prepare_demo

SWEEP = "demo"


def run_demo(out: Path, *, trials: int, console: Console) -> None:
    """Runs the demo into a folder; a second run continues or shows what is there.

    Args:
      out: Folder for dataset, sweep, figure and bundle.
      trials: Finished trials that the sweep shall hold.
      console: Where progress is shown.
    """
    data, storage, figure = out / "data", str(out / "runs"), out / "front.png"
    console.print(f"[bold]1/4[/] a synthetic bowed string, recorded into {escape(str(data))}")
    dataset = load_dataset(data) if data.exists() else prepare_demo(data)
    facts = dataset.facts
    console.print(
        f"    {facts.n_train} + {facts.n_validation} clips of {facts.clip_seconds:g} s",
        highlight=False,
    )

    run = load_run(find_run("demo"))
    console.print(
        f"[bold]2/4[/] a sweep of {trials} trials, {run.model.train.steps} steps each; "
        "the first waits for TensorFlow"
    )
    with SweepProgress(console) as progress:
        report = launch(
            SWEEP, run, dataset=str(data), trials=trials, storage=storage, on_event=progress
        )
    report.check()

    console.print(f"[bold]3/4[/] the Pareto front, drawn in {escape(str(figure))}")
    ledger = Ledger.open(storage, SWEEP)
    front = ledger.front([objective(name) for name in run.sweep.objectives])
    advice = advise(ledger, front)
    baseline = run.space.baseline()
    draw_front(
        front,
        ledger.trials(),
        figure,
        title=f"Demo sweep: {len(front.members)} of {front.finished} trials on the Pareto front",
        knee=advice.trial,
        baseline_id=baseline.id if baseline else None,
    )
    print_front(front, SWEEP)
    chosen = advice.trial
    if chosen is None:
        raise TrialError(
            f"no trial to promote: {advice.problem or 'none has completed'}",
            hint=f"sweeps demo --out {shlex.quote(str(out))} --trials {2 * trials} tries more",
        )

    bundle = out / "bundles" / chosen.id
    console.print(
        f"[bold]4/4[/] trial {chosen.id}, the knee of the front, promoted to {escape(str(bundle))}",
        soft_wrap=True,
    )
    if bundle.exists():
        verify(bundle)
    else:
        bundle.parent.mkdir(parents=True, exist_ok=True)
        promote(storage, chosen.id, bundle)
    show()
    show(f"bundle {bundle}: verified; listen to {bundle / 'rendering.wav'}")
    show()
    show("next, on your own recordings:")
    show("  sweeps prepare RECORDINGS/ --out datasets/mine")
    show("  sweeps launch --name mine --data datasets/mine --trials 32")
    show("  sweeps front mine --figure front.png")
