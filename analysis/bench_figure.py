"""Draws a bench: how many times real time, against the size of blocks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from thesis.errors import OutputError
from thesis.files import written_file

_COLOURS = ("#0b6e8f", "#d1495b", "#edae49", "#66a182", "#8d5a97", "#6c757d", "#2e4057", "#b5651d")
_STYLES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX*<>hp"
_LIMITS = {1.0: "deadline, 1x", 100.0: "100x"}

Record = Mapping[str, Any]


def draw_bench(records: Sequence[Record], path: Path, *, title: str) -> None:
    """Writes a PNG of the records that `sweeps bench --json` prints as its rows.

    A panel for each artefact, a line for each of its models: colours tell runtimes apart, markers
    quantisations and strokes bundles. Whole clips stand at the size that they have.

    Args:
      records: The rows.
      path: File to write.
      title: Of the figure.

    Raises:
      OutputError: The file cannot be written.
    """
    artifacts = [*dict.fromkeys(record["artifact"] for record in records)]
    figure = Figure(figsize=(3.4 + 3.6 * len(artifacts), 4.8), dpi=130, layout="constrained")
    panels = figure.subplots(1, max(len(artifacts), 1), sharey=True, squeeze=False)[0]
    bundles = [*dict.fromkeys(record["bundle"] for record in records)]
    models = [*dict.fromkeys((record["runtime"], record["quantisation"]) for record in records)]
    runtimes = [*dict.fromkeys(runtime for runtime, _ in models)]
    forms = [*dict.fromkeys(form for _, form in models)]
    for axes, artifact in zip(panels, artifacts, strict=False):
        for bundle in bundles:
            for runtime, form in models:
                line = sorted(
                    (record["block_samples"], record["x_real_time"])
                    for record in records
                    if (record["artifact"], record["bundle"]) == (artifact, bundle)
                    and (record["runtime"], record["quantisation"]) == (runtime, form)
                )
                if line:
                    label = runtime if form == "float" else f"{runtime}, {form}"
                    axes.plot(
                        *zip(*line, strict=True),
                        markersize=4, linewidth=1.4,
                        color=_COLOURS[runtimes.index(runtime) % len(_COLOURS)],
                        marker=_MARKERS[forms.index(form) % len(_MARKERS)],
                        linestyle=_STYLES[bundles.index(bundle) % len(_STYLES)],
                        label=f"{_verbatim(bundle)}: {label}" if len(bundles) > 1 else label,
                    )  # fmt: skip
        _dress(axes, artifact, [r["block_samples"] for r in records if r["artifact"] == artifact])
    panels[0].set_ylabel("x real time, higher is better")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8.5
    )
    with written_file(path, OutputError, replace=True) as temporary:
        figure.savefig(temporary, format="png")


def _verbatim(bundle: str) -> str:
    """Returns a folder's name as a label that holds no formula."""
    return Path(bundle).name.replace("$", r"\$")


def _dress(axes: Any, artifact: str, sizes: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for limit, name in _LIMITS.items():
        axes.axhline(limit, color="#b9c2c8", linewidth=1, zorder=0)
        axes.annotate(
            name, (0.99, limit), xycoords=axes.get_yaxis_transform(), fontsize=8, color="#7a858c",
            ha="right", va="bottom",
        )  # fmt: skip
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(sizes))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda speed, _: f"{speed:,g}"))
    axes.tick_params(axis="x", labelrotation=45, labelsize=8)
    axes.set_xlabel("samples a block")
    axes.set_title(artifact, loc="left", fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
