"""Print the tables and draw the plot of the measurements that `frontier.py` has written.

    python experiments/bytes/table.py results.jsonl ...

results.jsonl is a file that `frontier.py` has written. You can pass several such files. The plot is
saved as frontier.png in the folder of the first file.
"""

import json
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import tensor

from flap.evaluation.errors import standard_error
from flap.evaluation.perplexity import ratio_values

# A line of results.jsonl: the size and the bits per byte of a model in one GGUF type, on one text.
Cell = dict
DENSE = ("dense", "f16")


def against(one: Cell, other: Cell) -> str:
    """Return by how many per cent the bits per byte of `one` exceed the bits per byte of `other`.

    The number after ± is the standard error, computed from the difference in each window.
    """
    values = [
        ratio_values(tensor(cell["bits_N"]), tensor(cell["bytes_N"])) for cell in (one, other)
    ]
    error = (
        standard_error((values[0] / one["bits"] - values[1] / other["bits"]).tolist())
        * one["bits"]
        / other["bits"]
    )
    return f"{one['bits'] / other['bits'] - 1:+.1%} ± {error:.1%}"


def front(cells: list[Cell]) -> list[Cell]:
    """Return the measurements with fewer bits per byte than all files that are not larger."""
    found = []
    best = float("inf")
    for cell in sorted(cells, key=lambda one: (one["bytes"], one["bits"])):
        if cell["bits"] < best:
            best = cell["bits"]
            found.append(cell)
    return found


def draw(axes: Axes, cells: list[Cell], title: str) -> None:
    steps = [(cell["bytes"] / 1e6, cell["bits"]) for cell in front(cells)]
    axes.plot(
        *zip(*steps, strict=True), color="gray", alpha=0.4, linewidth=5, drawstyle="steps-post"
    )
    for form in sorted({cell["form"] for cell in cells}):
        places = sorted(
            (cell["bytes"] / 1e6, cell["bits"]) for cell in cells if cell["form"] == form
        )
        axes.plot(*zip(*places, strict=True), marker="o", label=form)
    axes.set(title=title, xlabel="MB of the GGUF", ylabel="bits per byte", xscale="log")
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)


def print_table(model: str, by_text: dict[str, list[Cell]]) -> None:
    print(f"\n{model}\n\n| form | type | MB | {' | '.join(by_text)} | front |")
    print("|---|---|---|" + "---|" * (len(by_text) + 1))
    found = [{(cell["form"], cell["type"]): cell for cell in cells} for cells in by_text.values()]
    fronts = [{(cell["form"], cell["type"]) for cell in front(cells)} for cells in by_text.values()]
    sizes = {key: cell["bytes"] / 1e6 for cells in found for key, cell in cells.items()}
    for key, size in sorted(sizes.items(), key=lambda item: item[1]):
        texts = [
            f"{cells[key]['bits']:.4f} ({against(cells[key], cells[DENSE])})"
            if key in cells
            else ""
            for cells in found
        ]
        count = sum(key in keys for keys in fronts)
        on = {0: "no", 1: "on one text", len(fronts): "yes"}.get(count, f"on {count} texts")
        print(f"| {' | '.join((*key, f'{size:.1f}', *texts, on))} |")


def main() -> None:
    lines = [line for path in sys.argv[1:] for line in Path(path).read_text().splitlines()]
    models: dict[str, dict[str, list[Cell]]] = {}
    for cell in map(json.loads, lines):
        models.setdefault(cell["model"], {}).setdefault(cell["text"], []).append(cell)
    texts = max(map(len, models.values()))
    figure = Figure(figsize=(5 * texts, 4 * len(models)), layout="constrained")
    for row, (model, by_text) in zip(
        figure.subplots(len(models), texts, squeeze=False), models.items(), strict=True
    ):
        print_table(model, by_text)
        for axes, (text, cells) in zip(row, by_text.items(), strict=False):
            draw(axes, cells, f"{model}, {text}")
    figure.savefig(Path(sys.argv[1]).with_name("frontier.png"), dpi=110)


if __name__ == "__main__":
    main()
