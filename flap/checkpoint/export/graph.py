"""Write a checkpoint as a graph with a KV cache for ONNX Runtime or OpenVINO.

The exporters of transformers trace the graph. The same graph processes prompts and decoding steps,
because it takes any number of tokens after any number of cached tokens. Sequences of different
lengths are padded on the left.

Legend: N: sequences, T: tokens per sequence.
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

# For each format, the modules that must be installed.
MODULES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


def export_graph(checkpoint: Path, kind: str) -> Path:
    """Write the folder `onnx` or `openvino` into the directory of a checkpoint; return its path.

    The weights keep their dtype.

    kind: the format, which is a key of `MODULES`.

    Raises:
        ValueError: there is no checkpoint, the model is a vision-language model, a package is
            missing, the exporter of transformers fails, or the folder cannot be written.
    """
    check_installed(kind, *MODULES[kind])
    config, tokenizer = read_checkpoint(checkpoint)
    if config.get_text_config() is not config:
        name = config.model_type.removeprefix("flap_")
        raise ValueError(f"{kind}: expected a text model; {name} also takes images")

    target = checkpoint / kind
    try:
        with atomic_directory(target, "export") as scratch:
            tokenizer.save_pretrained(scratch)
            model = load(checkpoint)
            if model.generation_config:
                model.generation_config.save_pretrained(scratch)
            graph = _trace(model, kind)
            if kind == "onnx":
                _remove_source_paths(graph)
            graph.save_pretrained(scratch)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error})") from error
    return target


def _remove_source_paths(graph: Any) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(graph.program)


def _trace(model: PreTrainedModel, kind: str) -> Any:
    from transformers.exporters import OnnxConfig, OnnxExporter, OpenVINOConfig, OpenVINOExporter

    # hide the warnings of torch.onnx about operators that the exported models do not use
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    if kind == "onnx":
        exporter, config = OnnxExporter, OnnxConfig
    else:
        exporter, config = OpenVINOExporter, OpenVINOConfig

    try:
        with Path(os.devnull).open("w") as quiet, contextlib.redirect_stdout(quiet):
            _make_experts_traceable(model, kind)
            inputs = _sample_inputs(model)
            options = config(dynamic=True, dynamic_shapes=_dynamic_shapes(inputs))
            return exporter().export(model, inputs, options)
    except Exception as error:  # torch, onnxscript and OpenVINO raise errors of many types
        name = model.config.model_type.removeprefix("flap_")
        reason = one_line(error, 300)
        raise ValueError(f"{kind}: transformers' exporter fails on {name} ({reason})") from error


def _make_experts_traceable(model: PreTrainedModel, kind: str) -> None:
    for module in model.modules():
        if isinstance(module, PrunedExpertsMixin) and kind == "openvino":
            # the OpenVINO exporter adds every `down_proj_bias` itself, so use the class of the base
            # architecture, which does not add the bias a second time
            _, base_class = type(module).__bases__
            module.__class__ = base_class
        config = getattr(module, "config", None)
        if config is not None and getattr(config, "_experts_implementation", None) == "eager":
            # replace the eager implementation, because it branches on the router's choices, and a
            # graph has no branches
            config._experts_implementation = "batched_mm"


def _sample_inputs(model: PreTrainedModel) -> dict[str, Any]:
    """Return the inputs of a decoding step for two sequences. The first sequence is padded."""
    from transformers.exporters.utils import decompose_for_generation

    vocab_size = model.config.get_text_config().vocab_size
    tokens_NT = torch.arange(20).reshape(2, 10) % vocab_size
    mask_NT = torch.ones(2, 10, dtype=torch.long)
    mask_NT[0, :3] = 0

    prompt = {"input_ids": tokens_NT, "attention_mask": mask_NT}
    parts = decompose_for_generation(model, prompt, multi_token_decode=True)
    _, inputs = parts["decode"]
    names = ("input_ids", "attention_mask", "position_ids", "cache")
    return {name: inputs[name] for name in names if name in inputs}


def _dynamic_shapes(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return for each input the axes whose lengths may vary: the axes of sequences and tokens.

    The axes of heads and channels have fixed lengths.
    """
    from transformers.exporters.utils import get_leaf_tensors

    free = torch.export.Dim.AUTO
    shapes: dict[str, Any] = {name: {0: free, 1: free} for name in inputs}
    shapes["cache"] = [{0: free, 2: free} for _ in get_leaf_tensors(inputs["cache"])]
    return shapes
