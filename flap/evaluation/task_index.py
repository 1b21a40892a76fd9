"""Find lm-eval's tasks by name, in an index that also contains flap's own tasks."""

import io
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import datasets

from flap.config import shown
from flap.data import FORMATS

OWN_TASKS = Path(__file__).with_name("tasks")  # tasks that flap defines, in lm-eval's format


@cache
def task_manager() -> Any:
    """Return lm-eval's index of its tasks, which also contains flap's tasks.

    The index is cached, because reading about ten thousand YAML files takes seconds.
    """
    from lm_eval.tasks import TaskManager  # imported here because importing lm-eval takes seconds

    with quiet():
        return TaskManager(include_path=OWN_TASKS)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide lm-eval's output during a `with` block, except errors.

    Without this, lm-eval would log dozens of lines.
    """
    logger = logging.getLogger("lm_eval")
    with ExitStack() as stack, redirect_stdout(io.StringIO()):
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        if datasets.is_progress_bar_enabled():
            stack.callback(datasets.enable_progress_bars)
        datasets.disable_progress_bars()
        yield


def expand(names: list[str]) -> list[str]:
    """Return the names of the tasks without duplicates, with each tag replaced by its tasks.

    names: names of tasks, groups or tags of lm-eval, or paths of files with prompts.

    A path stays unchanged. A group is not replaced by its tasks, because lm-eval computes the
    result of a group as a weighted mean over its tasks.

    Raises:
        ValueError: a name is not the path of a file of prompts, and lm-eval has no task, group or
            tag with this name.
    """
    # Loading lm-eval's index takes seconds, so the index is not loaded if every name is a path.
    if all(map(is_prompt_file, names)):
        return list(dict.fromkeys(names))
    manager = task_manager()
    tasks: list[str] = []
    for name in names:
        if name in manager.all_tags:
            tasks += sorted(manager.task_index[name].tags)
        elif name in manager.task_index or is_prompt_file(name):
            tasks.append(name)
        else:
            similar = ", ".join(get_close_matches(name, manager.all_tasks, n=3))
            hint = "expected a task, group or tag of lm-eval"
            if similar:
                hint = f"did you mean {similar}?"
            raise ValueError(f"tasks={shown(name)}: unknown task; {hint}")
    return list(dict.fromkeys(tasks))


def is_prompt_file(name: str) -> bool:
    """Return whether the name of a task is the path of a file of prompts."""
    return Path(name).suffix in FORMATS
