"""A plan is data: it survives JSON."""

import json
from pathlib import Path

from flap.method.allocation import LayerPlan, PruningPlan

PLAN = PruningPlan((LayerPlan((0, 2), (1, 5, 7)), LayerPlan((3,), (0,))))


def test_it_is_read_as_written_from_plain_json(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == PLAN
    expected = {"layers": [{"kv_heads": [0, 2], "neurons": [1, 5, 7]}, {"kv_heads": [3], "neurons": [0]}]}
    assert json.loads((tmp_path / "plan.json").read_text()) == expected == PLAN.to_dict()
