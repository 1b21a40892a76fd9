"""Plots by layer: the share that each layer keeps, and where the error of the pruned models arises."""

from math import nan
from typing import Any

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from flap.results.layer_widths import Layers
from flap.results.series import COLOURS, LINES, RULE, series_of, styles
from flap.results.study import Study

KEPT = LinearSegmentedColormap.from_list("kept", ["#f7ead7", "#8fb3c9", "#2a6f97", "#0b2f4a"])
ERROR = "error of hidden states"


def draw_errors(study: Study) -> Figure:
    """Return a panel for each ratio: the error of the hidden states after each layer, mean and range of the seeds.

    That of a target is the median of what its runs removed.
    """
    series, measured = series_of(study), {run.asked for run in study.finished if run.layer_errors}
    ratios = study.results.groupby("asked").ratio.median().filter([*measured]).dropna().sort_values()
    figure = Figure(figsize=(1.9 + 3.4 * len(ratios), 3.4), layout="constrained")
    panels = figure.subplots(1, len(ratios), squeeze=False, sharey=True)[0]
    for axes, (asked, ratio) in zip(panels, ratios.items(), strict=True):
        for line, style in zip(series, styles(series), strict=True):
            every = [run.layer_errors for run in study.of(line.rows[line.rows.asked == asked]) if run.layer_errors]
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


def draw_over_each_other(layers: Layers) -> Figure:
    """Return the picture of a comparison: KV heads above, neurons below; the dense widths in grey, if they are known.

    Below that, where it was measured, the error of the hidden states after each layer.
    """
    count = 3 if any(layers.errors.values()) else 2
    figure = Figure(figsize=(9, 2.7 * count), layout="constrained")
    panels = figure.subplots(count, 1, sharex=True)
    for kind, (axes, label) in enumerate(zip(panels, ("KV heads", "neurons or experts"), strict=False)):
        if layers.dense:
            dense = [layer[kind] for layer in layers.dense]
            axes.bar(range(len(dense)), dense, width=1, color=RULE, alpha=0.5, label="dense")
        for i, (letter, widths) in enumerate(layers.widths.items()):
            axes.plot([layer[kind] for layer in widths], label=letter, **_style(i))
        axes.set(ylabel=label, ylim=(0, None))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    for i, (letter, errors) in enumerate(layers.errors.items()):
        if errors:
            panels[-1].plot(errors, label=letter, **_style(i))
            panels[-1].set(ylabel=ERROR, ylim=(0, None))
    panels[-1].set_xlabel("layer")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", handlelength=2.6)
    return figure


def _style(index: int) -> dict[str, Any]:
    """Return the style of a line; the first one is the widest, so that it shows under those that agree with it."""
    marker, dashes = LINES[index % len(LINES)]
    width = max(1.2, 4 - 1.4 * index)
    return {"color": COLOURS[index % len(COLOURS)], "marker": marker, "linestyle": dashes, "linewidth": width}
