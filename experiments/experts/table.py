"""The tables of a sweep over metrics for experts: `python experiments/experts/table.py SWEEP [SWEEP …]`.

Means over seeds. A difference is paired by window and seed; its error is the root of two squared errors: over windows,
of the means of seeds, and over seeds, of the means of windows.
"""

import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from flap.results.run_folder import read_run

Cell = tuple[float, str, str, str]  # ratio, structure, compensation, metric
BASELINE = "EAN"


def main(sweeps: list[Path]) -> None:
    runs = [read_run(status.parent) for sweep in sweeps for status in sorted(sweep.glob("*/status.json"))]
    found: dict[Cell, dict[int, dict[str, Tensor]]] = defaultdict(dict)
    for run in runs:
        if run.state == "finished":
            cell = (run.ratio, run.structure, run.config["compensation"], run.metric)
            found[cell][run.seed] = {name: in_nats(name, torch.tensor(v)) for (name, _), v in run.documents.items()}
    print(f"{sum(map(len, found.values()))} finished of {len(runs)} runs\n")
    names = sorted(
        {name for seeds in found.values() for one in seeds.values() for name in one if "agreement" not in name}
    )
    head = ["ratio", "structure", "in place", "metric", *names]
    print(row(head) + "\n" + row(["---"] * len(head)))
    for cell, seeds in sorted(found.items()):
        print(row([*map(str, cell), *(value(name, stacked(seeds, name)) for name in names)]))
    for title, other in (("less " + BASELINE, against_baseline), ("constant less none", against_none)):
        print(f"\nDifferences in nats a token, {title}\n\n" + row(head) + "\n" + row(["---"] * len(head)))
        for cell, seeds in sorted(found.items()):
            if (pair := found.get(other(cell))) and other(cell) != cell:
                both = sorted(seeds.keys() & pair.keys())
                print(row([*map(str, cell), *(difference(seeds, pair, both, name) for name in names)]))


def against_baseline(cell: Cell) -> Cell:
    return (*cell[:3], BASELINE)


def against_none(cell: Cell) -> Cell:
    return (*cell[:2], "none", cell[3]) if cell[2] == "constant" else cell


def in_nats(name: str, value_N: Tensor) -> Tensor:
    """Return the values of windows in nats a token; those of a perplexity p are p · (1 + loss - mean loss)."""
    if "perplexity" not in name:
        return value_N
    return value_N / value_N.mean() - 1 + value_N.mean().log()


def stacked(seeds: dict[int, dict[str, Tensor]], name: str) -> Tensor:
    """Return the values of a number by seed and window, value_SN."""
    return torch.stack([seeds[seed][name] for seed in sorted(seeds)])


def value(name: str, nats_SN: Tensor) -> str:
    mean = nats_SN.mean().item()
    return f"{torch.tensor(mean).exp():.1f}" if "perplexity" in name else f"{mean:.3f}"


def difference(
    one: dict[int, dict[str, Tensor]], other: dict[int, dict[str, Tensor]], seeds: list[int], name: str
) -> str:
    """Return the mean of one - other ± its error."""
    difference_SN = torch.stack([one[seed][name] - other[seed][name] for seed in seeds])
    of_windows, of_seeds = (standard_error(difference_SN.mean(dim=axis)) for axis in (0, 1))
    return f"{difference_SN.mean():+.3f} ± {(of_windows**2 + of_seeds**2) ** 0.5:.3f}"


def standard_error(value_N: Tensor) -> float:
    return 0.0 if len(value_N) < 2 else (value_N.std() / len(value_N) ** 0.5).item()


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main([Path(one) for one in sys.argv[1:]])
