"""The picture of the units that each layer keeps."""

from pathlib import Path

from matplotlib.figure import Figure

from flap.reporting.report import Report

KEPT, REMOVED = "#2a6f97", "#dbe4ea"


def draw_layers(report: Report, path: Path) -> None:
    """Write a picture of the query heads and neurons (or experts) of each layer: kept in colour, removed in grey."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    units = "experts" if all("experts" in layer for layer in report.layers) else "neurons"
    for axes, key, label in zip(panels, ("query_heads", units), ("query heads", f"MLP {units}"), strict=True):
        layers = range(len(report.layers))
        axes.bar(layers, [layer[key] for layer in report.layers_before], color=REMOVED, label="removed")
        axes.bar(layers, [layer[key] for layer in report.layers], color=KEPT, label="kept")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].set_xlabel("layer")
    panels[0].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.suptitle(f"{report.config['run_name']}: {report.ratio['realised_decoder']:.1%} of the decoder removed")
    figure.savefig(path, dpi=120)
