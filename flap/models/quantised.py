"""Checkpoints whose weights are quantised: which can be pruned, and how transformers makes plain weights of them."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.quantizers import AutoQuantizationConfig

from flap.config import require

DEQUANTISED = ("mxfp4", "fp8")  # what transformers can dequantise as it loads a model


def check_quantised(config: PreTrainedConfig, placement: str) -> None:
    """Check that the weights, where they are quantised, can be dequantised as they are loaded.

    Raises:
        ValueError: they cannot.
    """
    if not (quantisation := _quantisation(config)):
        return
    method, plain = quantisation.get("quant_method"), "a checkpoint in bfloat16, float16 or float32"
    if method not in DEQUANTISED:
        raise ValueError(f"model.path: the weights are quantised ({method}); expected {plain}")
    expected = f"device or auto for weights that are quantised ({method}), or {plain}"
    require(placement != "stream", "model.placement", placement, expected)


def dequantising(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the options of `from_pretrained` with which weights are plain once they are loaded."""
    quantisation = _quantisation(config)
    if not quantisation:
        return {}
    return {"quantization_config": AutoQuantizationConfig.from_dict({**quantisation, "dequantize": True})}


def _quantisation(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what a config says of quantised weights; empty for plain ones."""
    return dict(getattr(config, "quantization_config", None) or {})
