"""A plan is data: it survives JSON, and does to a fresh model what it did to the first."""

import json
from pathlib import Path

import pytest
import torch

from flap.allocation import LayerPlan, PruningPlan, price
from flap.calibration import LayerStatistics, collect
from flap.compression import BiasCompensation, compress, slice_layer
from flap.importance import score_layers
from flap.models import Resident, adapt
from tests.cases import ARCHITECTURES, METRICS, STRUCTURES, tiny_model, tokens
from tests.helpers.ratios import allocated

PLAN = PruningPlan((LayerPlan((0, 2), (1, 5, 7)), LayerPlan((3,), (0,))))


def pruned_logits(architecture: str, plan: PruningPlan, known: list[LayerStatistics]) -> torch.Tensor:
    model = tiny_model(architecture)
    compress(adapt(model), plan, BiasCompensation(), enumerate(known), slice_layer)
    with torch.no_grad():
        return model(input_ids=tokens()).logits


def test_round_trip(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == PLAN


def test_file_is_plain_json(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    expected = {"layers": [{"kv_heads": [0, 2], "neurons": [1, 5, 7]}, {"kv_heads": [3], "neurons": [0]}]}
    assert json.loads((tmp_path / "plan.json").read_text()) == expected == PLAN.to_dict()


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_plan_gives_a_fresh_model_the_same_logits(architecture: str, structure: str, tmp_path: Path) -> None:
    placed = Resident(tiny_model(architecture))
    known, budget = collect(placed, [tokens()], batch_size=3), price(placed.adapter, 0.35)
    scores = score_layers(METRICS["WIFV"](), placed.adapter, enumerate(known))
    plan = allocated(STRUCTURES[structure](), scores, budget)
    plan.save(tmp_path / "plan.json")
    reread = PruningPlan.load(tmp_path / "plan.json")
    assert reread == plan
    assert torch.equal(pruned_logits(architecture, reread, known), pruned_logits(architecture, plan, known))
