"""Rows of the embedding and the head in the ranking of a search, beside attention units and neurons.

Legend: R rows, in the order in which they stay · B blocks of rows that leave together.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from flap.allocation import Budget
from flap.allocation.adaptive import blocks_beside
from flap.allocation.ranking import in_blocks
from flap.importance import Scores
from flap.search.search import Search


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a model that may leave."""

    nats_R: Tensor  # that the removal of each costs, in nats a token; does not rise; infinite: it has to stay
    cost: Mapping[str, float]  # of one, by the names of targets
    in_model: int  # all of them; those without a token leave in any case
    together: int = 1  # the number that stays is a multiple of this


def rows_that_stay(search: Search, scores: Scores, rows: Rows, budget: Budget) -> int:
    """Return how many rows stay where rows, attention units and neurons leave in one ranking by nats over price.

    With one target, so many rows and the plan of a budget for the rest are what the whole ranking keeps.

    scores: with the divergences of the trials. budget: its bounds count none of the rows.
    """
    dense = budget.with_fixed({name: rows.in_model * one for name, one in rows.cost.items()})
    score_B, _ = in_blocks(rows.nats_R / dense.price_of(rows.cost), rows.together)
    cost = {name: rows.together * one for name, one in rows.cost.items()}
    return rows.together * blocks_beside(search, search.in_nats(scores, dense), score_B, cost, budget)
