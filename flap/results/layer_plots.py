"""Plots by layer: what each layer keeps, of one run or of a study."""

from math import nan
from pathlib import Path

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from flap.results.report import Report
from flap.results.series import COLOURS, RULE, series_of
from flap.results.study import Study

KEPT = LinearSegmentedColormap.from_list("kept", ["#f7ead7", "#8fb3c9", "#2a6f97", "#0b2f4a"])


def draw_kept(study: Study) -> Figure:
    """Return two heat maps, runs × layers, of the share kept; the runs are sorted by metric, structure and ratio."""
    lines = [
        (line, line.rows.sort_values(["ratio", "seed"], kind="stable")) for line in series_of(study)
    ]
    runs = [(line, run) for line, rows in lines for run in study.of(rows)]
    seeds = len(study.values("seed")) > 1
    labels = [
        f"{line.label} {line.structure} {run.ratio:g}" + (f" s{run.seed}" if seeds else "")
        for line, run in runs
    ]
    figure = Figure(figsize=(9, 1.5 + 0.2 * len(runs)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = "query heads", "MLP neurons or whole experts"
    for axes, key, title in zip(panels, ("query_heads", "neurons"), titles, strict=True):
        for row, (_, run) in enumerate(runs):
            pairs = zip(run.report["layers"], run.report["layers_before"], strict=True)
            shares = [
                _kept(after, key) / (_kept(before, key) or nan) for after, before in pairs
            ]  # nan: not drawn
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
    panels[0].set_yticks([row + 0.5 for row in range(len(runs))], labels, fontsize=8)
    panels[0].invert_yaxis()
    bar = figure.colorbar(image, ax=panels, label="share kept", fraction=0.025, pad=0.01)
    bar.outline.set_visible(False)
    return figure


def _kept(layer: dict[str, int], key: str) -> int:
    """Return the width of a layer; of one that loses whole experts, how many it has."""
    return layer.get("experts", layer[key]) if key == "neurons" else layer[key]


def draw_layers(report: Report, path: Path) -> None:
    """Write a picture of the query heads and neurons (or experts) of each layer: kept in colour, removed in grey."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    units = "experts" if all("experts" in layer for layer in report.layers) else "neurons"
    for axes, key, label in zip(
        panels, ("query_heads", units), ("query heads", f"MLP {units}"), strict=True
    ):
        layers = range(len(report.layers))
        axes.bar(
            layers, [layer[key] for layer in report.layers_before], color=RULE, label="removed"
        )
        axes.bar(layers, [layer[key] for layer in report.layers], color=COLOURS[0], label="kept")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("layer")
    panels[0].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    title = f"{report.config['run_name']}: {report.ratio['realised_decoder']:.1%} of the decoder removed"
    figure.suptitle(title, parse_math=False)  # a dollar sign in a name begins no formula
    figure.savefig(path, dpi=120)
