"""The base class of the structures: the interface, and the minimum that each layer keeps."""

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
    "null with structure.experts=true; a second run narrows the experts that stay (docs/prune.md)"
)


class Limits(NamedTuple):
    """How units may be removed from a block: together with others, as a block of units."""

    size: int  # the units of such a block; 1 where no unit may be removed
    fewest: int  # how many blocks stay at least
    counts: range  # the numbers of units that may be removed; the first is the remainder that fills no block

    @classmethod
    def of(cls, units: Units, size: int, least: int) -> "Limits":
        """Return the limits of a block. size: units that are removed together. least: units that stay."""
        size = 1 if units.fixed else size
        fewest = min(units.fewest or math.ceil(least / size), units.count // size)
        return cls(size, fewest, range(units.count % size, units.count - fewest * size + 1, size))


@dataclass(frozen=True, kw_only=True)
class Structure(ABC):
    """The base class of the structures, which decide from scores and a budget which units stay."""

    min_heads: int = 1  # attention units (KV heads with their query heads) that every layer keeps at least, 1 or more
    min_neurons: int = 1  # neurons that every layer keeps at least, 1 or more
    multiple_of_heads: int = (
        1  # every layer keeps a multiple of so many attention units; from 1 to a layer's KV heads
    )
    round_to: int | None = None  # the same of neurons, 8, 32, 64, 128 or 256; None: any number
    experts: bool = False  # whole experts of a mixture are removed; a layer keeps as many as a token is sent to or more

    layer_by_layer: ClassVar[bool] = False  # whether each layer's plan needs only its own scores

    @abstractmethod
    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """Return a plan that keeps (1 - ratio) · total parameters, to within one unit (or block)."""

    @property
    def ranks_errors(self) -> bool:
        """Whether scores must be squared output errors."""
        return False

    def check(self, budget: Budget) -> None:
        """Check that the options and the ratio fit this model.

        Raises:
            ValueError: an option or the ratio does not fit; names it and says what is expected.
        """
        self._check_options(budget)
        limited = [list(zip(layer, self.limits(layer), strict=True)) for layer in budget.layers]
        fewest = [
            Pair(*(units.count - limits.counts[-1] for units, limits in layer)) for layer in limited
        ]
        stay = f"{_stay(budget.layers, fewest)} stay in every layer"
        for bound in budget.bounds:
            if (least := bound.cost(fewest)) > bound.asked:
                possible = f"at least {math.ceil(100 * least) / 100:.12g}"
                raise ValueError(
                    f"target.{bound.target}={bound.asked:.12g}: {stay}, so this model allows {possible}"
                )
        most = sum(limits.counts[-1] * units.price for layer in limited for units, limits in layer)
        if budget.to_remove > most:
            raise ValueError(
                f"ratio={budget.ratio}: {stay}, so this model allows at most {int(1000 * most / budget.total) / 1000}"
            )

    def _check_options(self, budget: Budget) -> None:
        attentions = [layer.attention.count for layer in budget.layers if not layer.attention.fixed]
        mlps = [
            layer.mlp.count
            for layer in budget.layers
            if layer.mlp.unit == "neuron" and not layer.mlp.fixed
        ]
        heads = min(attentions, default=1)
        neurons = min(mlps, default=self.min_neurons * (self.round_to or 1))
        allowed = f"1 to {heads}, the KV heads of a layer"
        require(
            1 <= self.multiple_of_heads <= heads,
            "structure.multiple_of_heads",
            self.multiple_of_heads,
            allowed,
        )
        sizes = ", ".join(map(str, ROUND_TO))
        require(
            self.round_to in (None, *ROUND_TO),
            "round_to",
            self.round_to,
            f"null, or one of {sizes}",
        )
        require(not (self.experts and self.round_to), "round_to", self.round_to, NO_ROUNDING)
        for name, size, count, kind, minimum in (
            ("structure.multiple_of_heads", self.multiple_of_heads, heads, "KV heads", "min_heads"),
            ("round_to", self.round_to or 1, neurons, "neurons", "min_neurons"),
        ):
            least = getattr(self, minimum)
            require(
                1 <= least <= count,
                f"structure.{minimum}",
                least,
                f"1 to {count}, the {kind} of a layer",
            )
            if math.ceil(least / size) > count // size:
                raise ValueError(
                    f"{name}={size}: a layer has {count} {kind} and keeps at least {least} (structure.{minimum}); "
                    "no multiple lies between"
                )

    def limits(self, layer: Pair[Units]) -> Pair[Limits]:
        """Return how units may be removed from the attention and from the MLP of a layer."""
        sizes = (self.multiple_of_heads, self.round_to or 1)
        fewest = (self.min_heads, self.min_neurons)
        return Pair(*(Limits.of(*one) for one in zip(layer, sizes, fewest, strict=True)))


def _stay(layers: Sequence[Pair[Units]], fewest: Sequence[Pair[int]]) -> str:
    """Return the units that stay of each block in words, as "1 KV head and 2 experts or 1 neuron"."""
    pairs = list(zip(layers, fewest, strict=True))
    heads = (
        _count(kept.attention, "KV head") for layer, kept in pairs if not layer.attention.fixed
    )
    others = (_count(kept.mlp, layer.mlp.unit) for layer, kept in pairs if not layer.mlp.fixed)
    return " and ".join(
        filter(None, (" or ".join(dict.fromkeys(texts)) for texts in (heads, others)))
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
