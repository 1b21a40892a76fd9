"""How near a target in time comes to what is asked: the packaged model, on the device at hand.

    python benchmarks/latency.py --shares 0.8 0.6 0.5 --prefill 64 --decode 16 --repeats 5

For each share of the dense model's latency a plan is made as `target.latency_ms=` makes it, by magnitudes, and requests
of its widths are timed in turns with the dense model. Printed: asked, by the table of layer times, and measured, in
milliseconds; the measured one is the median of its ratios to the dense model, times the dense latency of the table.
`--clock cpu` counts the seconds that the process itself had, where others share the machine (with OMP_NUM_THREADS=1).
"""

import argparse
import statistics
import time
from functools import partial

import torch

from flap.allocation import ALAM, price
from flap.config import ModelConfig, TargetConfig
from flap.evaluation import Efficiency
from flap.importance import Magnitude, score_layers
from flap.models import PlacedModel, find_model
from flap.runs.layer_times import LayerTimes, narrowed
from flap.storage import Cache, cache_root

MODEL = ModelConfig(name="smollm2-135m", path="HuggingFaceTB/SmolLM2-135M-Instruct")


def row(model: PlacedModel, times: LayerTimes, table: list, share: float) -> str:
    """Return the line of one share: asked, by the table, measured."""
    asked = share * table[0][-1][0]
    budget = times.budget.within(times.bounds(TargetConfig(latency_ms=asked), table))
    times.structure.check(budget)
    scores = score_layers(Magnitude(), model.adapter, ((i, None) for i in range(len(budget.layers))))
    budget, plan = times.settle(model, budget, partial(times.structure.allocate, scores))
    widths = budget.widths(plan)
    pruned, [bound] = narrowed(model.model, budget, widths), budget.bounds
    turns = [
        [times.request.milliseconds(one)[0] for one in (model.model, pruned)] for _ in range(1 + times.request.repeats)
    ]
    measured = table[0][-1][0] * statistics.median(pruned_ms / dense_ms for dense_ms, pruned_ms in turns[1:])
    removed = 1 - budget.kept(plan) / budget.total
    numbers = f"{asked:.0f} | {bound.cost(widths):.0f} | {measured:.0f} | {measured / asked - 1:+.1%}"
    return f"{share:.2f} | {numbers} | {removed:.1%}"


def main() -> None:
    """Time the layers, then a plan for each share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.8, 0.6, 0.5])
    parser.add_argument("--prefill", type=int, default=64)
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    if options.clock == "cpu":
        time.perf_counter = time.process_time
    request = Efficiency(prefill_len=options.prefill, decode_len=options.decode, repeats=options.repeats)
    model = find_model(MODEL, cache_root(None), False).open()
    times = LayerTimes(price(model.adapter, 0.0), request, ALAM(), Cache(cache_root(None), enabled=False), {})
    table = times.measure(model)
    for group, ms in zip(times.groups, table, strict=True):
        print(
            group.block,
            dict(zip(group.widths(times.structure), ([round(one) for one in both] for both in ms), strict=True)),
        )
    print(f"{model.device}, {torch.get_num_threads()} threads; dense {table[0][-1][0]:.0f} ms", flush=True)
    print("share | asked | by the table | measured | off by | removed")
    for share in options.shares:
        print(row(model, times, table, share), flush=True)


if __name__ == "__main__":
    main()
