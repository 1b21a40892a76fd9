"""The plots of a study: quality over ratio, quality over cost, and the units of each layer.

The ratio is the share of the decoder's weights that pruning removes. Units are heads, neurons and
experts.

A study consists of the runs of one or more sweeps. A number is a measured result, such as a
perplexity or an accuracy.

Colours distinguish the choices of the config groups `method` and `metric`. Line styles and markers
distinguish the choices of the config group `structure`.
"""

import io
from collections.abc import Iterator
from textwrap import wrap
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter
from pandas import DataFrame

from flap.results.layer_plots import draw_kept
from flap.results.number_texts import is_bits_per_byte, is_of_text, is_perplexity
from flap.results.pareto import COSTS, CostAxis, front, points
from flap.results.series import INK, MUTED, STYLE, Series, series_of
from flap.results.study import Study

AVERAGE = "zero_shot/average"
ANSWERS = "generation/exact_match"
# maximum number of characters in a line of the legend; longer names are wrapped, so that the
# panels of the figure have enough space
LEGEND_WIDTH = 28
# the axis of a perplexity is logarithmic if the largest value is more than 10 times the smallest
LOG_FROM = 10
# metadata that is left out of SVG files, so that drawing the same plot again gives the same file
NOT_REPRODUCIBLE = {"Date": None, "Creator": None, "Format": None, "Type": None}

OVER_RATIO = "{} over the requested share of the decoder to remove; {} is better."
ERRORS = " Bars are standard errors over documents."
SEEDS = " Lines are means over the seeds, and bands go from the smallest to the largest value."
OVER_COST = (
    "Quality over {}. Each point is a ratio, each cross is a dense model, and the broad line is "
    "the Pareto front."
)
KEPT = "Share of the query heads and of the MLP neurons, or whole experts, that each layer keeps."


class Plot(NamedTuple):
    """A plot as PNG and as SVG, with its name and caption."""

    name: str
    caption: str
    png: bytes
    svg: bytes


def draw(study: Study) -> list[Plot]:
    """Return the plots of the study. A plot for which nothing was measured is left out."""
    if not study.finished:
        return []
    series = series_of(study)
    with matplotlib.rc_context(STYLE):
        kept = _plot("layers", KEPT, draw_kept(study, series))
        return [*_over_ratio(study, series), kept, *_over_cost(study, series)]


def _over_ratio(study: Study, series: list[Series]) -> Iterator[Plot]:
    of_texts = ("perplexity", list(filter(is_perplexity, study.measured)), "Perplexity", "lower")
    if study.trimmed:
        bits = list(filter(is_bits_per_byte, study.measured))
        of_texts = ("bits_per_byte", bits, "Bits per byte", "lower")
    for kind, names, quality, better in (
        of_texts,
        ("zero_shot", [AVERAGE], "Average zero-shot accuracy", "higher"),
        ("generation", [ANSWERS], "Exact match of written answers", "higher"),
    ):
        if not {*names} & {*study.measured}:
            continue
        caption = OVER_RATIO.format(quality, better)
        if f"pruned/{names[0]}_stderr" in study.results:
            caption += ERRORS
        if len(study.values("seed")) > 1:
            caption += SEEDS

        figure, panels = _panels(study, series, names, "ratio")
        for name, axes in panels.items():
            _draw_over_ratio(axes, study, series, name)
        yield _plot(kind, caption, figure)


def _over_cost(study: Study, series: list[Series]) -> Iterator[Plot]:
    # prefer bits per byte to perplexity, because models may have different tokenizers
    of_text = sorted(filter(is_of_text, study.measured), key=is_perplexity)
    names = of_text[:1] + [name for name in (AVERAGE, ANSWERS) if name in study.measured]
    for cost in COSTS:
        if not names or not cost.measured(study):
            continue
        caption = OVER_COST.format(cost.label)
        figure, panels = _panels(study, series, names, cost.label)
        for name, axes in panels.items():
            shown = points(study, series, name, cost)
            best = front(shown, cost.lower_is_better, is_of_text(name))
            caption += f" On the front of {name}: {', '.join(dict.fromkeys(best.label))}."
            _draw_over_cost(axes, series, shown, best, cost)
        yield _plot(cost.name, caption, figure)


