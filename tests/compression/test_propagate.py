"""The second pass: every block is fitted on what the corrected layers before it put out, to what the dense one does."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flap.allocation import LayerPlan, PruningPlan
from flap.calibration import LayerStatistics, collect, collect_covariances
from flap.compression import (
    BiasCompensation,
    Compensation,
    CompressLayer,
    Correction,
    LinearCompensation,
    mask_layer,
    propagate,
    prune_layer,
)
from flap.files import cache_root
from flap.models import adapt
from flap.pipeline import run
from flap.stages import build_stages, check_budget
from tests.cases import ARCHITECTURES, MIXTURES, random_model, tiny_model, tokens
from tests.compression.oracle import changed
from tests.models.families import test_families
from tests.models.families.contract import FamilyContract, plan_of
from tests.runs import composed, tiny

WINDOWS = tokens(windows=60)
HELD_OUT = torch.arange(60) % 5 == 0
COMPENSATIONS = {"bias": BiasCompensation(), "linear": LinearCompensation()}
assert test_families  # each of them makes a FamilyContract
FAMILIES = {
    f"{family.__name__}-{variant}": config
    for family in FamilyContract.__subclasses__()
    for variant, config in family.configs.items()
    if config.model_type not in {mixture.model_type for mixture in MIXTURES.values()}
}
PATHS = {"attention": "self_attn.o_proj", "MLP": "mlp.down_proj"}


def less(architecture: str) -> PruningPlan:
    """Layer 0 stays whole, layer 2 loses neurons alone."""
    groups = tuple(range(ARCHITECTURES[architecture].num_key_value_heads))
    whole, some = LayerPlan(groups, tuple(range(56))), LayerPlan(groups[1:], tuple(range(3, 40)))
    return PruningPlan((whole, some, replace(some, kv_heads=groups), some))


def known_of(model: PreTrainedModel, batch_size: int = 8) -> list[LayerStatistics]:
    return list(collect_covariances(adapt(model), WINDOWS, batch_size, cache_root(None)))


def refined(
    model: PreTrainedModel,
    plan: PruningPlan,
    compensation: Compensation,
    known: list[LayerStatistics],
    how: CompressLayer = prune_layer,
    batch_size: int = 8,
) -> tuple[PreTrainedModel, dict[str, Correction]]:
    model = copy.deepcopy(model)
    return model, propagate(adapt(model), plan, compensation, known, how, WINDOWS, batch_size)[1]


@torch.no_grad()
def flow(model: PreTrainedModel, path: str, windows: Tensor = WINDOWS) -> tuple[Tensor, Tensor]:
    """What flows into and out of a projection (N, T, channels)."""
    seen: list[Tensor] = []
    module = model.model.layers.get_submodule(path)
    hook = module.register_forward_hook(lambda _, args, output: seen.extend([args[0], output]))
    model(input_ids=windows)
    hook.remove()
    return seen[0].double(), seen[1].double()


@pytest.mark.parametrize("name", COMPENSATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_least_squares_on_the_collected_activations(architecture: str, name: str) -> None:
    """In the finished model each block gets what it was fitted on, because it is corrected after all before it."""
    model, plan = tiny_model(architecture), less(architecture)
    known = known_of(model)
    plain = changed(model, plan, COMPENSATIONS[name], known)
    after, corrections = refined(model, plan, COMPENSATIONS[name], known)
    assert list(corrections) == [
        "layer 1 attention", "layer 1 MLP", "layer 2 MLP", "layer 3 attention", "layer 3 MLP"
    ]  # fmt: skip
    for block, correction in corrections.items():
        path = f"{block.split()[1]}.{PATHS[block.split()[2]]}"
        (x_NTK, _), (_, target_NTO) = flow(after, path), flow(model, path)
        before, now = (one.model.layers.get_submodule(path) for one in (plain, after))
        residual_NTO = target_NTO - x_NTK @ before.weight.double().T - before.bias.double()
        measured = residual_NTO[HELD_OUT].square().sum(-1).mean().item()
        assert correction.held_out_error_before == pytest.approx(measured, rel=1e-3)
        x_TK, y_TO = x_NTK.flatten(0, 1), residual_NTO.flatten(0, 1)
        slope_OK, shift_O = torch.zeros_like(before.weight).double(), y_TO.mean(0)
        if correction.ridge is not None:
            centred_TK = x_TK - x_TK.mean(0)
            gram_KK = centred_TK.T @ centred_TK / len(x_TK)
            gram_KK += correction.ridge * gram_KK.diagonal().mean() * torch.eye(len(gram_KK))
            slope_OK = torch.linalg.solve(gram_KK, centred_TK.T @ (y_TO - shift_O) / len(x_TK)).T
            shift_O = shift_O - slope_OK @ x_TK.mean(0)
        elif correction.held_out_error == correction.held_out_error_before:
            shift_O = torch.zeros_like(shift_O)
        torch.testing.assert_close(now.weight.double(), before.weight + slope_OK, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(now.bias.double(), before.bias + shift_O, atol=1e-4, rtol=1e-3)
    changed_at_all = [one for one in corrections.values() if one.held_out_error < one.held_out_error_before]
    assert len(changed_at_all) >= (2 if name == "linear" else 1)


@pytest.mark.parametrize("name", COMPENSATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_masked_equals_sliced(architecture: str, name: str) -> None:
    model, plan = tiny_model(architecture), less(architecture)
    known = known_of(model)
    ways = [refined(model, plan, COMPENSATIONS[name], known, how) for how in (prune_layer, mask_layer)]
    (sliced, corrections), (masked, _) = ways
    assert any(one.held_out_error < one.held_out_error_before for one in corrections.values())
    assert adapt(sliced).num_parameters() < adapt(masked).num_parameters() == adapt(model).num_parameters()
    with torch.no_grad():
        torch.testing.assert_close(sliced(WINDOWS).logits, masked(WINDOWS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_equals_sliced_in_every_family(family: str) -> None:
    model = random_model(FAMILIES[family])
    plan, known = plan_of(model, 0.5), known_of(model)
    ways = [refined(model, plan, LinearCompensation(), known, how) for how in (prune_layer, mask_layer)]
    (sliced, corrections), (masked, _) = ways
    assert any(one.ridge is not None for one in corrections.values())
    with torch.no_grad():
        torch.testing.assert_close(sliced(WINDOWS).logits, masked(WINDOWS).logits, atol=1e-4, rtol=0)


def test_unseen_tokens_stay_closer_to_the_dense_model() -> None:
    unseen, gained = tokens(windows=8, seed=9), []
    for architecture in ARCHITECTURES:
        model, plan = tiny_model(architecture), less(architecture)
        known = known_of(model)
        linear = LinearCompensation()
        with torch.no_grad():
            dense = model(unseen).logits
            plain, after = (
                (one(unseen).logits - dense).norm().item()
                for one in (changed(model, plan, linear, known), refined(model, plan, linear, known)[0])
            )
        gained.append(after / plain)
    assert max(gained) < 1.01 and sum(gained) / len(gained) < 0.995


@pytest.mark.parametrize("name", COMPENSATIONS)
def test_a_plan_that_removes_nothing_changes_nothing(name: str) -> None:
    model = tiny_model("llama-gqa")
    plan = PruningPlan((LayerPlan((0, 1, 2, 3), tuple(range(56))),) * 4)
    after, corrections = refined(model, plan, COMPENSATIONS[name], known_of(model))
    assert corrections == {}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in after.state_dict().items())


@pytest.mark.parametrize("name", COMPENSATIONS)
def test_units_that_do_nothing_leave_without_a_trace(name: str) -> None:
    model, plan = tiny_model("llama-gqa-biases"), less("llama-gqa-biases")
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data[:, :16] = 0
        layer.mlp.down_proj.weight.data[:, [0, 1, 2, *range(40, 56)]] = 0
    after, corrections = refined(model, plan, COMPENSATIONS[name], known_of(model))
    assert len(corrections) == 5
    with torch.no_grad():
        torch.testing.assert_close(after(WINDOWS).logits, model(WINDOWS).logits, atol=1e-4, rtol=0)


def test_a_layer_takes_back_a_shift_of_the_one_before() -> None:
    """Layer 0 gets a shift that nothing in it can take back; layer 1's MLP puts out the dense mean all the same."""
    model, whole = tiny_model("llama-gqa"), LayerPlan((0, 1, 2, 3), tuple(range(56)))
    plan = PruningPlan((whole, replace(whole, neurons=tuple(range(50))), whole, whole))
    known = known_of(model)

    def shifting(adapter, layer, *rest):  # type: ignore[no-untyped-def]
        repairs = prune_layer(adapter, layer, *rest)
        adapter.layers[layer].post_attention_layernorm.weight.data += 0.5
        return repairs

    after, corrections = refined(model, plan, BiasCompensation(), known, shifting)
    dense, found = (flow(one, "1.mlp.down_proj")[1].mean((0, 1)) for one in (model, after))
    torch.testing.assert_close(found, dense, atol=1e-4, rtol=0)
    assert corrections["layer 1 MLP"].held_out_error < corrections["layer 1 MLP"].held_out_error_before


