"""The files of a model: config and weights, read with transformers.

Quantised weights become plain ones.
"""

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

DEQUANTISED = ("mxfp4", "fp8")  # the methods that transformers can dequantise as it loads a model
# Finds the number of the layer in the name of a tensor.
LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model: everything that a placement needs to open it.

    In a dry run the weights need not exist, and the device may be one that this machine lacks.
    """

    path: str  # a directory or a hub id
    config: PreTrainedConfig
    device: torch.device  # runs the model
    requested_dtype: str = "auto"  # the name of a type in torch; "auto" is the type in the files
    trust_remote_code: bool = False
    offload: Path = Path()  # the folder for weights that placement=auto offloads to disk
    name: str = ""  # model.path, as the user gave it; empty for a checkpoint of this program

    @property
    def dtype(self) -> torch.dtype:
        if self.requested_dtype != "auto":
            return cast(torch.dtype, getattr(torch, self.requested_dtype))
        stored = self.config.dtype
        return stored if isinstance(stored, torch.dtype) else torch.float32

    def skeleton(self) -> PreTrainedModel:
        """Build the model on the meta device: it has shapes and no weights.

        Raises:
            ValueError: transformers cannot build a model by this config.
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
        parameters = sum(parameter.numel() for parameter in self.skeleton().parameters())
        return int(parameters * self.dtype.itemsize)

    def on_device(self) -> PreTrainedModel:
        """Load the whole model on its device, without a copy of it on the host."""
        if self.device.type == "cpu":
            return self.read()
        return self.read(device_map={"": self.device})

    def read(self, **placing: Any) -> PreTrainedModel:
        """Load the weights.

        placing: The options of transformers' `from_pretrained` that say where to.
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
    """Read a language model, in evaluation mode, with the vision tower that it may have.

    Reads only safetensors, and dequantises quantised weights. options: the options of
    `from_pretrained`.

    Raises:
        ValueError: A file is missing or damaged, the files lack tensors that the architecture
            needs, or have tensors of layers that the config does not have.
    """
    options = {"dtype": "auto", "use_safetensors": True, **options}
    try:
        config = read_config(path, trust_remote_code=options.get("trust_remote_code"))
        model, info = auto_class(config).from_pretrained(
            path,
            **options,
            **dequantising(config),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # checked below, where the tensors are named
        )
    except (OSError, SafetensorError, RuntimeError, ImportError) as error:
        raise ValueError(f"{path}: {one_line(error, 300)}") from error
    _check_complete(path, info)
    _check_layers(path, info["unexpected_keys"], config.get_text_config().num_hidden_layers)
    for module in model.modules():
        if is_experts(module):
            choose_kernel(module)
    return cast(PreTrainedModel, model.eval())


def _check_complete(path: str | Path, loading_info: Mapping[str, Any]) -> None:
    """Check that each tensor was in the files, with the shape that the config gives."""
    problems = {
        "missing_keys": "are missing",
        "mismatched_keys": "have another shape than the config says",
    }
    for kind, problem in problems.items():
        names = sorted(key if isinstance(key, str) else key[0] for key in loading_info[kind])
        if names:
            raise ValueError(f"{path}: {len(names)} tensors {problem}, as {', '.join(names[:3])}")


def _check_layers(path: str | Path, unexpected: set[str], num_layers: int) -> None:
    """Check that transformers has ignored no decoder layer in the files."""
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
    """Check that quantised weights can be dequantised as they are loaded.

    Raises:
        ValueError: They cannot.
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
    """Return the options of `from_pretrained` with which quantised weights become plain ones."""
    quantisation = getattr(config, "quantization_config", None)
    if not quantisation:
        return {}
    plain = AutoQuantizationConfig.from_dict({**quantisation, "dequantize": True})
    return {"quantization_config": plain}


def dequantiser(config: PreTrainedConfig) -> HfQuantizer | None:
    """Return the quantiser that dequantises weights layer by layer, or None for plain weights."""
    options = dequantising(config)
    if not options:
        return None
    quantiser = AutoHfQuantizer.from_config(options["quantization_config"], pre_quantized=True)
    return cast(HfQuantizer, quantiser)
