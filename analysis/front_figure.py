"""Draws a Pareto front: every completed trial, the front as a staircase, the knee named."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from matplotlib.transforms import BboxBase

from sweeps.errors import MetricError
from sweeps.objectives import Objective, metric
from sweeps.pareto import ParetoFront
from sweeps.standing import percent
from sweeps.trial import Status, Trial
from thesis.errors import OutputError
from thesis.files import written_file

_FRONT, _OTHER, _MARK = "#0b6e8f", "#b9c2c8", "#d1495b"
_LINE_POINTS = 9.0
_TICKS = [m * 10.0**e for e in range(-6, 9) for m in (1, 1.5, 2, 3, 5, 7)]


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
      baseline_id: Id of the trial that is the baseline, pointed out too.

    Raises:
      MetricError: The front has not two objectives.
      OutputError: The file cannot be written.
    """
    if len(front.objectives) != 2:
        raise MetricError(
            f"a figure shows two objectives, not {len(front.objectives)}",
            hint="name two with --metrics",
        )
    quality, cost = front.objectives
    completed = [t for t in trials if t.status is Status.COMPLETED]
    members = [t.id for t in front.members]
    figure = Figure(figsize=(8.4, 5), dpi=150, layout="constrained")
    axes = figure.subplots()

    def dots(chosen: Sequence[Trial], **style: object) -> None:
        if chosen:
            axes.scatter(*_points(chosen, cost, quality), **style)  # type: ignore[arg-type]

    dots([t for t in completed if t.id not in members], s=28, color=_OTHER, label="dominated")
    axes.step(*_points(front.members, cost, quality), where="post", color=_FRONT, alpha=0.6)
    dots(
        front.members, s=48, color=_FRONT, zorder=3, label="Pareto front: id, parameters, f0 missed"
    )
    ring = {"facecolors": "none", "edgecolors": _MARK, "linewidths": 1.6, "zorder": 4}
    baseline = [t for t in completed if t.id == baseline_id]
    dots(baseline, s=150, marker="s", label="baseline, DDSP-CNN-Tiny", **ring)
    dots([knee] if knee else [], s=170, label="knee", **ring)
    _scale(axes, cost, _points(completed, cost, quality)[0])
    of_members, of_all = (_points(t, cost, quality)[1] for t in (front.members, completed))
    _focus(axes, of_members, of_all, quality.sign)
    labels = _label(axes, front.members, cost, quality)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(_axis_label(cost))
    axes.set_ylabel(_axis_label(quality))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if completed:
        axes.legend(frameon=False, fontsize=8.5, loc="upper right", markerscale=0.6)
    _spread(figure, labels, down=quality.sign > 0)
    with written_file(path, OutputError, replace=True) as temporary:
        figure.savefig(temporary, format="png")


def _points(
    trials: Sequence[Trial], cost: Objective, quality: Objective
) -> tuple[list[float], list[float]]:
    pairs = [(cost.of(t), quality.of(t)) for t in trials]
    kept = [(c, q) for c, q in pairs if c is not None and q is not None]
    return [c for c, _ in kept], [q for _, q in kept]


def _scale(axes: Axes, cost: Objective, x: Sequence[float]) -> None:
    if metric(cost.metric).spans_decades and min(x, default=0) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(_TICKS))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.margins(x=0.18, y=0.12)


def _focus(axes: Axes, members: Sequence[float], all_values: Sequence[float], sign: int) -> None:
    """Shows the front and what is near it; says how many trials are further off."""
    best = min((sign * value for value in members), default=0.0)
    worst = max((sign * value for value in members), default=0.0)
    if best == worst:
        return
    margin = 0.25 * (worst - best)
    limit = min(worst + (worst - best), max(sign * value for value in all_values) + margin)
    beyond = sum(sign * value > limit for value in all_values)
    ends = sorted((sign * (best - margin), sign * limit))
    axes.set_ylim(*ends)
    if beyond:
        axes.annotate(
            f"{beyond} more outside", (0.01, 0.98 if sign > 0 else 0.02), fontsize=8,
            xycoords="axes fraction", va="top" if sign > 0 else "bottom", color="#7a858c",
        )  # fmt: skip


def _label(
    axes: Axes, members: Sequence[Trial], cost: Objective, quality: Objective
) -> list[Annotation]:
    """Names each member on the side of the ideal point, where no trial can be."""
    across, along = -cost.sign, -quality.sign
    labels = []
    for trial in members:
        (x,), (y,) = _points([trial], cost, quality)
        parameters, missed = trial.measurement.parameters, trial.measurement.f0_missed_share
        named = [trial.id[:6]]
        named += [] if parameters is None else [f"{parameters:,}"]
        named += [] if missed is None else [percent(missed)]
        label = axes.annotate(
            ", ".join(named),
            (x, y), xytext=(6 * across, 6 * along), textcoords="offset points", fontsize=7.5,
            color=_FRONT, ha="right" if across < 0 else "left", va="top" if along < 0 else "bottom",
        )  # fmt: skip
        labels.append(label)
    return labels


def _spread(figure: Figure, labels: Sequence[Annotation], *, down: bool) -> None:
    """Moves labels away from the front until none lies on another."""
    figure.draw_without_rendering()  # so that it is known where they are
    placed: list[BboxBase] = []
    for label in labels:
        for _ in labels:
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in placed):
                break
            across, along = label.xyann
            label.xyann = (across, along + (-_LINE_POINTS if down else _LINE_POINTS))
        placed.append(label.get_window_extent())


def _axis_label(objective: Objective) -> str:
    known = metric(objective.metric)
    unit = f" [{known.unit}]" if known.unit else ""
    return f"{objective.metric}{unit}, {objective.goal.value} is better"
