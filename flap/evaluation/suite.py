"""Prepare all measurements of a run before the model is loaded."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from flap.evaluation.base import Evaluator, Task


def prepare_tasks(
    evaluators: Mapping[str, Evaluator],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    before: PreTrainedTokenizerBase | None = None,
) -> list[Task]:
    """Read and check the data of every task, and return the tasks.

    evaluators: a dict from the evaluators' names in the config section `eval` to the evaluators.
    max_length: the model's context length in tokens; None if it is unlimited.
    before: the tokenizer of the dense model, if the vocabulary has been trimmed; otherwise None.

    Raises:
        ValueError: an option or the data is invalid, or two tasks have the same name.
    """
    prepared: list[Task] = []
    for name, evaluator in evaluators.items():
        if before is None:
            tasks = evaluator.prepare(tokenizer, max_length)
        else:
            tasks = evaluator.prepare_again(tokenizer, max_length, before)
        prepared += [replace(task, evaluator=name) for task in tasks]

    names = Counter(task.name for task in prepared)
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise ValueError(
            f"eval: {', '.join(repeated)} is named twice; expected tasks and texts of "
            "different names"
        )
    return prepared
