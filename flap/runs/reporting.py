"""Build the report of a run from the stored results of its stages, and write the report's files.

A plan lists the units (heads, neurons or experts) that stay. The widths of a layer are its numbers
of heads, neurons and experts. The compressed model is the model after units were removed, before
any training.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from flap.checkpoint.card import write_card
from flap.config import build, one_line, redact
from flap.evaluation import Evaluator, Measurement, Task
from flap.evaluation.errors import paired, with_averages
from flap.evaluation.result_files import Entry
from flap.method.allocation import PruningPlan, Units
from flap.models import ModelAdapter, Pair, PlacedModel, base_facts, count_parameters
from flap.results import Report, device_name, markdown, model_card
from flap.results.provenance import git_state, versions
from flap.runs import keys
from flap.runs.memory import seconds_by_stage
from flap.runs.pruned import Pruned
from flap.runs.run import Run
from flap.runs.texts import own_text_files
from flap.runtime.ranks import by_first, on_first
from flap.storage import VERSION, Artefact, Key, read_json, to_json, write_text

log = logging.getLogger(__name__)

Averages = dict[str, list[str]]


def begin_report(run: Run, model: PlacedModel) -> Report:
    """Return a report that has facts about the run and its dense model, but no results yet."""
    bos = {}
    if "calibration" in run.texts:
        bos["calibration"] = run.texts["calibration"].bos
    return Report(
        config=run.described,
        device=device_name(model.device),
        dtype=str(run.source.dtype),
        device_map=model.device_map,
        processes=list(run.processes),
        sources=run.sources,
        inputs=keys.inputs(run),
        warnings=run.warnings,
        parameters={"total_before": count_parameters(model.model)},
        bos=bos,
        versions=versions(),
        git=git_state(),
    )


def add_sizes(report: Report, run: Run, plan: PruningPlan, adapter: ModelAdapter) -> None:
    """Add sizes of the dense and of the pruned model to a report.

    The sizes are parameter counts, the widths of layers, and the sizes that the config limits with
    targets, such as bytes. The shares of the parameters that were removed are also added.

    adapter: gives access to the layers of the pruned model.
    """
    budget = run.budget
    kept = budget.kept(plan)
    before = report.parameters["total_before"]
    after = count_parameters(adapter.model)
    if run.choices.mask_only:
        # Do not count the weights of removed units, which are only set to zero. The count still
        # includes biases that are all zero, although a checkpoint with smaller matrices may not
        # have these biases (docs/exports.md).
        after -= budget.total - kept

    report.parameters |= {
        "total_after": after,
        "decoder_before": budget.total,
        "decoder_after": kept,
    }
    report.ratio = _ratios(run, kept, 1 - after / before)
    report.target = _targets(run, plan, after, adapter.idle_parameters)
    removed_rows = before - report.parameters.get("total_trimmed", before)
    # `budget` was computed after the vocabulary was trimmed, so its sizes of the dense model lack
    # the parameters that trimming has removed. Add these parameters.
    for bound in budget.bounds:
        report.target[bound.target]["dense"] += bound.size * removed_rows
    for units, layer in zip(budget.layers, plan.layers, strict=True):
        mlp_units = len(layer.mlp) // units.mlp.members
        report.layers.append(_widths(units, len(layer.attention), mlp_units))
        report.layers_before.append(_widths(units, units.attention.count, units.mlp.count))


def _ratios(run: Run, kept: int, of_all: float) -> dict[str, float]:
    """Return the realised ratios, the requested ratio, and the difference that rounding makes.

    A ratio is a share of parameters that is removed. The difference is included only if the config
    asks for rounded widths of layers. If the config has a target or names a plan, only the realised
    ratios are returned.

    kept: the number of decoder parameters that stay.
    of_all: the share of all parameters, including embeddings, that was removed.
    """
    budget = run.budget
    decoder = 1 - kept / budget.total
    ratios = {"realised_decoder": decoder, "realised_total": of_all}
    if budget.bounds or run.choices.selection is None:
        return ratios

    structure = run.choices.selection.structure
    if structure.round_to or structure.multiple_of_heads > 1:
        ratios["rounding_cost"] = decoder - budget.ratio
    return {"requested": budget.ratio, **ratios}


def _targets(
    run: Run, plan: PruningPlan, parameters: int, idle: int
) -> dict[str, dict[str, float]]:
    """Return for each target its limit, and the sizes of the dense and of the pruned model.

    A target is an upper limit on a size of the pruned model, such as its bytes. The limit and the
    two sizes have the same unit.

    parameters, idle: the number of parameters of the pruned model, and how many of them belong to
        experts that a token does not use.
    """
    widths = run.budget.widths(plan)
    reached = {bound.target: bound.values(widths) for bound in run.budget.bounds}
    for bound in run.budget.bounds:
        if bound.size and not run.choices.mask_only:
            counted = parameters
            if bound.target == "active_parameters":
                counted -= idle
            reached[bound.target]["realised"] = bound.cost_of(counted, widths)
    return reached


def _widths(units: Pair[Units], kv_heads: int, mlp: int) -> dict[str, int]:
    """Return the widths of a layer with these numbers of KV heads and of MLP neurons or experts."""
    return {
        "query_heads": kv_heads * units.attention.queries,
        "kv_heads": kv_heads,
        # if units are whole experts, each kept expert keeps all of its neurons
        "neurons": units.mlp.channels,
        f"{units.mlp.unit}s": mlp,
    }


class _Measured(NamedTuple):
    """The measurements of the dense, the compressed and the pruned model of a run."""

    dense: list[Entry]
    compressed: list[Entry]  # results of the compressed model; empty if it is not trained
    pruned: list[Entry]


def _measured(run: Run, plan: PruningPlan, dense_run: Run) -> _Measured:
    """Return the measurements of the dense, the compressed and the pruned model of a run.

    Only tasks that were measured on the pruned model are included. For the dense and the compressed
    model, a measurement is included only if it was made in the same way as the measurement of the
    pruned model (`_measured_alike`).

    dense_run: the run with the tokenizer and the tasks of the dense model. If the vocabulary was
        trimmed, `run` has another tokenizer and other tasks.
    """
    entries = on_first(run.results.entries).values()
    pruned = _entries_of(entries, run.tasks, keys.pruned(run, plan))
    dense = _entries_of(entries, dense_run.tasks, keys.dense(dense_run))
    compressed = []
    if run.choices.recovery is not None:
        compressed = _entries_of(entries, run.tasks, keys.compressed(run, plan))
    timed = _entries_of(entries, run.tasks, keys.timed(run, plan))
    return _Measured(
        _measured_alike(dense, pruned), _measured_alike(compressed, pruned), pruned + timed
    )


def report_of(run: Run, artefact: Artefact[Pruned], dense_run: Run) -> Report:
    """Build the report of a run from the pruned model and the measurements of the run.

    dense_run: the run with the tokenizer and the tasks of the dense model. If the vocabulary was
        trimmed, `run` has another tokenizer and other tasks.
    """
    plan = artefact.value.plan
    measured = _measured(run, plan, dense_run)
    report = _with_numbers(artefact.value.report, measured)
    states = {label.stage: label.cache for label in artefact.label.walk()}
    used = measured.dense + measured.compressed + measured.pruned
    return replace(
        report,
        plan=plan,
        sources=report.sources | _told(used, "source"),
        inputs=report.inputs | _told(used, "input"),
        bos=report.bos | _told(used, "bos"),
        domains=_told(used, "domain"),
        left_out=_told(used, "left_out"),
        seconds=seconds_by_stage([artefact.label, *(entry.label for entry in used)]),
        statistics_cache=states.get("calibrate", "off"),
    )


def _with_numbers(report: Report, measured: _Measured) -> Report:
    """Return a copy of the report with the measured results of all models.

    The copy also contains the standard errors of the differences between models. If the vocabulary
    was trimmed, results that depend on the tokenizer, such as perplexities, are left out for the
    compressed and the pruned model.
    """
    options = {entry.about["evaluator"]: entry.about["options"] for entry in measured.pruned}
    averages = Averages()
    trimmed = bool(report.vocabulary)
    dense = _total(measured.dense, options, averages)
    compressed = _total(measured.compressed, options, averages, trimmed)
    pruned = _total(measured.pruned, options, averages, trimmed)
    evaluation = {"dense": dense.numbers | pruned.beside, "pruned": pruned.numbers}
    if compressed.numbers:
        evaluation["compressed"] = compressed.numbers

    recovery = report.recovery
    if recovery:
        recovery = recovery | _noise(compressed, pruned, averages)
    return replace(
        report,
        config={**report.config, "eval": options},
        recovery=recovery,
        evaluation=evaluation,
        better=dense.better | pruned.better,
        averages=averages,
        **_noise(dense, pruned, averages),
    )


def _entries_of(entries: Iterable[Entry], tasks: Iterable[Task], key: Key) -> list[Entry]:
    """Return the measurements of a model, with the measurements of `tasks` after all others.

    An earlier invocation of the run may have measured a task of the same name with other options.
    When a list of measurements is merged, later measurements replace earlier ones of the same name.

    key: the cache key of the measured model. The key of a measurement consists of this key and the
        task.
    """
    found = []
    for entry in entries:
        task = {name: entry.key.get(name) for name in ("task", "data")}
        if plain(entry.key) == plain({"version": VERSION, **key, **task}):
            found.append(entry)

    data = [plain(task.identity) for task in tasks]
    return sorted(found, key=lambda entry: plain(entry.key["data"]) in data)


def _measured_alike(entries: Iterable[Entry], of_pruned: Iterable[Entry]) -> list[Entry]:
    """Return the measurements of a model that match the measurements of the pruned model.

    Two measurements of the same task match if their data or their options are the same. The options
    may differ if an earlier invocation of the run had other options. The data may differ if the
    vocabulary was trimmed, because the data of a task depend on the token ids of a text.
    """
    pruned = {entry.key["task"]: entry for entry in of_pruned}
    found = []
    for entry in entries:
        other = pruned.get(entry.key["task"])
        if other is not None and (
            plain(entry.key["data"]) == plain(other.key["data"])
            or plain(entry.about["options"]) == plain(other.about["options"])
        ):
            found.append(entry)
    return found


def plain(value: Any) -> str:
    """Return a value as JSON text with sorted keys, to compare it with values read from files."""
    return json.dumps(json.loads(to_json(value)), sort_keys=True)


def _total(
    entries: Iterable[Entry],
    options: Mapping[str, Any],
    averages: Averages,
    trimmed: bool = False,
) -> Measurement:
    """Return a model's measured results on all tasks, and each evaluator's averages over tasks.

    An evaluator, such as `zero_shot`, creates several tasks.

    options: a dict from the name of each evaluator to its options.
    averages: a dict to which this function adds an item for each average. The key is the name of
        the average. The value is a list with the names of the results that are averaged.
    trimmed: whether the model has a trimmed vocabulary. If so, results that depend on the tokenizer
        are left out, because they cannot be compared with the results of the dense model.
    """
    total = Measurement()
    for name, given in options.items():
        part = Measurement()
        for entry in entries:
            if entry.about["evaluator"] == name:
                part |= entry.value
        evaluator = build(f"eval.{name}", given, Evaluator)
        if trimmed:
            part = part.without(list(filter(evaluator.needs_same_tokenizer, part.numbers)))
        total |= part | evaluator.summary(part)
        averages |= evaluator.averages(part.numbers)
    return total


def _told(entries: Iterable[Entry], fact: str) -> dict[str, Any]:
    """Return a dict from the name of each measured task to one fact, such as the task's source."""
    return {entry.key["task"]: entry.about[fact] for entry in entries if fact in entry.about}


