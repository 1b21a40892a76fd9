"""Plans by layer: the widths of each, and the overlap of what two of them keep."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

from flap.allocation import PruningPlan
from flap.results.run_folder import RunRecord
from flap.results.tables import Table

Widths = list[tuple[int, int]]  # KV heads and neurons of each layer
NOTE = (
    "KV heads and neurons that each layer keeps. Overlap: units that both keep, as a share of those that at least one "
    "of them keeps; 100 % = the same units."
)
OTHERS = (
    "KV heads and neurons that each layer keeps. The dense models have other widths, so that units have no overlap."
)


@dataclass(frozen=True)
class Layers:
    """The plans of runs by letter, and their layers."""

    plans: dict[str, PruningPlan]
    widths: dict[str, Widths]
    dense: Widths  # of the dense model; empty if the runs do not agree on it
    same: bool  # whether units of the same number are the same units, as far as is known
    errors: dict[str, list[float | None]]  # of the hidden states after each layer; empty if not measured


def by_layer(runs: Mapping[str, RunRecord]) -> Layers:
    """Return the plans and widths of the runs' layers."""
    plans = {letter: run.plan for letter, run in runs.items() if run.plan}
    finished = [run for run in runs.values() if run.kind == "run"]
    experts = _experts(finished[0]) if finished else []
    dense = [
        [(layer["kv_heads"], layer.get("experts", layer["neurons"])) for layer in run.report["layers_before"]]
        for run in finished
    ]
    same = all(one == dense[0] for one in dense) and len({len(plan.layers) for plan in plans.values()}) == 1
    widths = {letter: _widths(plan, experts) for letter, plan in plans.items()}
    errors = {letter: run.layer_errors for letter, run in runs.items()}
    return Layers(plans, widths, dense[0] if dense and same else [], same, errors)


def _experts(run: RunRecord) -> list[int]:
    """Return the number of experts in each layer: a plan counts the neurons of all, a report those of one."""
    pairs = zip(run.plan.layers if run.plan else (), run.report["layers"], strict=True)
    return [1 if "experts" in layer else max(1, len(kept.mlp) // max(1, layer["neurons"])) for kept, layer in pairs]


def _widths(plan: PruningPlan, experts: list[int]) -> Widths:
    counts = experts if len(experts) == len(plan.layers) else [1] * len(plan.layers)
    return [(len(kept.attention), len(kept.mlp) // count) for kept, count in zip(plan.layers, counts, strict=True)]


def overlaps(layers: Layers) -> Table:
    """Return the table of widths by layer, with the overlap of each plan with the first one."""
    first = next(iter(layers.plans))
    columns = [["layer", *map(str, range(max(map(len, layers.widths.values())))), "all"]]
    for kind, label in enumerate(("KV heads", "neurons")):
        for letter, plan in layers.plans.items():
            kept = [layer[kind] for layer in layers.widths[letter]]
            columns.append([f"{letter} {label}", *(f"{width:,}" for width in kept), f"{sum(kept):,}"])
            if letter != first and layers.same:
                columns.append([f"overlap with {first}", *_shares(layers.plans[first], plan, kind)])
    heads, *rows = zip_longest(*columns, fillvalue="")
    note = NOTE if layers.same else OTHERS
    return Table.of(heads, rows, title="Plans by layer", note=note, numeric=True)


def _shares(one: PruningPlan, other: PruningPlan, kind: int) -> list[str]:
    """Return the overlap in each layer and over all layers: |both| / |at least one|."""
    pairs = [(set(a[kind]), set(b[kind])) for a, b in zip(one.layers, other.layers, strict=True)]
    counts = [(len(a & b), len(a | b)) for a, b in pairs]
    total = sum(both for both, _ in counts), sum(either for _, either in counts)
    return [f"{both / either:.0%}" if either else "" for both, either in (*counts, total)]
