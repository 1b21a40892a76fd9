"""Measure zero-shot or few-shot accuracy on tasks of lm-eval, with lm-eval's standard prompts.

The whole model must fit into memory.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from flap.config import require, require_counts
from flap.data import Prompt
from flap.data.dialogue import question
from flap.data.named_prompts import PASSAGES_OF
from flap.data.overlap import letters_and_digits
from flap.evaluation.base import TEMPLATED, TEMPLATES, Evaluator, Leaving, Measurement, Task
from flap.evaluation.few_shot import check_shots
from flap.evaluation.task_documents import documents_of, without_documents, workload_of
from flap.evaluation.task_index import expand
from flap.evaluation.zero_shot_results import by_document, directions, f1, flat_numbers, margin
from flap.evaluation.zero_shot_tasks import SOURCES, Asking, LoadedTask, is_source, load_tasks
from flap.models import PlacedModel
from flap.runtime.temporary_state import seeded
from flap.storage import NOT_KEPT, WorkFolder, digest

# For each task in the zero-shot table of FLAP's paper, the accuracy that the table reports: acc or
# acc_norm. The test `test_the_paper_s_measures` compares the accuracies that lm-eval computes for
# LLaMA-7B with the accuracies in this table.
PAPER_MEASURES = {
    "boolq": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
}
SOURCE = (  # the values that the option `source` accepts
    f"{', '.join(SOURCES)}, or a folder or a .jsonl, .json, .parquet or .csv file that exists"
)
# a conversation of several turns, with which `_check_template` tests the chat template
TURNS = Prompt(
    tuple({"role": role, "content": "a"} for role in ("user", "assistant", "user")), None
)
# for each task, the named texts (flap/data/named_texts.py) that come from its validation split
SHARED_TEXT = {
    **dict.fromkeys(("boolq", "boolq-seq2seq"), ("boolq-passages", *PASSAGES_OF)),
    "hellaswag": ("hellaswag-passages",),
    **dict.fromkeys(("sciq", "sciq_answers", "sciq_repeat"), ("sciq-passages",)),
    "social_iqa": ("siqa-questions",),
}


@dataclass(frozen=True)
class ZeroShot(Evaluator):
    """The accuracy of each task, from 0 to 1; higher is better.

    An accuracy has a name such as `piqa/acc_norm`, and its standard error is
    `piqa/acc_norm_stderr`.

    `acc` is the share of documents (questions with choices) in which the right choice has the
    highest log-likelihood. `acc_norm` is the share of documents in which the right choice has the
    highest log-likelihood per character. `piqa/margin` is the log-likelihood of the right choice
    minus the highest log-likelihood of a wrong choice, averaged over documents
    (`zero_shot_results.margin`).

    Source: lm-evaluation-harness, github.com/EleutherAI/lm-evaluation-harness.
    Command: python -m flap eval=[zero_shot] eval.zero_shot.tasks=[piqa,arc_easy]
    """

    section: ClassVar[str] = "eval.zero_shot"  # section of the config, for error messages
    # the tokenizer must have at least one of these tokens, because lm-eval needs one of them
    needs_token: ClassVar[tuple[str, ...]] = ("bos_token_id", "eos_token_id")
    # whether chat_template=auto uses the chat template of a tokenizer that has one
    asks_in_chat: ClassVar[bool] = False

    # names of lm-eval's tasks, groups or tags, or paths of files with prompts
    tasks: list[str] = field(default_factory=lambda: list(PAPER_MEASURES))
    limit: int | None = None  # maximum number of documents of each task, 1 or more; None: all
    # The number of few-shot examples in the prompt, 0 or more. None stands for the task's default,
    # which is 0 for the seven default tasks.
    num_fewshot: int | None = None
    batch_size: int = 8  # sequences in a forward pass, 1 or more
    # where the documents come from: "hub"; "packaged" (`packaged_documents`); "auto", which uses
    # the hub if it can be reached, else the packaged documents; or the path of the user's file or
    # folder (`document_files`)
    source: str = "auto"
    seed: int = 1234  # seed for drawing few-shot examples, 0 to 2**32 - 1; 1234 as in lm-eval
    # Whether to use the tokenizer's chat template: true, false, or auto. In eval.zero_shot, auto
    # means false, because published numbers are measured without a chat template. In
    # eval.generation, auto uses the template if the tokenizer has one.
    chat_template: str = "auto"

    def __post_init__(self) -> None:
        known_choice = self.chat_template.lower() in TEMPLATES
        for name, valid, allowed in (
            ("tasks", bool(self.tasks), "a list of lm-eval tasks, groups or tags, as [piqa]"),
            ("source", is_source(self.source), SOURCE),
            ("seed", 0 <= self.seed < 2**32, "a whole number from 0 to 2**32 - 1"),
            ("chat_template", known_choice, f"one of {', '.join(TEMPLATES)}"),
        ):
            require(valid, f"{self.section}.{name}", getattr(self, name), allowed)
        require_counts(self, self.section, limit=1, num_fewshot=0, batch_size=1)

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """Load lm-eval's tasks with their documents, and return a flap `Task` for each of them.

        Raises:
            ValueError: a task is unknown, the documents of a task cannot be read, or a task cannot
                be measured (`check`). The error is also raised if the tokenizer lacks a token that
                lm-eval needs (`needs_token`), or the chat template that the config asks for.
        """
        in_chat = self._in_chat(tokenizer)
        has_token = any(getattr(tokenizer, name) is not None for name in self.needs_token)
        names = " or ".join(name.removesuffix("_token_id").upper() for name in self.needs_token)
        allowed = f"none of these tasks: they take a tokenizer with {names}"
        require(has_token, f"{self.section}.tasks", self.tasks, allowed)
        try:
            with seeded(self.seed):  # tasks may shuffle answer choices while they are loaded
                tasks = load_tasks(expand(self.tasks), self.source)
            for task in tasks:
                self.check(task, max_length)
        except ValueError as error:
            raise ValueError(f"{self.section}.{error}") from error

        if in_chat:
            self._check_template(tokenizer, tasks)
        template = tokenizer.chat_template if in_chat else None
        # a copy, because lm-eval adds a padding token to a tokenizer that has none
        asking = Asking(deepcopy(tokenizer), max_length, template)
        return [self._task(task, asking) for task in tasks]

    def check(self, task: LoadedTask, max_length: int | None) -> None:
        """Check that a task can be measured.

        Raises:
            ValueError: the task does not support `num_fewshot`, or it runs code that the model
                writes.
        """
        check_shots(task, self.num_fewshot)

    def _in_chat(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Return whether the tokenizer's chat template formats the prompts.

        If it does, few-shot examples are earlier turns of the conversation.
        """
        choice = self.chat_template.lower()
        has_template = bool(tokenizer.chat_template)
        if choice == "auto":
            return self.asks_in_chat and has_template
        if choice == "true" and not has_template:
            raise ValueError(
                f"{self.section}.chat_template={self.chat_template}: the tokenizer has no chat "
                "template; expected auto or false"
            )
        return choice == "true"

    def _check_template(self, tokenizer: PreTrainedTokenizerBase, tasks: list[LoadedTask]) -> None:
        """Check that the chat template can format several turns, and the user's own prompts."""
        conversations = [TURNS]
        for task in tasks:
            if task.path:
                for file in task.subtasks.values():
                    conversations += file.prompts
        try:
            for turns in conversations:
                question(turns, tokenizer, chat=True)
        except ValueError as error:
            where = f"{self.section}.chat_template={self.chat_template}"
            raise ValueError(f"{where}: {error}; expected false") from error

    def _task(self, task: LoadedTask, asking: Asking) -> Task:
        identity = {
            "limit": self.limit,
            "num_fewshot": self.num_fewshot,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "documents": task.origin,
            "lm_eval": version("lm_eval"),
        }
        origin = task.origin
        if asking.template:
            identity["chat_template"] = asking.template
            origin += TEMPLATED
        of_lm_eval = SHARED_TEXT.get(task.name, (task.name,))
        return Task(
            task.name,
            partial(self._measure, task=task, asking=asking),
            identity,
            origin,
            shares_text_with=(task.path,) if task.path else (*of_lm_eval, *task.files),
            leaving=self._leaving(task, asking),
            continues=True,
            workload=workload_of(task, self.limit, self.num_fewshot),
        )

    def _leaving(self, task: LoadedTask, asking: Asking) -> Leaving:
        """Describe how to leave out documents that the run has used for calibration or training."""

        def without(numbers: frozenset[int]) -> Task:
            try:
                remaining = without_documents(task, numbers)
                self.check(remaining, asking.max_length)
            except ValueError as error:
                raise ValueError(f"{self.section}.{error}") from error
            changed = self._task(remaining, asking)
            identity = {**changed.identity, "left_out": digest(sorted(numbers))}
            return replace(changed, identity=identity)

        named = f"{self.section}.tasks={task.name}"
        return Leaving(named, partial(documents_of, task), without, letters_and_digits)

    def _measure(
        self,
        placed: PlacedModel,
        work: WorkFolder = NOT_KEPT,
        *,
        task: LoadedTask,
        asking: Asking,
    ) -> Measurement:
        # imported here because importing lm-eval takes seconds
        from flap.evaluation.zero_shot_run import run_task

        for subtask in task.subtasks.values():
            if self.num_fewshot is not None:
                subtask.set_config(key="num_fewshot", value=self.num_fewshot)
            subtask.set_fewshot_seed(seed=self.seed)
        with seeded(self.seed):
            output = run_task(task, placed, asking, self.batch_size, self.limit, work)

        samples = output["samples"]
        numbers = flat_numbers(output["results"])
        measured = Measurement(
            numbers,
            by_document(samples, numbers),
            directions(numbers, output["higher_is_better"]),
        )
        for name, subtask in task.subtasks.items():
            normalised = accuracy(name, numbers) == f"{name}/acc_norm"
            measured |= margin(name, subtask, samples[name], normalised)
            measured |= f1(name, subtask, samples[name])
        return measured

    def averages(self, numbers: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return a dict from each average to the names of the averaged numbers, one for each task.

        The averages are `zero_shot/average`, the mean of the tasks' accuracies, and
        `zero_shot/average_margin`, the mean of the tasks' margins. Higher averages are better. An
        average is left out if one of the tasks has no accuracy or no margin, because averages over
        different tasks are not comparable.
        """
        tasks = expand(self.tasks)
        averages = {
            "zero_shot/average": [accuracy(task, numbers) for task in tasks],
            "zero_shot/average_margin": [f"{task}/margin" for task in tasks],
        }
        return {name: parts for name, parts in averages.items() if numbers.keys() >= {*parts}}


def accuracy(task: str, numbers: Mapping[str, Any]) -> str:
    """Return the name of a task's accuracy, or "" if the task has no accuracy.

    For a task in PAPER_MEASURES, the accuracy is the one that FLAP's paper reports. For other
    tasks, it is acc_norm, or acc if the task has no acc_norm.
    """
    measures = [PAPER_MEASURES[task]] if task in PAPER_MEASURES else ["acc_norm", "acc"]
    names = [f"{task}/{measure}" for measure in measures]
    return next((name for name in names if name in numbers), "")