def _plot(name: str, caption: str, figure: Figure) -> Plot:
    png = io.BytesIO()
    svg = io.BytesIO()
    figure.savefig(png, format="png", dpi=160)
    figure.savefig(svg, format="svg", metadata=NOT_REPRODUCIBLE)
    return Plot(name, caption, png.getvalue(), svg.getvalue())


def _panels(
    study: Study, series: list[Series], names: list[str], label: str
) -> tuple[Figure, dict[str, Any]]:
    """Return a figure with a legend, and a dict from names of numbers to the panels that show them.

    The panels are side by side, and are still empty.

    names: the names of the measured numbers, such as "c4/perplexity@128".
    label: the label of the horizontal axes.
    """
    figure = Figure(figsize=(1.9 + 4.4 * len(names), 3.8), layout="constrained")
    panels = dict(zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True))
    for name, axes in panels.items():
        axes.set(title=name, xlabel=label)
        values = study.results.filter(items=[f"dense/{name}", f"pruned/{name}"])
        if is_perplexity(name) and values.max(axis=None) > LOG_FROM * values.min(axis=None):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.yaxis.set_minor_formatter(NullFormatter())

    _add_legend(figure, series)
    return figure, panels


def _add_legend(figure: Figure, series: list[Series]) -> None:
    """Add a legend that explains the colours, the markers and the line styles.

    A colour stands for the metric and other settings in which the runs differ (`Series.label`).
    Markers and line styles stand for structures.
    """
    handles = {}
    for line in series:
        handles[line.label] = Line2D([], [], color=line.style["color"], linewidth=3)
    for line in series:
        style = line.style | {"color": INK}
        handles[line.structure] = Line2D([], [], linewidth=1.2, **style)

    labels = ["\n".join(wrap(name, LEGEND_WIDTH)) for name in handles]
    figure.legend(
        handles=list(handles.values()),
        labels=labels,
        loc="outside right upper",
        handlelength=2.6,
    )


def _draw_over_ratio(axes: Any, study: Study, series: list[Series], name: str) -> None:
    """Draw a measured number over the ratio: mean, minimum and maximum over the seeds.

    Runs with different seeds are measured on the same documents, so averaging over these runs does
    not make the standard error smaller. Therefore each error bar shows the mean of the runs'
    standard errors. A horizontal line shows the value of the dense model.

    name: the name of the number, such as "c4/perplexity@128".
    """
    column = f"pruned/{name}"
    for line in series:
        measured = line.by_ratio.dropna(subset=[(column, "mean")])
        seeds = measured[column]
        errors = measured.get((f"{column}_stderr", "mean"))
        colour = line.style["color"]
        band = (seeds.index, seeds["min"], seeds["max"])
        axes.fill_between(*band, color=colour, alpha=0.15, linewidth=0)
        # with only one ratio, the band from minimum to maximum has no width, so draw lines as well
        axes.vlines(*band, color=colour, linewidth=1)
        axes.errorbar(seeds.index, seeds["mean"], errors, capsize=3, **line.style)
    axes.set_xticks(sorted({*study.results.ratio.dropna()}))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))

    dense = study.dense.reindex(columns=["model", f"dense/{name}"]).dropna()
    for model, level in dense.itertuples(index=False):
        axes.axhline(level, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.2)
        axes.text(
            1,
            level,
            study.dense_name(model),
            # x goes from 0 to 1 across the panel, and y is a value on the vertical axis
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="bottom",
            color=MUTED,
        )


def _draw_over_cost(
    axes: Any, series: list[Series], points: DataFrame, front: DataFrame, cost: CostAxis
) -> None:
    """Draw quality over cost, with the Pareto front as a broad line and dense models as crosses."""
    front = front.sort_values("cost")
    axes.plot(
        front.cost,
        front.quality,
        color=MUTED,
        alpha=0.35,
        linewidth=5,
        drawstyle="steps-post" if cost.lower_is_better else "steps-pre",
        zorder=1,
    )
    for i, line in enumerate(series):
        of_line = points[points.series == i]
        axes.plot(of_line.cost, of_line.quality, linewidth=0.8, **line.style)
    dense = points[points.series == -1]
    axes.plot(dense.cost, dense.quality, "x", markersize=8, markeredgewidth=2, color=INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
