"""Draws what the whole chain costs: speed by size of block, and the share of each stage."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

_TARGETS = ("#0b6e8f", "#d1495b", "#7a6c5d")
_STAGES = ("#0b6e8f", "#5aa9c4", "#e0a458", "#d1495b")


def draw_chain(
    speeds: Mapping[str, Mapping[int, float]],
    stages: Mapping[str, Mapping[str, float]],
    path: Path,
    *,
    block: int,
) -> None:
    """Writes the figure as a PNG.

    Args:
      speeds: Target -> samples of a block -> x real time.
      stages: Target -> stage -> seconds for a block, the stages in the same order for all.
      path: File to write.
      block: Samples of the blocks whose stages these are.
    """
    figure = Figure(figsize=(9.6, 3.9), dpi=150, layout="constrained")
    by_block, by_stage = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _speeds(by_block, speeds)
    _shares(by_stage, stages, block)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _speeds(axes: Axes, speeds: Mapping[str, Mapping[int, float]]) -> None:
    sizes = sorted({size for of_target in speeds.values() for size in of_target})
    for (target, of_target), colour in zip(speeds.items(), _TARGETS, strict=False):
        axes.plot([*of_target], [*of_target.values()], "o-", color=colour, label=target)
    for x, label in ((1, "real time"), (100, "100 x")):
        axes.axhline(x, color="#8a949a", linewidth=0.8, linestyle=":")
        axes.annotate(label, (sizes[0], x), (0, 2), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="samples of a block", ylabel="x real time")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_title("The whole chain, one thread", loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 0.14))


def _shares(axes: Axes, stages: Mapping[str, Mapping[str, float]], block: int) -> None:
    names = [*next(iter(stages.values()))]
    for row, (_, seconds) in enumerate(stages.items()):
        total, left = sum(seconds.values()), 0.0
        for name, colour in zip(names, _STAGES, strict=False):
            share = seconds[name] / total
            axes.barh(row, share, left=left, color=colour, label="" if row else name)
            text = f"{1e6 * seconds[name]:.{0 if total > 1e-4 else 1}f} us\n{share:.0%}"
            if share > 0.06:
                dark = colour in (_STAGES[0], _STAGES[-1])
                axes.text(
                    left + share / 2, row, text, ha="center", va="center", fontsize=7.5,
                    color="white" if dark else "black",
                )  # fmt: skip
            left += share
    axes.set_yticks(
        range(len(stages)),
        [f"{target}\n{1e6 * sum(of.values()):.0f} us" for target, of in stages.items()],
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title(
        f"Share of each stage, {block:,} samples", loc="left", fontsize=11, fontweight="bold"
    )
    axes.legend(
        frameon=False, fontsize=9, ncols=len(names), loc="upper center", bbox_to_anchor=(0.5, 0)
    )
