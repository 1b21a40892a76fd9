"""First-order effects of units (heads, neurons and experts) agree with an ordinary backward pass.

The effect of a unit is the sum of w · ∂L/∂w over its weights w, where L is the loss. The tests find
the weights by the names of the tensors, without flap's code.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, Olmo2Config, Phi3Config, PreTrainedConfig, PreTrainedModel

from flap.data import Batch
from flap.method.calibration import Calibration
from flap.models import Pair, Resident, adapt
from tests.cases import ARCHITECTURES, MIXTURES, VOCAB, random_model, tiny_model, tokens
from tests.models.families import test_mixtures as mixtures

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPS = 4  # number of KV heads in every tested family except GPT-2
Products = dict[str, Tensor]  # w · ∂L/∂w of a layer's parameters, by their names in the layer


def rows(products: Products, module: str, units: int) -> Tensor:
    """Sum w · ∂L/∂w over the rows of each unit in the weight and bias of the Linear `module`.

    units: the number of units, which have equally many rows.
    """
    total_U = products[f"{module}.weight"].unflatten(0, (units, -1)).sum(dim=(1, 2))
    if f"{module}.bias" in products:
        total_U = total_U + products[f"{module}.bias"].unflatten(0, (units, -1)).sum(dim=1)
    return total_U


def columns(products: Products, module: str, units: int) -> Tensor:
    """Sum w · ∂L/∂w over the columns of each unit in the weight of the output projection `module`.

    units: the number of units, which have equally many columns.
    """
    return products[f"{module}.weight"].unflatten(1, (units, -1)).sum(dim=(0, 2))


def of_llama(products: Products) -> Pair[Tensor]:
    heads = columns(products, "self_attn.o_proj", GROUPS)
    for name in ("q_proj", "k_proj", "v_proj"):
        heads = heads + rows(products, f"self_attn.{name}", GROUPS)
    return Pair(heads, of_gated_mlp(products))


def of_gated_mlp(products: Products) -> Tensor:
    neurons = products["mlp.down_proj.weight"].shape[1]
    gate = rows(products, "mlp.gate_proj", neurons)
    up = rows(products, "mlp.up_proj", neurons)
    return columns(products, "mlp.down_proj", neurons) + gate + up


def of_olmo2(products: Products) -> Pair[Tensor]:
    """Sum w · ∂L/∂w over each unit of a layer of OLMo 2.

    OLMo 2 has one norm for the queries of all heads, and one norm for the keys of all heads. Each
    weight of a norm belongs to the head that contains the weight's channel.
    """
    heads, neurons = of_llama(products)
    for name in ("q_norm", "k_norm"):
        norm = products[f"self_attn.{name}.weight"]
        heads = heads + norm.unflatten(0, (GROUPS, -1)).sum(dim=1)
    return Pair(heads, neurons)


def of_phi3(products: Products) -> Pair[Tensor]:
    """Sum w · ∂L/∂w over each unit of a layer of Phi-3.

    Phi-3 has one matrix for q, k and v, and one matrix for gate and up.
    """
    sizes = [8 * 4, GROUPS * 4, GROUPS * 4]
    heads = columns(products, "self_attn.o_proj", GROUPS)
    for part in products["self_attn.qkv_proj.weight"].split(sizes):
        heads = heads + part.unflatten(0, (GROUPS, -1)).sum(dim=(1, 2))
    gate, up = products["mlp.gate_up_proj.weight"].chunk(2)
    neurons = gate.sum(dim=1) + up.sum(dim=1)
    return Pair(heads, neurons + products["mlp.down_proj.weight"].sum(dim=0))


def of_gpt2(products: Products) -> Pair[Tensor]:
    """Sum w · ∂L/∂w over each unit of a layer of GPT-2, whose Conv1D weights are transposed."""
    heads = products["attn.c_proj.weight"].unflatten(0, (8, -1)).sum(dim=(1, 2))
    weights = products["attn.c_attn.weight"].chunk(3, dim=1)
    biases = products["attn.c_attn.bias"].chunk(3)
    for weight, bias in zip(weights, biases, strict=True):
        heads = heads + weight.unflatten(1, (8, -1)).sum(dim=(0, 2))
        heads = heads + bias.unflatten(0, (8, -1)).sum(dim=1)
    neurons = products["mlp.c_fc.weight"].sum(dim=0) + products["mlp.c_fc.bias"]
    return Pair(heads, neurons + products["mlp.c_proj.weight"].sum(dim=1))


def of_mixtral(products: Products) -> Pair[Tensor]:
    """Sum w · ∂L/∂w over each KV head and each neuron of a layer of Mixtral.

    The neurons are in the order of their experts.
    """
    gate_EIH, up_EIH = products["mlp.experts.gate_up_proj"].chunk(2, dim=1)
    neurons_EI = gate_EIH.sum(dim=2) + up_EIH.sum(dim=2)
    neurons_EI = neurons_EI + products["mlp.experts.down_proj"].sum(dim=1)
    return Pair(attention_of_mixtral(products), neurons_EI.flatten())


def of_whole_experts(products: Products) -> Pair[Tensor]:
    """Sum w · ∂L/∂w over each KV head and each expert of a layer of Mixtral.

    The weights of an expert include its row of the router.
    """
    experts_E = products["mlp.experts.gate_up_proj"].sum(dim=(1, 2))
    experts_E = experts_E + products["mlp.experts.down_proj"].sum(dim=(1, 2))
    experts_E = experts_E + products["mlp.gate.weight"].sum(dim=1)
    return Pair(attention_of_mixtral(products), experts_E)


def attention_of_mixtral(products: Products) -> Tensor:
    heads = columns(products, "self_attn.o_proj", GROUPS)
    for name in ("q_proj", "k_proj", "v_proj"):
        heads = heads + rows(products, f"self_attn.{name}", GROUPS)
    return heads


@dataclass(frozen=True)
class Case:
    config: PreTrainedConfig
    layers: str  # path of the list of decoder layers in the model
    by_hand: Callable[[Products], Pair[Tensor]]
    experts: bool = False


CASES = {
    "llama, grouped, biases": Case(ARCHITECTURES["llama-gqa-biases"], "model.layers", of_llama),
    "qwen2, grouped, tied": Case(ARCHITECTURES["qwen2-gqa-tied"], "model.layers", of_llama),
    "olmo2, norms of all heads": Case(
        Olmo2Config(**SMALL, num_key_value_heads=GROUPS), "model.layers", of_olmo2
    ),
    "phi3, fused": Case(Phi3Config(**SMALL, num_key_value_heads=GROUPS), "model.layers", of_phi3),
    "gpt2, fused and transposed": Case(
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=8, n_positions=64),
        "transformer.h",
        of_gpt2,
    ),
    "mixtral": Case(MIXTURES["mixtral"], "model.layers", of_mixtral),
    "mixtral, whole experts": Case(
        MIXTURES["mixtral"], "model.layers", of_whole_experts, experts=True
    ),
}


def effects(
    model: PreTrainedModel, windows: Batch, batch_size: int = 4, experts: bool = False
) -> list[Pair[Tensor]]:
    """Return the effects that flap computes for all units of each layer.

    In a mixture of experts, the units are whole experts if `experts` is true, and neurons if it is
    false. The neurons are in the order of their experts.
    """
    placed = Resident(model)
    placed.adapter = adapt(model, experts)
    layers = []
    for statistics in Calibration(placed, windows, batch_size, []).observe(gradients=True):
        blocks = []
        for members in statistics.blocks:
            found = [member.effect_U for member in members if member.effect_U is not None]
            assert len(found) == len(members)
            blocks.append(torch.cat(found))
        layers.append(Pair(*blocks))
    return layers


def loss(model: PreTrainedModel, windows: Batch) -> Tensor:
    """Return the mean cross-entropy of the predictions of tokens for which the mask is true."""
    logits = model(input_ids=windows.tokens_NT).logits[:, :-1]
    labels = windows.tokens_NT[:, 1:].masked_fill(~windows.mask_NT[:, 1:], -100)
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


def assert_same(found: list[Pair[Tensor]], expected: list[Pair[Tensor]]) -> None:
    assert len(found) == len(expected) > 1
    for layer, other in zip(found, expected, strict=True):
        for effect_U, expected_U in zip(layer, other, strict=True):
            scale = float(expected_U.abs().max())
            assert scale > 0
            torch.testing.assert_close(
                effect_U.double(), expected_U.double(), rtol=0, atol=1e-4 * scale
            )


def masked() -> Batch:
    """Return windows with a mask that is false for some tokens of every second window.

    The mask is also false for all tokens of window 1.
    """
    tokens_NT = tokens()
    mask_NT = torch.ones_like(tokens_NT, dtype=torch.bool)
    mask_NT[::2, 5:15] = False
    mask_NT[1] = False
    return Batch(tokens_NT, mask_NT)


@pytest.mark.parametrize("windows", [Batch.of(tokens()), masked()], ids=["all", "masked"])
@pytest.mark.parametrize("name", CASES)
def test_they_are_those_of_an_ordinary_backward_pass(name: str, windows: Batch) -> None:
    case = CASES[name]
    model = random_model(case.config)
    found = effects(model, windows, experts=case.experts)

    loss(model, windows).backward()
    expected = []
    for layer in model.get_submodule(case.layers):
        products = {}
        for path, parameter in layer.named_parameters():
            assert parameter.grad is not None
            products[path] = parameter.detach().double() * parameter.grad.double()
        expected.append(case.by_hand(products))
    assert_same(found, expected)


def test_to_first_order_the_loss_falls_by_the_effect() -> None:
    """Multiplying a neuron's weights by 1 - share changes the loss by about -share · effect."""
    model = tiny_model("llama-gqa")
    windows = Batch.of(tokens())
    effect_U = effects(model, windows)[1].mlp
    neuron = int(effect_U.abs().argmax())
    mlp = model.model.layers[1].mlp
    share = 0.02
    losses = []
    for scale in (1 - share, 1 + share):
        scaled = deepcopy(model)
        mlp = scaled.model.layers[1].mlp
        with torch.no_grad():
            mlp.gate_proj.weight[neuron] *= scale
            mlp.up_proj.weight[neuron] *= scale
            mlp.down_proj.weight[:, neuron] *= scale
            losses.append(float(loss(scaled, windows)))
    below, above = losses
    assert (above - below) / (2 * share) == pytest.approx(float(effect_U[neuron]), rel=0.02)


