"""A sliced model computes what the masked one computes, for every metric, structure and architecture."""

import copy

import pytest
import torch

from flap.method.compression import BiasCompensation, mask_layer, slice_layer
from flap.models import adapt
from tests.cases import ARCHITECTURES, METRICS, STRUCTURES
from tests.helpers.compressed import COMPENSATIONS, calibrated, changed, plan_for
from tests.helpers.pruned import logits


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_masked_equals_sliced(architecture: str, structure: str) -> None:
    """Compensations and metrics take turns: of where a plan comes from they know nothing."""
    model, known = calibrated(architecture)
    turn = list(ARCHITECTURES).index(architecture) + list(STRUCTURES).index(structure)
    plan = plan_for(architecture, list(METRICS)[turn % len(METRICS)], structure)
    compensation = list(COMPENSATIONS.values())[turn % len(COMPENSATIONS)]
    sliced, masked = (
        changed(model, plan, compensation, known, how) for how in (slice_layer, mask_layer)
    )
    assert (
        adapt(sliced).num_parameters()
        < adapt(masked).num_parameters()
        == adapt(model).num_parameters()
    )
    torch.testing.assert_close(logits(sliced), logits(masked), atol=1e-4, rtol=0)


def test_parameters_of_a_pruned_model_train_as_before() -> None:
    model, known = calibrated("llama-gqa")
    frozen = copy.deepcopy(model).requires_grad_(False)
    for dense, trainable in ((model, True), (frozen, False)):
        after = changed(dense, plan_for("llama-gqa"), BiasCompensation(), known)
        assert {parameter.requires_grad for parameter in after.parameters()} == {trainable}
