"""The plots of a study: quality over ratio, errors and share kept by layer, quality over parameters, bytes and speed.

Method and metric = colour, structure = line and marker.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean
from textwrap import wrap
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from flap.reporting.numbers import is_perplexity
from flap.results.layer_plots import draw_errors, draw_kept
from flap.results.pareto import COSTS, fronts, quality_over
from flap.results.series import Series, palette, series_of, styles
from flap.results.study import Study

INK, MUTED, RULE = "#24292f", "#6e7781", "#d0d7de"
AVERAGE = "zero_shot/average"
LEGEND_WIDTH = 28  # characters of a line: longer ones would leave no room for the panels
LOG_FROM = 10  # the axis is logarithmic if the largest perplexity is above this times the smallest
STYLE = {
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "font.size": 9.5,
    "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False, "lines.markersize": 5,
    "svg.fonttype": "none", "svg.hashsalt": "flap",
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A plot with its caption, as PNG and SVG."""

    name: str
    caption: str
    png: bytes
    svg: bytes


def draw(study: Study) -> list[Plot]:
    """Return all plots for which the study has numbers."""
    perplexities = [name for name in study.measured if is_perplexity(name)]
    average = [AVERAGE] if AVERAGE in study.measured else []
    with matplotlib.rc_context(STYLE):
        return list(_draw(study, perplexities, average))


def _draw(study: Study, perplexities: list[str], average: list[str]) -> Iterator[Plot]:
    seeds = " Mean of the seeds, with a band from the least to the greatest." if len(study.values("seed")) > 1 else ""
    if perplexities:
        text = "Perplexity over the share of the decoder asked to be removed; lower is better." + seeds
        yield _plot("perplexity", text, _over(study, perplexities, _ratios, "ratio"))
    if average:
        text = "Average zero-shot accuracy over the share of the decoder asked to be removed; higher is better." + seeds
        yield _plot("zero_shot", text, _over(study, average, _ratios, "ratio"))
    if any(cell.layer_errors for cell in study.finished):
        text = "Error of the hidden states after each layer, relative to the dense model's: where it arises." + seeds
        figure = draw_errors(study)
        _legend(figure, series_of(study))
        yield _plot("errors", text, figure)
    if study.finished:
        yield _plot(
            "layers", "Share of the query heads and of the MLP neurons that each layer keeps.", draw_kept(study)
        )
    names = [*perplexities[:1], *average]
    for cost in (cost for cost in COSTS if names and cost.known(study)):
        text = (
            f"Quality over {cost.label}; each point is a ratio, a cross a dense model, the broad line the Pareto front."
        )
        figure = _over(study, names, quality_over(cost, INK, MUTED), cost.label)
        yield _plot(cost.name, f"{text} {fronts(study, series_of(study), names, cost)}", figure)


def _plot(name: str, caption: str, figure: Figure) -> Plot:
    """Return a figure as a plot."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=160)
    return Plot(name, caption, png.getvalue(), as_svg(figure))


def as_svg(figure: Figure) -> bytes:
    """Return a figure as SVG, without a date, so that it is reproducible."""
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return svg.getvalue()


Panel = Callable[[Any, Study, str, list[Series]], None]


def _over(study: Study, names: list[str], panel: Panel, label: str) -> Figure:
    """Return a figure with one panel for each number, side by side, and a legend outside."""
    figure = Figure(figsize=(1.9 + 4.4 * len(names), 3.8), layout="constrained")
    series = series_of(study)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        panel(axes, study, name, series)
        axes.set(title=name, xlabel=label)
        if is_perplexity(name):
            _scale(axes, [cell.numbers(which).get(name) for cell in study.finished for which in ("dense", "pruned")])
    _legend(figure, series)
    return figure


def _ratios(axes: Any, study: Study, name: str, series: list[Series]) -> None:
    """Draw a number over the ratio: mean, minimum and maximum over the seeds; the dense model is a horizontal line."""
    for line, style in zip(series, styles(series), strict=True):
        by_ratio = line.at_each_ratio(lambda cell: cell.numbers("pruned").get(name))
        ratios, seed_numbers = list(by_ratio), list(by_ratio.values())
        low, high = [min(values) for values in seed_numbers], [max(values) for values in seed_numbers]
        axes.fill_between(ratios, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.vlines(ratios, low, high, color=style["color"], linewidth=1)  # for a single ratio, which has no band
        axes.plot(ratios, [mean(values) for values in seed_numbers], **style)
    axes.set_xticks(sorted({ratio for line in series for ratio in line.ratios}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for cell in study.dense():
        level = cell.numbers("dense").get(name)
        if level is not None:
            axes.axhline(level, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.2)
            label = "dense" if len(study.dense()) == 1 else f"dense {cell.model}"
            axes.annotate(label, (1, level), xycoords=("axes fraction", "data"), xytext=(-2, 3), ha="right",
                          textcoords="offset points", color=MUTED, fontsize=8.5)  # fmt: skip


def _scale(axes: Any, values: list[float | None]) -> None:
    """Make the axis logarithmic if the largest perplexity is above LOG_FROM times the smallest."""
    finite = [value for value in values if value is not None]
    if finite and max(finite) > LOG_FROM * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, series: list[Series]) -> None:
    """Draw the legend: a colour for each metric, a line and marker for each structure."""
    colours, shapes = palette(series)
    handles = [Line2D([], [], color=colour, linewidth=3, label=_in_lines(name)) for name, colour in colours.items()]
    handles += [
        Line2D([], [], color=INK, marker=marker, linestyle=dashes, linewidth=1.2, label=_in_lines(name))
        for name, (marker, dashes) in shapes.items()
    ]
    figure.legend(handles=handles, loc="outside right upper", handlelength=2.6)


def _in_lines(name: str) -> str:
    """Return the name of a series in lines that leave the panels their room."""
    return "\n".join(wrap(name, LEGEND_WIDTH))
