"""Measure the answers that a model writes in lm-eval's tasks, by exact match and by F1."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from flap.evaluation.task_documents import longest_answer
from flap.evaluation.task_index import expand
from flap.evaluation.zero_shot import ZeroShot
from flap.evaluation.zero_shot_tasks import LoadedTask


@dataclass(frozen=True)
class Generation(ZeroShot):
    """The share of questions that a model answers correctly with greedy decoding.

    The share is a number from 0 to 1; higher is better.

    A task such as triviaqa gives two numbers. `triviaqa/exact_match,remove_whitespace` is the share
    of documents (questions) that are answered correctly by the rules of the task. `triviaqa/f1` is
    the F1 score between the words of the model's answer and the words of the right answer, averaged
    over documents (`zero_shot_results.f1`). If a question has several right answers, its F1 is the
    highest of the scores with these answers. These numbers complement multiple choice: a pruned
    model may be unable to write the right answer, although it can still choose this answer from a
    list. The options that have no comment here are described in `ZeroShot`.

    Source: lm-evaluation-harness, github.com/EleutherAI/lm-evaluation-harness.
    Command: python -m flap eval=[generation] eval.generation.tasks=[triviaqa]
    """

    section: ClassVar[str] = "eval.generation"
    needs_token: ClassVar[tuple[str, ...]] = ("eos_token_id",)
    asks_in_chat: ClassVar[bool] = True

    tasks: list[str] = field(
        default_factory=lambda: ["triviaqa", "nq_open", "sciq_answers", "basic_arithmetic"]
    )
    # The number of few-shot examples in the prompt, 0 or more. These examples show the model how
    # long an answer should be. None stands for the task's default.
    num_fewshot: int | None = 5

    def check(self, task: LoadedTask, max_length: int | None) -> None:
        """Check that a task can be measured.

        Raises:
            ValueError: the task does not support `num_fewshot`, the task runs code that the model
                writes, the model writes no answers in the task, or the longest answer would fill
                the model's context, so that no prompt fits in front of it.
        """
        super().check(task, max_length)
        for subtask in task.subtasks.values():
            if subtask.OUTPUT_TYPE != "generate_until":
                raise ValueError(
                    f"tasks={task.name}: the model writes no answers in it "
                    f"({subtask.OUTPUT_TYPE}); use eval=[zero_shot] for it, or a task such as "
                    "triviaqa"
                )
            longest = longest_answer(subtask)
            if max_length is not None and longest >= max_length:
                raise ValueError(
                    f"tasks={task.name}: answers of up to {longest} tokens; "
                    f"the context is {max_length}"
                )

    def averages(self, numbers: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return a dict from each average to the names of the averaged numbers, one for each task.

        The averages are `generation/exact_match` and `generation/f1`. Each of them is left out if a
        task lacks the number to be averaged, because averages over different tasks are not
        comparable.
        """
        averages = {}
        # Map short names, such as "triviaqa/exact_match", to full names with lm-eval's filter, such
        # as "triviaqa/exact_match,remove_whitespace". If lm-eval reports a number for several
        # filters, use the first filter.
        names = {name.partition(",")[0]: name for name in reversed([*numbers])}
        for measure in ("exact_match", "f1"):
            parts = [names.get(f"{Path(task).name}/{measure}", "") for task in expand(self.tasks)]
            if all(parts):
                averages[f"generation/{measure}"] = parts
        return averages