def test_a_layer_that_lacks_a_block_has_no_effects_there() -> None:
    """A layer of Nemotron-H has only one block: an attention, an MLP, experts or a state space.

    A layer without attention or without MLP has no units of this kind, so its tensor of effects is
    empty.
    """
    model = random_model(mixtures.TestNemotronH.configs["mixture"])
    found = effects(model, Batch.of(tokens()))
    blocks = [block for i in range(len(found)) for block in adapt(model).blocks(i)]
    of_blocks = [effect_U for layer in found for effect_U in layer]
    assert [len(effect_U) for effect_U in of_blocks] == [block.num_units for block in blocks]
    assert 0 in map(len, of_blocks)
    for effect_U in of_blocks:
        assert bool((effect_U != 0).any()) == bool(len(effect_U))


@pytest.mark.parametrize("batch_size", [1, 6])
def test_the_size_of_batches_changes_nothing(batch_size: int) -> None:
    model = tiny_model("llama-gqa")
    found = effects(model, masked(), batch_size)
    assert_same(found, effects(model, masked()))


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama-gqa")
    windows = Batch.of(tokens())
    expected = effects(deepcopy(model), windows)
    frozen, with_gradient, *_ = model.model.layers[0].parameters()
    frozen.requires_grad_(False)
    with_gradient.grad = torch.ones_like(with_gradient)
    before = {name: (one, one.data_ptr()) for name, one in model.named_parameters()}

    with torch.no_grad():  # effects must be right even if the caller has disabled gradients
        found = effects(model, windows)
    assert_same(found, expected)
    for name, parameter in model.named_parameters():
        same, address = before[name]
        assert parameter is same and parameter.data_ptr() == address
        assert parameter.requires_grad == (parameter is not frozen)
        if parameter is not with_gradient:
            assert parameter.grad is None
    assert with_gradient.grad is not None and bool((with_gradient.grad == 1).all())

    loss(model, windows).backward()  # flap's hooks, which free gradients, are removed by now
    for parameter in model.parameters():
        assert (parameter.grad is None) == (parameter is frozen)


def test_no_gradient_of_a_later_layer_is_held() -> None:
    model = tiny_model("llama-gqa")
    held = []

    def count(*_: object) -> None:
        held.append(sum(parameter.grad is not None for parameter in model.parameters()))

    def watch(layer: object, args: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(count)

    for layer in model.model.layers:
        layer.register_forward_hook(watch)
    effects(model, Batch.of(tokens()), batch_size=6)
    assert len(held) == 4 and set(held) == {0}


def test_a_model_in_bfloat16_stays_in_it() -> None:
    model = tiny_model("llama-gqa")
    expected = effects(model, Batch.of(tokens()))
    found = effects(model.bfloat16(), Batch.of(tokens()))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for layer, other in zip(found, expected, strict=True):
        correlation = torch.corrcoef(torch.stack([layer.mlp, other.mlp]))[0, 1]
        assert correlation > 0.98


def test_gradients_that_are_not_finite_name_the_block() -> None:
    model = tiny_model("llama-gqa")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1e30)
    model.model.norm.weight.data *= 1e30
    with pytest.raises(ValueError, match="gradients of layer 0 attention are not finite"):
        effects(model, Batch.of(tokens()))
