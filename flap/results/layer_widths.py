"""Plans by layer: the widths of each, and the overlap of what two of them keep."""

from collections.abc import Mapping
from dataclasses import dataclass

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
    finished = {letter: run for letter, run in runs.items() if run.kind == "run"}
    experts = {letter: _experts(run) for letter, run in finished.items()}
    unknown = next(iter(experts.values()), [])  # of a plan or a checkpoint, which have no report
    before = [run.report["layers_before"] for run in finished.values()]
    dense = [[(layer["kv_heads"], layer.get("experts", layer["neurons"])) for layer in layers] for layers in before]
    same = all(_agree(one, before[0]) for one in before) and len({len(plan.layers) for plan in plans.values()}) == 1
    widths = {letter: _widths(plan, experts.get(letter, unknown)) for letter, plan in plans.items()}
    errors = {letter: run.layer_errors for letter, run in runs.items()}
    one_dense = bool(dense) and same and all(one == dense[0] for one in dense)
    return Layers(plans, widths, dense[0] if one_dense else [], same, errors)


def _agree(one: list[dict[str, int]], other: list[dict[str, int]]) -> bool:
    """Return whether layers have the same widths, as far as both are known."""
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a[key] == b[key] for a, b in pairs for key in a.keys() & b.keys())


def _experts(run: RunRecord) -> list[int]:
    """Return the number of experts in each layer: a plan counts the neurons of all, a report those of one."""
    layers = zip(run.plan.layers if run.plan else (), run.report["layers"], run.report["layers_before"], strict=True)
    return [before.get("experts", max(1, len(kept.mlp) // max(1, after["neurons"]))) for kept, after, before in layers]


def _widths(plan: PruningPlan, experts: list[int]) -> Widths:
    """Return the widths of a plan's layers; of neurons that each expert has, those of one."""
    known = experts if len(experts) == len(plan.layers) else [1] * len(plan.layers)
    counts = [1 if unit == "expert" else count for unit, count in zip(plan.mlp_units, known, strict=True)]
    return [(len(kept.attention), len(kept.mlp) // count) for kept, count in zip(plan.layers, counts, strict=True)]


def overlaps(layers: Layers) -> Table:
    """Return the table of widths by layer, with the overlap of each plan with the first one."""
    first, longest = next(iter(layers.plans)), max(map(len, layers.widths.values()))
    columns = [["layer", *map(str, range(longest)), "all"]]
    for kind in (0, 1):
        for letter, plan in layers.plans.items():
            kept, label = [layer[kind] for layer in layers.widths[letter]], _labels(plan)[kind]
            missing = [""] * (longest - len(kept))
            columns.append([f"{letter} {label}", *(f"{width:,}" for width in kept), *missing, f"{sum(kept):,}"])
            if letter != first and layers.same and label == _labels(layers.plans[first])[kind]:
                columns.append([f"overlap with {first}", *_shares(layers.plans[first], plan, kind)])
    heads, *rows = zip(*columns, strict=True)
    note = NOTE if layers.same else OTHERS
    return Table.of(heads, rows, title="Plans by layer", note=note, numeric=True)


def _labels(plan: PruningPlan) -> tuple[str, str]:
    """Return the names of the units of a plan."""
    return "KV heads", "experts" if "expert" in plan.mlp_units else "neurons"


def _shares(one: PruningPlan, other: PruningPlan, kind: int) -> list[str]:
    """Return the overlap in each layer and over all layers: |both| / |at least one|."""
    pairs = [(set(a[kind]), set(b[kind])) for a, b in zip(one.layers, other.layers, strict=True)]
    counts = [(len(a & b), len(a | b)) for a, b in pairs]
    total = sum(both for both, _ in counts), sum(either for _, either in counts)
    return [f"{both / either:.0%}" if either else "" for both, either in (*counts, total)]
