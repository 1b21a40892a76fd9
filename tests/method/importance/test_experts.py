"""Importance metrics of whole experts agree with their formulas.

The tests compute the formulas from the outputs of every expert for every token. The model's own
code computes these outputs.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.method.calibration import LayerStatistics
from flap.method.importance import WIFV, score_layer
from flap.models import adapt
from tests.cases import EXPERT_METRICS, random_model, tokens
from tests.models.test_whole_experts import EXPERTS, FAMILIES, config_of, observed

LAYER = 2


def scored(name: str, model: PreTrainedModel, statistics: LayerStatistics) -> Tensor:
    return score_layer(EXPERT_METRICS[name](), adapt(model, True).blocks(LAYER), statistics).mlp


@torch.no_grad()
def run_each(model: PreTrainedModel, family: str) -> tuple[Tensor, Tensor]:
    """Return outputs (T, E, H) of all experts of LAYER for all tokens, and router weights (T, E).

    The axes are T (tokens), E (experts) and H (channels of the hidden state).
    """
    adapter = adapt(model)
    arguments = []
    experts = adapter.layers[LAYER].get_submodule(adapter.family.experts)
    hook = experts.register_forward_pre_hook(lambda _, args: arguments.extend(args))
    model(input_ids=tokens())
    hook.remove()
    if family == "llama4_text":
        [input_XH] = arguments
        input_ETH = input_XH.unflatten(0, (EXPERTS, -1))
        output_TEH = experts(input_XH).unflatten(0, (EXPERTS, -1)).transpose(0, 1)
        weight_TE = input_ETH.any(dim=-1).T.float()
        return output_TEH.double(), weight_TE.double()

    hidden_TH, chosen_TK, weight_TK = arguments
    weight_T1 = torch.ones(len(hidden_TH), 1)
    outputs = []
    for e in range(EXPERTS):
        expert_T1 = torch.full_like(weight_T1, e, dtype=torch.long)
        outputs.append(experts(hidden_TH, expert_T1, weight_T1))
    weight_TE = torch.zeros(len(hidden_TH), EXPERTS).scatter(1, chosen_TK, weight_TK)
    return torch.stack(outputs, dim=1).double(), weight_TE.double()


def by_formula(output_TEH: Tensor, weight_TE: Tensor) -> dict[str, Tensor]:
    sent_TE = weight_TE > 0
    norm_TE = output_TEH.norm(dim=2)
    count_E = sent_TE.sum(0)
    variances = []
    for e in range(EXPERTS):
        sent_RH = output_TEH[sent_TE[:, e], e]
        variances.append(sent_RH.var(dim=0).sum())
    return {
        "REAP": (weight_TE * norm_TE).sum(0) / count_E,
        "EAN": (sent_TE * norm_TE).sum(0),
        "MoNE": count_E / count_E.sum() * torch.stack(variances).sqrt(),
    }


def test_every_metric_has_its_formula() -> None:
    assert set(EXPERT_METRICS) == {"REAP", "EAN", "MoNE"}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_formula(family: str) -> None:
    model = random_model(config_of(family))
    expected = by_formula(*run_each(model, family))
    statistics = observed(model)[LAYER]
    blocks = adapt(model, True).blocks(LAYER)
    heads = score_layer(WIFV(), blocks, statistics).attention
    for name, metric in EXPERT_METRICS.items():
        scores = score_layer(metric(), blocks, statistics)
        torch.testing.assert_close(scores.mlp, expected[name].float(), rtol=1e-4, atol=1e-7)
        assert torch.equal(scores.attention, heads)


@pytest.mark.parametrize("name", EXPERT_METRICS)
def test_an_expert_that_no_token_is_sent_to_scores_0(name: str) -> None:
    # The experts of gpt_oss have biases, which must not count if no token is sent to the expert.
    model = random_model(config_of("gpt_oss"))
    model.model.layers[LAYER].mlp.router.bias.data[2] = -1e9
    score_E = scored(name, model, observed(model)[LAYER])
    assert (score_E == 0).tolist() == [e == 2 for e in range(EXPERTS)]


def test_not_finite_outputs_name_the_block() -> None:
    model = random_model(config_of("mixtral"))
    statistics = observed(model)[LAYER]
    first, *others = statistics.routed
    bad = replace(first, mean_I=first.mean_I * torch.nan)
    with pytest.raises(ValueError, match="scores of layer 2 MLP are not finite"):
        scored("REAP", model, replace(statistics, routed=(bad, *others)))
