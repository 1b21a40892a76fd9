"""The file of scores: what is read is what was written, to the bit."""

from pathlib import Path

import torch

from flap.method.importance import SCORES, Scores
from flap.models import Pair


def layer(heads: int) -> Pair[torch.Tensor]:
    return Pair(torch.rand(heads, 8).mT.contiguous().mT, torch.rand(5))


def test_scores_are_read_as_written(tmp_path: Path) -> None:
    plain = Scores((layer(3), layer(4)))
    searched = Scores(
        (layer(3), layer(4)), (0.1, 1e-30), ((0.5, 1e-30), ()), ((0.1, 1e-12), (2.0,))
    )
    for scores in (plain, searched):
        SCORES.write(scores, tmp_path / "data")
        found = SCORES.read(tmp_path / "data")
        numbers = ("inverse_power", "routed_power", "divergences")
        assert all(getattr(found, name) == getattr(scores, name) for name in numbers)
        for one, other in zip(found.layers, scores.layers, strict=True):
            assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
