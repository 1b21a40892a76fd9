"""flap's `metric=REAP` and llm-compressor's REAP give the same importance scores to experts."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from llmcompressor.modeling.moe.linear_experts import LinearExperts2D
from llmcompressor.modifiers.pruning.reap.base import REAPPruningModifier
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

EXPERTS = Path(__file__).parents[2] / "build" / "engines" / "experts"
NAMES = sorted(path.name for path in EXPERTS.glob("*"))


def saliencies(model: PreTrainedModel, tokens_NT: Tensor) -> dict[str, Tensor]:
    """Return llm-compressor's scores of the experts.

    The keys are the module paths of the mixtures of experts, one for each layer that has experts.
    """
    for module in list(model.modules()):
        if hasattr(getattr(module, "experts", None), "gate_up_proj"):
            made = LinearExperts2D.get_linear_experts_cls(type(module.experts))
            module.experts = made.from_experts_module(module.experts, model.config)
    modifier = REAPPruningModifier(sparsity=0.5)
    state = Mock(model=model)
    modifier.on_initialize(state)
    modifier.on_calibration_start(state, Mock())
    model(input_ids=tokens_NT)
    return {name: tracker.mean_saliency for name, tracker in modifier._saliency_trackers.items()}


def test_there_are_mixtures() -> None:
    assert len(NAMES) >= 5


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_llm_compressor(name: str) -> None:
    expected = load_file(EXPERTS / name / "scores.safetensors")
    tokens_NT = expected.pop("tokens_NT")
    model = AutoModelForCausalLM.from_pretrained(EXPERTS / name, dtype="float32").eval()
    found = saliencies(model, tokens_NT)
    assert found.keys() == expected.keys()
    for path, score_E in expected.items():
        torch.testing.assert_close(found[path].float(), score_E, rtol=1e-5, atol=1e-6)
