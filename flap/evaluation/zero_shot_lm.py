"""The model class that lm-eval calls.

The answers of the model are stored on disk, so that an interrupted task does not compute them
again.

Legend: a *request* of lm-eval asks for the log-likelihood of a continuation, or for a generated
text. A *group* contains the requests that need the same token sequence. The model reads this
sequence only once for the whole group. A *step* contains the requests of one or more batches. The
answers to the requests of a step are stored in one file. In the code, a group or a step is a list
of the indices of its requests.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from lm_eval.models import huggingface

from flap.runtime.progress import showing
from flap.storage import Kind, Notes, WorkFolder, as_json, digest, results_of_steps

ANSWERS: Kind[Any] = as_json("answers")
# The maximum number of files in which a task stores log-likelihoods. A batch takes only
# milliseconds on a GPU, so the answers of several batches are stored in the same file.
MOST_NOTES = 100

Group = list[int]
Step = list[int]


class ResumableLM(huggingface.HFLM):
    """A model of transformers for lm-eval, which stores its answers step by step.

    A run can have several processes (ranks). Every rank builds all requests. The ranks divide the
    steps among themselves, and then exchange their answers, so that every rank has all answers.

    Without this class, lm-eval would divide the documents among the ranks. The results would then
    depend on the number of ranks: each rank would draw the few-shot examples of its first document
    with the same seed, and the documents' results would be in a different order. A rank without
    documents would raise an error.

    The batches are the same as lm-eval's batches in a single process, because different batches
    would give different rounding errors. So neither the number of processes nor an interruption
    changes the measured numbers.
    """

    def __init__(self, stage: str, work: WorkFolder, **options: Any) -> None:
        """Create the model with the options of lm-eval's class HFLM.

        stage: the name that the progress bar shows.
        work: the working directory of the task. If the task was interrupted, answers that are
            stored in this directory are not computed again.
        """
        super().__init__(**options)
        self.stage = stage
        self.work = work

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text that the model writes after each prompt.

        The prompts of a batch have the same generation options and similar lengths. Each step is a
        single batch.
        """
        arguments = [request.args for request in requests]
        with_options = defaultdict[str, list[Group]](list)
        for number, (_, options) in enumerate(arguments):
            with_options[digest(options)].append([number])

        def longest_first(group: Group) -> tuple[int, str]:
            prompt, _ = arguments[group[0]]
            return -len(self.tok_encode(prompt)), prompt

        steps: list[Step] = []
        for groups in with_options.values():
            steps += _steps(sorted(groups, key=longest_first), self.batch_size)
        write = partial(super().generate_until, disable_tqdm=True)
        return self._answered(requests, digest(arguments), steps, write)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text. lm-eval splits long texts into windows."""
        nats: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return nats

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Any],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood, and whether greedy decoding would generate it.

        Continuations of the same context that differ only in their last token form one group.

        requests: a request consists of its texts, the tokens of its context, and the tokens of its
            continuation.
        """
        sharing = defaultdict[tuple[int, ...], Group](list)
        for number, (_, context, continuation) in enumerate(requests):
            sharing[(*context, *continuation[:-1])].append(number)

        def longest_first(group: Group) -> tuple[int, list[int]]:
            _, context, continuation = max((requests[n] for n in group), key=_continuation_length)
            return -len(context) - len(continuation), context + continuation

        groups = sorted(sharing.values(), key=longest_first)
        batches_per_step = math.ceil(len(groups) / self.batch_size / MOST_NOTES)
        steps = _steps(groups, batches_per_step * self.batch_size)
        measure = partial(super()._loglikelihood_tokens, disable_tqdm=True)
        answers = self._answered(requests, digest(requests), steps, measure)
        return [(nats, likeliest) for nats, likeliest in answers]

    def _answered(
        self,
        requests: Sequence[Any],
        key: str,
        steps: Sequence[Step],
        answer: Callable[[list[Any]], list[Any]],
    ) -> list[Any]:
        """Return the answers to all requests, in the order of the requests.

        key: a digest of the requests. answer: a function that answers the requests of a step.
        """

        def do(number: int) -> list[Any]:
            # seed each step, so that its random draws do not depend on earlier steps
            torch.manual_seed(number)
            return answer([requests[n] for n in steps[number]])

        notes = Notes(ANSWERS, self.work / key)
        results = results_of_steps(notes, do, lambda number: len(steps) - number)
        answers: dict[int, Any] = {}
        with showing(self.stage, len(requests)) as reach:
            for step, result in zip(steps, results, strict=True):
                answers.update(zip(step, result, strict=True))
                reach(len(answers))
        return [answers[number] for number in range(len(requests))]


def _continuation_length(request: Any) -> int:
    _, _, continuation = request
    return len(continuation)


def _steps(groups: Sequence[Group], size: int) -> list[Step]:
    """Join every `size` consecutive groups into one step. The last step may have fewer groups."""
    starts = range(0, len(groups), size)
    return [list(chain(*groups[start : start + size])) for start in starts]
