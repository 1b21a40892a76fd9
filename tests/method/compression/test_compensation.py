"""The bias compensation adds the mean contribution of the removed channels to the output bias."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.method.allocation import LayerPlan, PruningPlan
from flap.method.compression import BiasCompensation, CompressLayer, mask_layer, slice_layer
from tests.cases import ARCHITECTURES, tokens
from tests.helpers.compressed import COMPENSATIONS, calibrated, changed

# Of the inputs of o_proj, channels 16 to 47 belong to the removed KV heads 1 and 2. Of the inputs
# of down_proj, channel 0 belongs to the removed neuron.
PLAN = PruningPlan((LayerPlan((0, 3), tuple(range(1, 56))),) * 4)
REMOVED = {
    "self_attn.o_proj": slice(16, 48),
    "mlp.down_proj": slice(0, 1),
}


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("how", [slice_layer, mask_layer])
def test_compensation_is_added_to_the_output_bias(how: CompressLayer, biased: bool) -> None:
    model, statistics = calibrated("llama-gqa", biased)
    pruned = changed(model, PLAN, BiasCompensation(), statistics, how)
    for i, of_layer in enumerate(statistics):
        for (path, channels), [observed] in zip(REMOVED.items(), of_layer.blocks, strict=True):
            old = model.model.layers[i].get_submodule(path)
            new = pruned.model.layers[i].get_submodule(path)
            weight_OP = old.weight.double()[:, channels]
            mean_P = observed.mean_I.double()[channels]
            expected_O = weight_OP @ mean_P
            if biased:
                expected_O += old.bias.double()
            torch.testing.assert_close(new.bias.double(), expected_O, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def first_output(model: PreTrainedModel, path: str) -> Tensor:
    """Return the output of the first layer's module at `path`, such as self_attn.o_proj."""
    outputs: list[Tensor] = []
    module = model.model.layers[0].get_submodule(path)
    hook = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    model(input_ids=tokens())
    hook.remove()
    return outputs[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("path", ["self_attn.o_proj", "mlp.down_proj"])
def test_compensation_saves_the_error_of_the_mean(architecture: str, path: str) -> None:
    """On calibration tokens, the compensation reduces the mean squared error by ‖W_P mean_P‖².

    W_P are the weight columns of the removed channels, x_P are the inputs of these channels, and
    mean_P is their mean. Without compensation, the error is mean ‖W_P x_P‖². With compensation, the
    error is mean ‖W_P (x_P - mean_P)‖², which is less by ‖W_P mean_P‖².

    For this comparison, the pruned module must have the same inputs as in the dense model. So the
    test uses the first layer, and keeps its attention whole when neurons are removed.
    """
    model, statistics = calibrated(architecture)
    groups = ARCHITECTURES[architecture].num_key_value_heads
    whole = LayerPlan(tuple(range(groups)), tuple(range(56)))
    if path == "self_attn.o_proj":
        first_layer = whole._replace(attention=(0,))
        kept = 64 // groups
        [observed] = statistics[0].blocks.attention
    else:
        first_layer = whole._replace(mlp=tuple(range(20)))
        kept = 20
        [observed] = statistics[0].blocks.mlp
    plan = PruningPlan((first_layer, whole, whole, whole))

    dense = first_output(model, path)
    errors = {}
    for name in ("bias", "none"):
        pruned = changed(model, plan, COMPENSATIONS[name], statistics)
        error = first_output(pruned, path) - dense
        errors[name] = error.square().sum(-1).mean().item()
    projection = model.model.layers[0].get_submodule(path)
    mean_P = observed.mean_I[kept:].float()
    saved_O = projection.weight[:, kept:] @ mean_P
    assert errors["bias"] < errors["none"]
    saved = saved_O.square().sum().item()
    assert errors["none"] - errors["bias"] == pytest.approx(saved, rel=1e-3)
