"""lm-eval's batches of requests, each run by one process of the run.

lm-eval's own ranks share out documents, and give other numbers than one process: each rank draws
the few-shot examples of its first document with the same seed, documents come back in another
order, and a rank without any is an error. Here all processes make all requests, and have all
answers before anything is computed from them.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from lm_eval.models.utils import Collator

from flap.runtime import ranks
from flap.runtime.progress import progress


class SharedBatches(Collator):
    """The batches that one process would run, with the same requests in each: equal bits."""

    _reorder_indices: list[int]

    def get_batched(self, n: int = 1, batch_fn: Callable[..., int] | None = None) -> Iterator[Any]:
        """Yield the batches of this process."""
        batches = list(super().get_batched(n, batch_fn))
        numbers = iter(
            self._reorder_indices
        )  # of requests; none yet where lm-eval notes them with the answers
        of_batches = [list(islice(numbers, len(batch))) for batch in batches]
        own = ranks.own_share(list(zip(of_batches, enumerate(batches), strict=True)))
        self._reorder_indices = list(chain(*(of_batch for of_batch, _ in own)))
        for _, (number, batch) in own:
            torch.manual_seed(
                number
            )  # what is drawn for a batch does not depend on batches before it
            yield batch

    def get_original(self, newarr: list[Any]) -> list[Any]:
        """Return the answers to all requests, in their order. newarr: those of this process."""
        own = list(zip(self._reorder_indices, newarr, strict=True))
        answers = dict(chain(*ranks.gather(own)))
        return [answers[number] for number in range(len(self))]


class Bar:
    """A replacement for tqdm in lm-eval: requests to the model use our progress bar, quick loops show none."""

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
        """Advance the bar by `count` requests of this process, and as many of each other one."""
        for _ in range(count * ranks.size()):
            next(self.steps, None)

    def close(self) -> None:
        """Finish the bar."""
        for _ in self.steps:
            pass
