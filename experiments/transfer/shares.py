"""Print the loss of flap_plus, divided by the loss of FLAP.

    python experiments/transfer/shares.py SWEEP ...

SWEEP is the folder of a sweep, such as multirun_outputs/TIME, or any other folder that contains the
folders of runs. The script compares the runs of all given folders.

The loss of a pruned model is ln(its perplexity / the dense model's perplexity). The *share* is the
loss of a run of `method=flap_plus`, divided by the loss of the run of `method=flap` (FLAP) with the
same ratio and seed. In the rows *trained*, the share is the loss of flap_plus after training
(`recover`), divided by the loss of FLAP. In the rows *left*, the share is the loss after training,
divided by the loss before training.

The number after ± is a standard error. In the first table, which has a row for each seed, it is
computed over the windows of the text, from the losses of the two compared models in each window. In
the second table, which has means over the seeds, it is computed over the seeds. Both tables are
Markdown.
"""

import gzip
import json
import math
import statistics
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path

Losses = list[float]  # negative log-likelihood per token of each window, in nats


def losses(run: Path, which: str) -> dict[str, Losses]:
    """Return a dict from the name of each perplexity to the `Losses` of its windows.

    run: the folder of a run.
    which: the model: "dense", "pruned", or "trained" (after pruning and training).
    """
    entries = json.loads((run / "evaluation.json").read_text())
    documents = json.loads(gzip.decompress((run / "documents.json.gz").read_bytes()))
    found = {}
    for entry, of_names in documents.items():
        key = entries[entry]["key"]
        if which == ("trained" if "recover" in key else "pruned" if "plan" in key else "dense"):
            for name, values in of_names.items():
                # Reports store p · (1 + loss - mean loss) for each window, where p is the
                # perplexity.
                if "perplexity@" in name:
                    number = entries[entry]["numbers"][name]
                    found[name] = [math.log(number) + value / number - 1 for value in values]
    return found


def share(dense: Losses, baseline: Losses, method: Losses) -> tuple[float, float]:
    """Return the loss of `method` divided by the loss of `baseline`, and the standard error.

    A loss is the mean difference from `dense` over the windows. The standard error of the quotient
    is computed over the windows, by the delta method.
    """
    lost = [b - d for d, b in zip(dense, baseline, strict=True)]
    left = [m - d for d, m in zip(dense, method, strict=True)]
    ratio = sum(left) / sum(lost)
    rest = [a - ratio * b for a, b in zip(left, lost, strict=True)]
    return ratio, statistics.stdev(rest) / math.sqrt(len(rest)) / abs(statistics.mean(lost))


def main(sweeps: list[Path]) -> None:
    runs = defaultdict(dict)
    for report in sorted(path for sweep in sweeps for path in sweep.glob("**/report.json")):
        config = json.loads(report.read_text())["config"]
        runs[config["ratio"], config["seed"]][config["method"]] = report.parent
    shares = defaultdict(list)
    print(
        "| ratio | seed | text | dense | baseline | method | of | share "
        "|\n|---|---|---|---|---|---|---|---|"
    )
    for (ratio, seed), by_method in sorted(runs.items()):
        if not {"flap", "flap_plus"} <= set(by_method):
            continue
        flap = by_method["flap"]
        plus = by_method["flap_plus"]
        dense, baseline = (losses(flap, which) for which in ("dense", "pruned"))
        pruned, trained = (losses(plus, which) for which in ("pruned", "trained"))
        compared = {
            "flap_plus": (baseline, pruned),
            "trained": (baseline, trained),
            "left": (pruned, trained),
        }
        for name, (of, (before, after)) in product(dense, compared.items()):
            if name not in after:
                continue
            three = dense[name], before[name], after[name]
            value, error = share(*three)
            shares[ratio, of, name].append(value)
            means = " | ".join(f"{math.exp(statistics.mean(one)):.1f}" for one in three)
            print(f"| {ratio} | {seed} | {name} | {means} | {of} | {value:.2f} ± {error:.2f} |")
    print("\n| ratio | of | text | seeds | share |\n|---|---|---|---|---|")
    for (ratio, of, name), values in sorted(shares.items()):
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        print(
            f"| {ratio} | {of} | {name} | {len(values)} | {statistics.mean(values):.2f} ± "
            f"{error:.2f} |"
        )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main([Path(one) for one in sys.argv[1:]])
