"""The files of a model: its config and weights, read with transformers; quantised weights become plain ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer, AutoQuantizationConfig
from transformers.quantizers.base import HfQuantizer

from flap.config import one_line
from flap.modeling.register import register_configs, register_models
from flap.models.architecture import auto_class
from flap.models.stacked_experts import choose_kernel, is_experts

DEQUANTISED = ("mxfp4", "fp8")  # what transformers can dequantise as it loads a model


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model: all that a placement needs to open it. In a dry run the weights may not be there."""

    path: str  # the directory, or a hub id
    config: PreTrainedConfig
    device: (
        torch.device
    )  # runs the model; in a dry run it may be one that this machine does not have
    requested_dtype: str = "auto"  # the name of a type of torch; auto: that of the files
    trust_remote_code: bool = False
    offload: Path = Path()  # the folder for weights that placement=auto offloads to disk
    name: str = (
        ""  # model.path, as the user gave it; empty: a checkpoint that this program has written
    )

    @property
    def dtype(self) -> torch.dtype:
        dtype = (
            self.config.dtype
            if self.requested_dtype == "auto"
            else getattr(torch, self.requested_dtype)
        )
        return dtype if isinstance(dtype, torch.dtype) else torch.float32

    def skeleton(self) -> PreTrainedModel:
        with torch.device("meta"):
            model = auto_class(self.config).from_config(
                self.config, trust_remote_code=self.trust_remote_code
            )
        return cast(PreTrainedModel, model)

    @cached_property
    def num_bytes(self) -> int:
        return int(
            sum(parameter.numel() for parameter in self.skeleton().parameters())
            * self.dtype.itemsize
        )

    def on_device(self) -> PreTrainedModel:
        """Load the whole model on its device, without a copy of it on the host."""
        return self.read(**({} if self.device.type == "cpu" else {"device_map": {"": self.device}}))

    def read(self, **placing: Any) -> PreTrainedModel:
        """Load the weights. placing: options of transformers' `from_pretrained` that say where to."""
        options = {"dtype": self.requested_dtype, "trust_remote_code": self.trust_remote_code}
        try:
            return read_model(self.path, **options, **placing)
        except ValueError as error:
            raise ValueError(f"model.path={error}" if self.name else str(error)) from error


def read_config(path: str | Path, **options: Any) -> PreTrainedConfig:
    """Return the config of a model, dense or pruned, as `AutoConfig.from_pretrained` does.

    Auto classes then know its models: those of a pruned architecture are registered once its config is read, because
    to import those of all takes half a second.

    Raises:
        ValueError: it cannot be read, or a value is of another type than its key takes.
    """
    register_configs()
    try:
        config = AutoConfig.from_pretrained(path, **options)
    except StrictDataclassError as error:
        raise ValueError(f"config.json: {one_line(error, 300)}") from error
    register_models(type(config))
    return config


def read_model(path: str | Path, **options: Any) -> PreTrainedModel:
    """Read a language model, in evaluation mode, with the vision tower that it may have. Only safetensors.

    Quantised weights are dequantised. options: those of `from_pretrained`.

    Raises:
        ValueError: a file is missing or damaged, or the files lack tensors that the architecture needs.
    """
    reported = {
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }  # checked below, to name the tensors
    options = {"dtype": "auto", "use_safetensors": True, **options, **reported}
    try:
        config = read_config(path, trust_remote_code=options.get("trust_remote_code"))
        model, info = auto_class(config).from_pretrained(path, **options, **dequantising(config))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path}: {one_line(error, 300)}") from error
    _check_complete(path, info)
    for module in model.modules():
        if is_experts(module):
            choose_kernel(module)
    return cast(PreTrainedModel, model.eval())


def _check_complete(path: str | Path, loading_info: Mapping[str, Any]) -> None:
    """Check that every tensor was in the files, with the shape that the config gives; the first three are named."""
    problems = {
        "missing_keys": "are missing",
        "mismatched_keys": "have another shape than the config says",
    }
    for kind, problem in problems.items():
        names = sorted(key if isinstance(key, str) else key[0] for key in loading_info[kind])
        if names:
            raise ValueError(f"{path}: {len(names)} tensors {problem}, as {', '.join(names[:3])}")


def check_quantised(config: PreTrainedConfig) -> None:
    """Check that the weights in the files, where they are quantised, can be dequantised as they are loaded.

    Raises:
        ValueError: they cannot.
    """
    quantisation = getattr(config, "quantization_config", None)
    if quantisation and (method := dict(quantisation).get("quant_method")) not in DEQUANTISED:
        raise ValueError(
            f"model.path: the weights are quantised ({method}); expected a checkpoint in bfloat16, float16 or float32, "
            f"or in {' or '.join(DEQUANTISED)}, which are dequantised as they are loaded"
        )


def dequantising(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the options of `from_pretrained` with which weights are plain once they are loaded."""
    if not (quantisation := getattr(config, "quantization_config", None)):
        return {}
    return {
        "quantization_config": AutoQuantizationConfig.from_dict(
            {**quantisation, "dequantize": True}
        )
    }


def dequantiser(config: PreTrainedConfig) -> HfQuantizer | None:
    """Return what makes plain tensors of those in the files where they are read layer by layer; None for plain ones."""
    options = dequantising(config)
    return (
        AutoHfQuantizer.from_config(options["quantization_config"], pre_quantized=True)
        if options
        else None
    )
