"""UL-UM and UL-MM: every layer gives the same share (FLAP, section 4.4)."""

from abc import abstractmethod
from dataclasses import dataclass

from flap.allocation.budget import Budget, LayerPrices
from flap.allocation.plan import LayerPlan, PruningPlan
from flap.allocation.ranking import highest
from flap.allocation.structure import ManualHeads, Structure
from flap.importance import Scores


@dataclass(frozen=True)
class Quota:
    """How many units one layer keeps."""

    kv_heads: int
    neurons: int
    experts: int = 1  # and each keeps that many neurons


class UniformLayers(Structure):
    """Every layer loses the same share of its parameters, so a layer can be decided before the next is scored."""

    @abstractmethod
    def removed_kv_heads(self, budget: Budget) -> list[int]:
        """Attention units that leave, layer by layer."""

    def quotas(self, budget: Budget) -> list[Quota]:
        """Units that each layer keeps: its neurons take the rest of its budget, to the nearest neuron (or block)."""
        pairs = list(zip(budget.layers, self.removed_kv_heads(budget), strict=True))
        rests = [
            budget.ratio * layer.total - n * layer.kv_head_price - self.rest_parameters(layer) for layer, n in pairs
        ]
        rests = [rest / (layer.neuron_price * self.block) for rest, (layer, _) in zip(rests, pairs, strict=True)]
        limits, prices = map(self.spare_blocks, budget.layers), (layer.neuron_price for layer in budget.layers)
        blocks = _payable(rests, list(limits), list(prices))
        return [
            Quota(layer.kv_heads - n, (layer.neurons // self.block - m) * self.block, layer.experts)
            for (layer, n), m in zip(pairs, blocks, strict=True)
        ]

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        return keep_quotas(scores, self.quotas(budget))


def keep_quotas(scores: Scores, quotas: list[Quota]) -> PruningPlan:
    """Keep each layer's highest units; an attention unit scores the sum over its channels."""
    triples = zip(scores.kv_heads, scores.neurons, quotas, strict=True)
    return PruningPlan(
        tuple(
            LayerPlan(highest(score_GC.sum(dim=1), quota.kv_heads), highest(score_I, quota.neurons, quota.experts))
            for score_GC, score_I, quota in triples
        )
    )


def _payable(rests: list[float], limits: list[int], prices: list[int]) -> list[int]:
    """Round the rests; what a layer cannot pay (more than its limit, less than nothing), the others share by price."""
    paid = [min(max(rest, 0.0), limit) for rest, limit in zip(rests, limits, strict=True)]
    for _ in rests:  # every round settles the difference or exhausts one more layer
        owed = sum((rest - now) * price for rest, now, price in zip(rests, paid, prices, strict=True))
        free = [i for i, limit in enumerate(limits) if (paid[i] < limit if owed > 0 else paid[i] > 0)]
        if not free or abs(owed) < 0.5 * min(prices):
            break
        for i in free:
            paid[i] = min(max(paid[i] + owed / len(free) / prices[i], 0.0), limits[i])
    return [round(amount) for amount in paid]


@dataclass(frozen=True)
class ULUM(UniformLayers):
    """UL-UM: the same ratio in every layer, for attention and MLP alike (attention to the nearest unit)."""

    def removed_kv_heads(self, budget: Budget) -> list[int]:
        return [self._nearest_heads(layer, budget.ratio) for layer in budget.layers]

    def _nearest_heads(self, layer: LayerPrices, ratio: float) -> int:
        """The count nearest to ratio · G that leaves a rest which the neurons of the layer can pay, or nearly can."""
        least, most = self.rest_parameters(layer), self.spare_parameters(layer)

        def unpaid(n: int) -> float:
            rest = ratio * layer.total - n * layer.kv_head_price
            return max(least - rest, rest - most, 0)

        counts = range(self.spare_heads(layer) + 1)
        return min(counts, key=lambda n: (unpaid(n), abs(n - ratio * layer.kv_heads), n))


@dataclass(frozen=True)
class ULMM(UniformLayers, ManualHeads):
    """UL-MM: `remove_heads` spread evenly over the layers, the rest of each layer's budget from its neurons."""

    def removed_kv_heads(self, budget: Budget) -> list[int]:
        units, layers = self.units_to_remove(budget), len(budget.layers)
        return [(i + 1) * units // layers - i * units // layers for i in range(layers)]
