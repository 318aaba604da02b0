"""Draws a Pareto front: every completed trial, the front as a staircase, the knee named."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from sweeps.objectives import Objective, metric
from sweeps.pareto import ParetoFront
from sweeps.trial import Status, Trial

mpl.use("Agg")

_FRONT, _OTHER, _MARK = "#0b6e8f", "#b9c2c8", "#d1495b"


def draw_front(
    front: ParetoFront,
    trials: Sequence[Trial],
    path: Path,
    *,
    title: str,
    knee: Trial | None = None,
    baseline_id: str | None = None,
) -> None:
    """Writes a front of two objectives as a PNG.

    Args:
      front: The front; its second objective, the cost, is drawn from left to right.
      trials: All trials of the sweep; the completed ones are drawn in grey.
      path: File to write.
      title: First line of the figure.
      knee: Member to point out.
      baseline_id: Id of the trial that is the baseline, named where it is.
    """
    quality, cost = front.objectives[:2]
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    others = [t for t in trials if t.status is Status.COMPLETED and t not in front.members]
    axes.scatter(*_points(others, cost, quality), s=28, color=_OTHER, label="dominated", zorder=2)
    x, y = _points(front.members, cost, quality)
    axes.step(x, y, where="post", color=_FRONT, linewidth=1.2, alpha=0.7, zorder=3)
    axes.scatter(x, y, s=48, color=_FRONT, label="Pareto front", zorder=4)
    _scale(axes, cost, quality, x, y)
    for trial in front.members:
        _annotate(axes, trial, cost, quality, _label(trial), _FRONT, above=True)
    if knee is not None:
        kx, ky = _points([knee], cost, quality)
        axes.scatter(
            kx, ky, s=170, facecolors="none", edgecolors=_MARK, linewidths=1.6, zorder=5,
            label="knee",
        )  # fmt: skip
    for trial in others:
        if trial.id == baseline_id:
            bx, by = _points([trial], cost, quality)
            axes.scatter(bx, by, s=60, marker="D", color=_MARK, zorder=5, label="DDSP-CNN-Tiny")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(_axis_label(cost))
    axes.set_ylabel(_axis_label(quality))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, loc="upper right")
    figure.savefig(path)


def _points(
    trials: Sequence[Trial], cost: Objective, quality: Objective
) -> tuple[list[float], list[float]]:
    pairs = [(cost.of(t), quality.of(t)) for t in trials]
    kept = [(c, q) for c, q in pairs if c is not None and q is not None]
    return [c for c, _ in kept], [q for _, q in kept]


def _scale(axes: Axes, cost: Objective, quality: Objective, x: list[float], y: list[float]) -> None:
    if metric(cost.metric).spans_decades and all(value > 0 for value in x):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.08, y=0.1)


def _annotate(
    axes: Axes,
    trial: Trial,
    cost: Objective,
    quality: Objective,
    text: str,
    color: str,
    *,
    above: bool,
) -> None:
    (x,), (y,) = _points([trial], cost, quality)
    axes.annotate(
        text, (x, y), xytext=(6, 6 if above else -12), textcoords="offset points",
        fontsize=7.5, color=color, zorder=6,
    )  # fmt: skip


def _label(trial: Trial) -> str:
    parameters = trial.measurement.parameters
    return trial.id[:6] if parameters is None else f"{trial.id[:6]} · {parameters:,}"


def _axis_label(objective: Objective) -> str:
    known = metric(objective.metric)
    unit = f" [{known.unit}]" if known.unit else ""
    arrow = "lower is better" if objective.sign > 0 else "higher is better"
    return f"{objective.metric}{unit}, {arrow}"
