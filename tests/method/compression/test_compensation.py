"""The output projection absorbs the mean of what is removed; its own bias is added to, never overwritten."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.method.allocation import LayerPlan, PruningPlan
from flap.method.compression import BiasCompensation, CompressLayer, mask_layer, slice_layer
from tests.cases import ARCHITECTURES, tokens
from tests.helpers.compressed import COMPENSATIONS, calibrated, changed

# KV heads 1 and 2 own channels 16 to 47
PLAN = PruningPlan((LayerPlan((0, 3), tuple(range(1, 56))),) * 4)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("how", [slice_layer, mask_layer])
def test_compensation_is_added_to_the_output_bias(how: CompressLayer, biased: bool) -> None:
    model, known = calibrated("llama-gqa", biased)
    after = changed(model, PLAN, BiasCompensation(), known, how)
    for i, statistics in enumerate(known):
        for path, one, pruned in (
            ("self_attn.o_proj", statistics.blocks.attention[0], slice(16, 48)),
            ("mlp.down_proj", statistics.blocks.mlp[0], slice(0, 1)),
        ):
            old, new = (m.model.layers[i].get_submodule(path) for m in (model, after))
            expected = old.weight.double()[:, pruned] @ one.mean_I.double()[pruned]
            if biased:
                expected += old.bias.double()
            torch.testing.assert_close(new.bias.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("path", ["self_attn.o_proj", "mlp.down_proj"])
def test_compensation_saves_the_error_of_the_mean(architecture: str, path: str) -> None:
    """Mean over the calibration tokens of ‖W_P x_P‖² less that of ‖W_P (x_P - mean_P)‖² is ‖W_P mean_P‖²."""
    model, known = calibrated(architecture)
    groups = ARCHITECTURES[architecture].num_key_value_heads
    attention = path == "self_attn.o_proj"
    # layer 0's attention sees the same input in all models; for the MLP to see the same, the attention stays whole
    kept = (
        LayerPlan((0,), tuple(range(56)))
        if attention
        else LayerPlan(tuple(range(groups)), tuple(range(20)))
    )
    whole = LayerPlan(tuple(range(groups)), tuple(range(56)))
    plan = PruningPlan((kept, whole, whole, whole))
    models = (model, *(changed(model, plan, COMPENSATIONS[one], known) for one in ("bias", "none")))
    dense, bias, none = (block_output(one, path) for one in models)
    errors = {
        name: (out - dense).square().sum(-1).mean().item()
        for name, out in (("bias", bias), ("none", none))
    }
    statistics = (known[0].blocks.attention if attention else known[0].blocks.mlp)[0]
    first = 64 // groups if attention else 20
    saved = (
        model.model.layers[0].get_submodule(path).weight[:, first:]
        @ statistics.mean_I[first:].float()
    )
    assert errors["bias"] < errors["none"]
    assert errors["none"] - errors["bias"] == pytest.approx(saved.square().sum().item(), rel=1e-3)


@torch.no_grad()
def block_output(model: PreTrainedModel, path: str) -> Tensor:
    seen: list[Tensor] = []
    module = model.model.layers[0].get_submodule(path)
    hook = module.register_forward_hook(lambda _, __, output: seen.append(output))
    model(input_ids=tokens())
    hook.remove()
    return seen[0]
