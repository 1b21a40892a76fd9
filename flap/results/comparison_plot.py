"""The picture of a comparison: what each layer keeps, the subjects drawn over each other."""

from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flap.results.plots import RULE, STYLE, as_svg
from flap.results.series import COLOURS, STYLES
from flap.results.unit_overlap import Layers


def draw(layers: Layers, letters: list[str]) -> bytes:
    """Return the picture as SVG: KV heads above, neurons below; the dense model's widths in grey, if they are known.

    Below that, where it was measured, the error of the hidden states after each layer.
    """
    count = 3 if any(layers.errors) else 2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.7 * count), layout="constrained")
        panels = figure.subplots(count, 1, sharex=True)
        for kind, (axes, label) in enumerate(zip(panels, ("KV heads", "MLP neurons"), strict=False)):
            if layers.dense:
                dense = [layer[kind] for layer in layers.dense]
                axes.bar(range(len(dense)), dense, width=1, color=RULE, alpha=0.5, label="dense")
            for i, (letter, widths) in enumerate(zip(letters, layers.widths, strict=True)):
                axes.plot([layer[kind] for layer in widths], label=letter, **_style(i))
            axes.set(ylabel=label, ylim=(0, None))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        for i, (letter, errors) in enumerate(zip(letters, layers.errors, strict=True)):
            if errors:
                panels[-1].plot(errors, label=letter, **_style(i))
        if any(layers.errors):
            panels[-1].set(ylabel="error of hidden states", ylim=(0, None))
        panels[-1].set_xlabel("layer")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", handlelength=2.6)
        return as_svg(figure)


def _style(index: int) -> dict[str, Any]:
    """Return the style of a line; the first one is the widest, so that it shows under those that agree with it."""
    marker, dashes = STYLES[index % len(STYLES)]
    width = max(1.2, 4 - 1.4 * index)
    return {"color": COLOURS[index % len(COLOURS)], "marker": marker, "linestyle": dashes, "linewidth": width}
