"""Read the weights of a model with transformers. Quantised weights are dequantised."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer, AutoQuantizationConfig
from transformers.quantizers.base import HfQuantizer

from flap.config import one_line
from flap.models.architecture import auto_class
from flap.models.config_files import CONFIG, WRONG_VALUES, read_config
from flap.models.stacked_experts import choose_kernel, is_experts

# Quantisation methods whose weights transformers can dequantise while it loads them.
DEQUANTISED = ("mxfp4", "fp8")
# Matches the index of the layer in the name of a tensor.
LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")


@dataclass(frozen=True)
class ModelFiles:
    """A model in files, with the device and the dtype that the model will have when it is opened.

    With dry_run=true, the weights need not exist, and this machine need not have the device.
    """

    path: str  # a directory or a hub id
    config: PreTrainedConfig
    device: torch.device  # the device that runs the model
    requested_dtype: str = "auto"  # name of a torch dtype; "auto" takes the dtype of the files
    trust_remote_code: bool = False
    offload: Path = Path()  # folder for weights that placement=auto offloads to disk
    name: str = ""  # the option `model.path`; empty for a checkpoint that flap has saved

    @property
    def dtype(self) -> torch.dtype:
        if self.requested_dtype != "auto":
            return cast(torch.dtype, getattr(torch, self.requested_dtype))
        stored = self.config.dtype
        return stored if isinstance(stored, torch.dtype) else torch.float32

    def skeleton(self) -> PreTrainedModel:
        """Build the model on the meta device, with shapes but without weights.

        Raises:
            ValueError: transformers cannot build a model from this config.
        """
        build = auto_class(self.config).from_config
        try:
            with torch.device("meta"):
                model = build(self.config, trust_remote_code=self.trust_remote_code)
        except WRONG_VALUES as error:
            raise ValueError(
                f"model.path={self.name or self.path}: no model can be built by its {CONFIG} "
                f"({type(error).__name__}: {one_line(error, 300)})"
            ) from error
        return cast(PreTrainedModel, model)

    @cached_property
    def num_bytes(self) -> int:
        return int(self.skeleton().num_parameters() * self.dtype.itemsize)

    def on_device(self) -> PreTrainedModel:
        """Load the whole model directly onto its device, without first loading it on the host."""
        if self.device.type == "cpu":
            return self.read()
        return self.read(device_map={"": self.device})

    def read(self, **placing: Any) -> PreTrainedModel:
        """Load the model with its weights.

        placing: arguments of `from_pretrained` that place the weights, such as `device_map`.
        """
        try:
            return read_model(
                self.path,
                dtype=self.requested_dtype,
                trust_remote_code=self.trust_remote_code,
                **placing,
            )
        except ValueError as error:
            raise ValueError(f"model.path={error}" if self.name else str(error)) from error


def read_model(path: str | Path, **options: Any) -> PreTrainedModel:
    """Load a language model, with its vision tower if it has one, in evaluation mode.

    Only safetensors are read. Quantised weights are dequantised.

    options: arguments of `from_pretrained`.

    Raises:
        ValueError: a file is missing or damaged, a tensor is missing or has a wrong shape, or the
            files contain more layers than the config says.
    """
    options = {"dtype": "auto", "use_safetensors": True, **options}
    try:
        config = read_config(path, trust_remote_code=options.get("trust_remote_code"))
        model, info = auto_class(config).from_pretrained(
            path,
            **options,
            **dequantising(config),
            output_loading_info=True,
            # do not raise here for a wrong shape: `_check_complete` raises, and names the tensor
            ignore_mismatched_sizes=True,
        )
    except (OSError, SafetensorError, RuntimeError, ImportError) as error:
        raise ValueError(f"{path}: {one_line(error, 300)}") from error
    _check_complete(path, info)
    _check_no_ignored_layers(
        path, info["unexpected_keys"], config.get_text_config().num_hidden_layers
    )
    for module in model.modules():
        if is_experts(module):
            choose_kernel(module)
    return cast(PreTrainedModel, model.eval())


def _check_complete(path: str | Path, loading_info: Mapping[str, Any]) -> None:
    problems = {
        "missing_keys": "are missing",
        "mismatched_keys": "have another shape than the config says",
    }
    for kind, problem in problems.items():
        names = sorted(key if isinstance(key, str) else key[0] for key in loading_info[kind])
        if names:
            raise ValueError(f"{path}: {len(names)} tensors {problem}, as {', '.join(names[:3])}")


def _check_no_ignored_layers(path: str | Path, unexpected: set[str], num_layers: int) -> None:
    ignored = []
    for name in sorted(unexpected):
        layer = LAYER.search(name)
        if layer and int(layer[1]) >= num_layers:
            ignored.append(name)
    if ignored:
        raise ValueError(
            f"{path}: {len(ignored)} tensors are in layers that the model does not have, as "
            f"{ignored[0]}, because {CONFIG} says num_hidden_layers={num_layers}"
        )


def check_quantised(config: PreTrainedConfig) -> None:
    """Check that quantised weights can be dequantised while they are loaded.

    Raises:
        ValueError: transformers cannot dequantise weights of this quantisation method.
    """
    quantisation = getattr(config, "quantization_config", None)
    if not quantisation:
        return
    method = dict(quantisation).get("quant_method")
    if method not in DEQUANTISED:
        raise ValueError(
            f"model.path: the weights are quantised ({method}); expected a checkpoint in bfloat16, "
            f"float16 or float32, or in {' or '.join(DEQUANTISED)}, which are dequantised as they "
            "are loaded"
        )


def dequantising(config: PreTrainedConfig) -> dict[str, Any]:
    """Return arguments that let `from_pretrained` dequantise weights, or {} for plain weights."""
    quantisation = getattr(config, "quantization_config", None)
    if not quantisation:
        return {}
    plain = AutoQuantizationConfig.from_dict({**quantisation, "dequantize": True})
    return {"quantization_config": plain}


def dequantiser(config: PreTrainedConfig) -> HfQuantizer | None:
    """Return an object that dequantises weights layer by layer, or None for plain weights."""
    options = dequantising(config)
    if not options:
        return None
    quantiser = AutoHfQuantizer.from_config(options["quantization_config"], pre_quantized=True)
    return cast(HfQuantizer, quantiser)
