"""Checkpoints whose weights are quantised: which can be pruned, and how transformers makes plain weights of them."""

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer, AutoQuantizationConfig
from transformers.quantizers.base import HfQuantizer

DEQUANTISED = ("mxfp4", "fp8")  # what transformers can dequantise as it loads a model


def check_quantised(config: PreTrainedConfig) -> None:
    """Check that the weights, where they are quantised, can be dequantised as they are loaded.

    Raises:
        ValueError: they cannot.
    """
    method = _quantisation(config).get("quant_method")
    if is_quantised(config) and method not in DEQUANTISED:
        raise ValueError(
            f"model.path: the weights are quantised ({method}); expected a checkpoint in bfloat16, float16 or float32, "
            f"or in {' or '.join(DEQUANTISED)}, which are dequantised as they are loaded"
        )


def check_plain(model: PreTrainedModel) -> None:
    """Check that the weights of a loaded model are plain tensors, which can be sliced.

    Raises:
        ValueError: they are packed: a quantiser has loaded them so, or their type has less than 16 bits; or the model
            has adapters, as those of peft.
    """
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise ValueError("model: it has adapters, as LoRA; expected a model after merge_and_unload()")
    quantiser = getattr(model, "hf_quantizer", None)
    types = {parameter.dtype for parameter in model.parameters()}
    packed = [str(one) for one in types if not one.is_floating_point or one.itemsize < 2]
    method = quantiser.quantization_config.quant_method if quantiser else None
    # weights from a GGUF are packed only if their types say so
    if packed or (quantiser and method != "gguf" and not getattr(quantiser.quantization_config, "dequantize", False)):
        raise ValueError(
            f"model: its weights are packed ({getattr(method, 'value', packed[:1])}); expected bfloat16, float16 or "
            "float32: load the model without quantization_config, or call model.dequantize() first"
        )


def dequantising(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the options of `from_pretrained` with which weights are plain once they are loaded."""
    if not (quantisation := _quantisation(config)):
        return {}
    return {"quantization_config": AutoQuantizationConfig.from_dict({**quantisation, "dequantize": True})}


def dequantiser(config: PreTrainedConfig) -> HfQuantizer | None:
    """Return what makes plain tensors of those in the files where they are read layer by layer; None for plain ones."""
    options = dequantising(config)
    return AutoHfQuantizer.from_config(options["quantization_config"], pre_quantized=True) if options else None


def is_quantised(config: PreTrainedConfig) -> bool:
    """Return whether the weights in the files are quantised."""
    return bool(_quantisation(config))


def _quantisation(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what a config says of quantised weights; empty for plain ones."""
    return dict(getattr(config, "quantization_config", None) or {})
