"""An exported Gemma 3 model gives the same results in llama.cpp as in transformers.

The export to GGUF refuses models with settings for which llama.cpp would give other results.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from transformers import Gemma3TextConfig, PreTrainedModel

from flap.checkpoint.export.gguf import export
from flap.checkpoint.export.gguf.export import export_gguf
from flap.method.allocation import ULUM
from flap.method.compression import NoCompensation
from tests.cases import random_model
from tests.helpers.engine_cases import assert_refused
from tests.helpers.gguf_cases import TOKENS, Exported
from tests.helpers.llama_cpp import llama_cpp
from tests.helpers.pruned import AL_AM, BIAS, prune, save_pruned
from tests.helpers.tokenizers import KINDS, VOCAB

FULL = "full_attention"
SLIDING = "sliding_attention"
LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}


def gemma3(**changes: Any) -> PreTrainedModel:
    """Return a tiny Gemma 3 with seven layers. Only the sixth layer has full attention."""
    config = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 8,
        "final_logit_softcapping": None,
        "eos_token_id": 1,
    }
    model = random_model(Gemma3TextConfig(**config | changes))
    for name, parameter in model.named_parameters():
        if "layers" in name and ".post_" in name:
            # Make the output of each layer small, so that rounding errors do not grow from layer to
            # layer.
            parameter.data.fill_(-0.9)
    return model


def saved(directory: Path, model: PreTrainedModel, ratio: float = 0, **options: Any) -> Exported:
    plan = prune(model, ratio, **{"compensation": NoCompensation(), **options})
    return Exported(save_pruned(model, KINDS["gemma"](), directory, plan).directory, model)


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [
        ({}, 0),
        ({"tie_word_embeddings": False}, 0.4),
        ({"rope_parameters": {FULL: LINEAR, SLIDING: LOCAL}}, 0),
    ],
    ids=["unpruned", "pruned", "scaled RoPE"],
)
def test_same_logits(changes: dict[str, Any], ratio: float, tmp_path: Path) -> None:
    exported = saved(tmp_path, gemma3(**changes), ratio, structure=ULUM())
    gguf = export_gguf(exported.directory, "f32")
    assert GGUFReader(gguf).fields["general.architecture"].contents() == "gemma3"
    tokens = TOKENS[0].tolist()
    answer = llama_cpp(gguf, tokens=tokens, plain=300, prompt=tokens, new_tokens=12)
    assert (torch.tensor(answer["logprobs"]) - exported.logprobs()).abs().max() <= 5e-3
    assert answer["greedy"] == exported.greedy()


def test_a_source_whose_tokens_have_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export accepts a source GGUF file that has spaces where the tokenizer has "▁".

    llama.cpp's converter writes such files for Gemma. The source is the GGUF file from which the
    dense model was loaded. The export copies the tokens of this file.
    """
    exported = saved(tmp_path / "pruned", gemma3(vocab_size=len(KINDS["gemma"]())))
    tokens = GGUFReader(export_gguf(exported.directory)).fields["tokenizer.ggml.tokens"].contents()
    writer = GGUFWriter(tmp_path / "source.gguf", "gemma3")
    writer.add_token_list([token.replace("▁", " ") for token in tokens])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    monkeypatch.setattr(export, "source_gguf", lambda model: tmp_path / "source.gguf")
    fields = GGUFReader(export_gguf(exported.directory)).fields
    assert " t" in fields["tokenizer.ggml.tokens"].contents()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"structure": AL_AM}, "layers of different widths, .* gemma3 needs one width"),
        ({"structure": ULUM(), "compensation": BIAS}, "biases, .*compensation=none"),
    ],
)
def test_widths_and_biases_that_llama_cpp_lacks(
    options: dict[str, Any], line: str, tmp_path: Path
) -> None:
    exported = saved(tmp_path, gemma3(), 0.4, **options)
    assert_refused(export_gguf, exported.directory, line)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"final_logit_softcapping": 30.0}, r"final_logit_softcapping=30\.0: .*None"),
        ({"query_pre_attn_scalar": 16}, "query_pre_attn_scalar=16: .*8"),
        ({"layer_types": [SLIDING, FULL] * 3 + [SLIDING]}, "layers with full attention=.*5"),
        (
            {"rope_parameters": {FULL: LINEAR, SLIDING: LOCAL | {"rope_theta": 1e6}}},
            "RoPE of sliding windows=.*10000",
        ),
    ],
)
def test_settings_that_llama_cpp_lacks(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    exported = saved(tmp_path, gemma3(**changes))
    assert_refused(export_gguf, exported.directory, line)
