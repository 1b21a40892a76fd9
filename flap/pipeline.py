"""The method, from a config to a pruned checkpoint and a report (FLAP, An et al., AAAI 2024, arXiv 2312.11983)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flap.config import FlapConfig
from flap.method.allocation import PruningPlan
from flap.models import ModelSource, PlacedModel
from flap.results import Report, described, device_name
from flap.runs import keys, stages
from flap.runs.measuring import measure_both, measure_dense, measure_pruned
from flap.runs.memory import Stage
from flap.runs.opened import Opened
from flap.runs.preparation import check_room_to_make, may_replace_checkpoint, prepare
from flap.runs.pruned import Making, Pruned, PrunedFiles
from flap.runs.reporting import report_of, write_files, write_text_files
from flap.runs.run import Run
from flap.runs.stages import Compressed, allocate, compress, observe, prune_in_sequence, score
from flap.runs.trimming import trim, trimmed_run
from flap.runtime.peak_memory import peak_memory, reset_peak_memory
from flap.runtime.ranks import on_first


def run(
    config: FlapConfig,
    run_dir: Path | None,
    source: ModelSource | None = None,
    overrides: Sequence[str] = (),
) -> Report:
    """Prune a model, evaluate it before and after, and return the report. Checks come before the weights are loaded.

    source: the model, if the caller has it already; `config.model` describes it. run_dir: the folder for the report
    and the plan; None: they are not written. overrides: what the user has written, "key=value", of
    which options without effect are refused.

    Raises:
        ValueError: bad input, in one line that names the field.
    """
    prepared = prepare(config, run_dir, source, overrides)
    check_room(prepared)
    return execute(prepared)


def check_room(run: Run) -> None:
    """Check that there is room for what the run has still to make.

    Raises:
        ValueError: there is none.
    """
    if plan_of_earlier_start(run) is None:
        check_room_to_make(run)


def execute(run: Run) -> Report:
    """Run all stages. Results that an earlier start has computed are read instead of computed again."""
    with stages.begun(run) as run, stages.checkpoint_held(run):
        dense_run = run
        dense = Opened(partial(stages.open_dense, run))  # opened by the first stage that needs it
        reopen_dense = run.source.reopening() if run.suite.comparisons else run.source.open
        dense_bytes = run.source.num_bytes

        measure_dense(run, dense, plan_of_earlier_start(run))
        artefact = run.artefact(MAKE, dense)
        pruned = artefact.value
        if pruned.run is not None:
            run = pruned.run
        elif pruned.making.tokens:
            run = trimmed_run(run, pruned.making.tokens)

        model = Opened(partial(_open_pruned, dense_run, dense, pruned))
        measure_pruned(run, model, keys.pruned(run, pruned.plan))
        measure_both(run, reopen_dense, dense_bytes, model, pruned.plan)
        report = report_of(run, artefact, dense_run)
        write_files(run, report)
    return report


def prune(run: Run, model: PlacedModel) -> Compressed:
    """Remove units from a model in place (FLAP, section 3).

    Every unit is scored, the best ones within the budget stay, and the others are removed with compensation. A given
    plan says which units stay, so that nothing is scored.
    """
    statistics = observe(run, model)  # of the inputs of each output projection
    plan = run.given_plan or allocate(run, score(run, model, statistics))
    return compress(run, model, statistics, plan)


def make_pruned_model(run: Run, dense: Opened) -> Pruned:
    """Make the pruned model of a run: text of its own, fewer tokens, fewer units, training, and the checkpoint."""
    reset_peak_memory()
    may_replace = may_replace_checkpoint(run)
    model = dense()
    making = _making(run, model)

    passes = model.passes
    run, making.own_text = stages.write_own_texts(run, model)
    making.sources |= run.sources
    making.warnings = run.warnings
    if run.choices.vocabulary is not None:
        run, making.tokens = trim(run, model)  # from here on, one smaller model and its tokenizer
        making.vocabulary = dict(run.vocabulary)

    compressed = prune_in_sequence(run, model) if run.choices.in_sequence else prune(run, model)
    making.weight_passes = model.passes - passes
    making.fits = {block: fit._asdict() for block, fit in compressed.fits.items()}
    making.loads_with = compressed.loads_with
    dense.close()  # it is not dense any more

    plan = compressed.plan
    if run.choices.recovery is not None:
        measure_pruned(run, Opened(lambda: model), keys.compressed(run, plan))
        making.recovery = stages.recover(run, model, plan)

    making.parameters_after = stages.count_parameters(model.adapter)
    making.idle_after = model.adapter.idle_parameters
    if run.config.checkpoint.save:
        model = stages.save(run, model, plan, may_replace)
        making.checkpoint = str(run.target)
    write_text_files(run)
    making.peak_memory_bytes = peak_memory()
    return Pruned(plan, making, model, run)


def plan_of_earlier_start(run: Run) -> PruningPlan | None:
    """Return the plan of the run if an earlier start of it has made the pruned model; else None."""
    for store in _pruned_stores(run):
        found = on_first(partial(store.find, _pruned_key(run)))
        if found is not None:
            return found.value.plan
    return None


def _open_pruned(run: Run, dense: Opened, pruned: Pruned) -> PlacedModel:
    """Open the pruned model: as it was just made, from its checkpoint, or, if it has none, made once more."""
    dense.close()  # both need not be in memory at once
    if pruned.model is None and run.config.checkpoint.save:
        pruned.model = stages.open_checkpoint_of(run)
    if pruned.model is None:
        pruned.model = make_pruned_model(run, dense).model
    assert pruned.model is not None
    return pruned.model


def _making(run: Run, model: PlacedModel) -> Making:
    """Return what is known of how the pruned model is made before it is made."""
    bos = {}
    if "calibration" in run.texts:
        bos["calibration"] = run.texts["calibration"].bos
    return Making(
        config=described(run.config),
        device=device_name(model.device),
        dtype=str(run.source.dtype),
        device_map=model.device_map,
        processes=list(run.processes),
        sources=run.sources,
        inputs=keys.inputs(run),
        warnings=run.warnings,
        parameters_before=stages.count_parameters(model.adapter),
        bos=bos,
    )


def _pruned_key(run: Run, *inputs: Any) -> keys.Key:
    return {"run": run.key}


def _pruned_stores(run: Run, *inputs: Any) -> list[PrunedFiles]:
    if run.run_dir is None:
        return []
    return [PrunedFiles(run.run_dir, run.target if run.config.checkpoint.save else None)]


MAKE = Stage("make", make_pruned_model, _pruned_key, _pruned_stores)
