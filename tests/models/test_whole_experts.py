"""Whole experts are scored by the error of removing them, and removed with their router rows.

The tests also save and reload the pruned models.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from flap.checkpoint.convert import become_checkpointable
from flap.checkpoint.load import load
from flap.method.allocation import ALAM, ULMM, LayerPlan, PruningPlan, price
from flap.method.calibration import LayerStatistics
from flap.method.compression import BiasCompensation, NoCompensation, compress_layers, slice_layer
from flap.method.importance import OBS, WIFV, score_layer, score_layers
from flap.models import Resident, adapt
from tests.cases import EXPERT_METRICS, METRICS, STRUCTURES, collect, random_model, tokens
from tests.helpers.compressed import covariances
from tests.helpers.fresh import in_a_fresh_process
from tests.helpers.pruned import Saved, generated, logits, plan_of, prune, save_pruned
from tests.helpers.ratios import allocated
from tests.models.families import test_mixtures
from tests.models.families.contract import is_stock

FAMILIES = {
    "mixtral": test_mixtures.TestMixtral,
    "qwen3_moe": test_mixtures.TestQwen3Moe,
    "qwen2_moe": test_mixtures.TestQwen2Moe,
    "olmoe": test_mixtures.TestOlmoe,
    "gpt_oss": test_mixtures.TestGptOss,
    "qwen3_next": test_mixtures.TestQwen3Next,
    "granitemoe": test_mixtures.TestGraniteMoe,
    "glm4_moe": test_mixtures.TestGlm4Moe,
    "deepseek_v3": test_mixtures.TestDeepseekV3,
    "llama4_text": test_mixtures.TestLlama4,
    "minimax_m2": test_mixtures.TestMiniMaxM2,
    "nemotron_h": test_mixtures.TestNemotronH,
}
TOP_K = 2
EXPERTS = 6


def config_of(family: str, variant: int = 0) -> PreTrainedConfig:
    """Return a config of a family. Each layer has six experts, and two of them process each token.

    The second variant of some families also has a layer with a plain MLP.
    """
    config = copy.deepcopy(list(FAMILIES[family].configs.values())[variant])
    config.num_experts_per_tok = TOP_K
    config.num_experts = config.num_local_experts = (
        EXPERTS  # each family reads one of these two keys
    )
    config.n_group = config.topk_group = 1
    return config


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str) -> PreTrainedModel:
    return random_model(config_of(family, 1))


def router_of(model: PreTrainedModel, layer: int) -> nn.Module | None:
    adapter = adapt(model)
    return dict(adapter.layers[layer].named_modules()).get(adapter.family.router)


def observed(model: PreTrainedModel) -> list[LayerStatistics]:
    placed = Resident(model)
    placed.adapter = adapt(model, whole_experts=True)
    return collect(placed, tokens(), batch_size=4)


def decided(model: PreTrainedModel, ratio: float, structure: object = None) -> PruningPlan:
    adapter = adapt(model, whole_experts=True)
    scores = score_layers(WIFV(), adapter, enumerate(observed(model)))
    return (structure or ALAM(experts=True)).allocate(scores, price(adapter, ratio))


def prune_experts(model: PreTrainedModel, plan: PruningPlan) -> None:
    compress_layers(
        adapt(model, True), plan, BiasCompensation(), enumerate(observed(model)), slice_layer
    )
    become_checkpointable(Resident(model))


@torch.no_grad()
def never_routed(model: PreTrainedModel, plan: PruningPlan) -> Tensor:
    """Return the dense model's logits when its routers choose only experts that the plan keeps.

    All other experts get a router logit of -infinity.
    """
    linear = nn.functional.linear
    closed = {}
    for i, kept in enumerate(plan.layers):
        router = router_of(model, i)
        if router is not None:
            gone = sorted(set(range(EXPERTS)) - set(kept.mlp))
            # Some routers, or their parent modules, add a correction to the scores of experts. For
            # the removed experts, this correction becomes -infinity, too.
            for module in model.modules():
                if hasattr(module, "e_score_correction_bias") and router in (
                    module,
                    getattr(module, "gate", None),
                ):
                    module.e_score_correction_bias[gone] = -torch.inf
            closed[router.weight.data_ptr()] = torch.zeros(EXPERTS).index_fill(
                0, torch.tensor(gone).long(), -torch.inf
            )

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output = linear(x, weight, bias)
        return output + closed[weight.data_ptr()] if weight.data_ptr() in closed else output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", spy)
        return logits(model)


def experts_alone(model: PreTrainedModel, *kept: int) -> PruningPlan:
    """Return a plan that keeps the first `kept` experts of each layer, and all heads.

    If several numbers are given, the layers use them in turn. An MLP without experts keeps all
    neurons.
    """
    adapter = adapt(model, whole_experts=True)
    layers = []
    for i in range(len(adapter.layers)):
        attention, mlp = adapter.blocks(i)
        units = kept[i % len(kept)] if mlp.whole else mlp.num_units
        layers.append(LayerPlan(tuple(range(attention.num_units)), tuple(range(units))))
    return PruningPlan(tuple(layers))


@pytest.mark.parametrize("compensation", [BiasCompensation(), NoCompensation()])
def test_an_expert_that_no_token_is_sent_to_equals_one_that_left(
    model: PreTrainedModel, compensation: object
) -> None:
    plan = experts_alone(model, 4)
    expected = never_routed(copy.deepcopy(model), plan)
    assert not torch.allclose(expected, logits(model), atol=1e-2)
    compress_layers(adapt(model, True), plan, compensation, enumerate(observed(model)), slice_layer)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def routed_activations(model: PreTrainedModel, layer: int, tokens_NT: Tensor) -> Tensor:
    """Return each expert's activations for each token, times the router's weight, as (T, E, I).

    The axes are T (tokens), E (experts) and I (neurons of an expert). The values are zero if the
    router does not send the token to the expert.
    """
    experts = model.model.layers[layer].mlp.experts
    seen = []
    hook = experts.register_forward_pre_hook(lambda module, args: seen.append(args))
    model(input_ids=tokens_NT)
    hook.remove()
    [(hidden_TH, chosen_TK, weight_TK)] = seen
    weight_TE = torch.zeros(len(hidden_TH), EXPERTS).scatter(1, chosen_TK, weight_TK)
    inputs = [
        experts._apply_gate(nn.functional.linear(hidden_TH, weight))
        for weight in experts.gate_up_proj
    ]
    return torch.stack(inputs, dim=1) * weight_TE[..., None]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe"])
def test_statistics_are_those_of_routed_activations_over_all_tokens(family: str) -> None:
    model = random_model(config_of(family))
    known = observed(model)[1].blocks.mlp
    expected_TEI = routed_activations(model, 1, tokens()).double()
    for one, expected_TI in zip(known, expected_TEI.unbind(1), strict=True):
        for found, expected in (
            (one.mean_I, expected_TI.mean(0)),
            (one.var_I, expected_TI.var(0)),
            (one.msq_I, expected_TI.square().mean(0)),
        ):
            torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)


def test_an_expert_is_scored_by_its_routed_output_error() -> None:
    """The score of an expert e is E‖y_e − E y_e‖².

    y_e is the output of the expert times its router weight, and the expectation E is over tokens.
    OBS computes this score exactly. WIFV computes it under the assumption that the neurons of the
    expert are independent.
    """
    model = random_model(config_of("mixtral"))
    windows_NT = tokens(windows=60)
    input_TEI = routed_activations(model, 1, windows_NT)
    down_EHI = model.model.layers[1].mlp.experts.down_proj
    output_TEH = torch.einsum("tei,ehi->teh", input_TEI, down_EHI)
    known = covariances(model, windows_NT, 4, whole_experts=True)[1]
    blocks = adapt(model, True).blocks(1)
    by_neurons_E = (input_TEI.var(0) * down_EHI.square().sum(1)).sum(1)
    torch.testing.assert_close(
        score_layer(WIFV(), blocks, known).mlp, by_neurons_E, rtol=1e-3, atol=1e-6
    )
    error_E = output_TEH.var(0).sum(1)
    torch.testing.assert_close(
        score_layer(OBS(ridge=1e-5), blocks, known).mlp, error_E, rtol=1e-2, atol=1e-5
    )


def test_the_price_of_an_expert_is_what_leaves_with_it(model: PreTrainedModel) -> None:
    adapter = adapt(model, whole_experts=True)
    units = price(adapter, 0.0).layers[2].mlp
    before = sum(parameter.numel() for parameter in model.parameters())
    full = experts_alone(model, EXPERTS).layers[2]
    slice_layer(adapter, 2, full._replace(mlp=full.mlp[:1] + full.mlp[2:]), NoCompensation(), None)
    assert before - sum(parameter.numel() for parameter in model.parameters()) == units.price
    assert (units.count, units.fewest, adapter.mlp(2).num_units) == (EXPERTS, TOP_K, EXPERTS - 1)


@pytest.mark.parametrize("ratio", [0.1, 0.5])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("metric", ["WIFV", "OBS", "REAP"])
def test_every_structure_keeps_as_many_as_a_token_is_sent_to(
    metric: str, structure: str, ratio: float
) -> None:
    model = random_model(config_of("qwen3_moe", 1))
    adapter = adapt(model, True)
    chosen = STRUCTURES[structure](experts=True)
    known = (
        covariances(model, tokens(), 4, whole_experts=True) if metric == "OBS" else observed(model)
    )
    budget = price(adapter, ratio)
    chosen.check(budget)
    plan = allocated(
        chosen,
        score_layers((METRICS | EXPERT_METRICS)[metric](), adapter, enumerate(known)),
        budget,
    )
    assert budget.named(plan).mlp_units == ("expert", "neuron", "expert")
    assert all(len(plan.layers[i].mlp) >= TOP_K for i in (0, 2))
    largest = max(units.price for layer in budget.layers for units in layer)
    off = abs(budget.total - budget.kept(plan) - budget.to_remove)
    assert off <= largest * (len(budget.layers) if structure.startswith("UL") else 1)


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Saved]:
    """Save two pruned models of every family.

    In the first model, all layers have the same number of experts. In the second model, the layers
    have different numbers of experts.
    """
    root = tmp_path_factory.mktemp("experts")
    made = {}
    for family in FAMILIES:
        dense = random_model(config_of(family))
        for name, plan in (
            ("uniform", decided(dense, 0.3, ULMM(remove_heads=0, experts=True))),
            ("by layer", experts_alone(dense, 5, 2, 4)),
        ):
            model = copy.deepcopy(dense)
            prune_experts(model, plan)
            made[f"{family} {name}"] = save_pruned(
                model, tokenizer, root / f"{family}-{name}", plan
            )
    return made


@pytest.mark.long
def test_a_fresh_process_computes_the_same(saved: dict[str, Saved], tmp_path: Path) -> None:
    """A new process without flap loads all checkpoints, and computes the same logits.

    If all layers have the same number of experts, the checkpoint is stock (without saved code). If
    layers differ in their number of experts, the checkpoint needs the code that is saved with
    the weights. Qwen3-Next always needs this code.
    """
    stock = {name for name, one in saved.items() if is_stock(one.directory)}
    assert stock == {f"{family} uniform" for family in FAMILIES if family != "qwen3_next"}
    places: dict[str, list[Path]] = {"stock": [], "remote": []}
    for name, one in saved.items():
        places["stock" if name in stock else "remote"].append(one.directory)
    found = in_a_fresh_process(tmp_path, **places)
    for one in saved.values():
        torch.testing.assert_close(found[f"{one.directory}"], logits(one.model), atol=1e-5, rtol=0)
        assert torch.equal(found[f"{one.directory}.generated"], generated(one.model))


def test_experts_leave_a_model_that_has_lost_neurons(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """An expert that has lost neurons has an output bias, which is removed with the expert."""
    model = random_model(config_of("mixtral"))
    statistics = enumerate(collect(Resident(model), tokens(), 4))
    compress_layers(adapt(model), plan_of(model, 0.3), BiasCompensation(), statistics, slice_layer)
    plan = experts_alone(model, 4)
    expected = never_routed(model, plan)
    compress_layers(
        adapt(model, True), plan, BiasCompensation(), enumerate(observed(model)), slice_layer
    )
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
    become_checkpointable(Resident(model))
    reloaded = load(save_pruned(model, tokenizer, tmp_path / "saved", plan).directory)
    torch.testing.assert_close(logits(reloaded), logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_next"])
def test_neurons_leave_a_model_that_has_lost_experts(
    family: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    dense = random_model(config_of(family))
    model = copy.deepcopy(dense)
    neurons = adapt(dense).mlp(0).columns_UC.numel() // EXPERTS
    prune_experts(model, decided(model, 0.3))
    save_pruned(model, tokenizer, tmp_path / "fewer", decided(dense, 0.3))
    narrower = load(tmp_path / "fewer")
    plan = prune(narrower, 0.3)
    mlps = [adapt(narrower).mlp(i) for i in range(3)]
    assert sum(len(mlp.members) for mlp in mlps) < 3 * EXPERTS
    assert all(mlp.num_units // len(mlp.members) < neurons for mlp in mlps)
    reloaded = load(save_pruned(narrower, tokenizer, tmp_path / "narrower", plan).directory)
    torch.testing.assert_close(logits(reloaded), logits(narrower), atol=1e-5, rtol=0)


def test_experts_in_groups_of_one_size_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match="expected neither for deepseek_v3 with n_group=2, whose router chooses among",
    ):
        adapt(random_model(test_mixtures.TestDeepseekV3.configs["queries"]), whole_experts=True)
