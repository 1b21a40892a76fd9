"""Importance scores that are read from a file are, bit for bit, those that were written."""

from pathlib import Path

import pytest
import torch

from flap.method.importance import SCORES, Scores
from flap.models import Pair


def layer(heads: int) -> Pair[torch.Tensor]:
    return Pair(torch.rand(heads, 8).mT.contiguous().mT, torch.rand(5))


PLAIN = Scores((layer(3), layer(4)))
SEARCHED = Scores(
    (layer(3), layer(4)),
    inverse_power=(0.1, 1e-30),
    routed_power=((0.5, 1e-30), ()),
    divergences=((0.1, 1e-12), (2.0,)),
)


@pytest.mark.parametrize("scores", [PLAIN, SEARCHED], ids=["plain", "searched"])
def test_scores_are_read_as_written(scores: Scores, tmp_path: Path) -> None:
    SCORES.write(scores, tmp_path / "data")
    read = SCORES.read(tmp_path / "data")
    assert read.inverse_power == scores.inverse_power
    assert read.routed_power == scores.routed_power
    assert read.divergences == scores.divergences
    for after, before in zip(read.layers, scores.layers, strict=True):
        assert torch.equal(after.attention, before.attention)
        assert torch.equal(after.mlp, before.mlp)
