"""Zero-shot or few-shot accuracy on tasks of lm-eval, with its standard prompts, on the model in memory."""

import logging
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any, ClassVar, NamedTuple

from transformers import GenerationConfig, PreTrainedTokenizerBase

from flap.config import require
from flap.data import Prompt
from flap.data.dialogue import question
from flap.data.named_prompts import PASSAGES_OF
from flap.data.overlap import letters_and_digits
from flap.evaluation.base import TEMPLATED, Evaluator, Leaving, Measurement, Task
from flap.evaluation.task_documents import documents_of, without_documents, workload_of
from flap.evaluation.zero_shot_results import by_document, directions, f1, flat_numbers, margin
from flap.evaluation.zero_shot_tasks import (
    SOURCES,
    LoadedTask,
    check_shots,
    expand,
    load_tasks,
    quiet,
)
from flap.models import PlacedModel
from flap.runtime.temporary_state import replaced, seeded
from flap.storage import digest

log = logging.getLogger(__name__)

PAPER_MEASURES = {  # the columns of the paper's zero-shot table; evidence: docs/evaluation.md
    "boolq": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
}
TURNS = Prompt(
    tuple({"role": role, "content": "a"} for role in ("user", "assistant", "user")), None
)  # to be taken
SHARED_TEXT = {  # from the same validation split
    **dict.fromkeys(("boolq", "boolq-seq2seq"), ("boolq-passages", *PASSAGES_OF)),
    "hellaswag": ("hellaswag-passages",),
    **dict.fromkeys(("sciq", "sciq_answers", "sciq_repeat"), ("sciq-passages",)),
    "social_iqa": ("siqa-questions",),
}


