"""Plots of the heads, neurons and experts that each layer keeps, for one or several runs.

A study consists of the runs of one or more sweeps.
"""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from pandas import DataFrame

from flap.results.report import Report
from flap.results.series import COLOURS, RULE, STYLE, Series
from flap.results.study import Study

KEPT = LinearSegmentedColormap.from_list("kept", ["#f7ead7", "#8fb3c9", "#2a6f97", "#0b2f4a"])


def draw_kept(study: Study, series: list[Series]) -> Figure:
    """Return two heat maps: the shares of query heads and of MLP units that each layer keeps.

    MLP units are neurons or whole experts. Each row of a heat map is a run, and each column is a
    layer.

    series: the groups of runs that the other plots of the study draw as lines, sorted by label and
        structure. The rows have this order. Runs of the same group are sorted by ratio and seed.
    """
    several_seeds = len(study.values("seed")) > 1
    shares = []
    labels = []
    for line in series:
        ordered = line.rows.sort_values(["ratio", "seed"], kind="stable")
        for run in study.of(ordered):
            label = f"{line.label} {line.structure} {run.ratio:g}"
            if several_seeds:
                label += f" s{run.seed}"
            labels.append(label)
            shares.append(_shares(run.report))

    height = 1.5 + 0.2 * len(labels)  # height of the figure in inches
    figure = Figure(figsize=(9, height), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title in zip(panels, shares[0], strict=True):
        # in the row of a model with fewer layers, the missing layers are nan, which is drawn blank
        of_runs = DataFrame([of_run[title] for of_run in shares])
        image = axes.imshow(of_runs, cmap=KEPT, vmin=0, vmax=1, aspect="auto")
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


def _shares(report: Report) -> DataFrame:
    """Return the share of query heads, and of neurons or experts, that each layer keeps.

    A share is nan if the layer has no units of this kind in the dense model.
    """
    shares = DataFrame(report.layers) / DataFrame(report.layers_before)
    # an MLP loses either neurons or whole experts, so take the smaller share of the two
    mlp = shares.reindex(columns=["neurons", "experts"]).min(axis="columns")
    return DataFrame({"query heads": shares.query_heads, "MLP neurons or whole experts": mlp})


def draw_layers(report: Report, path: Path) -> None:
    """Write a bar chart of the query heads and the neurons (or experts) of each layer.

    Kept heads, neurons or experts are drawn in colour, and removed units are drawn in grey.
    """
    before = DataFrame(report.layers_before)
    after = DataFrame(report.layers)
    whole_experts = all("experts" in layer for layer in report.layers)
    units = ("query_heads", "experts" if whole_experts else "neurons")

    with rc_context(STYLE):
        figure = Figure(figsize=(9, 5), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True)
        for axes, unit in zip(panels, units, strict=True):
            axes.bar(before.index, before[unit], color=RULE, label="removed")
            axes.bar(after.index, after[unit], color=COLOURS[0], label="kept")
            axes.set_ylabel(unit.replace("_", " "))
        panels[1].set_xlabel("layer")
        panels[0].legend(loc="upper left", bbox_to_anchor=(1, 1))

        name = report.config["run_name"]
        removed = report.ratio["realised_decoder"]
        figure.suptitle(f"{name}: {removed:.1%} of the decoder removed")
        figure.savefig(path, dpi=120)
