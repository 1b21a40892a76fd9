"""The structure `middle`, which removes the same share of every middle layer (LLM-Pruner).

An attention unit is a KV head with its query heads.
"""

from dataclasses import dataclass, replace

from flap.config import require
from flap.method.allocation.budget import Budget, lowest_ratio
from flap.method.allocation.uniform import ULUM
from flap.models import Pair


@dataclass(frozen=True)
class Middle(ULUM):
    """middle: every middle layer loses the same share (LLM-Pruner, arXiv 2305.11627).

        share = ratio · parameters of all layers / parameters of the middle layers
        every middle layer loses its round(share · G) lowest-scored attention units,
        and then neurons, until it has lost share · (its parameters)

    ratio: the share of the parameters of all layers that is removed. G: the number of attention
    units of the layer. The first and the last layers are not pruned, because pruning them would
    harm a model most. The defaults come from the authors' code for LLaMA-7B. In this code, layers 4
    to 29 of the 32 layers are pruned (counted from 0).

        python -m flap structure=middle structure.keep_first=4 structure.keep_last=2
    """

    # the number of layers at the beginning of the model that are not pruned; must be at least 0
    keep_first: int = 4
    # the number of layers at the end of the model that are not pruned; must be at least 0
    keep_last: int = 2

    def __post_init__(self) -> None:
        for name in ("keep_first", "keep_last"):
            value = getattr(self, name)
            require(value >= 0, f"structure.{name}", value, "a whole number >= 0")

    def check(self, budget: Budget) -> None:
        """Check all options, and check that the model has middle layers.

        Raises:
            ValueError: an option or the ratio does not fit this model.
        """
        count = len(budget.layers)
        whole = self.keep_first + self.keep_last
        allowed = f"at most {count - 1}, as this model has {count} layers"
        require(whole < count, "structure.keep_first + structure.keep_last", whole, allowed)

        layers = []
        for i, (attention, mlp) in enumerate(budget.layers):
            if not self._is_middle(i, budget):
                attention = replace(attention, fewest=attention.count)
                mlp = replace(mlp, fewest=mlp.count)
            layers.append(Pair(attention, mlp))
        super().check(replace(budget, layers=tuple(layers)))

    def quotas(self, budget: Budget) -> list[Pair[int]]:
        """Return the numbers of attention units and of neurons that each layer keeps.

        The first `keep_first` and the last `keep_last` layers keep all of their units.
        """
        budget = lowest_ratio(budget, self.quotas)
        middle = [layer for i, layer in enumerate(budget.layers) if self._is_middle(i, budget)]
        parameters = sum(attention.total + mlp.total for attention, mlp in middle)
        share = budget.to_remove / parameters
        quotas_of_middle = iter(super().quotas(Budget(tuple(middle), share)))

        quotas = []
        for i, (attention, mlp) in enumerate(budget.layers):
            if self._is_middle(i, budget):
                quotas.append(next(quotas_of_middle))
            else:
                quotas.append(Pair(attention.count, mlp.count))
        return quotas

    def _is_middle(self, index: int, budget: Budget) -> bool:
        return self.keep_first <= index < len(budget.layers) - self.keep_last
