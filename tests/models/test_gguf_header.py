"""flap reads the header of a GGUF file, so that Gemma gives the same results as in llama.cpp.

flap refuses a file whose header and tensors describe different models.
"""

import functools
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import Gemma2Config, Gemma3TextConfig, PreTrainedConfig

from flap.checkpoint.export.gguf.export import export_gguf
from flap.config import ModelConfig
from flap.models import CheckpointSource, find_model
from tests.cases import random_model, tiny_model
from tests.helpers.gguf_files import set_number, words, write_gguf
from tests.helpers.llama_cpp import llama_cpp
from tests.helpers.tokenizers import VOCAB

NARROW = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "sliding_window": 8,
}
TOKENS = list(range(5, 29))


def found(path: Path, cache: Path) -> CheckpointSource:
    return find_model(ModelConfig("tiny", str(path), device="cpu"), cache, trust_remote_code=False)


def gemma(config: PreTrainedConfig, architecture: str, path: Path, **keys: float) -> Path:
    model = random_model(config)
    for name, parameter in model.named_parameters():
        if "layers" in name and ".post_" in name:
            # Make the output of each layer small, so that rounding errors do not grow from layer to
            # layer.
            parameter.data.fill_(-0.9)
    base = 1e6 if architecture == "gemma3" else 1e4
    window = {"attention.sliding_window": 8}
    return write_gguf(path, architecture, model, {"rope.freq_base": base, **window, **keys})


@pytest.mark.parametrize(
    ("config", "architecture", "keys"),
    [
        (Gemma2Config(**NARROW, num_hidden_layers=46), "gemma2", {}),
        (Gemma3TextConfig(**NARROW, num_hidden_layers=62), "gemma3", {}),
        (Gemma2Config(**NARROW, num_hidden_layers=3), "gemma2", {}),
        (Gemma3TextConfig(**NARROW, num_hidden_layers=3), "gemma3", {}),
        (
            Gemma2Config(**NARROW, num_hidden_layers=3),
            "gemma2",
            {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        ),
        (
            Gemma3TextConfig(**NARROW, num_hidden_layers=3),
            "gemma3",
            {"final_logit_softcapping": 3.0},
        ),
    ],
    ids=["Gemma 2 27B", "Gemma 3 27B", "Gemma 2", "Gemma 3", "Gemma 2 capped", "Gemma 3 capped"],
)
@torch.no_grad()
def test_gemma_computes_what_llama_cpp_computes(
    config: PreTrainedConfig,
    architecture: str,
    keys: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # transformers builds the table of tensor names again for each module, which takes a minute for
    # 62 layers. The patch caches this table.
    monkeypatch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
    path = gemma(config, architecture, tmp_path / "gemma.gguf", **keys)
    expected = torch.tensor(llama_cpp(path, tokens=TOKENS, first=16)["logprobs"])
    model = found(path, tmp_path / "cache").open().model
    logprobs = model(torch.tensor([TOKENS])).logits[0, 16:].log_softmax(-1)
    assert (logprobs - expected).abs().max() <= 0.02


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """Return a GGUF file of a model with four layers, eight query heads and four KV heads."""
    tiny_model("llama-gqa", vocab_size=VOCAB).save_pretrained(tmp_path / "tiny")
    words().save_pretrained(tmp_path / "tiny")
    return export_gguf(tmp_path / "tiny", "f32")


HEADS = "llama.attention.head_count"
LAYERS = "must be the number of layers that have tensors in the file, which is 4"


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("llama.block_count", 1, LAYERS),
        ("llama.block_count", 0, LAYERS),
        ("llama.block_count", 100_000, LAYERS),
        ("llama.block_count", 2**32 - 1, LAYERS),
        (HEADS, 3, "must divide "),
        (HEADS, 0, "must divide "),
        (f"{HEADS}_kv", 3, f"must divide {HEADS}=8"),
        (f"{HEADS}_kv", 0, f"must divide {HEADS}=8"),
    ],
)
def test_sizes_that_the_tensors_do_not_have_are_refused(
    key: str, value: int, line: str, llama: Path, tmp_path: Path
) -> None:
    set_number(llama, key, value)
    with pytest.raises(ValueError, match=f"^model.path={llama}: {key}={value}: {line}") as caught:
        found(llama, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").rglob("*.json"))


def test_a_tensor_that_no_layer_uses_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa", vocab_size=VOCAB)
    # Add a router, which only mixtures of experts have.
    model.model.layers[1].mlp.gate = torch.nn.Linear(32, 4, bias=False)
    keys = {"rope.dimension_count": 8, "rope.freq_base": 10000.0}
    path = write_gguf(tmp_path / "extra.gguf", "llama", model, keys)
    line = r"1 tensors are not used in a llama with 4 layers, as blk\.1\.ffn_gate_inp\.weight"
    with pytest.raises(ValueError, match=f"^model.path={path}: .*{line}"):
        found(path, tmp_path / "cache")
