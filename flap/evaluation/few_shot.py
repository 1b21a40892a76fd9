"""Check that lm-eval's tasks support the requested number of few-shot examples."""

from typing import Any

from flap.evaluation.zero_shot_tasks import LoadedTask


def check_shots(task: LoadedTask, num_fewshot: int | None) -> None:
    """Check that a task supports `num_fewshot` few-shot examples.

    Without this check, lm-eval would ignore an unsupported `num_fewshot`, or would raise an error
    only after the model has been loaded.

    num_fewshot: the number of examples; None stands for the task's default.

    Raises:
        ValueError: the task takes no examples, has too few documents to take the examples from, or
            runs code that the model writes.
    """
    for name, subtask in task.subtasks.items():
        if getattr(subtask, "UNSAFE_CODE", False):
            raise ValueError(f"tasks={task.name}: runs code that the model writes; not supported")

        own = subtask.get_config("num_fewshot")
        shots = (own or 0) if num_fewshot is None else num_fewshot
        # The maximum number of examples; None if there is no maximum. There is a maximum if the
        # examples are other documents of the task, or other prompts of the same file.
        others = None
        if task.path and subtask.most_shots:
            others = subtask.most_shots
        elif not task.path and examples_are_documents(subtask):
            others = len(subtask.eval_docs) - 1
        if others is not None and shots > others:
            kind = "prompts" if task.path else "documents"
            raise ValueError(
                f"num_fewshot={shots}: {name} has {others} other {kind}; expected 0 to {others}"
            )
        if shots and own == 0:
            raise ValueError(
                f"num_fewshot={shots}: {name} is defined without examples; expected null or 0"
            )


def examples_are_documents(task: Any) -> bool:
    """Return whether a task of lm-eval draws few-shot examples from the documents it measures."""
    config = task.config
    examples = getattr(task, "fewshot_cfg", None)
    if examples is None or not hasattr(task, "sampler"):
        return False
    # if the definition of the task lists its examples one by one, no documents are drawn
    if examples.split is None and examples.samples is not None:
        return False
    splits = (examples.split, config.training_split, config.validation_split, config.test_split)
    of_examples = next(filter(None, splits), None)
    return bool(of_examples == (config.test_split or config.validation_split))
