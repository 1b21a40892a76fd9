"""A checkpoint computes in a fresh process what the model in memory computes, with nothing but `flap.register()`.

Without this package, and without trust in any code: tests/models/families.
"""

from pathlib import Path

import torch

from tests.helpers.fresh import in_a_fresh_process
from tests.helpers.pruned import Saved, generated, hidden, logits


def test_a_fresh_process_computes_the_same(all_saved: dict[str, Saved], tmp_path: Path) -> None:
    found = in_a_fresh_process(tmp_path, flap=[saved.directory for saved in all_saved.values()])
    for saved in all_saved.values():
        assert torch.equal(found[f"{saved.directory}"], logits(saved.model))
        assert torch.equal(found[f"{saved.directory}.decoder"], hidden(saved.model))
        assert torch.equal(found[f"{saved.directory}.generated"], generated(saved.model))