@pytest.mark.parametrize("name", COMPENSATIONS)
def test_batch_size_changes_nothing(name: str) -> None:
    model, plan = tiny_model("qwen3-gqa"), less("qwen3-gqa")
    known = known_of(model)
    first, *others = (refined(model, plan, COMPENSATIONS[name], known, batch_size=size)[0] for size in (7, 60))
    with torch.no_grad():
        for other in others:
            torch.testing.assert_close(other(WINDOWS).logits, first(WINDOWS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", COMPENSATIONS)
def test_bfloat16_is_cast_once(name: str) -> None:
    model, plan = tiny_model("llama-gqa").to(torch.bfloat16), less("llama-gqa")
    after, corrections = refined(model, plan, COMPENSATIONS[name], known_of(model))
    assert {tensor.dtype for tensor in after.state_dict().values()} == {torch.bfloat16}
    assert any(one.held_out_error < one.held_out_error_before for one in corrections.values())
    assert torch.isfinite(after(WINDOWS).logits).all()


def work(steps: Callable[[], object]) -> int:
    """Multiply-adds in the Linear modules that run while `steps()` does."""
    total = 0

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += args[0].shape[:-1].numel() * module.weight.numel()

    hook = nn.modules.module.register_module_forward_hook(count)
    steps()
    hook.remove()
    return total


@pytest.mark.parametrize("name", COMPENSATIONS)
def test_it_costs_no_more_than_four_forward_passes(name: str) -> None:
    model, groups = tiny_model("llama-gqa", num_hidden_layers=12), (0, 1, 2)
    plan = PruningPlan((LayerPlan(groups, tuple(range(45))),) * 12)
    one = work(lambda: model.model(WINDOWS))
    known: list[LayerStatistics] = []
    first = work(lambda: known.extend(known_of(model)))
    second = work(lambda: propagate(adapt(model), plan, COMPENSATIONS[name], known, prune_layer, WINDOWS, 8))
    assert first == one
    assert first + second <= 4 * one


def test_layers_before_the_first_pruned_one_run_once() -> None:
    model, seen = tiny_model("llama-gqa"), [0] * 4
    for i, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda _, args, __, i=i: seen.__setitem__(i, seen[i] + len(args[0])))
    known = collect(adapt(tiny_model("llama-gqa")), WINDOWS, 8)
    whole = LayerPlan((0, 1, 2, 3), tuple(range(56)))
    plan = PruningPlan((whole, whole, replace(whole, neurons=(1, 2)), whole))
    propagate(adapt(model), plan, BiasCompensation(), known, prune_layer, WINDOWS, 8)
    # to the end, that is; a fit ends at the projection. From the pruned layer on there are two streams
    assert seen == [60, 60, 120, 120]


def test_hooks_leave() -> None:
    model = tiny_model("llama-gqa")
    propagate(adapt(model), less("llama-gqa"), LinearCompensation(), known_of(model), prune_layer, WINDOWS, 8)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_activations_that_are_not_finite_name_the_block() -> None:
    model = tiny_model("llama-gqa")
    known = known_of(model)
    model.model.layers[1].mlp.up_proj.weight.data[20] = float("inf")
    with pytest.raises(ValueError, match=r"^calibration: activations of layer 1 MLP are not finite; try model\.dtype"):
        refined(model, less("llama-gqa"), LinearCompensation(), known)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seed": 3}, r"statistics: another model's, or of other tokens; the means in layer 0 attention differ"),
        ({"intermediate_size": 64}, r"statistics: another model's, of 64 channels in layer 0 MLP; this one has 56 the"),
    ],
)
@pytest.mark.parametrize("name", COMPENSATIONS)
def test_statistics_of_another_model_are_refused(name: str, other: dict[str, int], words: str) -> None:
    model, known = tiny_model("llama-gqa"), known_of(tiny_model("llama-gqa", **other))
    with pytest.raises(ValueError, match=f"^{words}"):
        refined(model, less("llama-gqa"), COMPENSATIONS[name], known)


