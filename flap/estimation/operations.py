"""The arithmetic of a run: floating-point operations, a multiplication and an addition counting as two.

What is small beside a forward pass or a factorisation is left out: norms, embeddings, scores of single channels.
Legend: I input channels · O output channels · K kept, P pruned channels.
"""

from dataclasses import dataclass

from flap.compression.linear import RIDGES
from flap.estimation.work import Work
from flap.models.shapes import BlockShape, LayerShape, Shapes
from flap.search.cost import SearchWalk
from flap.search.divergence import EVERY

# OBS, in units of I³: a factor (1/3), an inverse (2/3), and the updates of the inverse in 64 steps, halved on the way.
OBS_CUBES = 2.14
# The updates of the weight on the way, in units of O · I².
OBS_WEIGHT = 1.33


@dataclass(frozen=True)
class Operations:
    """The operations of the parts of a run."""

    shapes: Shapes
    work: Work

    def forward(self, tokens: float, kept: float = 1.0) -> float:
        """Return the operations of all layers for tokens, without the head. kept: the share of the weights there is."""
        return kept * sum(self.layer(layer, tokens) for layer in self.shapes.layers)

    def layer(self, layer: LayerShape, tokens: float) -> float:
        """Return the operations of one layer: two for each weight, and the products of queries, keys and values."""
        weights = sum(block.active_parameters for block in layer.blocks)
        return tokens * (2 * weights + 4 * self.work.seq_len * layer.blocks.attention.width)

    def head(self, tokens: float) -> float:
        """Return the operations of the head."""
        return 2 * tokens * self.shapes.hidden * self.shapes.vocabulary

    def observe(self, tokens: float, covariance: bool) -> float:
        """Return the operations of recorders: co-moments, and the gate and up projections of experts once more."""
        again = sum(block.active_parameters * 2 / 3 for block in self.shapes.blocks if block.experts > 1)
        comoments = sum(block.chosen * block.channels**2 for block in self.shapes.blocks)  # half of each is computed
        return tokens * (2 * again + (comoments if covariance else 0))

    def scores(self) -> float:
        """Return the operations of OBS scores of all layers."""
        cubes = (block.experts * block.channels**3 for block in self.shapes.blocks)
        weights = (block.outputs * block.covariance_elements for block in self.shapes.blocks)
        return OBS_CUBES * sum(cubes) + OBS_WEIGHT * sum(weights)

    def search(self, walk: SearchWalk) -> float:
        """Return the operations of a walk of a search besides those of its covariances."""
        layers = zip(self.shapes.layers, walk.streams, strict=True)
        streams = sum(self.layer(layer, walk.tokens * streams) for layer, streams in layers)
        predictions = self.head(walk.tokens / EVERY) * (walk.plans + 1)
        fits = sum(
            linear_fit(block, count, walk.kept)
            for i, layer in enumerate(self.shapes.layers)
            for block, count in zip(layer.blocks, walk.fits(i), strict=True)
        )
        return streams + predictions + (fits if self.work.compensation.needs_covariance else 0)

    def final_fits(self) -> float:
        """Return the operations of the final linear fits: one for each ridge, judged on held-out ones, and the last."""
        ridges = len(RIDGES) if getattr(self.work.compensation, "ridge", None) is None else 1
        return sum(
            (ridges + 1) * (linear_fit(block, 1, 1 - self.work.ratio) + 2 * block.outputs * block.covariance_elements)
            for block in self.shapes.blocks
        )


def linear_fit(block: BlockShape, removals: int, kept: float) -> float:
    """Return the operations of linear fits of one covariance: a factor, and for each removal a triangular solve.

    kept: the share of the channels that stay.
    """
    if not removals:
        return 0.0
    solves = 2 * block.outputs * block.covariance_elements * (kept * (1 - kept) + kept**2 / 2)
    return block.experts * block.channels**3 / 3 + removals * solves
