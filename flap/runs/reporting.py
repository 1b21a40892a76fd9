"""The report of a run, made once from what came out of its stages, and the files that hold it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flap.checkpoint.card import write_card
from flap.config import one_line
from flap.data import SELF
from flap.evaluation import Measurement
from flap.evaluation.base import Numbers
from flap.evaluation.errors import paired, with_averages
from flap.method.allocation import Budget, PruningPlan, Units
from flap.models import ModelAdapter, Pair, PlacedModel, base_facts, distinct_parameters
from flap.results import Report, described, device_name, markdown, model_card
from flap.results.report import peak_memory
from flap.runs.method import Pruned
from flap.runs.run import Run
from flap.runs.stages import Written
from flap.runs.texts import begins_with_bos, domains
from flap.storage import write_text
from flap.storage.ranks import by_first

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Outcome:
    """What came out of the stages of a run."""

    device: str
    device_map: Mapping[str, str]
    parameters_before: int
    dense: Measurement
    idle_after: int = 0  # parameters of experts that a token is not sent to
    passes: int = 0  # over the weights, from calibration to compression
    parameters_after: int = 0
    compressed: Measurement | None = None  # of a model that was then trained
    recovery: dict[str, Any] = field(default_factory=dict)
    measured: Measurement = field(default_factory=Measurement)  # of the pruned model
    both: tuple[Numbers, Numbers] = field(
        default_factory=lambda: ({}, {})
    )  # measured in turns: dense, pruned
    own_text: Written = field(default_factory=dict)
    peak: dict[str, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, model: PlacedModel, dense: Measurement) -> "Outcome":
        """Return what is known of the dense model."""
        device = device_name(model.device)
        before = count_parameters(model.adapter)
        return cls(
            device=device, device_map=model.device_map, parameters_before=before, dense=dense
        )


def count_parameters(adapter: ModelAdapter) -> int:
    """Return the parameters of a model, tied tensors once."""
    return sum(parameter.numel() for parameter in distinct_parameters(adapter.model))


def report_of(run: Run, pruned: Pruned, out: Outcome) -> Report:
    """Return the report of a run."""
    config = described(run.config)
    numbers = numbers_of(run, out)
    recovery = out.recovery
    if out.compressed is not None:
        recovery = recovery | _noise(out.compressed, out.measured, numbers["averages"])
    repairs = {block: fit._asdict() for block, fit in pruned.fits.items()}
    told = _circumstances(run, out) | _sizes(run, config, pruned, out) | numbers
    return Report(config, recovery=recovery, repairs=repairs, plan=pruned.plan, **told)


def _circumstances(run: Run, out: Outcome) -> dict[str, Any]:
    """Return what the model was pruned and measured on, and what that took."""
    return {
        "device": out.device, "dtype": str(run.source.dtype),
        "processes": list(run.processes), "device_map": dict(out.device_map), "sources": run.sources,
        "own_text": out.own_text, "warnings": run.warnings, "weight_passes": out.passes, "inputs": run.inputs,
        "seconds": run.seconds | {"total": sum(run.seconds.values())}, "peak_memory_bytes": peak_memory(out.peak),
        "statistics_cache": run.cache_states.get("calibrate", "off"),
        "checkpoint": str(run.target) if run.config.checkpoint.save else None,
    }  # fmt: skip


def _sizes(run: Run, config: Mapping[str, Any], pruned: Pruned, out: Outcome) -> dict[str, Any]:
    """Return parameters, ratios, targets and widths of both models."""
    budget = run.budget
    before = out.parameters_before
    kept = run.budget.kept(pruned.plan)
    # the total of a masked model has zero biases that a sliced checkpoint may not have (docs/exports.md)
    after = out.parameters_after - (budget.total - kept) * run.config.mask_only
    layers = [
        _widths(units, len(layer.attention), len(layer.mlp) // units.mlp.members)
        for units, layer in zip(budget.layers, pruned.plan.layers, strict=True)
    ]
    decoder = {"decoder_before": budget.total, "decoder_after": kept}
    return {
        "parameters": {"total_before": before, "total_after": after, **decoder},
        "vocabulary": run.trimmed.facts if run.trimmed else {},
        "ratio": _ratios(config, budget, kept, 1 - after / before),
        "target": _targets(run, pruned.plan, after, out.idle_after),
        "layers": layers,
        "layers_before": [
            _widths(units, units.attention.count, units.mlp.count) for units in budget.layers
        ],
        "loads_with": pruned.loads_with,
    }


def numbers_of(run: Run, out: Outcome) -> dict[str, Any]:
    """Return what was measured, with the errors of the differences."""
    dense = out.dense
    last = out.measured
    averages = run.suite.averages(out.measured.numbers)
    evaluation = {"dense": dense.numbers | out.both[0], "pruned": last.numbers | out.both[1]}
    return {
        "evaluation": evaluation | ({"compressed": out.compressed.numbers} if out.compressed else {}),
        "better": dense.better | last.better, "averages": averages, **_noise(dense, last, averages),
        "bos": begins_with_bos(run.texts, run.suite.tasks), "domains": domains(run.texts, run.suite.tasks),
    }  # fmt: skip


def with_numbers(report: Report, run: Run, out: Outcome) -> Report:
    """Return a report with more numbers; seconds and cache states are those of the run that has pruned the model."""
    new = numbers_of(run, out)
    new["evaluation"] = {
        which: report.evaluation.get(which, {}) | more for which, more in new["evaluation"].items()
    }
    return replace(
        report,
        config=report.config | {"eval": {**report.config["eval"], **run.config.eval}},
        sources=report.sources | run.sources,
        inputs=report.inputs | run.inputs,
        warnings=list(dict.fromkeys([*report.warnings, *run.warnings])),
        **{name: getattr(report, name) | values for name, values in new.items()},
    )


@by_first
def write_files(run: Run, report: Report, plan: PruningPlan) -> None:
    """Write report, plan, own texts and a picture into the folder of a run, if it has one, and the model card."""
    if (run_dir := run.run_dir) is not None:
        run_dir.mkdir(parents=True, exist_ok=True)
        for use, windows in run.texts.items():
            for p, text in enumerate(windows.texts):
                if text is not None and (text.name == SELF or p in windows.asked):
                    name = "" if text.name == SELF else f"_{Path(windows.name(p)).stem}"
                    write_text(run_dir / f"{SELF}_{use}{name}.jsonl", text.jsonl)
        plan.save(run_dir / "plan.json")
        report.save(run_dir / "report.json")
        write_text(run_dir / "report.md", markdown(report))
        picture = run_dir / "layers.png"
        try:
            from flap.results.layer_plots import (
                draw_layers,
            )  # here, so that no refusal waits for matplotlib

            draw_layers(report, picture)
        except Exception as error:  # no picture is worth the report of a run
            picture.unlink(missing_ok=True)
            log.warning("%s: cannot be drawn (%s)", picture, one_line(error))
    if run.config.checkpoint.save:
        path = run.config.model.path
        base = base_facts(
            run.source.path if path.endswith(".gguf") else path
        )  # a GGUF became a folder
        write_card(run.target, model_card(report, run.target, base))


def _noise(
    before: Measurement, after: Measurement, averages: dict[str, list[str]]
) -> dict[str, dict[str, float]]:
    """Return the standard errors and the p-values of the differences of two models, paired by document."""
    found = with_averages(paired(before.documents, after.documents), averages)
    errors, p_values = (
        {name: getattr(one, kind) for name, one in found.items()} for kind in ("error", "p_value")
    )
    return {"difference_stderr": errors, "difference_p_value": p_values}


def _ratios(
    config: Mapping[str, Any], budget: Budget, kept: int, of_all: float
) -> dict[str, float]:
    """Return the realised ratios, with the requested one where no target was asked for, and what rounding changed."""
    decoder = 1 - kept / budget.total
    ratios = {"realised_decoder": decoder, "realised_total": of_all}
    if budget.bounds or config["plan"] is not None:
        return ratios
    structure = config["structure"]
    rounded = structure.get("round_to") or structure.get("multiple_of_heads", 1) > 1
    return {"requested": budget.ratio, **ratios} | (
        {"rounding_cost": decoder - budget.ratio} if rounded else {}
    )


def _targets(
    run: Run, plan: PruningPlan, parameters: int, idle: int
) -> dict[str, dict[str, float]]:
    """Return what was asked for and reached; parameters are counted, where a bound has the most there may be."""
    widths = run.budget.widths(plan)
    reached = {bound.target: bound.values(widths) for bound in run.budget.bounds}
    for bound in run.budget.bounds:
        if bound.size and not run.config.mask_only:
            counted = parameters - idle * (bound.target == "active_parameters")
            reached[bound.target]["realised"] = bound.cost_of(counted, widths)
    return reached


def _widths(units: Pair[Units], kv_heads: int, mlp: int) -> dict[str, int]:
    """Return the widths of a layer that keeps this many KV heads, and neurons or whole experts (mlp)."""
    heads = {"query_heads": kv_heads * units.attention.queries, "kv_heads": kv_heads}
    # where the units are no neurons, but have some each, these stay
    return heads | {"neurons": units.mlp.channels, f"{units.mlp.unit}s": mlp}
