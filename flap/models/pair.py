"""Two values of one layer: one for its attention, one for its MLP."""

from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Pair(NamedTuple, Generic[T]):
    """A value for the attention of a layer and one for its MLP: blocks, statistics, scores, units or prices."""

    attention: T
    mlp: T
