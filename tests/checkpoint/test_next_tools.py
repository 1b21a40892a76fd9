"""What comes after pruning: LoRA by peft, saving what was fine-tuned, torch.export; widths by layer and uniform."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from flap.checkpoint.load import load
from flap.method.allocation import ALAM, ULUM
from tests.cases import tiny_model, tokens
from tests.helpers.fresh import in_a_fresh_process
from tests.helpers.pruned import logits, prune, save_pruned

CHECKPOINTS = {
    "by-layer-mha": ("llama-mha", ALAM()),
    "by-layer-gqa": ("qwen3-gqa", ALAM()),
    "stock-gqa": ("llama-gqa", ULUM()),
}
LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[str, Path]:
    """Checkpoints by name, pruned by 40 %."""
    root, made = tmp_path_factory.mktemp("checkpoints"), {}
    for name, (architecture, structure) in CHECKPOINTS.items():
        model = tiny_model(architecture)
        plan = prune(model, 0.4, structure=structure)
        assert (len({len(layer.mlp) for layer in plan.layers}) > 1) == name.startswith("by-layer")
        made[name] = save_pruned(model, tokenizer, root / name, plan).directory
    return made


def loss(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    return model(input_ids=tokens(), labels=tokens()).loss


def train(model: PreTrainedModel | PeftModel) -> tuple[float, float]:
    """One step of gradient descent on what may be trained; the loss before and after."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    before = loss(model)
    before.backward()
    optimizer.step()
    with torch.no_grad():
        return before.item(), loss(model).item()


@pytest.fixture(scope="module")
def tuned(directories: dict[str, Path]) -> dict[str, PreTrainedModel]:
    """Each of them after one step of LoRA, merged into its weights."""
    made = {}
    for name, directory in directories.items():
        torch.manual_seed(0)
        dense = load(directory)
        linears = {path for path, module in dense.named_modules() if isinstance(module, torch.nn.Linear)}
        model = get_peft_model(dense, LORA)
        adapted = {path.removeprefix("base_model.model.") for path in model.targeted_module_names}
        assert adapted == linears - {"lm_head"}
        for parameter in model.parameters():  # LoRA starts with zeros, which one step would hardly leave
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.02)
        before, after = train(model)
        assert after < before
        made[name] = model.merge_and_unload()
    return made


@pytest.mark.long
def test_lora_is_saved_and_reloads(
    directories: dict[str, Path], tuned: dict[str, PreTrainedModel], tmp_path: Path
) -> None:
    places: dict[str, list[Path]] = {"stock": [], "remote": []}
    for name, model in tuned.items():
        assert not torch.allclose(logits(model), logits(load(directories[name])), atol=1e-3)
        model.save_pretrained(tmp_path / name)
        places["stock" if name.startswith("stock") else "remote"].append(tmp_path / name)
    found = in_a_fresh_process(tmp_path, **places)
    for name, model in tuned.items():
        assert torch.equal(found[str(tmp_path / name)], logits(model))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_all_weights_train(name: str, directories: dict[str, Path]) -> None:
    model = load(directories[name]).train()
    before, after = train(model)
    assert after < before
    assert all(parameter.grad is not None for parameter in model.parameters())
