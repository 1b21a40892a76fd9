"""Run lm-eval on a model in memory, without changes to random states or logging, and return named numbers."""

import io
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from numbers import Real
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from flap.data.temporary_state import seeded
from flap.evaluation.base import Better, Measurement, Numbers
from flap.models import PlacedModel
from flap.storage.progress import progress

Samples = Mapping[str, list[dict[str, Any]]]  # lm-eval's log: by task, an entry for each document (and filter)


@dataclass(frozen=True)
class Settings:
    """The options of lm-eval. limit: documents in each task; None = all. num_fewshot: None = the task's own number."""

    limit: int | None
    num_fewshot: int | None
    batch_size: int | str
    seed: int


@cache
def task_manager() -> Any:
    """Return lm-eval's index of tasks, cached because reading some ten thousand YAML files takes seconds."""
    from lm_eval.tasks import TaskManager  # imported here because it takes seconds

    with quiet():
        return TaskManager()


def evaluated(
    placed: PlacedModel, tokenizer: PreTrainedTokenizerBase, name: str, loaded: Mapping[str, Any], settings: Settings
) -> tuple[Measurement, Samples]:
    """Evaluate the tasks that `TaskManager.load` returned on the model in memory; return their numbers and samples.

    name: the label of the progress bar.
    """
    from lm_eval import evaluate  # simple_evaluate would run git and nvidia-smi
    from lm_eval.models.huggingface import HFLM

    for task in loaded["tasks"].values():
        if settings.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=settings.num_fewshot)
        task.set_fewshot_seed(seed=settings.seed)
    with quiet(), seeded(settings.seed), _own_progress(name):
        # a copy of the tokenizer, because lm-eval adds a padding token if there is none
        lm = HFLM(pretrained=placed.model, tokenizer=deepcopy(tokenizer), batch_size=settings.batch_size)
        lm._device = placed.device  # its own is that of the first weight, which may wait on disk
        output = evaluate(lm, loaded, limit=settings.limit, log_samples=True)
    numbers = flatten(output["results"])
    return Measurement(numbers, better=directions(numbers, output["higher_is_better"])), output["samples"]


def flatten(results: Mapping[str, Mapping[str, Any]]) -> Numbers:
    """Return lm-eval's results as flat numbers: {"piqa": {"acc,none": 0.8, …}} becomes {"piqa/acc": 0.8}.

    A filter other than "none" stays in the name. A standard error has its number's name and "_stderr". Values that are
    not finite numbers are left out: names, aliases, and "N/A" for an error that cannot be estimated.
    """
    return {
        f"{task}/{flat_name(*key.split(',', 1))}": float(value)
        for task, numbers in results.items()
        for key, value in numbers.items()
        if "," in key and isinstance(value, Real) and math.isfinite(value)
    }


def directions(numbers: Numbers, higher_is_better: Mapping[str, Mapping[str, bool | None]]) -> dict[str, Better]:
    """Return which values of lm-eval's numbers are better, as its tasks and groups say: {"piqa": {"acc": True}}."""
    found: dict[str, Better] = {}
    for name in (name for name in numbers if not name.endswith("_stderr")):
        task, _, measure = name.rpartition("/")
        higher = higher_is_better.get(task, {}).get(measure.partition(",")[0])
        if higher is not None:  # of a group whose tasks disagree
            found[name] = "higher" if higher else "lower"
    return found


def flat_name(name: str, filter_name: str) -> str:
    """Return the name of a measure with its filter: ("acc_stderr", "strict") becomes "acc,strict_stderr"."""
    suffix = "" if filter_name == "none" else f",{filter_name}"
    return f"{name.removesuffix('_stderr')}{suffix}{'_stderr' if name.endswith('_stderr') else ''}"


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


class _Bar:
    """A replacement for tqdm in lm-eval: requests to the model use our progress bar, quick loops show none."""

    def __init__(self, items: Iterable[Any] = (), *, stage: str, total: int = 0, disable: bool = False, **_: Any):
        self.items = items
        self.steps = iter(()) if items or disable else progress(range(total), stage)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def update(self, count: int) -> None:
        """Advance the bar by `count` requests."""
        for _ in range(count):
            next(self.steps, None)

    def close(self) -> None:
        """Finish the bar."""
        for _ in self.steps:
            pass


@contextmanager
def _own_progress(stage: str) -> Iterator[None]:
    """Replace lm-eval's progress bars for as long as the block lasts: no option turns all of them off."""
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
