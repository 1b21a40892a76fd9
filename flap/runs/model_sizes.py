"""Parameters, ratios and widths of a model before and after pruning, counted from its tensors for the report."""

from flap.allocation import Budget, PruningPlan, Units
from flap.models import ModelAdapter, Pair, distinct_parameters
from flap.results import Report

RANKS = (2, 4, 8)  # of tensor parallelism


def count_dense(report: Report, adapter: ModelAdapter, budget: Budget) -> None:
    """Set the parameters and widths of the dense model."""
    report.parameters = {"total_before": _total(adapter), "decoder_before": adapter.num_parameters()}
    report.layers_before = [_widths(layer, *(units.count for units in layer)) for layer in budget.layers]


def count_pruned(report: Report, adapter: ModelAdapter, plan: PruningPlan, budget: Budget, masked: bool) -> None:
    """Set the parameters, ratios, targets and widths of the pruned model.

    A masked model has tensors of the dense shapes, so its units are counted from the plan; its total includes zero
    biases that the sliced checkpoint may not have (docs/exports.md).

    Raises:
        RuntimeError: the tensors do not agree with the plan.
    """
    kept, total = budget.kept(plan), _total(adapter)
    if masked:
        total -= budget.total - kept
    else:
        _check_widths(adapter, plan)
    report.parameters |= {"total_after": total, "decoder_after": kept}
    report.ratio = _ratios(report, budget, kept)
    report.target = {bound.target: bound.values(budget.widths(plan)) for bound in budget.bounds}
    for name, size in (("parameters", 1), ("bytes", adapter.model.dtype.itemsize)):
        if name in report.target and not masked:  # counted, where the bound took the most that a checkpoint may need
            report.target[name]["realised"] = size * total
    report.layers = [
        _widths(units, len(layer.attention), len(layer.mlp) // units.mlp.members)
        for units, layer in zip(budget.layers, plan.layers, strict=True)
    ]
    report.tensor_parallel = [ranks for ranks in RANKS if all(_splits(layer, ranks) for layer in report.layers)]


def count_trimmed(report: Report, adapter: ModelAdapter) -> None:
    """Set the parameters of a model whose vocabulary was trimmed; it has been counted as pruned before."""
    total = report.parameters["total_after"] = _total(adapter)
    report.ratio["realised_total"] = 1 - total / report.parameters["total_before"]


def _check_widths(adapter: ModelAdapter, plan: PruningPlan) -> None:
    actual = [tuple(block.num_units for block in adapter.blocks(i)) for i in range(len(adapter.layers))]
    planned = [tuple(map(len, layer)) for layer in plan.layers]
    if actual != planned:
        raise RuntimeError(f"the plan keeps {planned} KV heads and neurons, the layers have {actual}")


def _ratios(report: Report, budget: Budget, kept: int) -> dict[str, float]:
    """Return the realised ratios, with the requested one where no target was asked for, and what rounding changed."""
    decoder, parameters = 1 - kept / budget.total, report.parameters
    ratios = {"realised_decoder": decoder, "realised_total": 1 - parameters["total_after"] / parameters["total_before"]}
    if budget.bounds:
        return ratios
    structure = report.config["structure"]
    rounded = structure.get("round_to") or structure.get("multiple_of_heads", 1) > 1
    return {"requested": budget.ratio, **ratios} | ({"rounding_cost": decoder - budget.ratio} if rounded else {})


def _splits(layer: dict[str, int], ranks: int) -> bool:
    """Return whether heads, query and KV, and neurons of a layer are multiples of that number."""
    return layer["kv_heads"] % ranks == layer["neurons"] % ranks == 0


def _total(adapter: ModelAdapter) -> int:
    return sum(parameter.numel() for parameter in distinct_parameters(adapter.model))


def _widths(units: Pair[Units], kv_heads: int, mlp: int) -> dict[str, int]:
    """Return the widths of a layer that keeps this many KV heads, and neurons or whole experts (mlp)."""
    heads = {"query_heads": kv_heads * units.attention.queries, "kv_heads": kv_heads}
    # where the units are no neurons, but have some each, these stay
    return heads | {"neurons": units.mlp.channels, f"{units.mlp.unit}s": mlp}
