"""Families and settings that llama.cpp would compute in another way are refused, each in a line."""

import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flap.allocation import ULUM
from flap.compression import NoCompensation
from flap.export.gguf import GGUFChanges
from flap.export.gguf.families import ARCHITECTURES as ROWS
from flap.export.gguf.families import MODEL_TYPES, check_architecture
from tests.cases import random_model
from tests.export.test_gguf_refused import assert_refused
from tests.helpers.gguf_cases import LINEAR, LLAMA3, YARN, checkpoint
from tests.helpers.gguf_families import ALPHA, CASES, config_of, family_of
from tests.helpers.pruned import prune, save_pruned
from tests.helpers.tokenizers import KINDS
from tests.models.families.contract import FamilyContract
from tests.models.families.every import EVERY

ULUM_, PLAIN = {"structure": ULUM()}, {"compensation": NoCompensation()}
ARCHITECTURES = [
    ("mistral-mha-tied", {}, "sliding attention=True: .*False"),
    ("qwen2-mha", {}, "sliding attention=True"),
    ("qwen3-mha-tied", PLAIN, "qwen3 has one width for all layers; .*structure=UL-UM and compensation=none"),
    ("qwen3-mha-tied", ULUM_, r"qwen3 has no place for model\.layers\.0\.mlp\.down_proj\.bias"),
    ("granite-gqa", {}, "granite has one width for all layers; prune with structure=UL-UM$"),
    ("seed_oss-gqa", ULUM_, r"seed_oss has no place for model\.layers\.0\.mlp\.down_proj\.bias"),
    ("smollm3-gqa", ULUM_, r"smollm3 has no place for model\.layers\.0\.mlp\.down_proj\.bias"),
    ("smollm3-gqa", ULUM_ | PLAIN | {"no_rope_layers": [1, 0, 1, 0]}, r"no_rope_layers=.*with \[1, 1, 1, 0\]"),
    ("qwen3-mha-tied", ULUM_ | PLAIN | {"rope_parameters": LLAMA3}, "rope_type=llama3: .*default"),
    ("llama-gqa", {"hidden_act": "gelu"}, "hidden_act=gelu: .*silu"),
    ("llama-gqa", {"rope_parameters": LINEAR | {"rope_type": "dynamic"}}, "rope_type=dynamic: .*llama3"),
    ("llama-gqa", {"rope_parameters": YARN | {"truncate": False}}, "truncate=False: .*True"),
    ("llama-gqa", {"rope_parameters": YARN | {"beta_fast": 16}}, "beta_fast=16: .*32"),
    ("llama-gqa", {"rope_parameters": YARN | {"attention_factor": 1.0}}, r"attention_factor=1\.0: .*1\.138"),
    ("mixtral", PLAIN, "llama has one width for all layers; .*structure=UL-UM and compensation=none"),
    ("mixtral", ULUM_, r"llama has no place for model\.layers\.0\.mlp\.experts\.down_proj_bias"),
]  # fmt: skip
# What llama.cpp would compute in another way, by case of the families' test.
COMPUTED_OTHERWISE = [
    ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar=16: .*8"),
    ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping=None: .* a number"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True: .*False"),
    ("cohere2", {"tie_word_embeddings": False}, "tie_word_embeddings=False: .*True"),
    ("exaone4", {"sliding_window": 8}, "sliding_window=8: .*None"),
    ("hunyuan_v1_dense", {"rope_parameters": ALPHA | {"alpha": None}}, "alpha of rope_type=dynamic is given=False"),
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm=True: .*False"),
    ("starcoder2", {"use_bias": False}, "use_bias=False: .*True"),
    ("starcoder2", {"sliding_window": 8}, "sliding attention=True: .*False"),
    ("falcon", {"parallel_attn": False}, "parallel_attn=False: .*True"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True: .*False"),
    ("olmoe", {"clip_qkv": 5.0}, r"clip_qkv=5\.0: .*None"),
    ("olmoe", {"num_key_value_heads": 4}, "num_key_value_heads=4: .*8"),
    ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob=True: .*False"),
    ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers=\[1\]: .*None"),
]  # fmt: skip


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    return KINDS["smollm"]()


@pytest.mark.parametrize(("name", "options", "line"), ARCHITECTURES, ids=[line for *_, line in ARCHITECTURES])
def test_what_llama_cpp_cannot_compute(
    name: str, options: dict, line: str, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    assert_refused(checkpoint(tmp_path / "pruned", name, words, **options).directory, f"^gguf: .*{line}")


@pytest.mark.parametrize(("case", "changes", "line"), COMPUTED_OTHERWISE, ids=[line for *_, line in COMPUTED_OTHERWISE])
def test_what_llama_cpp_computes_otherwise(case: str, changes: dict, line: str) -> None:
    config = config_of(case)
    check_architecture(config)
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=f"^gguf: {line}"):
        check_architecture(config)


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.__name__)
def test_every_family_is_taken_or_refused_in_a_line(family: type[FamilyContract]) -> None:
    refused = []
    for config in family.configs.values():
        try:
            check_architecture(config)
        except ValueError as error:
            assert re.fullmatch(r"gguf: [\w ]+=.+: llama\.cpp runs this export with .+", str(error))
            refused.append(f"{error}".startswith("gguf: model_type="))
    unknown = config.model_type not in MODEL_TYPES
    assert refused == [True] * len(family.configs) if unknown else not any(refused)


HEADS = GGUFChanges(heads=True)


@pytest.mark.parametrize("case", [one for one in CASES if ROWS[family_of(one)].square])
def test_heads_that_llama_cpp_cannot_leave_out(case: str) -> None:
    check_architecture(config_of(case))
    line = r"^gguf: llama\.cpp's .* structure=UL-MM structure\.remove_heads=0$"
    with pytest.raises(ValueError, match=line):
        check_architecture(config_of(case), HEADS)


GEMMA_27B = {"num_hidden_layers": 46, "layer_types": ["full_attention"] * 46}  # llama.cpp knows it by that number


def test_the_scale_of_the_largest_gemma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "gemma2", ("mha", GEMMA_27B | {"query_pre_attn_scalar": 4}))
    check_architecture(config_of("gemma2"))
    line = r"^gguf: num_hidden_layers=46: .* number of heads; prune with structure=UL-MM structure\.remove_heads=0$"
    with pytest.raises(ValueError, match=line):
        check_architecture(config_of("gemma2"), HEADS)
    monkeypatch.setitem(CASES, "gemma2", ("mha", GEMMA_27B | {"num_attention_heads": 4, "query_pre_attn_scalar": 4}))
    with pytest.raises(ValueError, match=line):
        check_architecture(config_of("gemma2"))


def test_heads_that_have_left(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = random_model(config_of("olmo2"))
    plan = prune(model, 0.5, structure=ULUM(), compensation=NoCompensation())
    save_pruned(model, words, tmp_path / "pruned", plan)
    assert_refused(tmp_path / "pruned", r"^gguf: llama\.cpp's olmo2 has as many heads as .*remove_heads=0$")
