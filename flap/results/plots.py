"""The plots of a study: quality over ratio, share kept by layer, quality over parameters, bytes and speed.

Method and metric = colour, structure = line and marker.
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
LEGEND_WIDTH = 28  # characters of a line: longer ones would leave no room for the panels
LOG_FROM = 10  # the axis is logarithmic if the largest perplexity is above this times the smallest


class Plot(NamedTuple):
    """A plot with its caption, as PNG and SVG."""

    name: str
    caption: str
    png: bytes
    svg: bytes


def draw(study: Study) -> list[Plot]:
    """Return all plots for which the study has numbers."""
    perplexities = [name for name in study.measured if is_perplexity(name)]
    averages = [name for name in (AVERAGE, ANSWERS) if name in study.measured]
    with matplotlib.rc_context(STYLE):
        return list(_draw(study, perplexities, averages))


def _draw(study: Study, perplexities: list[str], averages: list[str]) -> Iterator[Plot]:
    seeds = (
        " Mean of the seeds, with a band from the least to the greatest."
        if len(study.values("seed")) > 1
        else ""
    )
    if perplexities:
        text = (
            "Perplexity over the share of the decoder asked to be removed; lower is better." + seeds
        )
        yield _plot("perplexity", text, _over(study, perplexities, _ratios, "ratio"))
    if AVERAGE in averages:
        text = (
            "Average zero-shot accuracy over the share of the decoder asked to be removed; higher is better."
            + seeds
        )
        yield _plot("zero_shot", text, _over(study, [AVERAGE], _ratios, "ratio"))
    if ANSWERS in averages:
        text = "Exact match of written answers over the share of the decoder asked to be removed; higher is better."
        text += " Bars are standard errors over documents." + seeds
        yield _plot("generation", text, _over(study, [ANSWERS], _ratios_with_errors, "ratio"))
    if study.finished:
        text = "Share of the query heads and of the MLP neurons, or whole experts, that each layer keeps."
        yield _plot("layers", text, draw_kept(study))
    bits = [
        name for name in study.measured if is_bits_per_byte(name)
    ]  # models may differ in their tokenizers
    names = [*(bits or perplexities)[:1], *averages]
    for cost in (cost for cost in COSTS if names and cost.measured(study)):
        text = (
            f"Quality over {cost.label}; each point is a ratio, a cross a dense model, "
            "the broad line the Pareto front."
        )
        figure = _over(study, names, quality_over(cost), cost.label)
        yield _plot(cost.name, f"{text} {fronts(study, series_of(study), names, cost)}", figure)


def _plot(name: str, caption: str, figure: Figure) -> Plot:
    png = io.BytesIO()
    svg = io.BytesIO()
    figure.savefig(png, format="png", dpi=160)
    # no date, so that it is reproducible
    figure.savefig(
        svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    return Plot(name, caption, png.getvalue(), svg.getvalue())


Panel = Callable[[Any, Study, str, list[Series]], None]


def _over(study: Study, names: list[str], panel: Panel, label: str) -> Figure:
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
    """Draw a number over the ratio: mean, minimum and maximum over the seeds; the dense model is a horizontal line."""
    for line, style in zip(series, styles(series), strict=True):
        seeds = line.at_each_ratio(f"pruned/{name}")
        axes.fill_between(
            seeds.index, seeds["min"], seeds["max"], color=style["color"], alpha=0.15, linewidth=0
        )
        axes.vlines(
            seeds.index, seeds["min"], seeds["max"], color=style["color"], linewidth=1
        )  # if there is one ratio
        axes.plot(seeds["mean"], **style)
    axes.set_xticks(sorted({*study.results.ratio.dropna()}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    dense = study.dense
    if f"dense/{name}" in dense:
        for model, level in dense[["model", f"dense/{name}"]].dropna().itertuples(index=False):
            axes.axhline(level, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.2)
            label = "dense" if len(dense) == 1 else f"dense {model}"
            axes.annotate(label, (1, level), xycoords=("axes fraction", "data"), xytext=(-2, 3), ha="right",
                          textcoords="offset points", color=MUTED, fontsize=8.5)  # fmt: skip


def _ratios_with_errors(axes: Any, study: Study, name: str, series: list[Series]) -> None:
    """Draw the same with standard errors over documents; seeds share the documents, so theirs is the mean error."""
    _ratios(axes, study, name, series)
    if f"pruned/{name}_stderr" not in study.results:  # of one document there is none
        return
    for line, style in zip(series, styles(series), strict=True):
        means, errors = (line.at_each_ratio(f"pruned/{name}{of}")["mean"] for of in ("", "_stderr"))
        axes.errorbar(
            means.index,
            means,
            errors.reindex(means.index),
            color=style["color"],
            fmt="none",
            capsize=3,
        )


def _scale(axes: Any, values: DataFrame) -> None:
    if values.max(axis=None) > LOG_FROM * values.min(axis=None):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        )
        axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, series: list[Series]) -> None:
    colours, shapes = palette(series)
    handles = {name: Line2D([], [], color=colour, linewidth=3) for name, colour in colours.items()}
    handles |= {
        name: Line2D([], [], color=INK, marker=marker, linestyle=dashes, linewidth=1.2)
        for name, (marker, dashes) in shapes.items()
    }
    labels = ["\n".join(wrap(name, LEGEND_WIDTH)) for name in handles]
    figure.legend([*handles.values()], labels, loc="outside right upper", handlelength=2.6)
