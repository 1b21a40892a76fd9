"""Writing the checkpoint of a model on disk, one decoder layer at a time.

Each layer has a shard of its own; one more shard holds embeddings, final norm and head.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from flap.models.placement.base import PlacedModel
from flap.models.placement.layer_files import LayerFiles
from flap.models.walk import Walk
from flap.models.weights import tensor_shapes


def write_shards(placed: PlacedModel, files: LayerFiles, directory: Path) -> None:
    """Write all shards, config and index of a model."""
    model, layers = placed.model, [None, *range(len(placed.layers))]
    names = (f"model-{number:05d}-of-{len(layers):05d}.safetensors" for number in range(1, len(layers) + 1))
    paths = {layer: directory / name for layer, name in zip(layers, names, strict=True)}
    with placed.ends():
        model.save_pretrained(directory / "ends", state_dict=files.state(None))
    for file in (directory / "ends").iterdir():
        file.replace(paths[None] if file.suffix == ".safetensors" else directory / file.name)
    (directory / "ends").rmdir()
    for i in Walk(placed, "save, layer by layer"):
        own = files.state(i)
        tensors: dict[str, Tensor] = revert_weight_conversion(model, own)
        if not (_places(tensors) == _places(own) and files.link(i, paths[i])):
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, paths[i], metadata={"format": "pt"})
    parameters = list(model.parameters())
    index = {
        "metadata": {
            "total_parameters": sum(parameter.numel() for parameter in parameters),
            "total_size": sum(parameter.nbytes for parameter in parameters),
        },
        "weight_map": {name: path.name for path in paths.values() for name in tensor_shapes(path)},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _places(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return where each tensor is in memory: a checkpoint's file may have those of the model under their own names."""
    return {name: (tensor.data_ptr(), tensor.shape, tensor.stride()) for name, tensor in tensors.items()}
