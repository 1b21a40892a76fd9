"""A checkpoint computes in a fresh process what the model in memory computes."""

from pathlib import Path

import pytest
import torch

from tests.checkpoint.fresh import in_a_fresh_process
from tests.checkpoint.pruned import Saved, generated, hidden, logits


@pytest.mark.parametrize("how", ["remote", "flap"])
def test_a_fresh_process_computes_the_same(how: str, all_saved: dict[str, Saved], tmp_path: Path) -> None:
    found = in_a_fresh_process([saved.directory for saved in all_saved.values()], tmp_path, how)
    for saved in all_saved.values():
        assert torch.equal(found[f"{saved.directory}"], logits(saved.model))
        assert torch.equal(found[f"{saved.directory}.decoder"], hidden(saved.model))
        assert torch.equal(found[f"{saved.directory}.generated"], generated(saved.model))
