"""How plots look: colours, lines, and the SVG that the pages hold."""

import io

from matplotlib.figure import Figure

# after Okabe and Ito: safe for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C98500", "#3A9BD8", "#7A7A7A")
LINES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))  # (marker, dashes)
INK, MUTED, RULE = "#24292f", "#6e7781", "#d0d7de"
STYLE = {
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "font.size": 9.5,
    "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False, "lines.markersize": 5,
    "svg.fonttype": "none", "svg.hashsalt": "flap",
    "text.parse_math": False,  # a dollar sign in a name begins no formula
}  # fmt: skip


def as_svg(figure: Figure) -> bytes:
    """Return a figure as SVG, without a date, so that it is reproducible."""
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return svg.getvalue()
