"""A GGUF file as `model.path` is loaded as a transformers model with dequantised tensors."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import (
    AutoTokenizer,
    Gemma3TextConfig,
    PreTrainedModel,
    Qwen2Config,
)

from flap.checkpoint.export.gguf.export import export_gguf
from flap.config import ModelConfig
from flap.models import CheckpointSource, base_facts, find_model
from flap.pipeline import run
from tests.cases import random_model, tiny_model
from tests.helpers.gguf_cases import LINEAR, LLAMA3, YARN
from tests.helpers.gguf_files import TEMPLATE, words, write_gguf
from tests.helpers.runs import composed
from tests.helpers.tokenizers import TEXT, VOCAB

WIDE = {
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def found(path: Path, cache: Path) -> CheckpointSource:
    return find_model(ModelConfig("tiny", str(path), device="cpu"), cache, trust_remote_code=False)


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(torch.arange(24)[None] * 7 % VOCAB).logits


@pytest.mark.parametrize(
    ("architecture", "rope"),
    [
        ("llama-gqa", None),
        ("llama-gqa-biases", None),
        ("qwen2-gqa-tied", None),
        ("llama-gqa", LLAMA3 | {"original_max_position_embeddings": 8192, "rope_theta": 5e5}),
    ],
)
def test_what_this_project_wrote_comes_back_with_equal_logits(
    architecture: str, rope: Any, tmp_path: Path
) -> None:
    model = tiny_model(
        architecture, vocab_size=VOCAB, **({"rope_parameters": rope} if rope else {})
    )
    model.save_pretrained(tmp_path / "tiny")
    words().save_pretrained(tmp_path / "tiny")
    source = found(export_gguf(tmp_path / "tiny", "f32"), tmp_path / "cache")
    assert source.origin == "model-f32.gguf"
    assert torch.allclose(
        logits(source.open().model), logits(model), atol=1e-5 if rope else 0, rtol=0
    )
    assert source.tokenizer.chat_template == TEMPLATE
    read = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    assert [source.tokenizer(text).input_ids for text in TEXT] == [
        read(text).input_ids for text in TEXT
    ]


def test_a_pruned_model_of_one_width_is_pruned_again(base: list[str], tmp_path: Path) -> None:
    tiny_model("llama-gqa", vocab_size=VOCAB).save_pretrained(tmp_path / "tiny")
    words().save_pretrained(tmp_path / "tiny")
    (tmp_path / "fox.txt").write_text((TEXT[0] + " ") * 160)
    own = [
        *base,
        f"calibration.dataset={tmp_path / 'fox.txt'}",
        f"eval.perplexity.datasets=[{tmp_path / 'fox.txt'}]",
    ]
    options = "structure=UL-UM", f"model.path={tmp_path / 'tiny'}", "round_to=32"
    report = run(composed(*own, "ratio=0.2", *options), tmp_path / "run")
    file = export_gguf(tmp_path / "run" / "checkpoint", "q8_0")
    again = run(composed(*own, "ratio=0.2", f"model.path={file}"), tmp_path / "again")
    assert again.layers_before == report.layers
    told = "model-q8_0.gguf, quantised before as Q8_0"
    assert again.sources["model"] == told and f"the model is {told}" in again.warnings
    assert f"Warning: the model is {told}" in (tmp_path / "again" / "report.md").read_text()


def blocks(type_: GGMLQuantizationType, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Return random blocks of a quantised type, as bytes that dequantise to values near 0."""
    size, num_bytes = gguf.GGML_QUANT_SIZES[type_]
    number = shape[0] * shape[1] // size
    raw = np.random.default_rng(seed).integers(0, 256, (number, num_bytes), dtype=np.uint8)
    # Set the float16 scales at the start of each block to a small value. Q4_K has two scales per
    # block, and the other types have one.
    scales = 2 if type_ == GGMLQuantizationType.Q4_K else 1
    raw[:, : 2 * scales] = np.full((number, scales), 5e-4, np.float16).view(np.uint8)
    return raw.reshape(shape[0], -1)


QWEN2 = Qwen2Config(**WIDE)
GEMMA3 = Gemma3TextConfig(**WIDE, head_dim=64, sliding_window=8, query_pre_attn_scalar=64)
CASES = {
    "Q4_K": ("qwen2", QWEN2, {"rope.freq_base": 10000.0}),
    "Q5_0": ("qwen2", QWEN2, {"rope.freq_base": 10000.0}),
    "Q4_K of Gemma": (
        "gemma3",
        GEMMA3,
        {"rope.freq_base": 1e6, "attention.sliding_window": 8},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_files_of_others_are_dequantised_once_with_all_that_belongs_to_them(
    case: str, tmp_path: Path
) -> None:
    architecture, config, keys = CASES[case]
    model = random_model(config)
    type_ = case.split()[0]
    path = tmp_path / "mine.gguf"

    def encode(seed: int, matrix: np.ndarray) -> dict[str, Any]:
        """Replace a matrix by random blocks, both in the file and in the model."""
        raw = blocks(GGMLQuantizationType[type_], matrix.shape, seed)
        matrix[:] = gguf.dequantize(raw, GGMLQuantizationType[type_])
        return {"tensor": raw, "raw_dtype": GGMLQuantizationType[type_]}

    write_gguf(path, architecture, model, keys, encode)
    source = found(path, tmp_path / "cache")
    assert (
        source.origin == f"mine.gguf, quantised before as {type_}" and source.dtype == torch.float32
    )
    assert torch.allclose(
        logits(source.open().model), logits(model.tie_weights() or model), atol=1e-5
    )
    assert base_facts(source.path) == {
        "license": "apache-2.0",
        "language": ["en"],
        "base_model": "org/base",
    }
    ours = source.tokenizer
    theirs = words("qwen2")
    if architecture == "qwen2":
        assert [ours(text).input_ids for text in TEXT] == [theirs(text).input_ids for text in TEXT]
    assert (ours.chat_template, ours.eos_token) == (TEMPLATE, theirs.eos_token)
    folder = Path(source.path)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert found(path, tmp_path / "cache").fingerprint == source.fingerprint
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    # Write a file with the same name and size, but different content.
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    assert found(path, tmp_path / "cache").path != source.path


@pytest.mark.parametrize(
    "rope", [LINEAR, YARN, LLAMA3 | {"low_freq_factor": 2.0}], ids=lambda rope: rope["rope_type"]
)
def test_a_rope_that_transformers_would_compute_otherwise_is_refused(
    rope: dict[str, Any], tmp_path: Path
) -> None:
    tiny_model("llama-gqa", vocab_size=VOCAB, rope_parameters=rope).save_pretrained(
        tmp_path / "tiny"
    )
    words().save_pretrained(tmp_path / "tiny")
    file = export_gguf(tmp_path / "tiny", "f32")
    with pytest.raises(
        ValueError, match=rf"^model.path={file}: a GGUF of architecture llama, .*rope[_.]"
    ):
        found(file, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.json"))
