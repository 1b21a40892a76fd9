"""Inject faults at file operations of small runs, and then repeat each command without a fault."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from flap.checkpoint.card import CARD, is_generated
from flap.models import hidden_files
from flap.pipeline import run
from tests.helpers import forked
from tests.helpers.faults import Fault, Outcome, faulted
from tests.helpers.runs import composed

NEW_RESULTS = (
    "plan.json",
    "*.safetensors",
    "config.json",
    "flap.json",
    "tokenizer*",
    "data",
    "notes.txt",
    CARD,
)
OF_A_CELL = ("plan.json", "report.json", "report.md", "layers.png", "status.json")
COMMON = (
    "cache_dir=cache",
    "model.device=cpu",
    "eval.perplexity.max_tokens=64",
    "hydra.sweep.dir=sweep",
)
ERRORS = ("error: ", "failed: ")
RUN = "hydra.run.dir=run"


@dataclass(frozen=True)
class Scenario:
    """A command line to run with faults, in a folder where another command may have run before.

    before: arguments of the other command; empty if there is none.
    kept: patterns for the folders with results of the other command. After a fault, these results
        must be unchanged, or completely replaced by new results.
    step: the command is run once for every `step`-th file operation, with a fault at this
        operation. `step` is no multiple of five, because most files cause a group of five
        operations, and faults should hit each of the five.
    """

    name: str
    arguments: tuple[str, ...]
    before: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    step: int = 47


SCENARIOS = (
    Scenario("prune and save", ("ratio=0.4", "use_cache=false", RUN)),
    Scenario(
        "overwrite a checkpoint",
        ("ratio=0.4", "use_cache=false", "checkpoint.dir=old", "checkpoint.overwrite=true", RUN),
        before=("ratio=0.2", "use_cache=false", "checkpoint.dir=old", "hydra.run.dir=first"),
        kept=("old",),
    ),
    Scenario("stream", ("ratio=0.4", "model.placement=stream", RUN)),
    Scenario(
        "flap_plus in a stream",
        (
            "ratio=0.4",
            "method=flap_plus",
            "calibration.num_samples=20",
            "compensation.ridge=0.01",
            "model.placement=stream",
            RUN,
        ),
        step=107,  # larger than elsewhere, because this scenario has several hundred operations
    ),
    Scenario(
        "measure more",
        ("ratio=0.4", "use_cache=false", "eval.perplexity.seq_len=8", RUN),
        before=("ratio=0.4", "use_cache=false", RUN),
        step=19,
    ),
    Scenario("fill the cache", ("ratio=0.4", "checkpoint.save=false", RUN)),
    Scenario(
        "a cell and its study",
        ("-m", "ratio=0.2,0.4", "checkpoint.save=false"),
        before=("-m", "ratio=0.2", "checkpoint.save=false"),
        kept=("sweep/0_*",),
    ),
)


@dataclass(frozen=True)
class Case:
    """The outcome of a run with one fault.

    operation: the file operation at which the fault occurred.
    problems: descriptions of everything that is wrong after the fault; empty if nothing is wrong.
    """

    fault: Fault
    operation: str
    problems: list[str]


def walk(
    scenario: Scenario, inputs: Sequence[str], faults: Callable[[int], Sequence[Fault]]
) -> list[Case]:
    """Run a scenario once for each fault, and return the outcomes.

    inputs: arguments that are added to every command line of the scenario.
    faults: a function that receives the number of file operations of the run, and returns the
        faults to inject.
    """
    with TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        assert forked.forked(_walk, scenario, [*inputs, *COMMON], faults, found) == 0
        return [Case(Fault(**case.pop("fault")), **case) for case in json.loads(found.read_text())]


def _walk(
    scenario: Scenario, inputs: list[str], faults: Callable[[int], Sequence[Fault]], found: Path
) -> None:
    """Do the work of `walk` in a process that first does a run without faults.

    This run loads everything that further runs need, so forked processes need not load it.
    """
    forked.SERVER = multiprocessing.get_context("fork")
    hidden_files.SECONDS_BETWEEN_RECORDS = (
        0.0  # record progress after every layer, so that faults also hit these records
    )
    # Tokenizers must not use threads, because a forked process does not inherit them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        os.chdir(root)
        torch.set_num_threads(1)
        run(composed(*inputs, "ratio=0.5"), root / "warm")
        for made in ("warm", "cache"):
            shutil.rmtree(root / made)
        start = root / "start"
        whole = root / "whole"
        start.mkdir()
        if scenario.before:
            _run_without_fault(start, [*scenario.before, *inputs])
        for kept in _kept(scenario, start):
            (kept / "notes.txt").write_text("mine")
        shutil.copytree(start, whole)
        arguments = [*scenario.arguments, *inputs]
        operations = _run_without_fault(whole, arguments)
        chosen = faults(len(operations))
        cases = [_case(scenario, arguments, fault, start, whole, root / "case") for fault in chosen]
        found.write_text(json.dumps([asdict(case) for case in cases]))


def _run_without_fault(folder: Path, arguments: list[str]) -> list[str]:
    outcome = faulted(folder, arguments, Fault())
    assert outcome.code == 0, outcome.said
    return outcome.operations


def _case(
    scenario: Scenario, arguments: list[str], fault: Fault, start: Path, whole: Path, folder: Path
) -> Case:
    """Do a run with a fault, and then run the same command again without a fault.

    start: the folder as it is before the run.
    whole: the folder after a run without a fault.
    folder: the path of the copy of `start` in which both runs take place.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder)
    first = faulted(folder, arguments, fault)
    problems = [
        *_problems_of_ending(first, fault),
        *_old_is_whole(scenario, start, whole, folder, fault.kind == "killed"),
        *_lost_numbers(start, folder),
    ]
    again = faulted(folder, arguments, Fault())
    if again.code != 0 or "Traceback" in again.said:
        problems.append(f"again: exit code {again.code}: {again.said[-2000:]}")
    else:
        # A run does not fail if the plot layers.png cannot be drawn, so the plot may be missing.
        lost = "layers.png" if "layers.png: cannot be drawn" in first.said else None
        problems += [*_same(whole, folder, lost), *_old_is_whole(scenario, start, whole, folder)]
    return Case(fault, first.operations[fault.number - 1], problems)


