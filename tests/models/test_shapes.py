"""The shapes agree with the tensors of every architecture of the table."""

import pytest
from flap.models.shapes import shapes_of

from flap.allocation import price
from flap.models import adapt
from tests.cases import ARCHITECTURES, MIXTURES, tiny_model


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MIXTURES])
def test_shapes_are_those_of_the_tensors(architecture: str) -> None:
    model = tiny_model(architecture)
    adapter = adapt(model)
    shapes, budget = shapes_of(adapter), price(adapter, 0.2)
    assert shapes.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shapes.prunable == budget.total
    assert (shapes.hidden, shapes.vocabulary) == (model.config.hidden_size, model.config.vocab_size)
    for layer, units in zip(shapes.layers, budget.layers, strict=True):
        for block, priced in zip(layer.blocks, units, strict=True):
            assert (block.units, block.experts, block.parameters) == (priced.count, priced.members, priced.total)
    assert all(block.outputs * block.channels * block.experts == block.output_parameters for block in shapes.blocks)


def test_an_expert_is_counted_by_itself_and_a_token_passes_those_it_is_sent_to() -> None:
    mlp = shapes_of(adapt(tiny_model("mixtral"))).layers[0].blocks.mlp
    assert (mlp.channels, mlp.experts, mlp.chosen, mlp.width) == (24, 6, 2, 48)
    assert mlp.parameters == 6 * 3 * 32 * 24 and mlp.active_parameters == 2 * 3 * 32 * 24
