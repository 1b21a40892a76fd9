"""Print tables of sweeps that compare metrics for whole experts.

    python experiments/experts/table.py SWEEP ...

SWEEP is the folder of a sweep, such as multirun_outputs/TIME. The tables show the runs of all given
sweeps together.

The first table shows measured results, such as KL and perplexity, as means over the seeds. The
second table shows differences: the result of a metric minus the result of the metric EAN. A
difference is computed for each window and each seed, and then averaged.

The number after ± is computed from two standard errors: it is the square root of the sum of their
squares. For the standard error over windows, the differences in each window are first averaged over
the seeds. For the standard error over seeds, the differences with each seed are first averaged over
the windows.
"""

import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from flap.results.run_folder import read_run

Cell = tuple[float, str, str]  # ratio, structure and metric, shared by runs with different seeds
# For each seed and each name of a measured result: the result of each window, in nats.
Seeds = dict[int, dict[str, Tensor]]
BASELINE = "EAN"


def main(sweeps: list[Path]) -> None:
    runs = [
        read_run(status.parent)
        for sweep in sweeps
        for status in sorted(sweep.glob("*/status.json"))
    ]
    cells: dict[Cell, Seeds] = defaultdict(dict)
    for run in runs:
        if run.state == "finished":
            values = {
                name: in_nats(name, torch.tensor(values))
                for (name, _), values in run.documents.items()
            }
            cells[run.ratio, run.structure, run.metric][run.seed] = values
    print(f"{sum(map(len, cells.values()))} finished of {len(runs)} runs\n")
    names = sorted(
        {name for seeds in cells.values() for values in seeds.values() for name in values}
    )
    names = [name for name in names if "agreement" not in name]
    head = ["ratio", "structure", "metric", *names]
    print(row(head) + "\n" + row(["---"] * len(head)))
    for cell, seeds in sorted(cells.items()):
        print(row([*map(str, cell), *(value(name, stacked(seeds, name)) for name in names)]))
    print(
        f"\nDifferences in nats a token, less {BASELINE}\n\n"
        + row(head)
        + "\n"
        + row(["---"] * len(head))
    )
    for cell, seeds in sorted(cells.items()):
        baseline = (*cell[:2], BASELINE)
        if cell != baseline and baseline in cells:
            print(
                row(
                    [*map(str, cell), *(difference(seeds, cells[baseline], name) for name in names)]
                )
            )


def in_nats(name: str, value_N: Tensor) -> Tensor:
    """Return the result of each window in nats per token.

    Perplexities are converted to losses, and divergences stay unchanged.

    name: the name of the measured quantity, which contains "perplexity" for perplexities. For a
        perplexity p, flap has stored p · (1 + loss - mean loss) for each window, from which this
        function computes the loss.
    """
    if "perplexity" not in name:
        return value_N
    return value_N / value_N.mean() - 1 + value_N.mean().log()


def stacked(seeds: Seeds, name: str) -> Tensor:
    """Return a measured result, such as KL, as value_SN: for each of S seeds and N windows."""
    return torch.stack([seeds[seed][name] for seed in sorted(seeds)])


def value(name: str, nats_SN: Tensor) -> str:
    mean = nats_SN.mean()
    return f"{mean.exp():.1f}" if "perplexity" in name else f"{mean:.3f}"


def difference(of_cell: Seeds, of_baseline: Seeds, name: str) -> str:
    """Return "mean ± error" of `of_cell` - `of_baseline`, over the seeds that both contain."""
    seeds = sorted(of_cell.keys() & of_baseline.keys())
    difference_SN = torch.stack([of_cell[seed][name] - of_baseline[seed][name] for seed in seeds])
    of_windows, of_seeds = (standard_error(difference_SN.mean(dim=axis)) for axis in (0, 1))
    return f"{difference_SN.mean():+.3f} ± {(of_windows**2 + of_seeds**2) ** 0.5:.3f}"


def standard_error(value_N: Tensor) -> float:
    return 0.0 if len(value_N) < 2 else (value_N.std() / len(value_N) ** 0.5).item()


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main([Path(sweep) for sweep in sys.argv[1:]])
