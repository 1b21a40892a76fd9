"""Tiny models of the families that llama.cpp has one width for, with what real models of them have."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from tests.helpers.engine_cases import EVERY_FAMILY
from tests.helpers.gguf_cases import LINEAR, LLAMA3, VOCAB, YARN

FULL = {"sliding_window": None}
NO_BIASES, TIED = {"attention_bias": False}, {"tie_word_embeddings": True}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
HALF = {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}
ALPHA = ROPE | {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0}
LOCAL = ROPE | {"rope_theta": 500.0}
SLIDES_64 = {"num_hidden_layers": 64, "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16}

# The variant of the family's contract, and other values of its config.
CASES = {
    "gemma": ("gqa", NO_BIASES | TIED),
    "gemma2": ("gqa", NO_BIASES | TIED),
    "gemma3_text": ("gqa", NO_BIASES),
    "gemma3_text, linear": ("mha", {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": LOCAL}}),
    "gemma3_text, no softcap": ("mha", {"final_logit_softcapping": None}),
    "cohere2": ("gqa", NO_BIASES | TIED),
    "exaone4": ("mha", {"rope_parameters": LLAMA3}),
    "exaone4, slides": ("gqa", SLIDES_64),
    "hunyuan_v1_dense": ("gqa", NO_BIASES | {"rope_parameters": ALPHA}),
    "stablelm": ("gqa", HALF),
    "stablelm, parallel": ("mha", HALF),
    "olmo2": ("gqa", NO_BIASES),
    "olmo3": ("mha", {}),
    "olmo3, yarn": ("mha", {"rope_parameters": {"full_attention": YARN, "sliding_attention": ROPE}}),
    "qwen3": ("mha", {"rope_parameters": LINEAR}),
    "glm4": ("gqa", {}),
    "apertus": ("gqa", {}),
    "arcee": ("mha", {"rope_parameters": YARN}),
    "nemotron": ("mha", {}),
    "phi": ("gqa", {}),
    "phi3": ("gqa", FULL),
    "starcoder2": ("gqa", FULL),
    "gpt_neox": ("parallel", HALF),
    "gpt_neox, serial": ("serial", HALF),
    "falcon": ("one-kv-head", {"bias": False}),
    "falcon, groups": ("gqa", {}),
    "gpt2": ("tied", {"scale_attn_by_inverse_layer_idx": False}),
    "granite": ("gqa", {"rope_parameters": LLAMA3}),
    "mixtral": ("gqa", FULL),
    "granitemoe": ("gqa", {}),
    "olmoe": ("mha", {}),
    "qwen2_moe": ("gqa", {"layer_types": ["full_attention"] * 3, "mlp_only_layers": []}),
    "qwen3_moe": ("mha", {}),
}  # fmt: skip
MIXTURES = [name for name in CASES if name.endswith("moe") or name == "mixtral"]


def family_of(case: str) -> str:
    return case.split(",")[0]


def config_of(case: str) -> PreTrainedConfig:
    variant, changes = CASES[case]
    config = deepcopy(EVERY_FAMILY[family_of(case)].configs[variant])
    for name, value in ({"vocab_size": VOCAB} | changes).items():
        setattr(config, name, value)
    return config


class TableGELU(nn.Module):
    """GELU as llama.cpp has it on a CPU: between -10 and 10, float16 of what is computed of float16."""

    def forward(self, x: Tensor) -> Tensor:
        table = nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x.abs() < 10, table, x.clamp(min=0))


def use_table(model: PreTrainedModel) -> None:
    """Replace each GELU by llama.cpp's."""
    for name, module in list(model.named_modules()):
        if "GELU" in type(module).__name__:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, TableGELU())