def test_statistics_of_a_shorter_model_are_refused() -> None:
    model = tiny_model("llama-gqa")
    with pytest.raises(ValueError, match=r"^statistics: another model's, of 3 layers; this one has 4$"):
        refined(model, less("llama-gqa"), BiasCompensation(), known_of(model)[:3])


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (PruningPlan((LayerPlan((0,), (1,)),) * 3), "plan: another model's, of 3 layers; this one has 4"),
        (
            PruningPlan((LayerPlan((0,), (1, 70)),) * 4),
            "plan: another model's, which keeps unit 70 of layer 0 MLP; this one has 56 there",
        ),
    ],
)
def test_a_plan_of_another_model_is_refused(plan: PruningPlan, words: str) -> None:
    model = tiny_model("llama-gqa")
    with pytest.raises(ValueError, match=f"^{words}$"):
        refined(model, plan, BiasCompensation(), known_of(model))


@pytest.mark.parametrize("name", COMPENSATIONS)
@pytest.mark.parametrize("structure", ["UL-UM", "UL-MM", "AL-MM", "AL-AM", "search"])
def test_any_structure_goes(structure: str, name: str, model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    arguments = (*tiny(model_dir, text_file), f"structure={structure}", f"compensation={name}", "ratio=0.4")
    plans = []
    for propagated in ("dense", "pruned"):
        run(composed(*arguments, f"calibration.propagate={propagated}"), tmp_path / propagated)
        plans.append((tmp_path / propagated / "plan.json").read_text())
    assert plans[0] == plans[1]
    dense, pruned = (json.loads((tmp_path / one / "report.json").read_text()) for one in ("dense", "pruned"))
    assert dense["corrections"] == {} and len(pruned["corrections"]) >= 4
    assert dense["repairs"] == pruned["repairs"]
    for one in pruned["corrections"].values():
        assert 0 <= one["held_out_error"] <= one["held_out_error_before"]
    assert "Correction behind pruned layers leaves " in (tmp_path / "pruned" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("compensation=none", "calibration.propagate=pruned: expected structure UL-UM or UL-MM with compensation=none"),
        ("compensation=none structure=search", "calibration.propagate=pruned: expected structure UL-UM or UL-MM with"),
        ("model.placement=auto", "model.placement=auto: expected device with calibration.propagate=pruned"),
        ("model.placement=stream", "model.placement=stream: expected device with calibration.propagate=pruned"),
        ("calibration.num_samples=1", "calibration.num_samples=1: expected at least 2"),
    ],
)
def test_what_does_not_go_is_one_line(arguments: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}[^\n]*$"):
        build_stages(composed("calibration.propagate=pruned", *arguments.split()))


@pytest.mark.parametrize("architecture", MIXTURES)
def test_experts_are_refused(architecture: str) -> None:
    config = composed("calibration.propagate=pruned")
    with pytest.raises(
        ValueError, match=r"^calibration\.propagate=pruned: experts are not corrected; .*" + architecture
    ):
        check_budget(adapt(tiny_model(architecture)), build_stages(config), config)
