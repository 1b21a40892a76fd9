"""Plots by layer: what each layer keeps, of one run or of a study."""

from math import nan
from pathlib import Path
from typing import Any

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from flap.results.report import Report
from flap.results.run_folder import RunRecord
from flap.results.series import COLOURS, RULE, series_of
from flap.results.study import Study

KEPT = LinearSegmentedColormap.from_list("kept", ["#f7ead7", "#8fb3c9", "#2a6f97", "#0b2f4a"])


def draw_kept(study: Study) -> Figure:
    """Return two heat maps, runs × layers, of the share that each layer keeps.

    The runs are sorted by metric, structure and ratio.
    """
    several_seeds = len(study.values("seed")) > 1
    runs = []
    labels = []
    for line in series_of(study):
        for run in study.of(line.rows.sort_values(["ratio", "seed"], kind="stable")):
            seed = f" s{run.seed}" if several_seeds else ""
            runs.append(run)
            labels.append(f"{line.label} {line.structure} {run.ratio:g}{seed}")

    figure = Figure(figsize=(9, 1.5 + 0.2 * len(runs)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    _heat_map(panels[0], runs, "query_heads", "query heads")
    image = _heat_map(panels[1], runs, "neurons", "MLP neurons or whole experts")
    panels[0].set_yticks([row + 0.5 for row in range(len(runs))], labels, fontsize=8)
    panels[0].invert_yaxis()

    bar = figure.colorbar(image, ax=panels, label="share kept", fraction=0.025, pad=0.01)
    bar.outline.set_visible(False)
    return figure


def _heat_map(axes: Any, runs: list[RunRecord], key: str, title: str) -> Any:
    """Draw the shares that the layers of each run keep, and return the image of the last run."""
    image = None
    for row, run in enumerate(runs):
        shares = _shares(run, key)
        edges = [layer - 0.5 for layer in range(len(shares) + 1)]
        image = axes.pcolormesh(
            edges,
            [row + 0.06, row + 0.94],
            [shares],
            cmap=KEPT,
            vmin=0,
            vmax=1,
            rasterized=True,
        )
    axes.set(title=title, xlabel="layer")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return image


def _shares(run: RunRecord, key: str) -> list[float]:
    """Return the share that each layer keeps; nan, which is not drawn, where it had nothing."""
    shares = []
    for before, after in zip(run.report["layers_before"], run.report["layers"], strict=True):
        shares.append(_width(after, key) / (_width(before, key) or nan))
    return shares


def _width(layer: dict[str, int], key: str) -> int:
    """Return the width of a layer: for an MLP that loses whole experts, their number."""
    if key == "neurons" and "experts" in layer:
        return layer["experts"]
    return layer[key]


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


def _bars(axes: Any, report: Report, key: str, label: str) -> None:
    layers = range(len(report.layers))
    before = [layer[key] for layer in report.layers_before]
    after = [layer[key] for layer in report.layers]
    axes.bar(layers, before, color=RULE, label="removed")
    axes.bar(layers, after, color=COLOURS[0], label="kept")
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