def _problems_of_ending(outcome: Outcome, fault: Fault) -> Iterator[str]:
    lines = outcome.said.strip().splitlines()
    if any("Traceback" in line or "Logging error" in line for line in lines):
        yield f"a traceback: {outcome.said}"
    elif outcome.code != -9 if fault.kind == "killed" else outcome.code not in (0, 1):
        yield f"exit code {outcome.code}: {outcome.said}"
    elif outcome.code == 1 and 1 not in [
        sum(line.startswith(start) for line in lines) for start in ERRORS
    ]:
        yield f"not one clear line: {outcome.said}"


def _kept(scenario: Scenario, folder: Path) -> list[Path]:
    return [path for pattern in scenario.kept for path in folder.glob(pattern)]


def _old_is_whole(
    scenario: Scenario, start: Path, whole: Path, folder: Path, killed: bool = False
) -> Iterator[str]:
    """Yield a problem for each result of an earlier run that the run in `folder` has damaged.

    Earlier results must be as in `start`, or completely replaced by the results in `whole`.

    start: the folder as it is before the run.
    whole: the folder after a run without a fault.
    killed: whether the run was killed. A kill between the two renames that replace a folder leaves
        the old folder under another name, until the next run renames it back.
    """
    for kept in _kept(scenario, start):
        name = kept.relative_to(start)
        aside = folder.glob(f"{name.parent}/.{name.name}.*.old") if killed else ()
        if not any(
            _bytes(place) in (_bytes(kept), _bytes(whole / name))
            for place in (folder / name, *aside)
        ):
            yield f"{name} is neither what it was nor the new one"


def _lost_numbers(start: Path, folder: Path) -> Iterator[str]:
    for report in start.rglob("report.json"):
        now = folder / report.relative_to(start)
        numbers = json.loads(report.read_text())["evaluation"]["pruned"]
        if not numbers.items() <= json.loads(now.read_text())["evaluation"]["pruned"].items():
            yield f"{now.relative_to(folder)} has lost numbers"


def _bytes(folder: Path) -> dict[str, bytes]:
    """Return the content of the result files in a folder.

    For a run of a sweep, only the files in OF_A_CELL are returned, because Hydra overwrites all
    other files. The model card and its temporary files are left out, because the card is written
    after the checkpoint. A process that is killed while it writes the card leaves a lock and a
    temporary file, which the next run removes.
    """
    names = OF_A_CELL if (folder / "status.json").exists() else ("*",)
    paths = [path for name in names for path in folder.rglob(name) if path.is_file()]
    results = [path for path in paths if not is_generated(path) and not path.match(f".{CARD}.*")]
    return {str(path.relative_to(folder)): _content(path) for path in results}


def _content(path: Path) -> bytes:
    """Return the bytes of a file. For flap.json, leave out the Git state of flap's repository."""
    if path.name != "flap.json":
        return path.read_bytes()
    told = json.loads(path.read_text())
    del told["provenance"]["git"]
    return json.dumps(told).encode()


def _same(whole: Path, folder: Path, lost: str | None = None) -> Iterator[str]:
    """Yield a problem for each difference from an uninterrupted run.

    The differences are missing files, files that should not be there, and files with other content
    or other measured results.

    whole: the folder of the uninterrupted run.
    lost: the name of a file that may be missing.
    """
    expected, found = (
        {str(path.relative_to(root)) for path in root.rglob("*")} for root in (whole, folder)
    )
    if left := sorted(
        name for name in found - expected if not Path(name).match("cache/*/[!.]*.lock")
    ):
        yield f"left behind: {', '.join(left)}"
    gone = (name for name in expected - found if not name.startswith("cache"))
    if missing := sorted(name for name in gone if Path(name).name != lost):
        yield f"missing: {', '.join(missing)}"
    for name in sorted(expected & found):
        old = whole / name
        new = folder / name
        if old.name == "report.json":
            numbers, again = (
                [json.loads(path.read_text())[key] for key in ("evaluation", "layers")]
                for path in (old, new)
            )
            if numbers != again:
                yield f"{name}: {again} instead of {numbers}"
        elif (
            old.is_file()
            and any(old.match(one) for one in NEW_RESULTS)
            and _content(old) != _content(new)
        ):
            yield f"{name}: other bytes"
