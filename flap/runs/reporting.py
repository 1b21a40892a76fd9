"""The report of a run, built from its artefacts, and the files that hold it."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flap.checkpoint.card import write_card
from flap.config import build, one_line, redact
from flap.evaluation import Evaluator, Measurement
from flap.evaluation.base import Numbers
from flap.evaluation.errors import paired, with_averages
from flap.evaluation.result_files import Entry
from flap.method.allocation import Budget, PruningPlan, Units
from flap.models import Pair, base_facts
from flap.results import Report, markdown, model_card
from flap.runs import keys
from flap.runs.memory import seconds_by_stage, states
from flap.runs.pruned import Making, Pruned
from flap.runs.run import Run
from flap.runs.texts import own_text_files
from flap.runtime.ranks import by_first, on_first
from flap.storage import VERSION, Artefact, Key, Label, read_json, to_json, write_text

log = logging.getLogger(__name__)

Averages = dict[str, list[str]]


@dataclass
class Measured:
    """What a run has measured, in this start and in earlier ones."""

    dense: Measurement = field(default_factory=Measurement)
    compressed: Measurement = field(default_factory=Measurement)  # before training, if there is any
    pruned: Measurement = field(default_factory=Measurement)
    both: tuple[Numbers, Numbers] = field(default_factory=lambda: ({}, {}))  # side by side
    averages: Averages = field(default_factory=dict)  # over tasks, with the numbers averaged
    about: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # of each task, by its name
    labels: list[Label] = field(default_factory=list)


def report_of(run: Run, pruned: Artefact[Pruned], dense_run: Run) -> Report:
    """Build the report of a run from its artefacts. dense_run: the run before its vocabulary was trimmed."""
    plan = pruned.value.plan
    making = pruned.value.making
    measured = measured_of(run, plan, dense_run)
    numbers = _numbers(run, measured, making)

    evaluators = {about["evaluator"]: about["options"] for about in measured.about.values()}
    config = {**making.config, "eval": evaluators}
    recovery = dict(making.recovery)
    if recovery:
        recovery |= _noise(measured.compressed, measured.pruned, measured.averages)

    tasks = {name: about for name, about in measured.about.items() if "source" in about}
    return Report(
        config,
        recovery=recovery,
        repairs=making.fits,
        plan=plan,
        device=making.device,
        dtype=making.dtype,
        device_map=making.device_map,
        processes=making.processes,
        sources=making.sources | {name: about["source"] for name, about in tasks.items()},
        inputs=making.inputs | {name: about["input"] for name, about in tasks.items()},
        own_text=making.own_text,
        warnings=making.warnings,
        weight_passes=making.weight_passes,
        seconds=seconds_by_stage([pruned.label, *measured.labels]),
        peak_memory_bytes=making.peak_memory_bytes,
        statistics_cache=next(iter(states(pruned.label, "calibrate")), "off"),
        checkpoint=making.checkpoint,
        loads_with=making.loads_with,
        vocabulary=making.vocabulary,
        versions=making.versions,
        git=making.git,
        **_sizes(run, config, plan, making),
        **numbers,
    )


def measured_of(run: Run, plan: PruningPlan, dense_run: Run) -> Measured:
    """Return everything that the run's results hold of this dense and this pruned model.

    A task counts if the pruned model has its numbers. Those of the other models were measured in
    the same way: with the same documents, options and batch size.
    """
    entries = on_first(lambda: list(run.results.entries().values()))
    pruned = {
        entry.key["task"]: entry for entry in _entries_of(entries, run, keys.pruned(run, plan))
    }
    dense = _entries_of(entries, dense_run, keys.dense(dense_run))

    measured = Measured()
    measured.dense = _collect(_measured_alike(dense, pruned), measured)
    if run.choices.recovery is not None:
        compressed = _entries_of(entries, run, keys.compressed(run, plan))
        measured.compressed = _collect(_measured_alike(compressed, pruned), measured)
    measured.pruned = _collect(pruned.values(), measured)

    for entry in _entries_of(entries, run, keys.timed(run, plan)):
        if not isinstance(entry.value, Measurement):
            for numbers, more in zip(measured.both, entry.value, strict=True):
                numbers |= more
            _note(entry, measured)
    return measured


def _measured_alike(entries: Iterable[Entry], pruned: Mapping[str, Entry]) -> list[Entry]:
    """Return the entries of a model that were measured as those of the pruned model, by task.

    A start that was killed may have measured only the dense model in another way. If the vocabulary
    was trimmed, the tokens of a text differ, and equal options show that both models were measured
    alike.
    """
    found = []
    for entry in entries:
        other = pruned.get(entry.key["task"])
        if other is None:
            continue
        same_data = plain(entry.key["data"]) == plain(other.key["data"])
        if same_data or plain(entry.about["options"]) == plain(other.about["options"]):
            found.append(entry)
    return found


def _collect(entries: Iterable[Entry], measured: Measured) -> Measurement:
    """Return the numbers of all tasks of a model, with averages over the tasks of each evaluator."""
    by_evaluator: dict[str, Measurement] = {}
    options: dict[str, Any] = {}
    for entry in entries:
        if isinstance(entry.value, Measurement):
            _note(entry, measured)
            name = entry.about["evaluator"]
            by_evaluator[name] = by_evaluator.get(name, Measurement()) | entry.value
            options[name] = entry.about["options"]

    total = Measurement()
    for name, part in by_evaluator.items():
        evaluator = build(f"eval.{name}", options[name], Evaluator)
        total |= part | evaluator.summary(part)
        measured.averages |= evaluator.averages(part.numbers)
    return total


def _entries_of(entries: Iterable[Entry], run: Run, key: Key) -> list[Entry]:
    """Return the entries of a model, those of this run's tasks last: their numbers replace others of the same name.

    key: of the model. The key of an entry has nothing but this key and the task.
    """
    names = {*key, "version", "task", "data"}
    expected = plain(key)
    found = []
    for entry in entries:
        if entry.key.keys() != names or "evaluator" not in entry.about:
            continue
        of_the_model = plain({name: entry.key[name] for name in key}) == expected
        if of_the_model and entry.key["version"] == VERSION:
            found.append(entry)

    tasks = {plain(task.identity) for task in run.suite.tasks}
    tasks |= {plain(comparison.identity) for comparison in run.suite.comparisons}
    return sorted(found, key=lambda entry: plain(entry.key["data"]) in tasks)


def plain(value: Any) -> str:
    """Return a value as JSON that is equal for values that were written and read again."""
    return json.dumps(json.loads(to_json(value)), sort_keys=True)


def _note(entry: Entry, measured: Measured) -> None:
    measured.about[entry.key["task"]] = entry.about
    measured.labels.append(entry.label)


def _numbers(run: Run, measured: Measured, making: Making) -> dict[str, Any]:
    """Return the sections of the report that hold what was measured, with the errors of the differences."""
    dense, pruned = measured.dense, measured.pruned
    evaluation = {
        "dense": dense.numbers | measured.both[0],
        "pruned": pruned.numbers | measured.both[1],
    }
    if measured.compressed.numbers:
        evaluation["compressed"] = measured.compressed.numbers

    bos = dict(making.bos)
    domains = {}
    left_out = {}
    for name, about in measured.about.items():
        if "bos" in about:
            bos[name] = about["bos"]
        if about.get("domain"):
            domains[name] = about["domain"]
        if about.get("left_out"):
            left_out[name] = about["left_out"]
    return {
        "evaluation": evaluation,
        "better": dense.better | pruned.better,
        "averages": measured.averages,
        "bos": bos,
        "domains": domains,
        "left_out": left_out,
        **_noise(dense, pruned, measured.averages),
    }


def _noise(
    before: Measurement, after: Measurement, averages: Averages
) -> dict[str, dict[str, float]]:
    """Return the standard errors and the p-values of the differences of two models, paired by document."""
    found = with_averages(paired(before.documents, after.documents), averages)
    return {
        "difference_stderr": {name: difference.error for name, difference in found.items()},
        "difference_p_value": {name: difference.p_value for name, difference in found.items()},
    }


def _sizes(
    run: Run, config: Mapping[str, Any], plan: PruningPlan, making: Making
) -> dict[str, Any]:
    """Return parameters, ratios, targets and widths of both models."""
    budget = run.budget
    before = making.parameters_before
    kept = budget.kept(plan)
    after = making.parameters_after
    if run.config.mask_only:
        # the total of a masked model has zero biases that a sliced checkpoint may not have (docs/exports.md)
        after -= budget.total - kept

    layers = []
    for units, layer in zip(budget.layers, plan.layers, strict=True):
        mlp_units = len(layer.mlp) // units.mlp.members
        layers.append(_widths(units, len(layer.attention), mlp_units))
    return {
        "parameters": {
            "total_before": before,
            "total_after": after,
            "decoder_before": budget.total,
            "decoder_after": kept,
        },
        "ratio": _ratios(config, budget, kept, 1 - after / before),
        "target": _targets(run, plan, after, making.idle_after),
        "layers": layers,
        "layers_before": [
            _widths(units, units.attention.count, units.mlp.count) for units in budget.layers
        ],
    }


def _ratios(
    config: Mapping[str, Any], budget: Budget, kept: int, of_all: float
) -> dict[str, float]:
    """Return the realised ratios, the requested one if no target was asked for, and the cost of rounding."""
    decoder = 1 - kept / budget.total
    ratios = {"realised_decoder": decoder, "realised_total": of_all}
    if budget.bounds or config["plan"] is not None:
        return ratios

    ratios = {"requested": budget.ratio, **ratios}
    structure = config["structure"]
    if structure.get("round_to") or structure.get("multiple_of_heads", 1) > 1:
        ratios["rounding_cost"] = decoder - budget.ratio
    return ratios


def _targets(
    run: Run, plan: PruningPlan, parameters: int, idle: int
) -> dict[str, dict[str, float]]:
    """Return what was asked for and what was reached. Parameters are counted where a bound limits them."""
    widths = run.budget.widths(plan)
    reached = {bound.target: bound.values(widths) for bound in run.budget.bounds}
    for bound in run.budget.bounds:
        if bound.size and not run.config.mask_only:
            counted = parameters
            if bound.target == "active_parameters":
                counted -= idle
            reached[bound.target]["realised"] = bound.cost_of(counted, widths)
    return reached


def _widths(units: Pair[Units], kv_heads: int, mlp: int) -> dict[str, int]:
    """Return the widths of a layer that keeps this many KV heads, and this many neurons or whole experts."""
    return {
        "query_heads": kv_heads * units.attention.queries,
        "kv_heads": kv_heads,
        # where the units are no neurons but consist of some, these stay
        "neurons": units.mlp.channels,
        f"{units.mlp.unit}s": mlp,
    }


@by_first
def write_text_files(run: Run) -> None:
    """Write the texts that the model wrote itself into the run's folder, if it has one."""
    if run.run_dir is None:
        return
    for use, windows in run.texts.items():
        for part, file in own_text_files(use, windows).items():
            text = windows.texts[part]
            if text is not None:
                write_text(run.run_dir / file, text.jsonl)


