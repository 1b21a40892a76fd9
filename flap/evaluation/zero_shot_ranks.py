"""Run one task of lm-eval on a model in memory.

Each batch of requests is run by one process of the run.

lm-eval itself would divide the documents among its ranks, with other results than in one process:
each rank draws the few-shot examples of its first document with the same seed, documents come back
in another order, and a rank without documents raises an error. Here every process builds all
requests, runs its share of the batches, and gets the answers to all requests before it computes
numbers.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from lm_eval import evaluate  # simple_evaluate would run git and nvidia-smi
from lm_eval.api import metrics, model
from lm_eval.api import task as lm_eval_task
from lm_eval.models import huggingface
from lm_eval.models.utils import Collator
from transformers import GenerationConfig

from flap.evaluation.zero_shot_tasks import Asking, LoadedTask, quiet
from flap.models import PlacedModel
from flap.runtime import ranks
from flap.runtime.progress import progress
from flap.runtime.temporary_state import replaced

log = logging.getLogger(__name__)


class SharedBatches(Collator):
    """Share batches among processes. A batch has the same requests as in a run of one process."""

    _reorder_indices: list[int]

    def get_batched(self, n: int = 1, batch_fn: Callable[..., int] | None = None) -> Iterator[Any]:
        """Yield the batches of this process."""
        batches = list(super().get_batched(n, batch_fn))
        # the positions of the requests; empty if lm-eval records them only with the answers
        numbers = iter(self._reorder_indices)
        numbers_of_batches = [list(islice(numbers, len(batch))) for batch in batches]
        own = ranks.own_share(range(len(batches)))
        self._reorder_indices = list(chain(*(numbers_of_batches[i] for i in own)))
        for i in own:
            torch.manual_seed(i)  # random draws for a batch do not depend on earlier batches
            yield batches[i]

    def get_original(self, newarr: list[Any]) -> list[Any]:
        """Return the answers to all requests, in order. newarr: the answers of this process."""
        own = list(zip(self._reorder_indices, newarr, strict=True))
        answers = dict(chain(*ranks.gather(own)))
        return [answers[number] for number in range(len(self))]


class Bar:
    """A replacement for tqdm in lm-eval.

    Loops over requests to the model use the progress bar of this package. Quick loops show no bar.
    """

    def __init__(
        self,
        items: Iterable[Any] = (),
        *,
        stage: str,
        total: int = 0,
        disable: bool = False,
        **_: Any,
    ):
        self.items = items
        self.steps = iter(()) if items or disable else progress(range(total), stage)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def update(self, count: int) -> None:
        """Advance the bar by `count` requests of every process."""
        for _ in range(count * ranks.size()):
            next(self.steps, None)

    def close(self) -> None:
        """Finish the bar."""
        for _ in self.steps:
            pass


def run_task(
    task: LoadedTask, placed: PlacedModel, asking: Asking, batch_size: int, limit: int | None
) -> Any:
    """Run a task and return lm-eval's results. Restores lm-eval's logging and progress bars."""
    in_chat = asking.template is not None
    with ExitStack() as stack:
        stack.enter_context(quiet())
        for change in _changes(task, placed):
            stack.enter_context(change)
        lm = huggingface.HFLM(
            pretrained=placed.model,
            tokenizer=asking.tokenizer,
            batch_size=batch_size,
            enable_thinking=False,  # for templates that support thinking
        )
        # lm-eval would take the device of the first weight, which may be on disk
        lm._device = placed.device
        output = evaluate(
            lm,
            task.loaded,
            limit=limit,
            log_samples=True,
            apply_chat_template=in_chat,
            fewshot_as_multiturn=in_chat,
        )
    _warn_cut(task, lm)
    return output


def _changes(task: LoadedTask, placed: PlacedModel) -> list[AbstractContextManager[None]]:
    """Return the temporary changes of lm-eval and of the model while a task runs."""
    # answers are greedy, whatever penalties or lengths the checkpoint's generation config has
    end = getattr(placed.model.generation_config, "eos_token_id", None)
    likeliest = GenerationConfig(eos_token_id=end)
    return [
        # no option of lm-eval turns all of its progress bars off
        replaced("tqdm", partial(Bar, stage=task.name), lm_eval_task, model, huggingface),
        replaced("Collator", SharedBatches, huggingface),
        # bootstrap errors would take minutes: 100,000 draws in forks of this process
        replaced("bootstrap_stderr", lambda *_, **__: math.nan, metrics),
        replaced("generation_config", likeliest, placed.model),
    ]


def _warn_cut(task: LoadedTask, lm: Any) -> None:
    """Warn of prompts that do not fit into the context together with their answers."""
    asked = 0
    cut = 0
    for subtask in task.subtasks.values():
        for request in subtask.instances:
            if request.request_type == "generate_until":
                prompt, options = request.args
                room = lm.max_length - options.get("max_gen_toks", lm.max_gen_toks)
                asked += 1
                cut += len(lm.tok_encode(prompt)) > room
    if cut:
        log.warning(
            "%s: %d of %d prompts lose their beginning: the context is short",
            task.name,
            cut,
            asked,
        )