def _noise(before: Measurement, after: Measurement, averages: Averages) -> dict[str, Any]:
    """Return standard errors and p-values of the differences between two models' measured results.

    The results are paired by document. The keys of the returned dict are "difference_stderr" and
    "difference_p_value".
    """
    found = with_averages(paired(before.documents, after.documents), averages)
    return {
        "difference_stderr": {name: difference.error for name, difference in found.items()},
        "difference_p_value": {name: difference.p_value for name, difference in found.items()},
    }


@by_first
def write_text_files(run: Run) -> None:
    """Save the texts that the model has generated, if the run has a folder."""
    if run.run_dir is None:
        return
    for use, windows in run.texts.items():
        for part, file in own_text_files(use, windows).items():
            text = windows.texts[part]
            if text is not None:
                write_text(run.run_dir / file, text.jsonl)


@by_first
def write_files(run: Run, report: Report) -> None:
    """Write the report, a plot of the layers' widths, and the model card of the checkpoint.

    If the run has no folder, or if the folder already holds this report, the report and the plot
    are not written. The model card is written if the run saves a checkpoint.
    """
    if run.run_dir is not None and not is_written(run.run_dir, report):
        write_text(run.run_dir / "report.md", redact(markdown(report)))
        _draw(report, run.run_dir / "layers.png")
        report.save(
            run.run_dir / "report.json"
        )  # written last, because this file marks the other files as complete
    if run.config.checkpoint.save:
        path = run.config.model.path
        if path.endswith(".gguf"):
            path = run.source.path  # the folder in the cache with the dequantised model
        card = model_card(report, run.target, base_facts(path))
        write_card(run.target, redact(card))


def is_written(run_dir: Path, report: Report) -> bool:
    """Return whether the folder of a run holds this report already."""
    stored = read_json(run_dir / "report.json")
    return bool(stored) and plain(stored) == plain(report.to_dict())


def _draw(report: Report, picture: Path) -> None:
    try:
        # imported here, so that a run that is refused does not have to wait for matplotlib
        from flap.results.layer_plots import draw_layers

        draw_layers(report, picture)
    except Exception as error:  # a run must not fail only because its picture cannot be drawn
        picture.unlink(missing_ok=True)
        log.warning("%s: cannot be drawn (%s)", picture, one_line(error))
