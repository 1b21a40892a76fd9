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
    """The amount of work in a run, and the time that this work takes at a given speed."""

    work: PruningWork  # the amount of computation that pruning takes
    written: float  # number of tokens that the model generates for calibration and training texts
    tasks: list[Task]  # the evaluation tasks of the run
    # Number of models that the evaluation tasks measure. The dense model counts as 1. A pruned
    # model is faster, so it counts only as the share of the parameters that stays after pruning.
    models: float
    left_out: list[str]  # names of stages and tasks whose time is not estimated

    def lines(self, speed: LayerSpeed) -> Iterator[str]:
        """Yield two lines: the estimated time, and the work that this time does not include."""
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
    """Return how much pruning, text generation and evaluation a run has to do.

    Texts and evaluation tasks whose files cannot be read now are left out.

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
        except ValueError as error:  # a text of these tasks cannot be read now
            left_out.append(f"{name} ({one_line(error, 100)})")
            continue
        tasks += [task for task in prepared if task.workload.tokens]
        left_out += [task.name for task in prepared if not task.workload.tokens]
    models = 1 + kept
    if choices.recovery is not None:
        models += kept  # the pruned model is measured before and after its training
    return TimeNeeded(work, written, tasks, models, left_out)


def _tokens_to_write(choices: Choices, source: ModelSource) -> float:
    """Return how many tokens the model has to generate for the calibration and training texts.

    The training text is the text for the training after compression (recovery).

    Raises:
        ValueError: the tokenizer or a text cannot be read.
    """
    tokens = 0.0
    for windows in read_texts(choices, source).values():
        for part in windows.to_write:
            # In a text with prompts, the model generates only the answers. These answers are
            # assumed to be the share SHARE_WRITTEN of the text's tokens.
            share = SHARE_WRITTEN if part in windows.asked else 1.0
            tokens += share * windows.tokens_to_write(part)
    return tokens
