"""Write a checkpoint as an atomic folder that `mlx_lm.load` opens: weights, config, tokenizer and the model file.

The config has the keys that mlx-lm reads; what it would compute in another way is refused.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from flap.checkpoint.export.checkpoint import (
    Shards,
    check_setting,
    head_dim,
    read_checkpoint,
    ropes,
)
from flap.storage.atomic_files import atomic_directory

MODEL_FILE = "modeling_flap_mlx.py"
REPLACED = (
    "auto_map",
    "_name_or_path",
    "architectures",
    "per_layer_config",
    "layer_types",
    "sliding_window",
)
SILU = {"hidden_act": ("silu",)}
GELU = {"hidden_act": ("gelu", "gelu_fast", "gelu_pytorch_tanh")}  # mlx-lm has one of the formulas
GEMMA: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",), "use_bidirectional_attention": (False, None),
}  # fmt: skip
SCALED = {"rope_type": ("default", "linear", "llama3")}
UNSCALED = {"rope_type": ("default",)}
# What mlx-lm's model of each architecture computes, by config key; it has no other way.
ARCHITECTURES: dict[str, dict[str, tuple[Any, ...]]] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "olmo2"), SILU | SCALED
    ),
    **dict.fromkeys(("phi3", "mixtral", "qwen3_moe"), SILU | UNSCALED),
    "gemma2": UNSCALED | GEMMA | {"tie_word_embeddings": (True,)},
    "gemma3_text": SCALED | GEMMA | {"final_logit_softcapping": (None,)},
    "starcoder2": GELU | UNSCALED,
    "gpt_neox": GELU | UNSCALED | {"tie_word_embeddings": (False,)},
}


def export_mlx(checkpoint: Path) -> Path:
    """Write the folder `mlx` into a checkpoint's directory and return its path. It needs no package of MLX.

    Raises:
        ValueError: there is no checkpoint, mlx-lm cannot run it, or the folder cannot be written.
    """
    config, tokenizer = read_checkpoint(checkpoint)
    values = mlx_config(config)
    target = checkpoint / "mlx"
    try:
        with atomic_directory(target, "export") as scratch:
            tokenizer.save_pretrained(scratch)
            (scratch / "config.json").write_text(json.dumps(values, indent=2) + "\n")
            shutil.copy(Path(__file__).with_name(MODEL_FILE), scratch)
            for file in {
                *Shards(checkpoint).files.values(),
                *checkpoint.glob("generation_config.json"),
            }:
                shutil.copy(file, scratch)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error})") from error
    return target


def mlx_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the `config.json` of a folder for mlx-lm.

    Two of its keys are read by `modeling_flap_mlx.py`. heads: for each layer its numbers of query heads and KV heads.
    windows: for each layer its sliding window, or None.

    Raises:
        ValueError: mlx-lm has no such architecture, or computes it in another way.
    """
    model_type = str(config.model_type.removeprefix("flap_"))
    check_setting("mlx", "model_type", model_type, ARCHITECTURES)
    rope, local = ropes(config)
    for name, allowed in ARCHITECTURES[model_type].items():
        check_setting("mlx", name, rope.get(name, getattr(config, name, None)), allowed)
    if model_type == "gemma2":
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            check_setting("mlx", f"{name} is given", getattr(config, name) is not None, (True,))
    rotated = rope.get("partial_rotary_factor", 1.0)
    return {name: value for name, value in config.to_dict().items() if name not in REPLACED} | {
        "model_type": model_type,
        "model_file": MODEL_FILE,
        "head_dim": head_dim(config),
        "heads": [_heads(config, i) for i in range(config.num_hidden_layers)],
        "num_experts": getattr(config, "num_experts", None),
        "rope_theta": rope["rope_theta"],
        "rope_local_base_freq": local["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "partial_rotary_factor": rotated,
        "rotary_pct": rotated,
        "rotary_emb_base": rope["rope_theta"],
        **_windows(config, model_type),
    }


def _heads(config: PreTrainedConfig, layer: int) -> tuple[int, int]:
    own = config.per_layer_config[layer] if getattr(config, "per_layer_config", None) else config
    return own.num_attention_heads, getattr(own, "num_key_value_heads", own.num_attention_heads)


def _windows(config: PreTrainedConfig, model_type: str) -> dict[str, Any]:
    """Return the windows of the layers, in mlx-lm's own keys for Gemma 3."""
    layers = config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    slides = [kind == "sliding_attention" for kind in kinds]
    if model_type != "gemma3_text":
        return {"windows": [window if slide else None for slide in slides]}
    pattern = slides.index(False) + 1 if False in slides else layers + 1
    if slides != [i % pattern != pattern - 1 for i in range(layers)] or pattern > layers:
        raise ValueError(
            f"mlx: layer_types={kinds}: mlx-lm's gemma3 has a full layer after each equal number of others"
        )
    return {"windows": [None] * layers, "sliding_window": window, "sliding_window_pattern": pattern}
