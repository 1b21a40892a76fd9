"""Zero-shot or few-shot accuracy on tasks of lm-eval, with its standard prompts, on the model in memory."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

from transformers import PreTrainedTokenizerBase

from flap.config import require
from flap.data.temporary_state import seeded
from flap.evaluation.base import Evaluator, Measurement, Task
from flap.evaluation.harness import Settings, evaluated
from flap.evaluation.zero_shot_documents import LoadedTask
from flap.evaluation.zero_shot_samples import by_document, margin
from flap.evaluation.zero_shot_tasks import SOURCES, check_shots, expand, load_tasks
from flap.models import PlacedModel

PAPER_MEASURES = {  # the columns of the paper's zero-shot table; evidence: docs/evaluation.md
    "boolq": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
}
SHARED_TEXT = {"boolq": ("boolq-passages",), "hellaswag": ("hellaswag-passages",)}  # from the same validation split


@dataclass(frozen=True)
class ZeroShot(Evaluator):
    """The accuracies of tasks, from 0 to 1, higher is better, as `piqa/acc_norm` with `piqa/acc_norm_stderr` beside it.

    `piqa/margin` is the mean log-likelihood by which the right choice is ahead of the others (`zero_shot_samples`).

    tasks: lm-eval tasks, groups or tags. limit: documents in each task; None = all. num_fewshot: examples in the
    prompt; None = the task's own number, 0 for the paper's seven. batch_size: sequences in a batch, or "auto" for the
    largest that fits. source: of the documents, one of SOURCES. seed: of the few-shot examples; lm-eval's is 1234.
    """

    tasks: list[str] = field(default_factory=lambda: list(PAPER_MEASURES))
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int | str = 8
    source: str = "auto"
    seed: int = 1234

    def __post_init__(self) -> None:
        valid_batch_size = self.batch_size >= 1 if isinstance(self.batch_size, int) else self.batch_size == "auto"
        for name, condition, allowed in (
            ("tasks", bool(self.tasks), "a list of lm-eval tasks, groups or tags, as [piqa]"),
            ("limit", self.limit is None or self.limit >= 1, "null or a whole number >= 1"),
            ("num_fewshot", self.num_fewshot is None or self.num_fewshot >= 0, "null or a whole number >= 0"),
            ("batch_size", valid_batch_size, "auto or a whole number >= 1"),
            ("source", self.source in SOURCES, f"one of {', '.join(SOURCES)}"),
            ("seed", 0 <= self.seed < 2**32, "a whole number from 0 to 2**32 - 1"),
        ):
            require(condition, f"eval.zero_shot.{name}", getattr(self, name), allowed)

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """Load the documents of all tasks, and return the tasks.

        Raises:
            ValueError: a task is unknown, its documents cannot be read, or it does not support `num_fewshot`.
        """
        with seeded(self.seed):  # some tasks shuffle their answers when they are loaded
            tasks = load_tasks(expand(self.tasks), self.source)
        for task in tasks:
            check_shots(task, self.num_fewshot or 0)
        return [self._task(task, tokenizer) for task in tasks]

    def _task(self, task: LoadedTask, tokenizer: PreTrainedTokenizerBase) -> Task:
        settings = Settings(self.limit, self.num_fewshot, self.batch_size, self.seed)
        identity = asdict(settings) | {"documents": task.origin, "lm_eval": version("lm_eval")}
        del identity["batch_size"]  # changes only the speed
        run = partial(_measure, tokenizer=tokenizer, task=task, settings=settings)
        return Task(task.name, run, identity, task.origin, shares_text_with=SHARED_TEXT.get(task.name, ()))

    def averages(self, numbers: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return `zero_shot/average` and `zero_shot/average_margin`, means over the tasks; higher is better.

        If a task has no accuracy, or no margin, there is no such average: means over different tasks are not
        comparable.
        """
        tasks = expand(self.tasks)
        averages = {
            "zero_shot/average": [accuracy(task, numbers) for task in tasks],
            "zero_shot/average_margin": [f"{task}/margin" for task in tasks],
        }
        return {name: parts for name, parts in averages.items() if all(part in numbers for part in parts)}


def accuracy(task: str, numbers: Mapping[str, Any]) -> str:
    """Return the name of a task's accuracy: the paper's measure, else acc_norm, else acc; empty if it has none."""
    measures = [PAPER_MEASURES[task]] if task in PAPER_MEASURES else ["acc_norm", "acc"]
    return next((f"{task}/{measure}" for measure in measures if f"{task}/{measure}" in numbers), "")


def _measure(
    placed: PlacedModel, tokenizer: PreTrainedTokenizerBase, task: LoadedTask, settings: Settings
) -> Measurement:
    """Return the numbers of a task, or of a group and its tasks."""
    measured, samples = evaluated(placed, tokenizer, task.name, task.loaded, settings)
    numbers = measured.numbers
    measured |= Measurement(documents=by_document(samples, numbers))
    for name, subtask in task.loaded["tasks"].items():
        measured |= margin(name, subtask, samples[name], normalised=accuracy(name, numbers) == f"{name}/acc_norm")
    return measured
