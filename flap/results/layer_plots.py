"""The plots of a study by layer: the share that each layer keeps, and where the error of the pruned models arises."""

from statistics import mean

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from flap.results.series import Series, series_of, styles
from flap.results.study import Cell, Study

KEPT = LinearSegmentedColormap.from_list("kept", ["#f7ead7", "#8fb3c9", "#2a6f97", "#0b2f4a"])


def draw_errors(study: Study) -> Figure:
    """Return a panel for each ratio: the error of the hidden states after each layer, mean and range of the seeds."""
    series = series_of(study)
    measured = [cell for cell in study.finished if cell.layer_errors and cell.ratio is not None]
    ratios = sorted({cell.ratio for cell in measured if cell.ratio is not None})
    figure = Figure(figsize=(1.9 + 3.4 * len(ratios), 3.4), layout="constrained")
    panels = figure.subplots(1, len(ratios), squeeze=False, sharey=True)[0]
    for axes, ratio in zip(panels, ratios, strict=True):
        for line, style in zip(series, styles(series), strict=True):
            by_layer = _by_layer([cell for cell in line.cells if cell in measured and cell.ratio == ratio])
            low, high = [min(values) for values in by_layer], [max(values) for values in by_layer]
            axes.fill_between(range(len(by_layer)), low, high, color=style["color"], alpha=0.15, linewidth=0)
            axes.plot([mean(values) for values in by_layer], **style | {"markersize": 3})
        axes.set(title=f"ratio {ratio:g}", xlabel="layer")
    panels[0].set(ylabel="error of hidden states", ylim=(0, None))  # once all is drawn: it ends the scaling
    return figure


def _by_layer(cells: list[Cell]) -> list[list[float]]:
    """Return the errors of all cells after each layer; those that are not finite are nan, and not drawn."""
    every = ([float("nan") if error is None else error for error in cell.layer_errors] for cell in cells)
    return [list(errors) for errors in zip(*every, strict=False)]


def draw_kept(study: Study) -> Figure:
    """Return two heat maps, cells × layers, of the share kept; the cells are sorted by metric, structure and ratio."""
    cells = [cell for line in series_of(study) for cell in sorted(line.cells, key=lambda cell: (cell.ratio, cell.seed))]
    labels = [label for line in series_of(study) for label in _row_labels(line, study)]
    figure = Figure(figsize=(9, 1.5 + 0.2 * len(cells)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, title in zip(panels, ("query_heads", "neurons"), ("query heads", "MLP neurons"), strict=True):
        for row, cell in enumerate(cells):
            pairs = zip(cell.report["layers"], cell.report["layers_before"], strict=True)
            shares = [_kept(after, key) / _kept(before, key) for after, before in pairs]
            edges = [layer - 0.5 for layer in range(len(shares) + 1)]
            image = axes.pcolormesh(
                edges, [row + 0.06, row + 0.94], [shares], cmap=KEPT, vmin=0, vmax=1, rasterized=True
            )
        axes.set(title=title, xlabel="layer")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks([row + 0.5 for row in range(len(cells))], labels, fontsize=8)
    panels[0].invert_yaxis()
    bar = figure.colorbar(image, ax=panels, label="share kept", fraction=0.025, pad=0.01)
    bar.outline.set_visible(False)
    return figure


def _kept(layer: dict[str, int], key: str) -> int:
    """Return the width of a layer; of one that loses whole experts, how many it has."""
    return layer.get("experts", layer[key]) if key == "neurons" else layer[key]


def _row_labels(line: Series, study: Study) -> list[str]:
    seeds = len(study.values("seed")) > 1
    ordered = sorted(line.cells, key=lambda cell: (cell.ratio, cell.seed))
    return [f"{line.metric} {line.structure} {cell.ratio:g}" + (f" s{cell.seed}" if seeds else "") for cell in ordered]