@by_first
def write_files(run: Run, report: Report) -> None:
    """Write the report and a picture into the run's folder, if it has one, and the model card into the checkpoint.

    Files of an equal report are left as they are.
    """
    if run.run_dir is not None and not is_written(run.run_dir, report):
        write_text(run.run_dir / "report.md", redact(markdown(report)))
        _draw(report, run.run_dir / "layers.png")
        report.save(run.run_dir / "report.json")  # last: it says that the others are written
    if run.config.checkpoint.save:
        path = run.config.model.path
        base = base_facts(
            run.source.path if path.endswith(".gguf") else path
        )  # a GGUF became a folder
        write_card(run.target, redact(model_card(report, run.target, base)))


def is_written(run_dir: Path, report: Report) -> bool:
    """Return whether the folder of a run holds this report already."""
    stored = read_json(run_dir / "report.json")
    return bool(stored) and plain(stored) == plain(report.to_dict())


def _draw(report: Report, picture: Path) -> None:
    try:
        # imported here, so that no refusal waits for matplotlib
        from flap.results.layer_plots import draw_layers

        draw_layers(report, picture)
    except Exception as error:  # no picture is worth the report of a run
        picture.unlink(missing_ok=True)
        log.warning("%s: cannot be drawn (%s)", picture, one_line(error))
