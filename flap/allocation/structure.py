"""The base classes of the structures: the interface, the minimum that each layer keeps, and `remove_heads`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from flap.allocation.budget import Budget, Units
from flap.allocation.plan import LayerPlan, PruningPlan
from flap.config import require
from flap.importance import Scores
from flap.models import Pair

ROUND_TO = (8, 32, 64, 256)


class Measure(Protocol):
    """A function that measures KL(dense ‖ pruned) of the next-token predictions, in nats a token; lower is better."""

    def __call__(self, plans: Sequence[PruningPlan], num_tokens: int) -> list[float]:
        """Return the divergence of each plan on `num_tokens` calibration tokens, rounded up to whole windows."""


@dataclass(frozen=True, kw_only=True)
class Structure(ABC):
    """The base class of the structures, which decide from scores and a budget which units stay.

    min_heads, min_neurons: the least numbers of attention units (KV heads with their query heads) and of neurons that
    every layer keeps. round_to: every layer keeps a multiple of this number of neurons, because neurons are removed in
    blocks of that size; None: any number.
    """

    min_heads: int = 1
    min_neurons: int = 1
    round_to: int | None = None

    layer_by_layer: ClassVar[bool] = False  # whether each layer's plan needs only its own scores
    measures: ClassVar[bool] = False  # whether it measures plans, for which it needs calibration windows

    @abstractmethod
    def allocate(self, scores: Scores, budget: Budget, measure: Measure | None = None) -> PruningPlan:
        """Return a plan that keeps (1 - ratio) · total parameters, to within one unit (or block).

        measure: measures the divergence of plans, for a structure that `measures`.
        """

    def allocate_layer(self, index: int, scores: Pair[Tensor], budget: Budget) -> LayerPlan:
        """Return the plan of one layer, for a structure with `layer_by_layer`."""
        raise AssertionError(f"{type(self).__name__} decides all layers at once")

    @property
    def ranks_errors(self) -> bool:
        """Whether scores must be squared output errors."""
        return False

    def check(self, budget: Budget) -> None:
        """Check that the options and the ratio fit this model.

        Raises:
            ValueError: an option or the ratio does not fit; names it and says what is expected.
        """
        heads = min(layer.attention.count for layer in budget.layers)
        neurons = min(layer.mlp.count for layer in budget.layers)
        for name, value, most, kind in (
            ("min_heads", self.min_heads, heads, "KV heads"),
            ("min_neurons", self.min_neurons, neurons, "neurons"),
        ):
            require(1 <= value <= most, f"structure.{name}", value, f"1 to {most}, the {kind} of a layer")
        sizes = ", ".join(map(str, ROUND_TO))
        require(self.round_to in (None, *ROUND_TO), "round_to", self.round_to, f"null, or one of {sizes}")
        if self.fewest_blocks > neurons // self.block:
            raise ValueError(
                f"round_to={self.round_to}: a layer has {neurons} neurons and keeps at least {self.min_neurons} "
                "(structure.min_neurons); no multiple lies between"
            )
        self._check_ratio(budget)

    def _check_ratio(self, budget: Budget) -> None:
        most = sum(
            self.spare_heads(layer) * layer.attention.price + self.spare_parameters(layer) for layer in budget.layers
        )
        heads, neurons = _count(self.min_heads, "KV head"), _count(self.fewest_blocks * self.block, "neuron")
        if budget.to_remove > most:
            raise ValueError(
                f"ratio={budget.ratio}: {heads} and {neurons} stay in every layer, so this model allows at most "
                f"{int(1000 * most / budget.total) / 1000}"
            )

    @property
    def block(self) -> int:
        """The number of neurons that are removed together."""
        return self.round_to or 1

    @property
    def fewest_blocks(self) -> int:
        """The least number of blocks of neurons that every layer keeps."""
        return math.ceil(self.min_neurons / self.block)

    def spare_heads(self, layer: Pair[Units]) -> int:
        """Return the number of attention units of a layer that may be removed."""
        return layer.attention.count - self.min_heads

    def spare_blocks(self, layer: Pair[Units]) -> int:
        """Return the number of blocks of neurons that may be removed, without the remainder that fills no block."""
        return layer.mlp.count // self.block - self.fewest_blocks

    def rest_parameters(self, layer: Pair[Units]) -> int:
        """Return the parameters of the neurons that fill no block; these are always removed."""
        return layer.mlp.count % self.block * layer.mlp.price

    def spare_parameters(self, layer: Pair[Units]) -> int:
        """Return the parameters of all neurons that may be removed."""
        return self.rest_parameters(layer) + self.spare_blocks(layer) * self.block * layer.mlp.price


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class ManualHeads(Structure):
    """The base class of structures whose number of removed heads can be set by hand.

    remove_heads: the number of query heads to remove from the whole model, a multiple of the query heads of one KV
    head; None: the proportional share.
    """

    remove_heads: int | None = None

    def check(self, budget: Budget) -> None:
        """Check the options as `Structure.check` does, and `remove_heads`.

        Raises:
            ValueError: an option, the ratio or `remove_heads` does not fit this model.
        """
        super().check(budget)
        if self.remove_heads is None:
            return
        group, (least, most) = budget.layers[0].attention.queries, self._feasible_units(budget)
        if self.remove_heads % group or not least <= self.remove_heads // group <= most:
            multiple = f" that is a multiple of {group} (query heads a KV head)" if group > 1 else ""
            raise ValueError(
                f"structure.remove_heads={self.remove_heads}: at ratio={budget.ratio} this model allows "
                f"{least * group} to {most * group}, a number{multiple}"
            )

    def units_to_remove(self, budget: Budget) -> int:
        """Return the number of attention units (KV heads) to remove from the whole model."""
        if self.remove_heads is not None:
            return self.remove_heads // budget.layers[0].attention.queries
        proportional = round(budget.ratio * sum(layer.attention.count for layer in budget.layers))
        least, most = self._feasible_units(budget)
        return min(max(proportional, least), most)

    def _feasible_units(self, budget: Budget) -> tuple[int, int]:
        """Return the least and the largest number of attention units whose removal lets neurons meet the budget.

        Where no number does so exactly, the nearest one.
        """
        layers = budget.layers
        priciest = max(layer.attention.price for layer in layers)
        fewest = (budget.to_remove - sum(map(self.spare_parameters, layers))) / priciest
        largest = (budget.to_remove - sum(map(self.rest_parameters, layers))) / priciest
        least, most = math.ceil(fewest), math.floor(largest)
        if least > most:  # all neurons that may be removed have fewer parameters than one unit
            least = most = round((fewest + largest) / 2)
        return max(least, 0), max(min(most, sum(map(self.spare_heads, layers))), 0)
