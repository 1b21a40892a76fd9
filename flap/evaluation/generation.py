"""Answers that a model writes itself, to tasks of lm-eval, scored as lm-eval does."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from flap.evaluation.task_documents import longest_answer
from flap.evaluation.zero_shot import ZeroShot
from flap.evaluation.zero_shot_tasks import LoadedTask, expand


@dataclass(frozen=True)
class Generation(ZeroShot):
    """The share of right answers that a model writes with greedy decoding.

    It is from 0 to 1; higher is better.

    `triviaqa/exact_match,remove_whitespace`: the share of documents that are answered correctly, by
    the rules of the task. `triviaqa/f1`: the F1 of the words of the answer and the most similar
    right answer (`zero_shot_results.f1`). A pruned model may still choose the right answer from a
    list but not write it. Other options: `ZeroShot`.

    Source: lm-evaluation-harness, github.com/EleutherAI/lm-evaluation-harness.
    Command: python -m flap eval=[generation] eval.generation.tasks=[triviaqa]
    """

    section: ClassVar[str] = "eval.generation"
    needs_token: ClassVar[tuple[str, ...]] = ("eos_token_id",)
    asks_in_chat: ClassVar[bool] = True

    tasks: list[str] = field(
        default_factory=lambda: ["triviaqa", "nq_open", "sciq_answers", "basic_arithmetic"]
    )
    # number of examples in the prompt, which show how long answers are; None stands for the task's
    # default
    num_fewshot: int | None = 5

    def check(self, task: LoadedTask, max_length: int | None) -> None:
        """Check that a task can be measured.

        Raises:
            ValueError: as `check_shots`; it has no answers to write, or they are longer than the
                model's context.
        """
        super().check(task, max_length)
        for subtask in task.subtasks.values():
            if subtask.OUTPUT_TYPE != "generate_until":
                raise ValueError(
                    f"tasks={task.name}: has no answers to write, but {subtask.OUTPUT_TYPE}; "
                    "take eval=[zero_shot] for it, or a task as triviaqa"
                )
            longest = longest_answer(subtask)
            if max_length is not None and longest >= max_length:
                raise ValueError(
                    f"tasks={task.name}: answers of up to {longest} tokens; "
                    f"the context is {max_length}"
                )

    def averages(self, numbers: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return `generation/exact_match` and `generation/f1`, means over the tasks.

        A mean is there only if each task has the number.
        """
        averages = {}
        # the first number of each measure, without its filter, as triviaqa/exact_match
        names = {name.partition(",")[0]: name for name in reversed([*numbers])}
        for measure in ("exact_match", "f1"):
            parts = [names.get(f"{Path(task).name}/{measure}", "") for task in expand(self.tasks)]
            if all(parts):
                averages[f"generation/{measure}"] = parts
        return averages
