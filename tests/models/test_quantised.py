"""Quantised checkpoints are dequantised while they are read, all at once or layer by layer."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from flap.config import ModelConfig
from flap.models import find_model
from flap.pipeline import run
from tests.cases import random_model, tiny_model
from tests.helpers.runs import composed, tensors_of, tiny
from tests.models.families.test_mixtures import TestDeepseekV3 as DeepseekV3
from tests.models.families.test_mixtures import TestGptOss as GptOss

# The dtypes of dequantised weights: float32 for the biases of routers, and bfloat16 for the rest.
PLAIN = {torch.bfloat16, torch.float32}


def in_mxfp4(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a tiny gpt-oss in MXFP4, the format in which gpt-oss is published.

    Each byte of the experts' weights holds two values of four bits, and every 32 values have a
    scale. This function also saves the config to the folder.
    """
    wide = deepcopy(GptOss.configs["gqa"])
    tensors = {}
    wide.hidden_size = wide.intermediate_size = 64
    random_model(wide).bfloat16().save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        shape = experts, outputs, inputs // 32
        tensors[f"{name}_blocks"] = torch.randint(
            256, (*shape, 16), generator=generator, dtype=torch.uint8
        )
        tensors[f"{name}_scales"] = torch.randint(
            118, 124, shape, generator=generator, dtype=torch.uint8
        )
    return tensors


def in_fp8(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a model in FP8, and save its config to a folder.

    The projections have eight bits per weight, and one scale for each block of 32 by 32 weights.
    """
    model.bfloat16().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors[name].shape
        if rows % 32 == columns % 32 == 0:
            tensors[name] = (4 * tensors[name].float()).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = torch.full((rows // 32, columns // 32), 0.25)
    assert sum("scale_inv" in name for name in tensors) >= 4 * 3
    return tensors


def deepseek() -> PreTrainedModel:
    """Return a DeepSeek model, whose experts are separate in the files and stacked in memory."""
    config = deepcopy(DeepseekV3.configs["queries"])
    config.moe_intermediate_size = 32
    return random_model(config)


PACKED: dict[str, tuple[Callable[[Path], dict[str, Tensor]], dict[str, Any]]] = {
    "mxfp4": (in_mxfp4, {}),
    "fp8": (
        lambda folder: in_fp8(tiny_model("llama-gqa", intermediate_size=64), folder),
        {"weight_block_size": [32, 32]},
    ),
    "fp8 experts": (lambda folder: in_fp8(deepseek(), folder), {"weight_block_size": [32, 32]}),
}


@pytest.fixture(params=PACKED)
def packed(
    request: pytest.FixtureRequest, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """For each format that flap dequantises, save a model and return its directory."""
    folder, (pack, options) = tmp_path / "packed", PACKED[request.param]
    save_file(pack(folder), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    plain = json.loads((folder / "config.json").read_text())
    own = {
        "quant_method": request.param.split()[0],
        "modules_to_not_convert": ["lm_head"],
        **options,
    }
    (folder / "config.json").write_text(json.dumps(plain | {"quantization_config": own}))
    return folder


def test_weights_that_are_published_quantised_are_plain_once_loaded(
    packed: Path, tmp_path: Path
) -> None:
    config = ModelConfig("packed", str(packed), device="cpu")
    model = find_model(config, tmp_path, trust_remote_code=False).open().model
    assert {parameter.dtype for parameter in model.parameters()} <= PLAIN
    files = load_file(packed / "model.safetensors")
    layer = "model.layers.0."
    if "scale_inv" in "".join(files):
        name = next(
            name
            for name in files
            if name.endswith("down_proj.weight") and f"{name}_scale_inv" in files
        )
        found = model.get_parameter(f"{layer}mlp.experts.down_proj" if "experts" in name else name)
        assert torch.equal(found.view(-1, *files[name].shape)[0].float(), files[name].float() / 4)
    else:
        blocks, scales = (
            files[f"{layer}mlp.experts.down_proj_{part}"] for part in ("blocks", "scales")
        )
        values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
        low_half = values[(blocks & 15).int()]
        high_half = values[(blocks >> 4).int()]
        pairs = torch.stack([low_half, high_half], -1)
        scaled = pairs.flatten(-2) * 2.0 ** (scales.float() - 127)[..., None]
        assert torch.equal(
            model.get_parameter(f"{layer}mlp.experts.down_proj").float(), scaled.flatten(-2).mT
        )
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_quantised_weights_are_pruned_from_disk(
    packed: Path, text_file: Path, tmp_path: Path
) -> None:
    """With `stream`, layers are dequantised one by one, so the weights are never all in memory.

    The pruned checkpoint is the same as at the placement `device`.
    """
    sizes = ["calibration.num_samples=20", "eval.perplexity.max_tokens=64"]
    checkpoints = []
    for placement in ("device", "stream"):
        folder = tmp_path / placement
        options = [
            "method=flap_plus",
            f"model.placement={placement}",
            f"cache_dir={folder}",
            *sizes,
        ]
        run(composed(*tiny(packed, text_file), *options), folder)
        checkpoints.append(tensors_of(folder))
    resident, streamed = checkpoints
    assert resident.keys() == streamed.keys()
    assert all(
        torch.equal(streamed[name].float(), tensor.float()) for name, tensor in resident.items()
    )
    assert {tensor.dtype for tensor in streamed.values()} <= PLAIN
    config = json.loads((tmp_path / "stream" / "checkpoint" / "config.json").read_text())
    assert "quantization_config" not in config


@pytest.mark.parametrize("packed", ["mxfp4"], indirect=True)
def test_quantised_weights_that_stay_so_are_refused(packed: Path, tmp_path: Path) -> None:
    text = (packed / "config.json").read_text()
    (packed / "config.json").write_text(text.replace("mxfp4", "gptq"))
    config = ModelConfig("packed", str(packed), device="cpu")
    line = (
        r"model\.path: the weights are quantised \(gptq\); expected a checkpoint in bfloat16, "
        r"float16 or"
    )
    with pytest.raises(ValueError, match=line):
        find_model(config, tmp_path, trust_remote_code=False)
    with pytest.raises(ValueError, match=line):  # dry_run=true raises the same error
        find_model(config, tmp_path, trust_remote_code=False, weights=False)
