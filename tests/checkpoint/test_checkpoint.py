"""A reloaded checkpoint has the same weights and logits as the model in memory."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from flap.checkpoint.load import load
from flap.method.compression import mask_layer
from tests.cases import tiny_model
from tests.helpers.pruned import Saved, logits, prune, save_pruned

FILES = {
    "config.json",
    "flap.json",
    "generation_config.json",
    "model.safetensors",
    "modeling_flap.py",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_the_directory_is_canonical(saved: Saved, tokenizer: PreTrainedTokenizerFast) -> None:
    assert {path.name for path in saved.directory.iterdir()} == FILES
    widths = {(len(layer.attention), len(layer.mlp)) for layer in saved.plan.layers}
    assert len(widths) > 1, "all layers have one width: this would test little"
    flap = json.loads((saved.directory / "flap.json").read_text())
    assert flap == {"provenance": {"why": "a test"}, "plan": saved.plan.to_dict()}
    for name, tensor in load_file(saved.directory / "model.safetensors").items():
        assert torch.equal(tensor, saved.model.state_dict()[name])
    reloaded = AutoTokenizer.from_pretrained(saved.directory)
    text = "the cat sat on"
    assert reloaded(text).input_ids == tokenizer(text).input_ids


def test_a_reloaded_model_is_saved_by_transformers_own_means(saved: Saved, tmp_path: Path) -> None:
    reloaded = load(saved.directory)
    assert type(reloaded) is type(saved.model) and not reloaded.training
    reloaded.save_pretrained(tmp_path)
    code = (tmp_path / "modeling_flap.py").read_bytes()
    config = json.loads((tmp_path / "config.json").read_text())
    assert code == (saved.directory / "modeling_flap.py").read_bytes()
    assert config == json.loads((saved.directory / "config.json").read_text())
    assert torch.equal(logits(load(tmp_path)), logits(saved.model))


def test_a_checkpoint_of_an_earlier_version_loads(saved: Saved, tmp_path: Path) -> None:
    """A checkpoint loads even if its config.json lacks the names of the pruned modules.

    Earlier versions of flap did not write these names (`flap_modules`). If such a checkpoint is
    loaded and saved again, its new config.json has the names.
    """
    old = shutil.copytree(saved.directory, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    modules = config.pop("flap_modules")
    (old / "config.json").write_text(json.dumps(config))

    reloaded = load(old)
    assert torch.equal(logits(reloaded), logits(saved.model))
    reloaded.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["flap_modules"] == modules


def test_the_saved_code_reads_where_modules_are_from_the_config(saved: Saved) -> None:
    """modeling_flap.py contains no names of pruned modules, and reads them from config.json.

    modeling_flap.py runs without flap, so it cannot read these names from flap's table of families.
    """
    code = (saved.directory / "modeling_flap.py").read_text()
    config = json.loads((saved.directory / "config.json").read_text())
    assert config["flap_modules"]["mlp"] == "mlp.down_proj"
    assert "down_proj" not in re.sub(r"down_proj_bias", "", code)


@pytest.mark.parametrize("architecture", ["llama-gqa", "qwen2-mha"])
def test_a_masked_model_reloads(
    architecture: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    dense = logits(model)
    plan = prune(model, 0.4, mask_layer)
    for name, parameter in tiny_model(architecture).named_parameters():
        assert model.get_parameter(name).shape == parameter.shape
    reloaded = load(save_pruned(model, tokenizer, tmp_path / "masked", plan).directory)
    assert torch.equal(logits(reloaded), logits(model)) and not torch.equal(logits(model), dense)


@pytest.mark.parametrize("architecture", ["llama-gqa-biases", "qwen3-mha-tied"])
def test_half_precision_reloads_as_it_is(
    architecture: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny_model(architecture).save_pretrained(tmp_path / "dense")
    model = load(tmp_path / "dense", dtype=torch.bfloat16)
    plan = prune(model, 0.4)
    reloaded = load(save_pruned(model, tokenizer, tmp_path / "half", plan).directory)
    assert {p.dtype for p in reloaded.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(reloaded), logits(model))
