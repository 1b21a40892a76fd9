"""What every structure has in common: from scores and a budget to a plan, what each layer keeps, `remove_heads`."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from flap.allocation.budget import Budget, LayerPrices
from flap.allocation.plan import PruningPlan
from flap.importance import Scores

ROUND_TO = (8, 32, 64, 256)


@dataclass(frozen=True, kw_only=True)
class Structure(ABC):
    """Decides which units stay. Knows scores and a budget, nothing of models, files or configuration.

    min_heads, min_neurons: attention units (KV heads with their query heads) and neurons that every layer keeps at
    least. round_to: every layer keeps a multiple of so many neurons, because neurons leave in blocks; None: any number.
    """

    min_heads: int = 1
    min_neurons: int = 1
    round_to: int | None = None

    @abstractmethod
    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """The plan whose kept parameters stand within one unit (or block) of (1 - ratio) · total."""

    def check(self, budget: Budget) -> None:
        """Raises: ValueError: an option of the structure, or the ratio, does not fit this model."""
        heads, neurons = min(x.kv_heads for x in budget.layers), min(x.neurons for x in budget.layers)
        for name, value, most, what in (
            ("min_heads", self.min_heads, heads, "KV heads"),
            ("min_neurons", self.min_neurons, neurons, "neurons"),
        ):
            if not 1 <= value <= most:
                raise ValueError(f"structure.{name}={value}: expected 1 to {most}, the {what} of a layer")
        if self.round_to not in (None, *ROUND_TO):
            raise ValueError(f"round_to={self.round_to}: expected null, or one of {', '.join(map(str, ROUND_TO))}")
        if self.fewest_blocks > neurons // self.block:
            raise ValueError(
                f"round_to={self.round_to}: a layer has {neurons} neurons and keeps at least {self.min_neurons} "
                "(structure.min_neurons); no multiple lies between"
            )
        self._check_ratio(budget)

    def _check_ratio(self, budget: Budget) -> None:
        most = sum(self.spare_heads(x) * x.kv_head_price + self.spare_parameters(x) for x in budget.layers)
        heads, neurons = _count(self.min_heads, "KV head"), _count(self.fewest_blocks * self.block, "neuron")
        if budget.to_remove > most:
            raise ValueError(
                f"ratio={budget.ratio}: {heads} and {neurons} stay in every layer, so this model allows at most "
                f"{int(1000 * most / budget.total) / 1000}"
            )

    @property
    def block(self) -> int:
        """So many neurons leave together."""
        return self.round_to or 1

    @property
    def fewest_blocks(self) -> int:
        return math.ceil(self.min_neurons / self.block)

    def spare_heads(self, layer: LayerPrices) -> int:
        """Attention units that may leave."""
        return layer.kv_heads - self.min_heads

    def spare_blocks(self, layer: LayerPrices) -> int:
        """Blocks of neurons that may leave, besides the rest that fills no block."""
        return layer.neurons // self.block - self.fewest_blocks

    def rest_parameters(self, layer: LayerPrices) -> int:
        """Parameters of the neurons that fill no block: they leave whatever the ratio."""
        return layer.neurons % self.block * layer.neuron_price

    def spare_parameters(self, layer: LayerPrices) -> int:
        """Parameters of all neurons that may leave."""
        return self.rest_parameters(layer) + self.spare_blocks(layer) * self.block * layer.neuron_price


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class ManualHeads(Structure):
    """A structure whose attention share is set by hand.

    remove_heads: query heads to remove from the whole model, a multiple of the query heads a KV head serves;
    None: the proportional share.
    """

    remove_heads: int | None = None

    def check(self, budget: Budget) -> None:
        super().check(budget)
        if self.remove_heads is None:
            return
        group, (least, most) = budget.layers[0].queries_per_group, self._payable_units(budget)
        if self.remove_heads % group or not least <= self.remove_heads // group <= most:
            multiple = f" that is a multiple of {group} (query heads a KV head)" if group > 1 else ""
            raise ValueError(
                f"structure.remove_heads={self.remove_heads}: at ratio={budget.ratio} this model allows "
                f"{least * group} to {most * group}, a number{multiple}"
            )

    def units_to_remove(self, budget: Budget) -> int:
        """Attention units (KV heads) that leave, over the whole model."""
        if self.remove_heads is not None:
            return self.remove_heads // budget.layers[0].queries_per_group
        proportional = round(budget.ratio * sum(layer.kv_heads for layer in budget.layers))
        least, most = self._payable_units(budget)
        return min(max(proportional, least), most)

    def _payable_units(self, budget: Budget) -> tuple[int, int]:
        """The fewest and the most attention units that leave neurons something that they can pay, or nearly can."""
        layers = budget.layers
        priciest = max(layer.kv_head_price for layer in layers)
        lowest = (budget.to_remove - sum(map(self.spare_parameters, layers))) / priciest
        highest = (budget.to_remove - sum(map(self.rest_parameters, layers))) / priciest
        least, most = math.ceil(lowest), math.floor(highest)
        if least > most:  # neurons have less to give than one unit
            least = most = round((lowest + highest) / 2)
        return max(least, 0), max(min(most, sum(map(self.spare_heads, layers))), 0)
