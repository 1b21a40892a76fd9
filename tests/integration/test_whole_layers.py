"""Whole layers leave, and a linear map in the MLP before them stands for what it can of them."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from flap.allocation import LayerPlan, PruningPlan
from flap.calibration import Calibration
from flap.checkpoint.convert import become_checkpointable
from flap.compression import LinearCompensation, compress, slice_layer
from flap.models import Resident, adapt
from flap.results import Report
from flap.storage import read_json
from tests.cases import tiny_model, tokens
from tests.helpers.compressed import logits

ALL = LayerPlan(tuple(range(4)), tuple(range(56)))
GONE = LayerPlan((), ())
DEPTH = ["metric=OBS", "structure=search", "compensation=linear", "structure.tokens=32"]
# Layer types, lists of rotary angles by layer, biases of projections, and none: what a config says of each layer.
ARCHITECTURES = ["llama-gqa", "llama-gqa-biases", "qwen3-gqa", "smollm3-gqa"]


def without(model: PreTrainedModel, *dropped: int) -> PreTrainedModel:
    """The model without these layers, with maps fitted on windows of tokens."""
    plan = PruningPlan(tuple(GONE if i in dropped else ALL for i in range(4)), dropped=dropped)
    placed = Resident(copy.deepcopy(model))
    calibration = Calibration(placed, [tokens()], 4, [], runs=plan.runs)
    visits = calibration.visit("compress", True, changing=True)
    compress(placed.adapter, plan, LinearCompensation(), visits, slice_layer)
    become_checkpointable(placed)
    return placed.model


@torch.no_grad()
def states(model: PreTrainedModel) -> tuple[Tensor, ...]:
    return model.model(tokens(), use_cache=False, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_stock_checkpoint_with_fewer_layers_equals_memory(architecture: str, tmp_path: Path) -> None:
    model = without(tiny_model(architecture), 1, 2)
    assert len(model.model.layers) == model.config.num_hidden_layers == 2
    prompt, options = tokens()[:2, :6], {"max_new_tokens": 8, "do_sample": False, "min_new_tokens": 8}
    written = model.generate(prompt, **options).tolist()
    assert model.generate(prompt, use_cache=False, **options).tolist() == written
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(reloaded).__module__.startswith("transformers.models")
    assert torch.allclose(logits(reloaded), logits(model), atol=1e-5)
    assert reloaded.generate(prompt, **options).tolist() == written


def test_what_the_config_says_of_each_layer_moves_up() -> None:
    qwen, smol = without(tiny_model("qwen3-gqa"), 1), without(tiny_model("smollm3-gqa"), 2)
    assert qwen.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert smol.config.no_rope_layers == [1, 1, 0]
    assert [layer.self_attn.layer_idx for layer in smol.model.layers] == [0, 1, 2]


def test_the_map_is_the_least_squares_fit_of_what_left() -> None:
    """T = E[δ mᵀ] (E[m mᵀ] + λ')⁻¹ on the hidden states before and after layers 1 and 2: the error is what is left."""
    dense = tiny_model("llama-gqa", hidden_size=8)
    model = without(dense, 1, 2)
    old, new = (one.model.layers[0].mlp.down_proj.weight.double() for one in (dense, model))
    before, entered, *_, left = (state.double().flatten(0, 1) for state in states(dense)[:4])
    with adapt(dense).mlp_outputs(0) as outputs:
        states(dense)
    mlp = outputs[0].double().flatten(0, 1)
    delta = left - entered
    found = torch.linalg.lstsq(old.T, new.T - old.T).solution.T  # T of T W
    errors = [
        (delta - mlp @ (mlp.T @ mlp + ridge * torch.eye(8)).inverse() @ mlp.T @ delta).square().sum()
        for ridge in (0.0, 1e9)
    ]
    assert before.shape == mlp.shape
    assert errors[0] <= (delta - mlp @ found.T).square().sum() < errors[1]


def test_a_layer_that_adds_a_linear_map_of_the_mlp_is_replaced_without_loss() -> None:
    """Layer 1 is made to add nothing: T is zero, and the model without it predicts the same."""
    dense = tiny_model("llama-gqa")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        torch.nn.init.zeros_(dense.model.layers[1].get_submodule(name).weight)
    assert torch.allclose(logits(without(dense, 1)), logits(dense), atol=1e-4)


def test_a_run_saves_a_stock_model_and_says_which_layers_left(tmp_path: Path, run_tiny: Callable[..., Report]) -> None:
    report = run_tiny(tmp_path, *DEPTH, "structure.layers=only", "ratio=0.25", "eval=[perplexity,divergence]")
    assert report.loads_with == "stock transformers"
    dropped, checkpoint = report.dropped_layers, tmp_path / "checkpoint"
    assert len(dropped) == 1 and report.ratio["realised_decoder"] == 0.25 and dropped[0] != 0
    assert report.layers[dropped[0]]["neurons"] == 0
    assert len(report.layer_errors) == 4
    assert f"layer {dropped[0]}" in report.repairs
    assert f"in the MLP before them: {dropped[0]}." in (tmp_path / "report.md").read_text()
    assert PruningPlan.load(tmp_path / "plan.json").dropped == tuple(dropped)
    assert AutoModelForCausalLM.from_pretrained(checkpoint).config.num_hidden_layers == 3
    assert read_json(checkpoint / "config.json")["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("target", ["ratio=0.6", "target.parameters=30000"])
def test_layers_leave_beside_units(target: str, tmp_path: Path, run_tiny: Callable[..., Report]) -> None:
    goal = [target] if target.startswith("ratio") else [target, "ratio=null"]
    report = run_tiny(tmp_path, *DEPTH, "structure.layers=true", *goal)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", trust_remote_code=True)
    assert saved.config.num_hidden_layers == 4 - len(report.dropped_layers)
    assert sum(parameter.numel() for parameter in saved.parameters()) == report.parameters["total_after"]


def test_targets_that_heads_and_neurons_alone_do_not_reach(tmp_path: Path, run_tiny: Callable[..., Report]) -> None:
    """The cache: 128 tokens, keys and values, 8 channels a head, of 4 bytes."""
    report = run_tiny(tmp_path, *DEPTH, "structure.layers=true", "ratio=null", "target.kv_cache_bytes=30000")
    heads = sum(layer["kv_heads"] for layer in report.layers)
    assert report.dropped_layers and report.target["kv_cache_bytes"]["realised"] == heads * 128 * 2 * 8 * 4 <= 30000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["structure.layers=some"], r"^structure\.layers=some: expected false, true or only$"),
        (
            ["structure.layers=true", "compensation=bias"],
            r"^structure\.layers=True: expected false, or compensation=lin",
        ),
        (["structure.layers=true", "mask_only=true"], r"^mask_only=True: expected false with structure\.layers=True"),
        (["structure.layers=true", "model.placement=stream"], r"^model\.placement=stream: expected device with struct"),
    ],
)
def test_what_cannot_be_is_refused(
    options: list[str], message: str, tmp_path: Path, run_tiny: Callable[..., Report]
) -> None:
    with pytest.raises(ValueError, match=message):
        run_tiny(tmp_path, *DEPTH, *options)
