"""Constants in place of experts: what they are, that masked and sliced models agree, and checkpoints of what stays."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma4TextConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from flap.allocation import LayerPlan, PruningPlan, price
from flap.calibration import STATISTICS, LayerStatistics, collect
from flap.checkpoint.convert import become_checkpointable
from flap.checkpoint.load import load
from flap.compression import BiasCompensation, ConstantCompensation, compress, mask_layer, slice_layer
from flap.models import Resident, adapt
from flap.pipeline import run
from tests.cases import random_model, tokens
from tests.helpers.fresh import in_a_fresh_process
from tests.helpers.pruned import Saved, generated, logits, plan_of, save_pruned
from tests.helpers.runs import composed, tiny
from tests.models.families import test_mixtures
from tests.models.test_whole_experts import EXPERTS, FAMILIES, config_of

NEVER_CHOSEN = 1  # an expert of the first layer that no calibration token is sent to
KEPT = (0, 2, 5)


def grouped() -> PreTrainedConfig:
    """A router that chooses two of three groups of two experts, and then among their experts."""
    config = config_of("deepseek_v3")
    config.n_group, config.topk_group = 3, 2
    return config


def gemma4() -> PreTrainedConfig:
    """A router of which no row can leave, as its weights have a scale by expert, too."""
    return Gemma4TextConfig(**test_mixtures.TestGemma4.configs["mixture"].to_dict() | {"num_experts": EXPERTS})


CONFIGS = {family: lambda family=family: config_of(family, 1) for family in FAMILIES} | {
    "groups": grouped, "gemma4": gemma4,
}  # fmt: skip


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return random_model(CONFIGS[request.param]())


def observed(model: PreTrainedModel) -> list[LayerStatistics]:
    placed = Resident(model)
    placed.adapter = adapt(model, True, True)
    return collect(placed, [tokens()], batch_size=4)


def three_stay(model: PreTrainedModel) -> PruningPlan:
    """The plan that leaves each mixture three experts, and all else."""
    adapter, layers = adapt(model, True, True), []
    for i in range(len(adapter.layers)):
        attention, mlp = adapter.blocks(i)
        layers.append(LayerPlan(tuple(range(attention.num_units)), KEPT if mlp.whole else tuple(range(mlp.num_units))))
    return PruningPlan(tuple(layers))


def pruned(model: PreTrainedModel, how: object = slice_layer) -> PreTrainedModel:
    changed = copy.deepcopy(model)
    compress(adapt(changed, True, True), three_stay(model), ConstantCompensation(), enumerate(observed(model)), how)
    return changed


def parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_masked_and_sliced_models_agree(model: PreTrainedModel) -> None:
    sliced, masked = pruned(model), pruned(model, mask_layer)
    assert not torch.allclose(logits(sliced), logits(model), atol=1e-2)
    torch.testing.assert_close(logits(sliced), logits(masked), atol=1e-4, rtol=1e-5)


def test_a_price_is_what_a_checkpoint_has_less_of(model: PreTrainedModel) -> None:
    budget, plan = price(adapt(model, True, True), 0.0), three_stay(model)
    assert parameters(model) - parameters(pruned(model)) == budget.total - budget.kept(plan)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[str, Saved]:
    root, made = tmp_path_factory.mktemp("constants"), {}
    for name, config in CONFIGS.items():
        changed = pruned(dense := random_model(config()))
        become_checkpointable(Resident(changed))
        made[name] = save_pruned(changed, tokenizer, root / name, three_stay(dense))
    return made


@pytest.mark.long
def test_a_fresh_process_computes_the_same(saved: dict[str, Saved], tmp_path: Path) -> None:
    found = in_a_fresh_process(tmp_path, remote=[one.directory for one in saved.values()])
    for one in saved.values():
        torch.testing.assert_close(found[f"{one.directory}"], logits(one.model), atol=1e-5, rtol=0)
        assert torch.equal(found[f"{one.directory}.generated"], generated(one.model))


@torch.no_grad()
def outputs_of(model: PreTrainedModel, expert: int) -> Tensor:
    """The outputs of an expert of the first layer for the tokens that are sent to it."""
    experts, seen = model.model.layers[0].mlp.experts, []
    hook = experts.register_forward_pre_hook(lambda module, args: seen.append(args))
    model(input_ids=tokens())
    hook.remove()
    [(hidden_TH, chosen_TK, _)] = seen
    hidden_RH = hidden_TH[(chosen_TK == expert).any(dim=1)]
    return experts(hidden_RH, torch.full((len(hidden_RH), 1), expert), torch.ones(len(hidden_RH), 1))


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_a_constant_is_the_mean_output_over_the_tokens_that_are_sent_to_the_expert(family: str) -> None:
    model = random_model(config_of(family))
    constants = pruned(model).model.layers[0].mlp.experts.constants
    expected = [outputs_of(model, expert).mean(0) for expert in sorted(set(range(EXPERTS)) - set(KEPT))]
    torch.testing.assert_close(constants, torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_the_constant_of_an_expert_that_no_token_is_sent_to_is_zero() -> None:
    model = random_model(config_of("gpt_oss"))
    with torch.no_grad():
        model.model.layers[0].mlp.router.bias[NEVER_CHOSEN] = -100
    constants = pruned(model).model.layers[0].mlp.experts.constants
    assert not constants[0].any() and constants[1:].any(dim=1).all()


@pytest.mark.parametrize("kernel", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_every_kernel_computes_the_same(family: str, kernel: str) -> None:
    sliced = pruned(random_model(config_of(family)))
    expected = logits(sliced)
    sliced.set_experts_implementation(kernel)
    torch.testing.assert_close(logits(sliced), expected, atol=1e-5, rtol=1e-5)


def test_an_expert_that_left_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    sliced, rows = pruned(random_model(config_of("mixtral"))), []
    linear, experts = nn.functional.linear, sliced.model.layers[0].mlp.experts
    sent, run_to = [], experts.register_forward_pre_hook(lambda module, args: sent.append(args[1]))
    sliced.set_experts_implementation("eager")

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows.extend([len(x)] if weight.data_ptr() in {one.data_ptr() for one in experts.down_proj} else [])
        return linear(x, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", spy)
    logits(sliced)
    run_to.remove()
    assert sum(rows) == sum(int((sent[0] == expert).sum()) for expert in KEPT)


def test_more_can_leave_a_model_whose_experts_left_constants(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Experts once more, and neurons: earlier constants stay, and the router still counts all."""
    model = pruned(random_model(config_of("mixtral")))
    masked, known = copy.deepcopy(model), observed(model)
    plan = PruningPlan(tuple(layer._replace(mlp=(0, 2)) for layer in three_stay(model).layers))
    for one, how in ((model, slice_layer), (masked, mask_layer)):
        compress(adapt(one, True, True), plan, ConstantCompensation(), enumerate(known), how)
    torch.testing.assert_close(logits(model), logits(masked), atol=1e-4, rtol=1e-5)
    neurons, placed = plan_of(model, 0.3), Resident(model)
    compress(adapt(model), neurons, BiasCompensation(), enumerate(collect(placed, [tokens()], 4)), slice_layer)
    become_checkpointable(placed)
    reloaded = load(save_pruned(model, tokenizer, tmp_path / "saved", neurons).directory)
    torch.testing.assert_close(logits(reloaded), logits(model), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="compensation: expected constant for this model"):
        adapt(reloaded, whole_experts=True)


