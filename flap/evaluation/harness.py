"""Running lm-eval on a model in memory: quietly, without a trace in random state or logging, as named numbers."""

import io
import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from numbers import Real
from typing import Any

import datasets
import numpy
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.progress import progress


@dataclass(frozen=True)
class Settings:
    """What lm-eval is told besides model and task. limit: documents a task; None = all, or the task's own number."""

    limit: int | None
    num_fewshot: int | None
    batch_size: int | str
    seed: int


@cache
def task_manager() -> Any:
    """lm-eval's index of its tasks, made once: reading some ten thousand YAML files takes seconds."""
    from lm_eval.tasks import TaskManager  # here, because importing lm-eval takes seconds too

    with quiet():
        return TaskManager()


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, loaded: Mapping[str, Any], settings: Settings
) -> dict[str, float]:
    """The numbers of what `TaskManager.load` gave, on the model as it is in memory; `name` is shown as it runs."""
    from lm_eval import evaluate  # simple_evaluate would ask git about the working folder, and nvidia-smi
    from lm_eval.models.huggingface import HFLM

    for task in loaded["tasks"].values():
        if settings.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=settings.num_fewshot)
        task.set_fewshot_seed(seed=settings.seed)
    with quiet(), seeded(settings.seed), _own_progress(name):
        # a copy of the tokenizer, because lm-eval gives it a padding token where it has none
        lm = HFLM(pretrained=model, tokenizer=deepcopy(tokenizer), batch_size=settings.batch_size)
        found = evaluate(lm, loaded, limit=settings.limit, log_samples=False)
    return flatten(found["results"])


def flatten(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """{"piqa": {"acc,none": 0.8, …}} as {"piqa/acc": 0.8}; a filter other than "none" stays in the name.

    A standard error has its number's name and "_stderr". What is no finite number is left out: names, aliases, and the
    "N/A" of an error that cannot be estimated.
    """
    return {
        f"{task}/{_measure(*key.split(',', 1))}": float(value)
        for task, numbers in results.items()
        for key, value in numbers.items()
        if "," in key and isinstance(value, Real) and math.isfinite(value)
    }


def _measure(name: str, chosen: str) -> str:
    filtered = "" if chosen == "none" else f",{chosen}"
    return f"{name.removesuffix('_stderr')}{filtered}{'_stderr' if name.endswith('_stderr') else ''}"


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval logs dozens of lines and warns of the way it is used here; only its errors get through."""
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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed python, numpy and torch as lm-eval's command line does, and leave no trace of it."""
    python, legacy_numpy = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            random.seed(seed)
            numpy.random.seed(seed)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(legacy_numpy)


class _Bar:
    """Stands in for tqdm: requests put to the model go to our progress bar, bars over quick loops are not drawn."""

    def __init__(self, items: Iterable[Any] = (), *, stage: str, total: int = 0, disable: bool = False, **_: Any):
        self.items = items
        self.steps = iter(()) if items or disable else progress(range(total), stage)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def update(self, count: int) -> None:
        for _ in range(count):
            next(self.steps, None)

    def close(self) -> None:
        for _ in self.steps:
            pass


@contextmanager
def _own_progress(stage: str) -> Iterator[None]:
    """No option of lm-eval turns all of its bars off."""
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    modules = (task, model, huggingface)
    tqdm = task.tqdm
    for module in modules:
        module.tqdm = partial(_Bar, stage=stage)
    try:
        yield
    finally:
        for module in modules:
            module.tqdm = tqdm
