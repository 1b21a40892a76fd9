"""Finding zero-shot tasks by lm-eval's names, before any weight is loaded."""

import logging
from difflib import get_close_matches

from flap.errors import one_line
from flap.evaluation.harness import task_manager
from flap.evaluation.zero_shot_documents import PACKAGED, FoundTask, from_hub, packaged, packaged_path
from flap.models.packaged import INSTALL

log = logging.getLogger(__name__)

SOURCES = ("auto", "hub", "packaged")


def expand(names: list[str]) -> list[str]:
    """Each name once, a tag as its tasks. A group stays whole: lm-eval weighs its tasks when it averages them.

    Raises:
        ValueError: lm-eval has no task, group or tag of that name.
    """
    manager = task_manager()
    for name in names:
        if name not in manager.task_index:
            near = get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "expected a task, group or tag of lm-eval"
            raise ValueError(f"eval.zero_shot.tasks={name}: unknown task; {hint}")
    tags = set(manager.all_tags)
    tasks = [sorted(manager.task_index[name].tags) if name in tags else [name] for name in names]
    return list(dict.fromkeys(name for several in tasks for name in several))


def find_tasks(names: list[str], source: str) -> list[FoundTask]:
    """`auto` takes the hub's documents (downloaded or cached) and, where there are none, the packaged ones.

    Raises:
        ValueError: the source has no documents for a task.
    """
    found = [_find(name, source) for name in names]
    fallen_back = [one.name for one in found if source == "auto" and one.origin.startswith("packaged")]
    if fallen_back:
        log.warning("the hub's documents cannot be had, packaged ones stand in for them: %s", ", ".join(fallen_back))
    return found


def _find(name: str, source: str) -> FoundTask:
    if source == "packaged":
        return packaged(name)
    try:
        return from_hub(name)
    except Exception as error:  # network, hub, cache and missing packages each raise their own types
        if source == "auto" and packaged_path(name):
            return packaged(name)
        raise ValueError(f"eval.zero_shot.tasks={name}: {_why(name, error)}") from error


def check_shots(found: FoundTask, num_fewshot: int) -> None:
    """What lm-eval would ignore, or find out only when the model is loaded.

    Raises:
        ValueError: the task's number of examples is fixed, there are none to take, or the task runs generated code.
    """
    field = f"eval.zero_shot.num_fewshot={num_fewshot}"
    for task in found.loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(f"eval.zero_shot.tasks={found.name}: runs code that the model writes; not supported")
        if num_fewshot and task.get_config("num_fewshot") == 0:
            raise ValueError(f"{field}: {task.task_name} is defined without examples; expected null or 0")
        if num_fewshot and found.name in PACKAGED and not task.has_training_docs():
            raise ValueError(
                f"{field}: {found.origin} of {found.name} holds no other split to take examples from; expected null or "
                "0, or eval.zero_shot.source=hub"
            )


def _why(name: str, error: Exception) -> str:
    """What to do about documents that cannot be read."""
    reason = f"({type(error).__name__}: {one_line(error, 200)})"
    if isinstance(error, ImportError):
        return f"lm-eval needs a package for it that is not installed {reason}"
    what = "its documents are not in the local cache and cannot be downloaded from the hub"
    if packaged_path(name) is not None:
        return f"{what}; take eval.zero_shot.source=packaged {reason}"
    return f"{what}{f'; or install the packaged copy: {INSTALL}' if name in PACKAGED else ''} {reason}"
