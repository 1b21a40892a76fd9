"""Plans by layer: the widths of each, and the overlap of what two of them keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from flap.allocation import PruningPlan
from flap.models import Pair
from flap.results.run_folder import RunRecord
from flap.results.tables import Table, texts

Widths = list[Pair[int]]
NOTE = (
    "KV heads and neurons that each layer keeps. Overlap: units that both keep, as a share of those that at least one "
    "of them keeps; 100 % = the same units."
)
OTHERS = (
    "KV heads and neurons that each layer keeps. The dense models have other widths, so that units have no overlap."
)


@dataclass(frozen=True)
class Layers:
    """The widths of every layer: of each run, and of the dense model if all runs agree on it.

    same: whether units of the same number are the same units, as far as is known. errors: of each run those of the
    hidden states after each layer; empty if they were not measured.
    """

    widths: list[Widths]
    dense: Widths
    same: bool
    errors: list[list[float | None]]


def by_layer(runs: Sequence[RunRecord], plans: Sequence[PruningPlan]) -> Layers:
    """Return the widths of the runs' layers."""
    known = [(run.report["layers"], plan) for run, plan in zip(runs, plans, strict=True) if run.kind == "run"]
    experts = _experts(*known[0]) if known else []
    dense = [
        [Pair(layer["kv_heads"], layer.get("experts", layer["neurons"])) for layer in run.report["layers_before"]]
        for run in runs
        if run.kind == "run"
    ]
    same = all(one == dense[0] for one in dense) and len({len(plan.layers) for plan in plans}) == 1
    widths = [_widths(plan, experts) for plan in plans]
    return Layers(widths, dense[0] if dense and same else [], same, [run.layer_errors for run in runs])


def _experts(layers: list[dict[str, int]], plan: PruningPlan) -> list[int]:
    """Return the number of experts in each layer: a plan counts the neurons of all, a report those of one."""
    pairs = zip(plan.layers, layers, strict=True)
    return [1 if "experts" in layer else max(1, len(kept.mlp) // max(1, layer["neurons"])) for kept, layer in pairs]


def _widths(plan: PruningPlan, experts: list[int]) -> Widths:
    counts = experts if len(experts) == len(plan.layers) else [1] * len(plan.layers)
    return [Pair(len(kept.attention), len(kept.mlp) // count) for kept, count in zip(plan.layers, counts, strict=True)]


def overlaps(plans: Mapping[str, PruningPlan], layers: Layers) -> Table:
    """Return the table of widths by layer, with the overlap of each plan with the first one."""
    (letter, first), *_ = plans.items()
    columns = [["layer", *map(str, range(max(map(len, layers.widths)))), "all"]]
    for kind, label in enumerate(("KV heads", "neurons")):
        for (name, plan), widths in zip(plans.items(), layers.widths, strict=True):
            kept = [layer[kind] for layer in widths]
            columns.append([f"{name} {label}", *(f"{width:,}" for width in kept), f"{sum(kept):,}"])
            if plan is not first and layers.same:
                columns.append([f"overlap with {letter}", *_shares(first, plan, kind)])
    heads, *rows = zip_longest(*columns, fillvalue="")
    return Table(heads, texts(rows), "Plans by layer", NOTE if layers.same else OTHERS, numeric=True)


def _shares(one: PruningPlan, other: PruningPlan, kind: int) -> list[str]:
    """Return the overlap in each layer and over all layers: |both| / |at least one|."""
    pairs = [(set(a[kind]), set(b[kind])) for a, b in zip(one.layers, other.layers, strict=True)]
    counts = [(len(a & b), len(a | b)) for a, b in pairs]
    total = sum(both for both, _ in counts), sum(either for _, either in counts)
    return [f"{both / either:.0%}" if either else "" for both, either in (*counts, total)]
