"""Write a checkpoint as a folder for `mlx_lm.load`: weights, config, tokenizer and model code.

The config has the keys that mlx-lm reads. The export is refused if mlx-lm's logits would
differ from transformers'.
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
from flap.config import shown
from flap.storage.atomic_files import atomic_directory

MODEL_FILE = "modeling_flap_mlx.py"
# Keys of transformers' config that are dropped or converted for mlx-lm.
REPLACED = (
    "auto_map",
    "_name_or_path",
    "architectures",
    "flap_modules",
    "per_layer_config",
    "layer_types",
    "sliding_window",
)
# Dicts from config keys to the values for which mlx-lm gives the same results as transformers.
SILU = {"hidden_act": ("silu",)}
# mlx-lm uses one formula for all of these activation functions.
GELU = {"hidden_act": ("gelu", "gelu_fast", "gelu_pytorch_tanh")}
GEMMA: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "use_bidirectional_attention": (False, None),
}
SCALED = {"rope_type": ("default", "linear", "llama3")}
UNSCALED = {"rope_type": ("default",)}
# The supported architectures, with the config values that mlx-lm supports for each.
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
    """Write the folder `mlx` into the directory of a checkpoint and return its path.

    The export does not need MLX to be installed.

    Raises:
        ValueError: there is no checkpoint, mlx-lm's results would differ from transformers', or
            the folder cannot be written.
    """
    config, tokenizer = read_checkpoint(checkpoint)
    values = mlx_config(config)
    target = checkpoint / "mlx"
    try:
        with atomic_directory(target, "export") as scratch:
            tokenizer.save_pretrained(scratch)
            (scratch / "config.json").write_text(json.dumps(values, indent=2) + "\n")
            shutil.copy(Path(__file__).with_name(MODEL_FILE), scratch)
            for file in set(Shards(checkpoint).files.values()):
                shutil.copy(file, scratch)
            for file in checkpoint.glob("generation_config.json"):
                shutil.copy(file, scratch)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error})") from error
    return target


def mlx_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the content of `config.json` for mlx-lm.

    The config has two additional keys, which `modeling_flap_mlx.py` reads. `heads` has the numbers
    of query heads and KV heads of each layer. `windows` has the length of the sliding window of
    each layer, or None for a layer without one.

    Raises:
        ValueError: mlx-lm lacks this architecture, or would give other logits than transformers.
    """
    model_type = str(config.model_type.removeprefix("flap_"))
    rope, local_rope = ropes(config)
    _check_supported(config, model_type, rope)
    rotated = rope.get("partial_rotary_factor", 1.0)

    values = {name: value for name, value in config.to_dict().items() if name not in REPLACED}
    values |= {
        "model_type": model_type,
        "model_file": MODEL_FILE,
        "head_dim": head_dim(config),
        "heads": [_query_and_kv_heads(config, i) for i in range(config.num_hidden_layers)],
        "num_experts": getattr(config, "num_experts", None),
        "rope_theta": rope["rope_theta"],
        "rope_local_base_freq": local_rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "partial_rotary_factor": rotated,
        "rotary_pct": rotated,
        "rotary_emb_base": rope["rope_theta"],
    }
    values |= _windows(config, model_type)
    return values


def _check_supported(config: PreTrainedConfig, model_type: str, rope: dict[str, Any]) -> None:
    check_setting("mlx", "model_type", model_type, ARCHITECTURES)
    for name, allowed in ARCHITECTURES[model_type].items():
        value = rope.get(name, getattr(config, name, None))
        check_setting("mlx", name, value, allowed)
    if model_type == "gemma2":
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            check_setting("mlx", f"{name} is given", getattr(config, name) is not None, (True,))


def _query_and_kv_heads(config: PreTrainedConfig, layer: int) -> tuple[int, int]:
    by_layer = getattr(config, "per_layer_config", None)
    of_layer = by_layer[layer] if by_layer else config
    query_heads = of_layer.num_attention_heads
    return query_heads, getattr(of_layer, "num_key_value_heads", query_heads)


def _windows(config: PreTrainedConfig, model_type: str) -> dict[str, Any]:
    """Return the config keys for sliding windows.

    For Gemma 3, these are mlx-lm's own keys, and `windows` has None for each layer. For all other
    architectures, the only key is `windows`, which `modeling_flap_mlx.py` reads.
    """
    layers = config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    slides = [kind == "sliding_attention" for kind in kinds]
    if model_type != "gemma3_text":
        return {"windows": [window if slide else None for slide in slides]}

    # in mlx-lm, every `pattern`-th layer of Gemma 3 has full attention, and all other layers have
    # sliding windows
    pattern = slides.index(False) + 1 if False in slides else layers + 1
    if slides != [i % pattern != pattern - 1 for i in range(layers)] or pattern > layers:
        raise ValueError(
            f"mlx: layer_types={shown(kinds)}: expected a layer with full attention after each "
            "equal number of layers with sliding windows, as in mlx-lm's gemma3"
        )
    return {"windows": [None] * layers, "sliding_window": window, "sliding_window_pattern": pattern}
