"""Write a checkpoint as a graph for ONNX Runtime or OpenVINO, which transformers' exporters trace, with a KV cache.

One graph does it all: any number of tokens after any number of cached ones, padded on the left where sequences differ.
"""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from flap.checkpoint.export.checkpoint import check_installed, read_checkpoint
from flap.checkpoint.load import load
from flap.config import one_line
from flap.modeling.modeling_flap import PrunedExpertsMixin
from flap.storage.atomic_files import atomic_directory

MODULES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}  # by format


def export_graph(checkpoint: Path, kind: str) -> Path:
    """Write the folder `onnx` or `openvino` into a checkpoint's directory and return its path.

    kind: a key of MODULES. The weights keep their type.

    Raises:
        ValueError: there is no checkpoint, it sees images, a package is missing, transformers' exporter fails on the
            model, or the folder cannot be written.
    """
    check_installed(kind, *MODULES[kind])
    config, tokenizer = read_checkpoint(checkpoint)
    if config.get_text_config() is not config:
        raise ValueError(
            f"{kind}: takes text models; {config.model_type.removeprefix('flap_')} sees images, too"
        )
    target = checkpoint / kind
    try:
        with atomic_directory(target, "export") as scratch:
            tokenizer.save_pretrained(scratch)
            model = load(checkpoint)
            if model.generation_config:
                model.generation_config.save_pretrained(scratch)
            graph = _trace(model, kind)
            if kind == "onnx":
                from onnx_ir.passes.common import ClearMetadataAndDocStringPass

                ClearMetadataAndDocStringPass()(
                    graph.program
                )  # the lines that nodes were traced from, on this machine
            graph.save_pretrained(scratch)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error})") from error
    return target


def _trace(model: PreTrainedModel, kind: str) -> Any:
    from transformers.exporters import OnnxConfig, OnnxExporter, OpenVINOConfig, OpenVINOExporter

    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it warns of operators that no model here has
    exporter, config = (
        (OnnxExporter, OnnxConfig) if kind == "onnx" else (OpenVINOExporter, OpenVINOConfig)
    )
    try:
        with Path(os.devnull).open("w") as quiet, contextlib.redirect_stdout(quiet):
            _trace_experts(model, kind)
            inputs = _sample(model)
            return exporter().export(
                model, inputs, config(dynamic=True, dynamic_shapes=_free_axes(inputs))
            )
    except Exception as error:  # of any type, from torch, onnxscript or OpenVINO
        name = model.config.model_type.removeprefix("flap_")
        raise ValueError(
            f"{kind}: transformers' exporter fails on {name} ({one_line(error, 300)})"
        ) from error


def _trace_experts(model: PreTrainedModel, kind: str) -> None:
    """Make the experts of each layer compute what an exporter can trace, and no bias twice."""
    for module in model.modules():
        if isinstance(module, PrunedExpertsMixin) and kind == "openvino":
            _, of_family = type(module).__bases__
            module.__class__ = (
                of_family  # the exporter itself adds every `down_proj_bias` that it finds
            )
        if getattr(getattr(module, "config", None), "_experts_implementation", None) == "eager":
            module.config._experts_implementation = (
                "batched_mm"  # the other branches on which experts tokens chose
            )


def _sample(model: PreTrainedModel) -> dict[str, Any]:
    """Return the inputs of a step after a few tokens, of two sequences of which one is padded."""
    from transformers.exporters.utils import decompose_for_generation

    mask_NT = torch.ones(2, 10, dtype=torch.long)
    mask_NT[0, :3] = 0
    tokens_NT = torch.arange(20).reshape(2, 10) % model.config.get_text_config().vocab_size
    start = {"input_ids": tokens_NT, "attention_mask": mask_NT}
    _, inputs = decompose_for_generation(model, start, multi_token_decode=True)["decode"]
    return {
        name: inputs[name]
        for name in ("input_ids", "attention_mask", "position_ids", "cache")
        if name in inputs
    }


def _free_axes(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return which axes may have any length: sequences and tokens, but not the heads and channels of the cache."""
    from transformers.exporters.utils import get_leaf_tensors

    free = torch.export.Dim.AUTO
    cached = [{0: free, 2: free} for _ in get_leaf_tensors(inputs["cache"])]
    return {name: cached if name == "cache" else {0: free, 1: free} for name in inputs}
