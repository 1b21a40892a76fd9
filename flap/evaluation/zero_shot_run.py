"""Run one task of lm-eval on a model in memory."""

import logging
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from lm_eval import evaluate  # not simple_evaluate, which also runs git and nvidia-smi
from lm_eval.api import metrics, model
from lm_eval.api import task as lm_eval_task
from transformers import GenerationConfig

from flap.evaluation.task_index import quiet
from flap.evaluation.zero_shot_lm import ResumableLM
from flap.evaluation.zero_shot_tasks import Asking, LoadedTask
from flap.models import PlacedModel
from flap.runtime.temporary_state import replaced
from flap.storage import WorkFolder

log = logging.getLogger(__name__)


def run_task(
    task: LoadedTask,
    placed: PlacedModel,
    asking: Asking,
    batch_size: int,
    limit: int | None,
    work: WorkFolder,
) -> Any:
    """Run a task, and return lm-eval's results.

    lm-eval and the model are changed while the task runs (`_changes`), and restored afterwards.

    work: the working directory of the task. If the task was interrupted, answers that are stored in
        this directory are not computed again.
    """
    in_chat = asking.template is not None
    with ExitStack() as stack:
        stack.enter_context(quiet())
        for change in _changes(placed):
            stack.enter_context(change)
        lm = ResumableLM(
            task.name,
            work,
            pretrained=placed.model,
            tokenizer=asking.tokenizer,
            batch_size=batch_size,
            enable_thinking=False,  # switches thinking off in chat templates that support it
        )
        # lm-eval would use the device of the model's first weight, but this weight may be on disk
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


def _changes(placed: PlacedModel) -> list[AbstractContextManager[None]]:
    """Return context managers that change lm-eval and the model while a task runs."""
    # decode greedily, and ignore the penalties and lengths in the checkpoint's generation config
    end = getattr(placed.model.generation_config, "eos_token_id", None)
    likeliest = GenerationConfig(eos_token_id=end)
    return [
        # lm-eval has no option that turns off all of its progress bars
        replaced("tqdm", _no_bar, lm_eval_task, model),
        # compute no standard errors with the bootstrap method: its 100,000 draws in forked
        # processes take minutes
        replaced("bootstrap_stderr", lambda *_, **__: math.nan, metrics),
        replaced("generation_config", likeliest, placed.model),
    ]


def _no_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    """Return the items. This function replaces tqdm in loops too short for a progress bar."""
    return items


def _warn_cut(task: LoadedTask, lm: Any) -> None:
    """Warn if prompts are so long that the longest answer would not fit into the model's context.

    lm-eval cuts off the beginning of these prompts.
    """
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
