"""The plots of a study: quality over ratio and over costs, and the share that each layer keeps.

The colour stands for method and metric, line and marker for the structure.
"""

import io
from collections.abc import Callable, Iterator
from textwrap import wrap
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pandas import DataFrame

from flap.results.layer_plots import draw_kept
from flap.results.number_texts import is_bits_per_byte, is_perplexity
from flap.results.pareto import COSTS, fronts, quality_over
from flap.results.series import INK, MUTED, STYLE, Series, palette, series_of, styles
from flap.results.study import Study

AVERAGE = "zero_shot/average"
ANSWERS = "generation/exact_match"
LEGEND_WIDTH = 28  # characters in a line of the legend; longer lines leave no room for the panels
LOG_FROM = 10  # the axis is logarithmic if the largest perplexity is above this times the smallest
OVER_RATIO = "over the share of the decoder asked to be removed"
NOT_REPRODUCIBLE = {"Date": None, "Creator": None, "Format": None, "Type": None}  # left out of SVG

Panel = Callable[[Any, Study, str, list[Series]], None]


class Plot(NamedTuple):
    """A plot with its caption, as PNG and SVG."""

    name: str
    caption: str
    png: bytes
    svg: bytes


def draw(study: Study) -> list[Plot]:
    """Return all plots for which the study has numbers."""
    with matplotlib.rc_context(STYLE):
        return [*_over_ratio(study), *_by_layer(study), *_over_cost(study)]


def _over_ratio(study: Study) -> Iterator[Plot]:
    seeds = ""
    if len(study.values("seed")) > 1:
        seeds = " Mean of the seeds, with a band from the least to the greatest."

    perplexities = _perplexities(study)
    if perplexities:
        text = f"Perplexity {OVER_RATIO}; lower is better.{seeds}"
        yield _plot("perplexity", text, _panels(study, perplexities, _ratios, "ratio"))
    if AVERAGE in study.measured:
        text = f"Average zero-shot accuracy {OVER_RATIO}; higher is better.{seeds}"
        yield _plot("zero_shot", text, _panels(study, [AVERAGE], _ratios, "ratio"))
    if ANSWERS in study.measured:
        text = f"Exact match of written answers {OVER_RATIO}; higher is better."
        text += f" Bars are standard errors over documents.{seeds}"
        yield _plot("generation", text, _panels(study, [ANSWERS], _ratios_with_errors, "ratio"))


def _by_layer(study: Study) -> Iterator[Plot]:
    if study.finished:
        text = "Share of the query heads and of the MLP neurons, or whole experts, "
        text += "that each layer keeps."
        yield _plot("layers", text, draw_kept(study))


def _over_cost(study: Study) -> Iterator[Plot]:
    # bits per byte, where they were measured: models may differ in their tokenizers
    bits = [name for name in study.measured if is_bits_per_byte(name)]
    names = (bits or _perplexities(study))[:1]
    names += [name for name in (AVERAGE, ANSWERS) if name in study.measured]
    if not names:
        return
    for cost in COSTS:
        if not cost.measured(study):
            continue
        text = (
            f"Quality over {cost.label}; each point is a ratio, a cross a dense model, "
            f"the broad line the Pareto front. {fronts(study, series_of(study), names, cost)}"
        )
        yield _plot(cost.name, text, _panels(study, names, quality_over(cost), cost.label))


def _perplexities(study: Study) -> list[str]:
    return [name for name in study.measured if is_perplexity(name)]


def _plot(name: str, caption: str, figure: Figure) -> Plot:
    png = io.BytesIO()
    svg = io.BytesIO()
    figure.savefig(png, format="png", dpi=160)
    figure.savefig(svg, format="svg", metadata=NOT_REPRODUCIBLE)
    return Plot(name, caption, png.getvalue(), svg.getvalue())


def _panels(study: Study, names: list[str], panel: Panel, label: str) -> Figure:
    """Return a figure with one panel for each number, side by side, and a legend outside."""
    figure = Figure(figsize=(1.9 + 4.4 * len(names), 3.8), layout="constrained")
    series = series_of(study)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        panel(axes, study, name, series)
        axes.set(title=name, xlabel=label)
        if is_perplexity(name):
            _scale(axes, study.results.filter(items=[f"dense/{name}", f"pruned/{name}"]))
    _legend(figure, series)
    return figure


def _ratios(axes: Any, study: Study, name: str, series: list[Series]) -> None:
    """Draw a number over the ratio: mean, minimum and maximum over the seeds.

    The dense model is a horizontal line.
    """
    for line, style in zip(series, styles(series), strict=True):
        colour = style["color"]
        seeds = line.at_each_ratio(f"pruned/{name}")
        lowest = seeds["min"]
        highest = seeds["max"]
        axes.fill_between(seeds.index, lowest, highest, color=colour, alpha=0.15, linewidth=0)
        axes.vlines(seeds.index, lowest, highest, color=colour, linewidth=1)  # for a single ratio
        axes.plot(seeds["mean"], **style)
    axes.set_xticks(sorted({*study.results.ratio.dropna()}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _dense_lines(axes, study.dense, f"dense/{name}")


def _dense_lines(axes: Any, dense: DataFrame, column: str) -> None:
    if column not in dense:
        return
    for model, level in dense[["model", column]].dropna().itertuples(index=False):
        axes.axhline(level, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.2)
        axes.annotate(
            "dense" if len(dense) == 1 else f"dense {model}",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            ha="right",
            textcoords="offset points",
            color=MUTED,
            fontsize=8.5,
        )


def _ratios_with_errors(axes: Any, study: Study, name: str, series: list[Series]) -> None:
    """Draw a number over the ratio, with standard errors over documents.

    Seeds share the documents, so the error of their mean is the mean of their errors.
    """
    _ratios(axes, study, name, series)
    if f"pruned/{name}_stderr" not in study.results:  # a single document has no error
        return
    for line, style in zip(series, styles(series), strict=True):
        means = line.at_each_ratio(f"pruned/{name}")["mean"]
        errors = line.at_each_ratio(f"pruned/{name}_stderr")["mean"].reindex(means.index)
        axes.errorbar(means.index, means, errors, color=style["color"], fmt="none", capsize=3)


def _scale(axes: Any, values: DataFrame) -> None:
    """Make the axis logarithmic if the values differ much."""
    differ_much = values.max(axis=None) > LOG_FROM * values.min(axis=None)
    if not differ_much:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _tick(value: float, _: int) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _legend(figure: Figure, series: list[Series]) -> None:
    colours, shapes = palette(series)
    handles = {}
    for name, colour in colours.items():
        handles[name] = Line2D([], [], color=colour, linewidth=3)
    for name, (marker, dashes) in shapes.items():
        handles[name] = Line2D([], [], color=INK, marker=marker, linestyle=dashes, linewidth=1.2)
    labels = ["\n".join(wrap(name, LEGEND_WIDTH)) for name in handles]
    figure.legend([*handles.values()], labels, loc="outside right upper", handlelength=2.6)