def test_statistics_keep_what_constants_are_made_of(tmp_path: Path) -> None:
    known = observed(random_model(config_of("qwen3_moe", 1)))
    STATISTICS.write(known, tmp_path / "statistics")
    assert [len(layer.routed) for layer in known] == [EXPERTS, 0, EXPERTS]
    for before, after in zip(known, STATISTICS.read(tmp_path / "statistics"), strict=True):
        assert all(torch.equal(a.mean_I, b.mean_I) for a, b in zip(before.routed, after.routed, strict=True))


@pytest.fixture
def on_disk(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    random_model(config_of("qwen3_moe", 1)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


OPTIONS = (
    "structure=UL-MM",
    "structure.remove_heads=0",
    "structure.experts=true",
    "compensation=constant",
    "ratio=0.4",
)


def test_runs_from_memory_and_from_disk_save_the_same(on_disk: Path, text_file: Path, tmp_path: Path) -> None:
    options = [*tiny(on_disk, text_file), *OPTIONS, f"cache_dir={tmp_path / 'cache'}"]
    found = []
    for placement in ("device", "stream", "auto"):
        report = run(composed(*options, f"model.placement={placement}"), tmp_path / placement)
        model = load(tmp_path / placement / "checkpoint")
        assert report.parameters["total_after"] == parameters(model)
        assert report.loads_with == "flap, or trust_remote_code=True (constants answer for experts that left)"
        found.append(logits(model))
    config = json.loads((tmp_path / "stream" / "checkpoint" / "config.json").read_text())
    kept = [layer.get("kept_experts") for layer in config["per_layer_config"].values()]
    assert kept[1] is None and kept[0] == kept[2] < EXPERTS and config["num_local_experts"] == EXPERTS
    masked = run(composed(*options, "mask_only=true", "checkpoint.save=false"), tmp_path / "masked")
    assert masked.evaluation["pruned"] == pytest.approx(report.evaluation["pruned"], rel=1e-4)
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], atol=1e-5, rtol=0)
    assert "flap.export" not in (tmp_path / "device" / "checkpoint" / "README.md").read_text()
    again = ["ratio=0", "structure=UL-MM", "structure.remove_heads=0", "checkpoint.formats=[hf,gguf]"]
    path = [f"model.path={tmp_path / 'device' / 'checkpoint'}", "trust_remote_code=true"]
    with pytest.raises(ValueError, match=r"^checkpoint.formats: transformers and vLLM alone have constants"):
        run(composed(*tiny(on_disk, text_file), *again, *path), tmp_path / "again")
    assert not (tmp_path / "again" / "checkpoint").exists()


def test_bad_input_is_one_clear_line(on_disk: Path, model_dir: Path, text_file: Path) -> None:
    cases = (
        (
            on_disk,
            ["structure.experts=false"],
            "compensation=constant: expected bias where neurons leave, or structure",
        ),
        (on_disk, ["ratio=0.9"], "ratio=0.9: 1 KV head and 2 experts or 1 neuron stay in every layer"),
        (model_dir, [], "structure.experts=true: expected false for llama; or one of mixtral, granitemoe"),
    )
    for path, options, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            run(composed(*tiny(path, text_file), *OPTIONS, "checkpoint.save=false", *options), None)
        assert "\n" not in str(error.value)


def test_one_expert_may_stay_where_the_router_chooses_one() -> None:
    config = config_of("mixtral")
    config.num_experts_per_tok = 1
    model = random_model(config)
    assert price(adapt(model, True, True), 0.0).layers[0].mlp.fewest == 1
    plan, forms = three_stay(model), []
    plan = PruningPlan(tuple(layer._replace(mlp=(4,)) for layer in plan.layers))
    for how in (slice_layer, mask_layer):
        changed = copy.deepcopy(model)
        compress(adapt(changed, True, True), plan, ConstantCompensation(), enumerate(observed(model)), how)
        forms.append(logits(changed))
    torch.testing.assert_close(*forms, atol=1e-4, rtol=1e-5)
