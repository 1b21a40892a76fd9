"""The base class of structures, the algorithms that choose which units of each layer stay.

A unit is removed as a whole: a KV head with its query heads, a neuron of an MLP, or an expert. A
block is the attention or the MLP of a layer. A plan lists the units that stay. The budget says
which share of the parameters to remove. It may have bounds, which are upper limits on costs of the
pruned model, such as its bytes. The bounds come from the targets in the config.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from flap.config import require
from flap.method.allocation.budget import Budget, Units
from flap.method.allocation.plan import PruningPlan
from flap.method.importance import Scores
from flap.models import Pair

ROUND_TO = (8, 32, 64, 128, 256)
NO_ROUNDING = (
    "null with structure.experts=true; a second run can prune the kept experts (docs/prune.md)"
)


class Limits(NamedTuple):
    """How many units may be removed from a block, if they are removed in groups of `size` units."""

    size: int  # number of units that are removed together; 1 if no unit may be removed
    fewest: int  # minimum number of groups that stay
    # The possible numbers of removed units, ascending. The first number is the number of units that
    # are left over when the block is divided into groups. These units are always removed.
    counts: range

    @classmethod
    def of(cls, units: Units, size: int, least: int) -> "Limits":
        """Return the limits of a block with these units.

        size: number of units that are removed together.
        least: minimum number of units that stay if `units.fewest` is 0. Otherwise, `units.fewest`
            is the minimum.
        """
        if units.fixed:
            size = 1
        groups = units.count // size
        fewest = min(units.fewest or math.ceil(least / size), groups)
        remainder = units.count % size
        most = units.count - fewest * size
        return cls(size, fewest, range(remainder, most + 1, size))


@dataclass(frozen=True, kw_only=True)
class Structure(ABC):
    """Base class of the structures, which use scores and a budget to select the units that stay."""

    # minimum number of attention units (KV heads with their query heads) that a layer keeps; must
    # be at least 1
    min_heads: int = 1
    # minimum number of neurons that a layer keeps; must be at least 1
    min_neurons: int = 1
    # The number of attention units that a layer keeps is a multiple of this number. Allowed values
    # are 1 to the number of KV heads of a layer.
    multiple_of_heads: int = 1
    # the number of neurons that a layer keeps is a multiple of this number: 8, 32, 64, 128, 256, or
    # None for any number of neurons
    round_to: int | None = None
    # If true, a mixture of experts loses whole experts instead of neurons. A layer keeps at least
    # as many experts as the router chooses for each token.
    experts: bool = False

    # whether the kept units of a layer depend only on the scores of this layer
    layer_by_layer: ClassVar[bool] = False

    @abstractmethod
    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """Return a plan that meets the budget.

        If the budget has no bounds, the plan removes the share `budget.ratio` of the prunable
        parameters, to within one unit or one group of units that are removed together. If the
        budget has bounds, the plan meets all of these bounds.
        """

    @property
    def ranks_errors(self) -> bool:
        """Whether the structure needs scores that are squared errors in the outputs of layers."""
        return False

    def limits(self, layer: Pair[Units]) -> Pair[Limits]:
        """Return how many units may be removed from the attention and from the MLP of a layer."""
        attention = Limits.of(layer.attention, self.multiple_of_heads, self.min_heads)
        return Pair(attention, Limits.of(layer.mlp, self.round_to or 1, self.min_neurons))

    def check(self, budget: Budget) -> None:
        """Check that the model can be pruned with the options of the structure and this budget.

        Raises:
            ValueError: an option, the ratio or a target does not fit the model. The message names
                the config field and says which values fit.
        """
        self._check_options(budget)

        # the minimum number of units that each block keeps, and the number of parameters that are
        # removed if every block keeps only this minimum
        fewest = []
        most_removed = 0
        for layer in budget.layers:
            limits = self.limits(layer)
            removable = Pair(limits.attention.counts[-1], limits.mlp.counts[-1])
            fewest.append(
                Pair(layer.attention.count - removable.attention, layer.mlp.count - removable.mlp)
            )
            most_removed += removable.attention * layer.attention.price
            most_removed += removable.mlp * layer.mlp.price

        stay = f"{_stay(budget.layers, fewest)} stay in every layer"
        for bound in budget.bounds:
            least = bound.cost(fewest)
            if least > bound.asked:
                possible = f"at least {math.ceil(100 * least) / 100:.12g}"
                field = f"target.{bound.target}={bound.asked:.12g}"
                raise ValueError(f"{field}: {stay}, so this model allows {possible}")
        if budget.to_remove > most_removed:
            possible = f"at most {int(1000 * most_removed / budget.total) / 1000}"
            raise ValueError(f"ratio={budget.ratio}: {stay}, so this model allows {possible}")

    def _check_options(self, budget: Budget) -> None:
        heads_of_layers = []
        neurons_of_layers = []
        for attention, mlp in budget.layers:
            if not attention.fixed:
                heads_of_layers.append(attention.count)
            if mlp.unit == "neuron" and not mlp.fixed:
                neurons_of_layers.append(mlp.count)
        heads = min(heads_of_layers, default=1)
        neurons = min(neurons_of_layers, default=self.min_neurons * (self.round_to or 1))

        require(
            1 <= self.multiple_of_heads <= heads,
            "structure.multiple_of_heads",
            self.multiple_of_heads,
            f"1 to {heads}, the KV heads of a layer",
        )
        require(
            self.round_to in (None, *ROUND_TO),
            "round_to",
            self.round_to,
            f"null, or one of {', '.join(map(str, ROUND_TO))}",
        )
        require(not (self.experts and self.round_to), "round_to", self.round_to, NO_ROUNDING)
        _check_minimum(
            "structure.min_heads",
            self.min_heads,
            heads,
            "KV heads",
            ("structure.multiple_of_heads", self.multiple_of_heads),
        )
        _check_minimum(
            "structure.min_neurons",
            self.min_neurons,
            neurons,
            "neurons",
            ("round_to", self.round_to or 1),
        )


def _check_minimum(
    field: str, least: int, count: int, kind: str, multiple: tuple[str, int]
) -> None:
    """Check that a layer can keep at least `least` of its `count` units.

    The number of kept units must be a multiple of the value in `multiple`. So at least one multiple
    of this value must lie between `least` and `count`.

    field: name of the config field that sets `least`.
    kind: name of the units in error messages, such as "neurons".
    multiple: name and value of a config field; the number of kept units must be a multiple of this
        value.
    """
    require(1 <= least <= count, field, least, f"1 to {count}, the {kind} of a layer")
    name, size = multiple
    if math.ceil(least / size) > count // size:
        raise ValueError(
            f"{name}={size}: a layer has {count} {kind} and keeps at least {least} ({field}); "
            f"no multiple of {size} lies between"
        )


def _stay(layers: Sequence[Pair[Units]], fewest: Sequence[Pair[int]]) -> str:
    """Return a phrase that states the minimum number of units that each layer keeps.

    For example, the phrase is "1 KV head and 2 experts or 1 neuron" if some layers have experts and
    the other layers have neurons.

    fewest: for each layer, the minimum number of units of the attention and of the MLP.
    """
    heads = []
    others = []
    for layer, kept in zip(layers, fewest, strict=True):
        if not layer.attention.fixed:
            heads.append(_count(kept.attention, "KV head"))
        if not layer.mlp.fixed:
            others.append(_count(kept.mlp, layer.mlp.unit))
    phrases = [" or ".join(dict.fromkeys(texts)) for texts in (heads, others)]
    return " and ".join(filter(None, phrases))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
