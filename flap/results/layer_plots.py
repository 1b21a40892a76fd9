"""Plots by layer: what each layer keeps, of one run or of a study."""

from math import nan
from pathlib import Path
from typing import Any

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from pandas import DataFrame

from flap.results.record import Widths
from flap.results.report import Report
from flap.results.series import COLOURS, RULE, Series
from flap.results.study import Study

KEPT = LinearSegmentedColormap.from_list("kept", ["#f7ead7", "#8fb3c9", "#2a6f97", "#0b2f4a"])


def draw_kept(study: Study, series: list[Series]) -> Figure:
    """Return two heat maps, runs × layers, of the share that each layer keeps.

    The runs are sorted by metric, structure and ratio.
    """
    several_seeds = len(study.values("seed")) > 1
    reports = []
    labels = []
    for line in series:
        for run in study.of(line.rows.sort_values(["ratio", "seed"], kind="stable")):
            seed = f" s{run.seed}" if several_seeds else ""
            reports.append(run.report)
            labels.append(f"{line.label} {line.structure} {run.ratio:g}{seed}")

    figure = Figure(figsize=(9, 1.5 + 0.2 * len(labels)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"query_heads": "query heads", "neurons": "MLP neurons or whole experts"}
    for axes, (unit, title) in zip(panels, titles.items(), strict=True):
        # layers that a model does not have are nan, which is not drawn
        shares = DataFrame([_shares(report, unit) for report in reports])
        image = axes.imshow(shares, cmap=KEPT, vmin=0, vmax=1, aspect="auto")
        for row in range(1, len(labels)):
            axes.axhline(row - 0.5, color=RULE)
        axes.set(title=title, xlabel="layer")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(labels)), labels, fontsize=8)

    bar = figure.colorbar(image, ax=panels, label="share kept", fraction=0.025, pad=0.01)
    bar.outline.set_visible(False)
    return figure


def _shares(report: Report, unit: str) -> list[float]:
    """Return the share that each layer keeps; nan where it had nothing."""
    layers = zip(report.layers, report.layers_before, strict=True)
    return [_width(after, unit) / (_width(before, unit) or nan) for after, before in layers]


def _width(layer: Widths, unit: str) -> int:
    """Return the width of a layer. The width of an MLP that loses whole experts is their number."""
    if unit == "neurons" and "experts" in layer:
        return layer["experts"]
    return layer[unit]


def draw_layers(report: Report, path: Path) -> None:
    """Write a picture of the query heads and the neurons (or experts) of each layer.

    Kept units are drawn in colour, removed ones in grey.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    units = "experts" if all("experts" in layer for layer in report.layers) else "neurons"
    _bars(panels[0], report, "query_heads", "query heads")
    _bars(panels[1], report, units, f"MLP {units}")
    panels[-1].set_xlabel("layer")
    panels[0].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)

    removed = f"{report.ratio['realised_decoder']:.1%} of the decoder removed"
    title = f"{report.config['run_name']}: {removed}"
    figure.suptitle(title, parse_math=False)  # a dollar sign in a name begins no formula
    figure.savefig(path, dpi=120)


def _bars(axes: Any, report: Report, unit: str, label: str) -> None:
    for layers, colour, name in (
        (report.layers_before, RULE, "removed"),
        (report.layers, COLOURS[0], "kept"),
    ):
        axes.bar(range(len(layers)), [layer[unit] for layer in layers], color=colour, label=name)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
