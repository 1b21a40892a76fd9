"""More numbers of a finished run: its checkpoint is measured, and nothing is pruned again."""

from dataclasses import replace
from pathlib import Path

from flap.evaluation import prepare_suite
from flap.evaluation.result_files import RESULTS, Results
from flap.method.allocation import PruningPlan
from flap.method.vocabulary import Trimmed
from flap.models import adapt, find_model
from flap.results import Report
from flap.runs.reporting import Outcome, with_numbers, write_files
from flap.runs.run import Run
from flap.runs.stages import load, measure_both, measure_dense, measure_pruned
from flap.storage import ranks


def measure_more(run: Run, folder: Path, report: Report) -> Report:
    """Return the report of a finished run with what `run` measures besides; it replaces the one in the folder.

    What was measured before and is asked for again is not measured again. report: of the run, which has a checkpoint.
    """
    run = replace(run, run_dir=folder, suite=replace(run.suite, results=Results(folder / RESULTS)))
    plan, config = PruningPlan.load(folder / "plan.json"), run.config
    with run.begun() as run:
        dense = load(run)
        out = Outcome.of(dense, measure_dense(run, dense))
        del dense
        saved = find_model(replace(config.model, path=str(report.checkpoint)), run.cache.root, config.trust_remote_code)
        if run.choices.vocabulary is not None:
            before = run.source.tokenizer
            suite = prepare_suite(run.choices.evaluators, saved.tokenizer, saved.max_length, None, before)
            trimmed = Trimmed.of_checkpoint(saved.tokenizer, before, report.vocabulary)
            run = replace(run, trimmed=trimmed, suite=replace(suite, results=run.suite.results))
        model = saved.open(run.work / "checkpoint")
        model.adapter = adapt(model.model, run.choices.structure.experts)
        out.measured = measure_pruned(run, model, plan)
        out.both = measure_both(run, run.source.open, model, plan)
        report = with_numbers(report, run, out)
        ranks.on_first(lambda: write_files(run, report, plan))
    return report
