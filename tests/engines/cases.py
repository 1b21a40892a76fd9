"""The checkpoints of `make.py` that an engine refuses, and the engine's error message.

vLLM must compute everything else.
"""

BY_LAYER = (  # families that are tested with widths by layer alone
    "apertus",
    "arcee",
    "cohere2",
    "deepseek_v3",
    "ernie4_5",
    "exaone4",
    "gemma",
    "gemma4_text",
    "glm4",
    "glm4_moe",
    "gpt_oss",
    "granitemoe",
    "hunyuan_v1_dense",
    "minimax_m2",
    "ministral3",
    "nemotron",
    "olmo3",
    "olmoe",
    "phi",
    "qwen2_moe",
    "seed_oss",
    "stablelm",
)
# Mixtures that are also tested with widths by layer but without biases. vLLM's own kernels run
# experts only if these have no biases.
NO_BIASES = ("glm4_moe", "granitemoe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
MIXTURES = (  # compared with the scores of llm-compressor's REAP
    "deepseek_v3",
    "glm4_moe",
    "gpt_oss",
    "granitemoe",
    "mixtral",
    "olmoe",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
)
REFUSED_FAMILIES = {
    "llama4_text": r"too many values to unpack \(expected 2\)",
    "falcon": r"exceeds dimension size \(1\)",
    "gpt2": "Following weights were not initialized from checkpoint",
    "qwen3_5_text": (
        "does not dispatch through the Transformers attention interface and vLLM has no other way"
    ),
    "qwen3_next": (
        "does not dispatch through the Transformers attention interface and vLLM has no other way"
    ),
    "nemotron_h": (
        "does not dispatch through the Transformers attention interface and vLLM has no other way"
    ),
    "falcon_h1": "FlapFalconH1ForCausalLM",  # refused by this package's plugin
}
REFUSED = {f"{model_type}-layers": words for model_type, words in REFUSED_FAMILIES.items()}
# The schemes of examples/quantise.py, each with its checkpoint. On CPUs with AMX, vLLM's
# Transformers backend does not work with its kernel of W8A8, so that scheme is tested with a stock
# checkpoint.
QUANTISED = (("smollm2-flap", "FP8_DYNAMIC"), ("round-layers", "W4A16"), ("round-stock", "W8A8"))
# Families that llama.cpp and its converter can read, by how they are pruned; docs/exports.md names
# them.
ALL_HEADS = ("granite", "starcoder2")
CONVERTED = ("apertus", "arcee", "llama", "mistral", "mixtral", "qwen3", *ALL_HEADS)
