"""Draws how much of a front searches have found, against the training steps that they took."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

_COLOURS = ("#6b7780", "#0b6e8f", "#d1495b", "#e0a458")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """What a strategy has found, over many seeds.

    Attributes:
      steps: Training steps, as shares of those that train everything to its end.
      low: 10% quantile of the hypervolume at these, as a share of all that there is.
      middle: Its median.
      high: Its 90% quantile.
    """

    steps: Floats
    low: Floats
    middle: Floats
    high: Floats


def draw_search(bands: Mapping[str, Band], path: Path) -> None:
    """Writes the figure as a PNG.

    Args:
      bands: What each strategy has found.
      path: File to write.
    """
    figure = Figure(figsize=(8.4, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (name, band), colour in zip(bands.items(), _COLOURS, strict=False):
        axes.fill_between(band.steps, band.low, band.high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(band.steps, band.middle, color=colour, linewidth=1.8, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("training steps, of those that train every candidate to its end")
    axes.set_ylabel("hypervolume, of that of all candidates")
    axes.set_title(
        "What is found for how much training: median and 10% to 90% of sweeps",
        loc="left", fontsize=11, fontweight="bold",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
