"""A sliced model gives the same logits as a masked model, for all architectures and structures.

Slicing removes the weights of heads and neurons. Masking sets the same weights to zero.
"""

import copy

import pytest
import torch

from flap.method.compression import BiasCompensation, mask_layer, slice_layer
from flap.models import adapt
from tests.cases import ARCHITECTURES, METRICS, STRUCTURES
from tests.helpers.compressed import COMPENSATIONS, calibrated, changed, plan_for
from tests.helpers.marks import quick
from tests.helpers.pruned import logits


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("architecture", quick(3, ARCHITECTURES))
def test_masked_equals_sliced(architecture: str, structure: str) -> None:
    """Each case uses one metric and one compensation.

    Together, the cases cover all metrics and all compensations.
    """
    turn = list(ARCHITECTURES).index(architecture) + list(STRUCTURES).index(structure)
    metric = list(METRICS)[turn % len(METRICS)]
    compensation = list(COMPENSATIONS.values())[turn % len(COMPENSATIONS)]
    model, statistics = calibrated(architecture)
    plan = plan_for(architecture, metric, structure)
    sliced = changed(model, plan, compensation, statistics, slice_layer)
    masked = changed(model, plan, compensation, statistics, mask_layer)

    dense_parameters = adapt(model).num_parameters()
    assert adapt(sliced).num_parameters() < dense_parameters
    assert adapt(masked).num_parameters() == dense_parameters
    torch.testing.assert_close(logits(sliced), logits(masked), atol=1e-4, rtol=0)


@pytest.mark.parametrize("trainable", [True, False])
def test_parameters_of_a_pruned_model_train_as_before(trainable: bool) -> None:
    model, statistics = calibrated("llama-gqa")
    dense = copy.deepcopy(model).requires_grad_(trainable)
    pruned = changed(dense, plan_for("llama-gqa"), BiasCompensation(), statistics)
    assert {parameter.requires_grad for parameter in pruned.parameters()} == {trainable}
