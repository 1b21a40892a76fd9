"""`python -m flap.study promote`: the best cells of a sweep are measured in full, on their saved checkpoints."""

import shlex
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import OmegaConf

from flap.allocation import PruningPlan
from flap.config import FlapConfig, composing, require, typed
from flap.models import find_model
from flap.results import Report
from flap.results.finished_runs import checkpoint_of
from flap.results.study_table import best
from flap.results.sweep_folders import read_study, read_sweep
from flap.runs.prepare import prepare
from flap.runs.report_files import write_files
from flap.runs.stages import compare, measure_dense
from flap.runs.trimming import read_with
from flap.storage.status import run_folder
from flap.storage.study_list import note_promotion
from flap.sweeps.processes import quoted
from flap.vocabulary import Trimmed

MEASURED = (  # parts of a report that say what was measured
    "averages", "better", "bos", "continuations", "difference_p_value", "difference_stderr", "domains", "layer_errors",
)  # fmt: skip


def promote(sweep: Path, options: Sequence[str]) -> list[str]:
    """Measure the best cells of a sweep in full, beside what they have measured, and return their names.

    Nothing is pruned: the checkpoints that the cells have saved are measured. What is measured already is not repeated,
    and stays: texts and tasks come beside those of the same evaluator.

    options: "by=NUMBER", which says which cells are best; "top=3", so many of each model and ratio, to which come those
    that the study marks as within the noise of the best; what to measure, as on a command line: "eval=[zero_shot]".

    Raises:
        ValueError: bad input, or a cell has no checkpoint: says which command saves them.
    """
    given = dict(option.split("=", 1) for option in options if option.startswith(("by=", "top=")))
    wanted = _composed([option for option in options if not option.startswith(("by=", "top="))])
    top = given.get("top", "3")
    require(top.isdecimal() and int(top) >= 1, "top", top, "a whole number >= 1")
    cells = [sweep / run.folder for run in best(read_study(sweep), given.get("by", ""), int(top))]
    reports = {cell: Report.load(cell / "report.json") for cell in cells}
    if missing := [cell.name for cell, report in reports.items() if checkpoint_of(cell, report) is None]:
        raise ValueError(f"{sweep}: no checkpoint of {', '.join(missing)} is there; this saves them: {_saving(sweep)}")
    for cell, report in reports.items():
        known = report.config["eval"]
        asked = known | {name: _beside(known.get(name, {}), evaluator) for name, evaluator in wanted.items()}
        if asked != known:
            with run_folder(cell):
                _measure(cell, report, asked)
    note_promotion(sweep, promotion(sweep, options))
    return [cell.name for cell in cells]


def promotion(sweep: Path, options: Sequence[str]) -> str:
    """Return the command that promotes."""
    return shlex.join(["python", "-m", "flap.study", "promote", str(sweep), *options])


def _composed(evaluation: Sequence[str]) -> dict[str, Any]:
    """Return the section `eval` of a config, by the names of evaluators."""
    require(bool(evaluation), "eval", None, "what to measure, as 'eval=[zero_shot]'")
    for override in evaluation:
        if not override.lstrip("+~").startswith(("eval=", "eval.")):
            raise ValueError(f"{override}: expected top=…, by=…, or keys of eval, as 'eval=[zero_shot]'")
    with composing():
        found = dict(typed(compose("config", ["run_name=promote", *evaluation])).eval or {})
    require(bool(found), "eval", "none", "what to measure, as 'eval=[zero_shot]'")
    return found


def _beside(known: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Return the options of an evaluator, with the texts, tasks and lengths that it has measured before the asked ones.

    All of its numbers are then as its options say: those that it has are found, or measured again with other options.
    """
    lists = [name for name, value in asked.items() if name in known and (isinstance(value, list) or name == "seq_len")]
    pairs = {name: (known[name], asked[name]) for name in lists if known[name] != asked[name]}
    return asked | {name: list(dict.fromkeys([*_listed(a), *_listed(b)])) for name, (a, b) in pairs.items()}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _saving(sweep: Path) -> str:
    """Return the command of a sweep, with what saves its checkpoints."""
    command, _ = read_sweep(sweep)
    words = [
        word
        for word in shlex.split(command or "python -m flap -m OVERRIDES")
        if not word.startswith(("checkpoint.save=", "hydra.sweep.dir="))
    ]
    return shlex.join([*words, "checkpoint.save=true", f"hydra.sweep.dir={quoted(sweep)}"])


def _measure(cell: Path, report: Report, asked: dict[str, Any]) -> None:
    """Measure the dense model and the checkpoint of a finished run, and write its files again with the new numbers."""
    settings = report.config | {"eval": asked, "resume": True, "processes": None}
    merged: Any = OmegaConf.merge(OmegaConf.structured(FlapConfig), settings)
    config = typed(merged)
    run, plan = prepare(config, cell), PruningPlan.load(cell / "plan.json")
    run.report = replace(deepcopy(report), config=run.report.config, seconds={})
    with run.begun():
        model = run.source.open(run.work)
        dense = run.stage(measure_dense, model)
        del model
        saved = find_model(replace(config.model, path=str(run.target)), run.cache.root, config.trust_remote_code)
        if run.choices.vocabulary is not None:
            read_with(run, Trimmed.found(saved.tokenizer, run.source.tokenizer, report.vocabulary))
        run.stage(compare, saved.open(run.work / "checkpoint"), plan, dense, None)
        run.report = _with_measured(report, run.report)
        run.report.finish()
        write_files(run, plan, cell)


def _with_measured(report: Report, new: Report) -> Report:
    """Return the report of a run with what was measured anew."""
    return replace(
        report,
        config=new.config,
        evaluation=report.evaluation | new.evaluation,
        inputs=new.inputs | report.inputs,  # of the run that pruned
        sources=new.sources | report.sources,
        seconds={name: report.seconds.get(name, 0.0) + new.seconds.get(name, 0.0) for name in report.seconds},
        warnings=list(dict.fromkeys([*report.warnings, *new.warnings])),
        **{name: getattr(new, name) for name in MEASURED},
    )