class Asking(NamedTuple):
    """How a model is asked."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None  # the model's context in tokens; None: unlimited
    template: Any  # the chat template that prompts go through; None: none


@dataclass(frozen=True)
class ZeroShot(Evaluator):
    """The accuracies of tasks, from 0 to 1, higher is better, as `piqa/acc_norm` with `piqa/acc_norm_stderr` beside it.

    acc: the share of documents whose right choice is the likeliest; acc_norm: with log-likelihoods
    divided by the characters of the choice. `piqa/margin`: the mean log-likelihood by which the
    right choice is ahead of the others (`zero_shot_results`). Source: lm-evaluation-harness,
    github.com/EleutherAI/lm-evaluation-harness.

    Command: python -m flap eval=[zero_shot] eval.zero_shot.tasks=[piqa,arc_easy]
    """

    section: ClassVar[str] = "eval.zero_shot"  # of the config, for error messages
    needs_token: ClassVar[tuple[str, ...]] = (
        "bos_token_id",
        "eos_token_id",
    )  # one of these, which lm-eval begins with
    asks_in_chat: ClassVar[bool] = (
        False  # what chat_template=auto means where the tokenizer has one
    )

    tasks: list[str] = field(
        default_factory=lambda: list(PAPER_MEASURES)
    )  # lm-eval tasks, groups or tags
    limit: int | None = None  # documents of each task, 1 or more; None: all
    num_fewshot: int | None = (
        None  # examples in the prompt, 0 or more; None: the task's own number, 0 for these seven
    )
    batch_size: int = 8  # sequences in a batch, 1 or more
    source: str = (
        "auto"  # of the documents: hub; packaged; auto: the hub's where it answers, else packaged
    )
    seed: int = 1234  # of the few-shot examples, 0 to 2**32 - 1; this is lm-eval's
    chat_template: str = (
        "auto"  # prompts go through the tokenizer's: true, false; auto: false, so as published
    )

    def __post_init__(self) -> None:
        for name, condition, allowed in (
            ("tasks", bool(self.tasks), "a list of lm-eval tasks, groups or tags, as [piqa]"),
            ("limit", self.limit is None or self.limit >= 1, "null or a whole number >= 1"),
            (
                "num_fewshot",
                self.num_fewshot is None or self.num_fewshot >= 0,
                "null or a whole number >= 0",
            ),
            ("batch_size", self.batch_size >= 1, "a whole number >= 1"),
            ("source", self.source in SOURCES, f"one of {', '.join(SOURCES)}"),
            ("seed", 0 <= self.seed < 2**32, "a whole number from 0 to 2**32 - 1"),
            (
                "chat_template",
                self.chat_template.lower() in ("auto", "true", "false"),
                "one of auto, true, false",
            ),
        ):
            require(condition, f"{self.section}.{name}", getattr(self, name), allowed)

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """Load the documents of all tasks, and return the tasks.

        Raises:
            ValueError: a task is unknown, its documents cannot be read, or it does not support
                `num_fewshot`; or the tokenizer has no token for what the tasks begin or end with,
                or no chat template where one is asked for.
        """
        _ = self._template(tokenizer, [])  # fails before anything is read
        has_token = any(getattr(tokenizer, name) is not None for name in self.needs_token)
        names = " or ".join(name.removesuffix("_token_id").upper() for name in self.needs_token)
        allowed = f"none of these tasks: they take a tokenizer with {names}"
        require(has_token, f"{self.section}.tasks", self.tasks, allowed)
        try:
            with seeded(self.seed):  # some tasks shuffle their answers when they are loaded
                tasks = load_tasks(expand(self.tasks), self.source)
            for task in tasks:
                self.check(task, max_length)
        except ValueError as error:
            raise ValueError(f"{self.section}.{error}") from error
        template = self._template(tokenizer, tasks)
        own = deepcopy(tokenizer)  # as lm-eval adds a padding token if there is none
        asking = Asking(own, max_length, template)
        return [self._task(task, asking) for task in tasks]

    def check(self, task: LoadedTask, max_length: int | None) -> None:
        """Check that a task can be measured. Raises: as `check_shots`."""
        check_shots(task, self.num_fewshot)

    def _template(self, tokenizer: PreTrainedTokenizerBase, tasks: list[LoadedTask]) -> Any:
        """Return the chat template that prompts go through, examples as earlier turns; None: none."""
        choice = self.chat_template.lower()
        where = f"{self.section}.chat_template={self.chat_template}"
        if choice == "false" or (
            choice == "auto" and not (self.asks_in_chat and tokenizer.chat_template)
        ):
            return None
        if not tokenizer.chat_template:
            raise ValueError(f"{where}: the tokenizer has no chat template; expected auto or false")
        files = [one for task in tasks if task.path for one in task.loaded["tasks"].values()]
        try:
            for turns in (TURNS, *(prompt for one in files for prompt in one.prompts)):
                question(turns, tokenizer, chat=True)
        except ValueError as error:
            raise ValueError(f"{where}: {error}; expected false") from error
        return tokenizer.chat_template

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
        run = partial(
            self._measure, tokenizer=asking.tokenizer, task=task, in_chat=bool(asking.template)
        )
        shared = (task.path,) if task.path else SHARED_TEXT.get(task.name, (task.name,))
        return Task(
            task.name,
            run,
            identity,
            origin,
            shares_text_with=shared,
            leaving=self._leaving(task, asking),
            workload=workload_of(task, self.limit, self.num_fewshot),
        )

    def _leaving(self, task: LoadedTask, asking: Asking) -> Leaving:
        """Return how documents of a task are left out."""

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
        tokenizer: PreTrainedTokenizerBase,
        task: LoadedTask,
        in_chat: bool,
    ) -> Measurement:
        output = self._evaluated(placed, tokenizer, task, in_chat)
        numbers = flat_numbers(output["results"])
        samples = output["samples"]
        better = directions(numbers, output["higher_is_better"])
        measured = Measurement(numbers, by_document(samples, numbers), better=better)
        for name, subtask in task.loaded["tasks"].items():
            normalised = accuracy(name, numbers) == f"{name}/acc_norm"
            measured |= margin(name, subtask, samples[name], normalised) | f1(
                name, subtask, samples[name]
            )
        return measured

    def _evaluated(
        self,
        placed: PlacedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: LoadedTask,
        in_chat: bool,
    ) -> Any:
        """Return what lm-eval returns; random states, logging and its progress bars are as before."""
        from lm_eval import (
            evaluate,
        )  # here, as it takes seconds; simple_evaluate would run git and nvidia-smi
        from lm_eval.api import metrics, model
        from lm_eval.api import task as tasks
        from lm_eval.models import huggingface

        from flap.evaluation.zero_shot_ranks import Bar, SharedBatches

        for subtask in task.loaded["tasks"].values():
            if self.num_fewshot is not None:
                subtask.set_config(key="num_fewshot", value=self.num_fewshot)
            subtask.set_fewshot_seed(seed=self.seed)
        # no option of lm-eval turns all of its progress bars off
        own_bars = replaced("tqdm", partial(Bar, stage=task.name), tasks, model, huggingface)
        shared = replaced("Collator", SharedBatches, huggingface)
        # errors of what is no mean would take 100,000 draws in forks of this process: minutes
        undrawn = replaced("bootstrap_stderr", lambda *_, **__: math.nan, metrics)
        # answers are of the likeliest words, whatever penalties or lengths the checkpoint comes
        # with
        end = getattr(placed.model.generation_config, "eos_token_id", None)
        plain = replaced("generation_config", GenerationConfig(eos_token_id=end), placed.model)
        with quiet(), seeded(self.seed), own_bars, shared, undrawn, plain:
            options = {
                "batch_size": self.batch_size,
                "enable_thinking": False,
            }  # of templates that have thoughts
            lm = huggingface.HFLM(pretrained=placed.model, tokenizer=tokenizer, **options)
            lm._device = (
                placed.device
            )  # its own is that of the first weight, which may wait on disk
            chat = {"apply_chat_template": in_chat, "fewshot_as_multiturn": in_chat}
            output = evaluate(lm, task.loaded, limit=self.limit, log_samples=True, **chat)
        requests = [one for subtask in task.loaded["tasks"].values() for one in subtask.instances]
        asked = [one.args for one in requests if one.request_type == "generate_until"]
        room = [
            lm.max_length - options.get("max_gen_toks", lm.max_gen_toks) for _, options in asked
        ]
        if cut := sum(
            len(lm.tok_encode(text)) > fits for (text, _), fits in zip(asked, room, strict=True)
        ):
            log.warning(
                "%s: %d of %d prompts lose their beginning: the context is short",
                task.name,
                cut,
                len(asked),
            )
        return output

    def averages(self, numbers: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return `zero_shot/average` and `zero_shot/average_margin`, means over the tasks; higher is better.

        If a task has no accuracy, or no margin, there is no such average: means over different
        tasks are not comparable.
        """
        tasks = expand(self.tasks)
        averages = {
            "zero_shot/average": [accuracy(task, numbers) for task in tasks],
            "zero_shot/average_margin": [f"{task}/margin" for task in tasks],
        }
        return {
            name: parts
            for name, parts in averages.items()
            if all(part in numbers for part in parts)
        }


def accuracy(task: str, numbers: Mapping[str, Any]) -> str:
    """Return the name of a task's accuracy: the paper's measure, else acc_norm, else acc; empty if it has none."""
    measures = [PAPER_MEASURES[task]] if task in PAPER_MEASURES else ["acc_norm", "acc"]
    return next((f"{task}/{measure}" for measure in measures if f"{task}/{measure}" in numbers), "")
