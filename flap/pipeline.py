"""The method, from a config to a pruned checkpoint and a report (FLAP, An et al., AAAI 2024, arXiv 2312.11983)."""

from dataclasses import replace
from pathlib import Path

from flap.config import FlapConfig
from flap.evaluation.result_files import RESULTS, Results
from flap.method.allocation import PruningPlan
from flap.method.vocabulary import Trimmed
from flap.models import ModelSource, PlacedModel, adapt, find_model
from flap.results import FinishedRun, Report
from flap.results.report import peak_memory
from flap.runs import stages
from flap.runs.method import Pruned, allocate, compress, observe, prune_in_sequence, score
from flap.runs.preparation import check_room, prepare
from flap.runs.reporting import Outcome, count_parameters, report_of, with_numbers, write_files
from flap.runs.run import Run


def run(config: FlapConfig, run_dir: Path | None, source: ModelSource | None = None) -> Report:
    """Prune a model, evaluate it before and after, and return the report. Checks come before the weights are loaded.

    source: the model, if the caller has it already; `config.model` describes it. run_dir: the folder for report and
    plan; None: not written.

    Raises:
        ValueError: bad input, in one line that names the field.
    """
    prepared = prepare(config, run_dir, source)
    check_room(prepared)
    return execute(prepared)


def execute(run: Run, earlier: Report | None = None) -> Report:
    """Go through the stages of a run, and write its files. earlier: the report of one that has made the same model."""
    with run.begun() as run:
        model = stages.load(run)
        reopen = (
            run.source.reopening() if run.suite.comparisons else run.source.open
        )  # before the model is changed
        out = Outcome.of(model, stages.measure_dense(run, model))
        passes = model.passes
        run, out.own_text = stages.write_own_texts(run, model)
        kept_tokens = stages.choose_tokens(run, model)
        pruned = prune_in_sequence(run, model) if run.choices.in_sequence else prune(run, model)
        out.passes = model.passes - passes
        run = stages.trim(run, model, kept_tokens)  # from here on, texts have other tokens
        if run.choices.recovery is not None:
            out.compressed = stages.measure_pruned(run, model, run.keys.compressed(pruned.plan))
            out.recovery = stages.recover(run, model, pruned.plan)
        out.parameters_after = count_parameters(model.adapter)
        out.idle_after = model.adapter.idle_parameters
        if run.config.checkpoint.save:
            model = stages.save(run, model, pruned.plan)
        out.measured = stages.measure_pruned(run, model, run.keys.pruned(pruned.plan))
        out.peak = peak_memory({})  # which the next line resets
        out.both = stages.measure_both(run, reopen, model, pruned.plan)
        report = with_numbers(earlier, run, out) if earlier else report_of(run, pruned, out)
        write_files(run, report, pruned.plan)
    return report


def prune(run: Run, model: PlacedModel) -> Pruned:
    """Remove units from a model in place, and return what came of it (FLAP, section 3)."""
    statistics = observe(run, model)  # of the inputs of each output projection
    scores = score(run, model, statistics)  # how much each unit matters
    plan = allocate(run, scores)  # which units stay within the budget
    return compress(run, model, statistics, plan)  # the others are removed, with compensation


def measure_more(run: Run, earlier: FinishedRun) -> Report:
    """Return the report of a finished run with what `run` measures besides; it replaces the one in its folder.

    What was measured before and is asked for again is not measured again. The run has saved a checkpoint.
    """
    folder = earlier.folder
    report = earlier.report
    run = replace(run, run_dir=folder, suite=replace(run.suite, results=Results(folder / RESULTS)))
    plan = PruningPlan.load(folder / "plan.json")
    config = run.config
    with run.begun() as run:
        dense = stages.load(run)
        out = Outcome.of(dense, stages.measure_dense(run, dense))
        del dense
        saved = find_model(
            replace(config.model, path=str(report.checkpoint)),
            run.cache.root,
            config.trust_remote_code,
        )
        if run.choices.vocabulary is not None:
            run = run.trimmed_to(
                Trimmed.of_checkpoint(saved.tokenizer, run.source.tokenizer, report.vocabulary)
            )
        model = saved.open(run.work / "checkpoint")
        model.adapter = adapt(model.model, run.choices.structure.experts)
        out.measured = stages.measure_pruned(run, model, run.keys.pruned(plan))
        out.both = stages.measure_both(run, run.source.open, model, plan)
        report = with_numbers(report, run, out)
        write_files(run, report, plan)
    return report
