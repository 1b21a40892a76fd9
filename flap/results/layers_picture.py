"""The picture of the units that each layer keeps."""

from pathlib import Path

from flap.results.report import Report

KEPT, REMOVED, ERROR = "#2a6f97", "#dbe4ea", "#D55E00"


def draw_layers(report: Report, path: Path) -> None:
    """Write a picture of the query heads and neurons (or experts) of each layer: kept in colour, removed in grey.

    Below, where eval=divergence has measured it, the error of the hidden states after each layer.
    """
    from matplotlib.figure import Figure  # here, so that no refusal and no dry run waits for its import

    count = 3 if report.layer_errors else 2
    figure = Figure(figsize=(9, 2.5 * count), layout="constrained")
    panels = figure.subplots(count, 1, sharex=True)
    units = "experts" if all("experts" in layer for layer in report.layers) else "neurons"
    for axes, key, label in zip(panels, ("query_heads", units), ("query heads", f"MLP {units}"), strict=False):
        layers = range(len(report.layers))
        axes.bar(layers, [layer[key] for layer in report.layers_before], color=REMOVED, label="removed")
        axes.bar(layers, [layer[key] for layer in report.layers], color=KEPT, label="kept")
        axes.set_ylabel(label)
    if report.layer_errors:
        panels[2].plot(report.layer_errors, color=ERROR, marker=".")
        panels[2].set(ylabel="error of hidden states", ylim=(0, None))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("layer")
    panels[0].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    title = f"{report.config['run_name']}: {report.ratio['realised_decoder']:.1%} of the decoder removed"
    figure.suptitle(title, parse_math=False)  # a dollar sign in a name begins no formula
    figure.savefig(path, dpi=120)
