"""The pipeline of a run, from a config to a pruned checkpoint and a report.

`python -m flap` may be invoked several times for the same run, for example after an interruption.
By default, a later invocation uses the results that earlier invocations have stored. A plan lists
the units (heads, neurons or experts) that stay.

The method is FLAP by An et al., AAAI 2024, arXiv 2312.11983.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from flap.config import FlapConfig
from flap.method.allocation import PruningPlan
from flap.models import ModelSource, PlacedModel, count_parameters
from flap.results import Report
from flap.runs import keys, stages
from flap.runs.measuring import (
    DenseAgain,
    References,
    measure_both,
    measure_dense,
    measure_pruned,
)
from flap.runs.opened import Opened
from flap.runs.preparation import check_room_to_make, may_replace_checkpoint, prepare
from flap.runs.pruned import Pruned, pruned_files
from flap.runs.reporting import add_sizes, begin_report, report_of, write_files, write_text_files
from flap.runs.run import Run
from flap.runs.stages import (
    Compressed,
    allocate,
    begun,
    compress,
    keep_all,
    observe,
    prune_in_sequence,
    score,
)
from flap.runs.trimming import trim, trimmed_run
from flap.runtime.peak_memory import peak_memory, reset_peak_memory
from flap.runtime.ranks import on_first


def run(
    config: FlapConfig,
    run_dir: Path | None,
    source: ModelSource | None = None,
    overrides: Sequence[str] = (),
) -> Report:
    """Prune a model, evaluate it before and after pruning, and return the report.

    Everything that can be checked without the model's weights is checked before the weights are
    loaded.

    source: the model, if the caller has already loaded it; `config.model` must then describe this
        model. If `source` is None, the model is loaded from the path in `config.model`.
    run_dir: the folder for the report and the plan; if None, neither is written.
    overrides: the options that the user has set, as "key=value". An option that would have no
        effect raises a ValueError.

    Raises:
        ValueError: an option or a text is invalid. The message is one line that names the config
            key.
    """
    prepared = prepare(config, run_dir, source, overrides)
    check_room(prepared)
    return execute(prepared)


def check_room(run: Run) -> None:
    """Check that there is enough memory and disk space to make the pruned model.

    If an earlier invocation for this run has already made the pruned model, nothing is checked.

    Raises:
        ValueError: there is not enough memory or disk space.
    """
    if plan_of_earlier_start(run) is None:
        check_room_to_make(run)


def execute(run: Run) -> Report:
    """Execute all stages of a run, and return the report.

    Results that an earlier invocation for the same run has stored are read, and are not computed
    again.
    """
    with begun(run) as run:
        # the dense model is loaded by the first stage that needs it
        dense = Opened(partial(stages.open_dense, run))
        dense_again = DenseAgain(run.source) if run.tasks_of_both else None
        references = measure_dense(run, dense, plan_of_earlier_start(run))
        make = partial(make_pruned_model, run, dense, references)
        artefact = run.memory.remember("make", {"run": run.key}, make, pruned_files(run))

        pruned = artefact.value
        after = pruned.run or run
        if pruned.run is None and pruned.tokens:
            after = trimmed_run(run, pruned.tokens)
        model = Opened(partial(_open_pruned, after, dense, pruned, make))
        measure_pruned(after, model, keys.pruned(after, pruned.plan), references)
        if dense_again is not None:
            measure_both(after, dense_again, model, pruned.plan)
        # `references` holds hidden states of the dense model. They may be memory maps of files in
        # the working directory, so release them before this block ends and deletes the directory.
        references.clear()

        report = report_of(after, artefact, run)
        write_files(after, report)
    return report


def prune(run: Run, model: PlacedModel) -> Compressed:
    """Remove units, which are attention heads, MLP neurons or experts, from a model in place.

    Every unit is scored. The units with the highest scores stay, as many as the requested size of
    the pruned model allows (`run.budget`). All other units are removed. A compensation, such as a
    bias, approximates what they contributed to the output of their layer (FLAP, section 3). Units
    are not scored if the config names a plan, or if no unit has to be removed.
    """
    if run.choices.keep_everything(run.budget):
        return keep_all(run.budget)
    if run.choices.in_sequence:
        return prune_in_sequence(run, model)
    statistics = observe(run, model)  # statistics of the inputs of each output projection
    plan = run.given_plan or allocate(run, score(run, model, statistics))
    return compress(run, model, statistics, plan)


def make_pruned_model(run: Run, dense: Opened, references: References) -> Pruned:
    """Make the pruned model of a run, and save it if the config asks for a checkpoint.

    The steps are: generate texts with the dense model, trim the vocabulary, remove units, train.
    """
    reset_peak_memory()
    may_replace = may_replace_checkpoint(run)
    model = dense()
    report = begin_report(run, model)

    passes = model.passes
    run, report.own_text = stages.write_own_texts(run, model)
    report.sources |= run.sources
    report.warnings = run.warnings
    tokens: list[str] = []
    if run.choices.vocabulary is not None:
        # from here on, the model and the tokenizer in `run` have the trimmed vocabulary
        run, tokens, report.vocabulary = trim(run, model)
        report.parameters["total_trimmed"] = count_parameters(model.model)

    compressed = prune(run, model)
    plan = compressed.plan
    report.weight_passes = model.passes - passes
    report.repairs = {block: fit._asdict() for block, fit in compressed.fits.items()}
    report.loads_with = compressed.loads_with
    dense.close()  # pruning has changed this model in place; the next `dense()` loads a dense model

    if run.choices.recovery is not None:
        compressed_model = Opened(lambda: model)
        key = keys.compressed(run, plan)
        measure_pruned(run, compressed_model, key, references, "compressed model")
        report.recovery = stages.recover(run, model, plan)

    add_sizes(report, run, plan, model.adapter)
    if run.config.checkpoint.save:
        model = stages.save(run, model, plan, may_replace)
        report.checkpoint = str(run.target)
    write_text_files(run)
    report.peak_memory_bytes = peak_memory()
    return Pruned(plan, report, tokens, model, run)


def plan_of_earlier_start(run: Run) -> PruningPlan | None:
    """Return the plan of the pruned model that an earlier invocation for this run has made.

    Return None if no earlier invocation has made the pruned model.
    """
    for store in pruned_files(run):
        found = on_first(partial(store.find, {"run": run.key}))
        if found is not None:
            return found.value.plan
    return None


def _open_pruned(
    run: Run, dense: Opened, pruned: Pruned, make: Callable[[], Pruned]
) -> PlacedModel:
    """Close the dense model, and return the pruned model.

    If the pruned model is not in memory, it is opened from its checkpoint. If the run saves no
    checkpoint, the pruned model is made again.
    """
    dense.close()  # free the memory of the dense model before the pruned model is opened
    if pruned.model is None and run.config.checkpoint.save:
        pruned.model = stages.open_checkpoint_of(run)
    if pruned.model is None:
        pruned.model = make().model
    assert pruned.model is not None
    return pruned.model
