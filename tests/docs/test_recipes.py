"""docs/recipes.md shows, for each model, the memory that a run with dry_run=true estimates."""

import re
from pathlib import Path

import pytest
from transformers import (
    Gemma3Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from flap.runs.dry_run import dry_run
from tests.helpers.runs import composed

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
QWEN = {"num_attention_heads": 32, "head_dim": 128, "vocab_size": 151936}
VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
}
GEMMA = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
}
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "Llama 3.1 8B": LlamaConfig(**LLAMA, num_hidden_layers=32, vocab_size=128256),
    "Qwen3 8B": Qwen3Config(
        **QWEN,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_key_value_heads=8,
    ),
    "Qwen3 30B-A3B": Qwen3MoeConfig(
        **QWEN,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_key_value_heads=4,
        num_experts=128,
        num_experts_per_tok=8,
    ),
    "Gemma 3 4B": Gemma3Config(text_config=GEMMA, vision_config=VISION),
    "Mistral 7B": MistralConfig(
        **LLAMA, num_hidden_layers=32, vocab_size=32768, sliding_window=None
    ),
    "SmolLM2 135M": LlamaConfig(**SMOLLM2),
}
ROWS = {
    row.group(1): row.groups()[1:]
    for row in re.finditer(
        r"^\| (.+?\d\S*B?) \| `.+` \| (\S+) \| (\S+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE
    )
}


def test_there_is_a_row_for_each() -> None:
    assert ROWS.keys() == CONFIGS.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_memory_is_that_of_a_dry_run(name: str, tmp_path: Path) -> None:
    CONFIGS[name].dtype = "bfloat16"
    CONFIGS[name].save_pretrained(tmp_path)
    options = (
        "model.device=cuda",
        "calibration.num_samples=64",
        "calibration.seq_len=512",
        "ratio=0.1",
    )
    known = dry_run(composed(f"model.path={tmp_path}", *options))
    needs = {
        place: f"{known.needs(place).device / 1e9:.1f}" for place in ("device", "auto", "stream")
    }
    assert (needs["device"], needs["auto"], needs["stream"]) == (ROWS[name][0], *ROWS[name][:2])
