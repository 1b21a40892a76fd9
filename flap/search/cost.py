"""What the walk of structure=search takes: streams that travel, fits, and predictions that are compared.

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
from flap.models.shapes import Shapes
from flap.search.divergence import EVERY, TOGETHER
from flap.search.search import Search
from flap.search.trials import removal_counts


@dataclass(frozen=True)
class SearchWalk:
    """The walk of a search, which scores as well."""

    tokens: int  # of one stream
    trials: Sequence[Pair[int]]  # for each layer, how many there are of its attention and of its MLP
    kept: float  # the share of a block's units that stays in them, on average
    processes: int  # which share the trials; each one has the dense stream

    @property
    def streams(self) -> list[int]:
        """The number of streams after each layer: the dense one, and one a trial so far."""
        return [1 + math.ceil(count / self.processes) for count in accumulate(map(sum, self.trials))]

    @property
    def most_streams(self) -> int:
        """The most streams that exist at once: those before a layer and those after it."""
        return max(a + b for a, b in zip([1, *self.streams], self.streams, strict=False))

    @property
    def mean_streams(self) -> float:
        """Through how many whole models the streams travel together."""
        return sum(self.streams) / len(self.streams)

    def fits(self, layer: int) -> Pair[int]:
        """Return how many fits the two blocks of a layer need: one for each trial."""
        return Pair(*(math.ceil(trials / self.processes) for trials in self.trials[layer]))

    def fitted_bytes(self, shapes: Shapes, itemsize: int, in_float: bool) -> float:
        """Return the bytes of the fitted projections of a layer, one for each trial, at their most.

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
        """Return the operations of the linear fits of all trials."""
        pairs = ((layer.blocks, self.fits(i)) for i, layer in enumerate(shapes.layers))
        blocks = ((block, fits) for pair in pairs for block, fits in zip(*pair, strict=True))
        return sum(
            block.experts * fit_operations(block.channels, block.outputs, fits, self.kept) for block, fits in blocks
        )

    def run_operations(self, of_layers: Sequence[float], of_head: float) -> float:
        """Return the operations of all streams and of the predictions. of_layers, of_head: for each token."""
        streams = sum(map(math.prod, zip(of_layers, self.streams, strict=True)))
        return self.tokens * (streams + of_head * self.streams[-1] / EVERY)


def search_walk(
    structure: Structure, shapes: Shapes, whole_windows: Callable[[int], int], processes: int
) -> SearchWalk | None:
    """Return the walk of a search; None for other structures.

    whole_windows: returns the tokens of the held-out windows that a stream has for so many.
    """
    if not structure.measures:
        return None
    search, units = cast(Search, structure), [[block.units for block in layer.blocks] for layer in shapes.layers]
    fewest = (search.min_heads, search.min_neurons)
    alone = [
        Pair(*(len(removal_counts(search.levels, *one)) for one in zip(sizes, fewest, strict=True))) for sizes in units
    ]
    kept = 1 - sum(search.levels) / len(search.levels)
    return SearchWalk(whole_windows(search.tokens), alone, kept, processes)
