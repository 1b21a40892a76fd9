"""Tables for the tests of inference engines: families of models, and checkpoints that vLLM refuses.

REFUSED has the error message for each refused checkpoint. In test_vllm.py, vLLM must run all other
checkpoints.
"""

BY_LAYER = (  # families that are tested only with layers that differ in width
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
# Mixtures of experts that are also tested without bias compensation (biases that replace the mean
# output of the removed neurons), because vLLM's own kernels cannot run experts with biases.
NO_BIASES = ("glm4_moe", "granitemoe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
# Mixtures of experts whose experts are scored by flap's metric REAP and by llm-compressor's REAP.
# The two scores are compared.
MIXTURES = (
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
    "falcon_h1": "FlapFalconH1ForCausalLM",  # flap's plugin for vLLM does not register this class
}
REFUSED = {f"{model_type}-layers": words for model_type, words in REFUSED_FAMILIES.items()}
# The quantisation schemes of examples/quantise.py, each with the checkpoint on which it is tested.
# On CPUs with AMX, vLLM's Transformers backend fails with the kernel for W8A8. So W8A8 is tested on
# a stock checkpoint (one without code of flap), which vLLM runs without this backend.
QUANTISED = (("smollm2-flap", "FP8_DYNAMIC"), ("round-layers", "W4A16"), ("round-stock", "W8A8"))
# CONVERTED lists the families that are tested with llama.cpp's converter. A table in
# docs/exports.md lists the same families. The tested checkpoints of the families in ALL_HEADS have
# lost neurons, but no heads.
ALL_HEADS = ("granite", "starcoder2")
CONVERTED = ("apertus", "arcee", "llama", "mistral", "mixtral", "qwen3", *ALL_HEADS)
