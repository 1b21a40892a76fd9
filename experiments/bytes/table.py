"""The table and the plot of `frontier.py`: python experiments/bytes/table.py results.jsonl"""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from torch import tensor

from flap.evaluation.errors import standard_error
from flap.evaluation.perplexity import ratio_values


def against(one: dict, other: dict) -> str:
    """How much more bits the first one takes than the other, in per cent, with its error, paired by windows."""
    values = [ratio_values(tensor(cell["bits_N"]), tensor(cell["bytes_N"])) for cell in (one, other)]
    error = standard_error((values[0] / one["bits"] - values[1] / other["bits"]).tolist()) * one["bits"] / other["bits"]
    return f"{one['bits'] / other['bits'] - 1:+.1%} ± {error:.1%}"


def main() -> None:
    matplotlib.use("Agg")
    results = Path(sys.argv[1])
    cells = [json.loads(line) for line in results.read_text().splitlines()]
    texts = sorted({(cell["model"], cell["text"]) for cell in cells})
    figure = Figure(figsize=(5 * len(texts), 4), layout="constrained")
    for axes, text in zip(figure.subplots(1, len(texts), squeeze=False)[0], texts, strict=True):
        shown = sorted((cell for cell in cells if (cell["model"], cell["text"]) == text), key=lambda one: one["bytes"])
        [dense] = [cell for cell in shown if (cell["form"], cell["type"]) == ("dense", "f16")]
        print(f"\n{' '.join(text)}\n")
        print("| form | type | MB | bits per byte | against dense f16 | front |\n|---|---|---|---|---|---|")
        best, front = float("inf"), []
        for cell in shown:
            on_front = cell["bits"] < best
            best = min(best, cell["bits"])
            front += [cell] * on_front
            print(
                f"| {cell['form']} | {cell['type']} | {cell['bytes'] / 1e6:.1f} | {cell['bits']:.4f} "
                f"| {'' if cell is dense else against(cell, dense)} | {'yes' if on_front else ''} |"
            )
        steps = [(cell["bytes"] / 1e6, cell["bits"]) for cell in front]
        axes.plot(*zip(*steps, strict=True), color="gray", alpha=0.4, linewidth=5, drawstyle="steps-post")
        for form in sorted({cell["form"] for cell in shown}):
            places = [(cell["bytes"] / 1e6, cell["bits"]) for cell in shown if cell["form"] == form]
            axes.plot(*zip(*places, strict=True), marker="o", label=form)
        axes.set(title=" ".join(text), xlabel="MB of the GGUF", ylabel="bits per byte", xscale="log")
    axes.legend()
    figure.savefig(results.with_name("frontier.png"), dpi=130)


if __name__ == "__main__":
    main()
