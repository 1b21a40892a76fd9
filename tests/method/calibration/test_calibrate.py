"""Calibration collects statistics with hooks, and removes the hooks afterwards.

With `calibration.propagate=pruned`, each layer reads what the earlier layers output after pruning.
"""

from itertools import chain

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flap.data import Batch
from flap.method.allocation import LayerPlan
from flap.method.calibration import Calibration, LayerStatistics, Statistics, Visits
from flap.method.compression import BiasCompensation, slice_layer
from flap.models import Pair, PlacedModel, Resident
from tests.cases import ARCHITECTURES, collect, tiny_model, tokens

PLAN = LayerPlan((0, 2), tuple(range(0, 56, 2)))


@torch.no_grad()
def two_pass(model: PreTrainedModel, tokens_NT: Tensor) -> list[LayerStatistics]:
    """Compute the statistics of the inputs of o_proj and down_proj in two passes, in float64."""
    seen: dict[str, Statistics] = {}
    inverse: list[float] = []

    def record(name: str, wide_TI: Tensor) -> None:
        mean_I = wide_TI.mean(0)
        seen[name] = Statistics(len(wide_TI), mean_I, (wide_TI - mean_I).square().sum(0))

    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_hook(
                lambda _, args, __, name=name: record(name, args[0].double().flatten(0, 1))
            )

    def record_input(_: nn.Module, args: tuple[Tensor]) -> None:
        square_NT = args[0].double().square().sum(-1)
        inverse.append(square_NT.reciprocal().mean().item())

    for layer in model.model.layers:
        layer.register_forward_pre_hook(record_input)
    model(input_ids=tokens_NT)

    layers = list[LayerStatistics]()
    for i, inverse_power in enumerate(inverse):
        attention = seen[f"model.layers.{i}.self_attn.o_proj"]
        mlp = seen[f"model.layers.{i}.mlp.down_proj"]
        layers.append(LayerStatistics(Pair((attention,), (mlp,)), inverse_power))
    return layers


def assert_same(found: LayerStatistics, expected: LayerStatistics) -> None:
    assert found.inverse_power == pytest.approx(expected.inverse_power, rel=1e-5)
    for a, b in zip(chain(*found.blocks), chain(*expected.blocks), strict=True):
        assert a.num_tokens == b.num_tokens
        assert ((a.mean_I - b.mean_I).abs() <= 1e-5 * b.msq_I.sqrt()).all()
        torch.testing.assert_close(a.var_I, b.var_I, rtol=1e-5, atol=0, check_dtype=False)
        torch.testing.assert_close(a.msq_I, b.msq_I, rtol=1e-5, atol=0, check_dtype=False)


def in_sequence(placed: PlacedModel, tokens_NT: Tensor, batch_size: int) -> Visits:
    """Visit the layers in turn. Each layer reads the outputs of the earlier layers.

    The caller may prune a layer before the next layer is visited.
    """
    calibration = Calibration(placed, Batch.of(tokens_NT), batch_size, [])
    return calibration.in_sequence(covariance=False)


def hooks_left(model: PreTrainedModel) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_two_passes_over_the_activations(architecture: str) -> None:
    found = collect(Resident(tiny_model(architecture)), tokens(), batch_size=4)
    for a, b in zip(found, two_pass(tiny_model(architecture), tokens()), strict=True):
        assert a.blocks.attention[0].num_tokens == tokens().numel()
        assert_same(a, b)


@pytest.mark.parametrize("architecture", ["llama-gqa", "qwen3-gqa"])
def test_batch_size_changes_nothing(architecture: str) -> None:
    placed = Resident(tiny_model(architecture))
    one_by_one = collect(placed, tokens(), batch_size=1)
    for batch_size in (2, 4, 5):
        of_dense_layers = [observed for _, observed in in_sequence(placed, tokens(), batch_size)]
        for found in (collect(placed, tokens(), batch_size), of_dense_layers):
            for a, b in zip(found, one_by_one, strict=True):
                assert_same(a, b)


def test_hooks_leave_when_the_forward_pass_raises() -> None:
    model = tiny_model("llama-gqa")
    beyond_the_vocabulary = tokens() + 1000
    with pytest.raises(IndexError):
        collect(Resident(model), beyond_the_vocabulary, batch_size=4)
    with pytest.raises(IndexError):
        list(in_sequence(Resident(model), beyond_the_vocabulary, 4))
    assert hooks_left(model) == 0


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("2.self_attn.v_proj", "layer 2 attention"),
        ("2.mlp.up_proj", "layer 2 MLP"),
        ("2.mlp.down_proj", "layer 3 att"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_name_the_first_such_layer(
    broken: str, named: str, value: float
) -> None:
    model = tiny_model("llama-gqa")
    model.model.layers.get_submodule(broken).weight.data[3, 5] = value
    with pytest.raises(ValueError, match=f"activations of {named}.* not finite"):
        collect(Resident(model), tokens(), batch_size=4)
    with pytest.raises(ValueError, match=f"activations of {named}.* not finite"):
        list(in_sequence(Resident(model), tokens(), 4))
    assert hooks_left(model) == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_layer_pruned_on_the_way_is_what_the_next_layers_see(architecture: str) -> None:
    placed = Resident(tiny_model(architecture))
    reference = Resident(tiny_model(architecture))
    dense = collect(reference, tokens(), batch_size=4)
    slice_layer(reference.adapter, 0, PLAN, BiasCompensation(), dense[0])
    expected = collect(reference, tokens(), batch_size=4)
    for i, found in in_sequence(placed, tokens(), batch_size=4):
        assert found is not None
        assert_same(found, dense[0] if i == 0 else expected[i])
        if i == 0:
            slice_layer(placed.adapter, 0, PLAN, BiasCompensation(), found)
    assert not torch.allclose(
        dense[1].blocks.mlp[0].var_I, expected[1].blocks.mlp[0].var_I, rtol=1e-3
    )
