"""Plots by layer: what each layer keeps, of one run or of a study, and where the error of the pruned models arises."""

from math import nan
from pathlib import Path

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from pandas import DataFrame

from flap.results.report import Report
from flap.results.series import COLOURS, RULE, series_of, styles
from flap.results.study import Study

KEPT = LinearSegmentedColormap.from_list("kept", ["#f7ead7", "#8fb3c9", "#2a6f97", "#0b2f4a"])
ERROR = "error of hidden states"


def draw_errors(study: Study) -> Figure:
    """Return a panel for each ratio: the error of the hidden states after each layer, mean and range of the seeds.

    That of a target is the median of what its runs removed.
    """
    series, measured = series_of(study), {run.requested for run in study.finished if run.layer_errors}
    ratios = study.results.groupby("requested").ratio.median().filter([*measured]).dropna().sort_values()
    figure = Figure(figsize=(1.9 + 3.4 * len(ratios), 3.4), layout="constrained")
    panels = figure.subplots(1, len(ratios), squeeze=False, sharey=True)[0]
    for axes, (requested, ratio) in zip(panels, ratios.items(), strict=True):
        for line, style in zip(series, styles(series), strict=True):
            every = [
                run.layer_errors for run in study.of(line.rows[line.rows.requested == requested]) if run.layer_errors
            ]
            errors = DataFrame(every, dtype=float)  # nan, which is not drawn, where one is not finite
            axes.fill_between(errors.columns, errors.min(), errors.max(), color=style["color"], alpha=0.15, linewidth=0)
            axes.plot(errors.mean(skipna=False), **style | {"markersize": 3})
        axes.set(title=f"ratio {ratio:g}", xlabel="layer")
    panels[0].set(ylabel=ERROR, ylim=(0, None))  # once all is drawn: it ends the scaling
    return figure


def draw_kept(study: Study) -> Figure:
    """Return two heat maps, runs × layers, of the share kept; the runs are sorted by metric, structure and ratio."""
    lines = [(line, line.rows.sort_values(["ratio", "seed"], kind="stable")) for line in series_of(study)]
    runs = [(line, run) for line, rows in lines for run in study.of(rows)]
    seeds = len(study.values("seed")) > 1
    labels = [f"{line.label} {line.structure} {run.ratio:g}" + (f" s{run.seed}" if seeds else "") for line, run in runs]
    figure = Figure(figsize=(9, 1.5 + 0.2 * len(runs)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = "query heads", "MLP neurons or whole experts"
    for axes, key, title in zip(panels, ("query_heads", "neurons"), titles, strict=True):
        for row, (_, run) in enumerate(runs):
            pairs = zip(run.report["layers"], run.report["layers_before"], strict=True)
            shares = [_kept(after, key) / (_kept(before, key) or nan) for after, before in pairs]  # nan: not drawn
            edges = [layer - 0.5 for layer in range(len(shares) + 1)]
            image = axes.pcolormesh(
                edges, [row + 0.06, row + 0.94], [shares], cmap=KEPT, vmin=0, vmax=1, rasterized=True
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
    """Write a picture of the query heads and neurons (or experts) of each layer: kept in colour, removed in grey.

    Below, where eval=divergence has measured it, the error of the hidden states after each layer.
    """
    count = 3 if report.layer_errors else 2
    figure = Figure(figsize=(9, 2.5 * count), layout="constrained")
    panels = figure.subplots(count, 1, sharex=True)
    units = "experts" if all("experts" in layer for layer in report.layers) else "neurons"
    for axes, key, label in zip(panels, ("query_heads", units), ("query heads", f"MLP {units}"), strict=False):
        layers = range(len(report.layers))
        axes.bar(layers, [layer[key] for layer in report.layers_before], color=RULE, label="removed")
        axes.bar(layers, [layer[key] for layer in report.layers], color=COLOURS[0], label="kept")
        axes.set_ylabel(label)
    if report.layer_errors:
        panels[2].plot(report.layer_errors, color=COLOURS[1], marker=".")
        panels[2].set(ylabel=ERROR, ylim=(0, None))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("layer")
    panels[0].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    title = f"{report.config['run_name']}: {report.ratio['realised_decoder']:.1%} of the decoder removed"
    figure.suptitle(title, parse_math=False)  # a dollar sign in a name begins no formula
    figure.savefig(path, dpi=120)
