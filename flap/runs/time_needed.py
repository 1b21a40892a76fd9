"""Estimate the time of a run on this machine from the speed of the model's layers."""

from collections.abc import Iterator
from dataclasses import dataclass

from flap.config import one_line
from flap.evaluation import Task, prepare_tasks
from flap.evaluation.task_documents import SHARE_WRITTEN
from flap.models import ModelSource
from flap.runs.choices import Choices
from flap.runs.layer_speed import LayerSpeed
from flap.runs.pruning_work import PruningWork
from flap.runs.texts import read_texts
from flap.runtime.agenda import about


@dataclass(frozen=True)
class TimeNeeded:
    """The work of a run, and the time that it takes at a given speed."""

    work: PruningWork  # the amount of computation that pruning takes
    written: float  # number of tokens that the model writes
    tasks: list[Task]  # the evaluation tasks of the run
    # Number of models that are measured. A pruned model counts as less than one model: it counts as
    # the share of the parameters that stay, because it is faster than the dense model.
    models: float
    left_out: list[str]  # descriptions of work that the estimated time does not include

    def lines(self, speed: LayerSpeed) -> Iterator[str]:
        """Yield two lines: the estimated time, and the work that is not included in this time."""
        work = self.work
        pruning = work.passes * work.tokens * speed.layers
        pruning += work.positions * speed.head + work.products * speed.product
        parts = {"pruning": pruning}
        if self.written:
            parts["text that the model writes"] = self.written * speed.written
        if self.tasks:
            one_model = sum(speed.of_tasks.seconds(task.workload) for task in self.tasks)
            parts["evaluation"] = self.models * one_model
        named = ", ".join(f"{name} {about(seconds)}" for name, seconds in parts.items())
        yield f"time here: about {about(sum(parts.values()))} ({named})"
        yield f"not in this time: {', '.join(self.left_out)}"


def time_needed(
    choices: Choices, source: ModelSource, work: PruningWork, kept: float
) -> TimeNeeded:
    """Return the work of a run, without texts and tasks whose files cannot be read now.

    work: the amount of computation that pruning takes.
    kept: the share of the model's parameters that stays after pruning.
    """
    left_out = ["loading and saving"]
    if source.placed.streams:
        left_out.append("reading layers from disk")
    if choices.vocabulary is not None:
        left_out.append("choosing tokens")
    if choices.recovery is not None:
        left_out.append("training")

    written = 0.0
    try:
        written = _tokens_to_write(choices, source)
    except ValueError:  # a dry run also works if the tokenizer or a text cannot be read
        left_out.append("text that the model writes")

    tasks = []
    for name, evaluator in choices.evaluators.items():
        try:
            prepared = prepare_tasks({name: evaluator}, source.tokenizer, source.max_length)
        except ValueError as error:  # the texts of the task cannot be read now
            left_out.append(f"{name} ({one_line(error, 100)})")
            continue
        tasks += [task for task in prepared if task.workload.tokens]
        left_out += [task.name for task in prepared if not task.workload.tokens]
    models = 1 + kept
    if choices.recovery is not None:
        models += kept  # the compressed model is measured before and after training
    return TimeNeeded(work, written, tasks, models, left_out)


def _tokens_to_write(choices: Choices, source: ModelSource) -> float:
    """Return how many tokens the model writes for calibration and recovery.

    Raises:
        ValueError: the tokenizer or a text cannot be read.
    """
    tokens = 0.0
    for windows in read_texts(choices, source).values():
        for part in windows.to_write:
            # In a text with prompts, the model writes only the answers. The share of the tokens
            # that belong to answers is assumed to be SHARE_WRITTEN.
            share = SHARE_WRITTEN if part in windows.asked else 1.0
            tokens += share * windows.tokens_to_write(part)
    return tokens
