"""A sliced model computes what the masked one computes, for every metric, structure and architecture."""

import copy
from itertools import product

import pytest
import torch

from flap.method.compression import BiasCompensation, mask_layer, slice_layer
from flap.models import adapt
from tests.cases import ARCHITECTURES, METRICS, STRUCTURES
from tests.helpers.compressed import COMPENSATIONS, calibrated, changed, logits, plan_for

# `make test` has a third: architectures with each metric, structure and compensation, and metrics with each of these.
CASES = [
    pytest.param(architecture, metric, structure, marks=[] if (a + m + 2 * s) % 3 == 0 else [pytest.mark.long])
    for (a, architecture), (m, metric), (s, structure) in product(*map(enumerate, (ARCHITECTURES, METRICS, STRUCTURES)))
]


@pytest.mark.parametrize(("architecture", "metric", "structure"), CASES)
def test_masked_equals_sliced(architecture: str, metric: str, structure: str) -> None:
    """Compensations take turns: of where a plan comes from they know nothing."""
    model, known = calibrated(architecture)
    plan = plan_for(architecture, metric, structure)
    turn = list(METRICS).index(metric) + list(STRUCTURES).index(structure)
    compensation = list(COMPENSATIONS.values())[turn % len(COMPENSATIONS)]
    sliced, masked = (changed(model, plan, compensation, known, how) for how in (slice_layer, mask_layer))
    assert adapt(sliced).num_parameters() < adapt(masked).num_parameters() == adapt(model).num_parameters()
    torch.testing.assert_close(logits(sliced), logits(masked), atol=1e-4, rtol=0)


def test_parameters_of_a_pruned_model_train_as_before() -> None:
    model, known = calibrated("llama-gqa")
    frozen = copy.deepcopy(model).requires_grad_(False)
    for dense, trainable in ((model, True), (frozen, False)):
        after = changed(dense, plan_for("llama-gqa"), BiasCompensation(), known)
        assert {parameter.requires_grad for parameter in after.parameters()} == {trainable}
