"""What the walks of structure=search take: streams that travel, fits, and predictions that are compared.

A stream forks at the layer of its trial and passes all later layers (`flap.search.divergence`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

from flap.allocation import Structure
from flap.compression.linear import fit_operations
from flap.models import Pair
from flap.models.shapes import BlockShape, Shapes
from flap.search.divergence import EVERY, TOGETHER
from flap.search.search import STRENGTHS, Search
from flap.search.trials import removal_counts
from flap.search.whole_layers import ONLY


@dataclass(frozen=True)
class SearchWalk:
    """One walk of a search."""

    field: str  # the option that says how many tokens are compared
    tokens: int  # of one stream
    candidates: int  # whole plans
    trials: Sequence[Pair[int]]  # for each layer, how many there are of its attention and of its MLP
    kept: float  # the share of a block's units that stays in them, on average
    processes: int = 1  # which share candidates and trials; each one has the dense stream
    whole: Sequence[int] = ()  # for each layer, how many trials it leaves whole in; empty: none

    @property
    def streams(self) -> list[int]:
        """The number of streams after each layer: the dense one, one a candidate, and one a trial so far."""
        whole = self.whole or [0] * len(self.trials)
        trials = (sum(pair) + count for pair, count in zip(self.trials, whole, strict=True))
        plans = accumulate(trials, initial=self.candidates)
        return [1 + math.ceil(count / self.processes) for count in plans][1:]

    @property
    def most_streams(self) -> int:
        """The most streams that exist at once: those before a layer and those after it."""
        before = [1 + math.ceil(self.candidates / self.processes), *self.streams]
        return max(a + b for a, b in zip(before, self.streams, strict=False))

    @property
    def mean_streams(self) -> float:
        """Through how many whole models the streams travel together."""
        return sum(self.streams) / len(self.streams)

    def fits(self, layer: int) -> Pair[int]:
        """Return how many fits the two blocks of a layer need: one for each trial and each candidate."""
        return Pair(*(math.ceil((self.candidates + trials) / self.processes) for trials in self.trials[layer]))

    def fitted_bytes(self, shapes: Shapes, itemsize: int, in_float: bool) -> float:
        """Return the bytes of the fitted projections of a layer, one for each trial and candidate, at their most.

        in_float: while they are made, those of one block are in memory in float32 as well.
        """
        found = []
        for i, layer in enumerate(shapes.layers):
            blocks = zip(self.fits(i), layer.blocks, strict=True)
            elements = [self.kept * fits * block.output_parameters for fits, block in blocks]
            found.append(itemsize * sum(elements) + 4 * in_float * max(elements))
        return max(found)

    def logits_bytes(self, seq_len: int, vocabulary: int, itemsize: int) -> float:
        """Return the bytes of the predictions that are compared together: of the dense model and of one plan."""
        return min(self.tokens, max(TOGETHER, seq_len)) / EVERY * vocabulary * (8 + itemsize)

    def fit_operations(self, shapes: Shapes) -> float:
        """Return the operations of the linear fits of all trials and candidates."""
        pairs = ((layer.blocks, self.fits(i)) for i, layer in enumerate(shapes.layers))
        blocks = ((block, fits) for pair in pairs for block, fits in zip(*pair, strict=True))
        return sum(
            block.experts * fit_operations(block.channels, block.outputs, fits, self.kept) for block, fits in blocks
        )

    def run_operations(self, of_layers: Sequence[float], of_head: float) -> float:
        """Return the operations of all streams and of the predictions. of_layers, of_head: for each token."""
        streams = sum(map(math.prod, zip(of_layers, self.streams, strict=True)))
        return self.tokens * (streams + of_head * self.streams[-1] / EVERY)


def search_walks(
    structure: Structure, shapes: Shapes, ratio: float, whole_windows: Callable[[int], int]
) -> dict[str, list[SearchWalk]]:
    """Return the walks of a search by their stage: the first one scores, too, and those of rounds allocate.

    They are as many as there may be: it ends earlier if a round finds nothing better. No search: none.
    whole_windows: returns the tokens of the held-out windows that a stream has for so many.
    """
    if not structure.measures:
        return {}
    search, units = cast(Search, structure), [[block.units for block in layer.blocks] for layer in shapes.layers]
    fewest = (search.min_heads, search.min_neurons)
    alone = [
        Pair(*(len(removal_counts(search.levels, *one)) for one in zip(sizes, fewest, strict=True))) for sizes in units
    ]
    alone = [Pair(0, 0)] * len(units) if search.layers == ONLY else alone
    whole = [int(i > 0) for i in range(len(units))] if search.layers else []
    around = [Pair(*(_neighbours(block) for block in layer.blocks)) for layer in shapes.layers]
    candidates = [1, *[len(STRENGTHS)] * search.rounds]
    rounds = [*[around] * search.rounds, [Pair(0, 0)] * len(shapes.layers)]
    tokens, round_tokens = map(whole_windows, (search.tokens, search.round_tokens))
    first = SearchWalk("tokens", tokens, 0, alone, 1 - sum(search.levels) / len(search.levels), whole=whole)
    refining = [
        SearchWalk("round_tokens", round_tokens, count, trials, 1 - ratio)
        for count, trials in zip(candidates, rounds, strict=True)
    ]
    return {"score": [first], "allocate": refining if search.rounds else []}


def widest(walks: Sequence[SearchWalk]) -> SearchWalk | None:
    """Return the walk whose streams take the most; None if there is none."""
    return max(walks, key=lambda walk: walk.most_streams * walk.tokens, default=None)


def _neighbours(block: BlockShape) -> int:
    """Return how many neighbours a plan has in a block: with some units restored, and with some removed."""
    return min(2, block.units - 1)
