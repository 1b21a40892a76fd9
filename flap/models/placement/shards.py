"""Writing the checkpoint of a model on disk, one decoder layer at a time.

Each layer has a shard of its own; one more shard holds embeddings, final norm and head.
"""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from flap.models.placement.base import PlacedModel
from flap.models.walk import Walk
from flap.storage.tensor_headers import tensor_shapes

State = Callable[[int | None], dict[str, Tensor]]  # index of a layer, or None for the rest -> tensors by name


def write_shards(placed: PlacedModel, state: State, link: Callable[[int, Path], bool], directory: Path) -> None:
    """Write all shards, config and index of a model.

    state: returns the tensors of a layer while it is present. link: makes a path a file that has them already, or
    returns False.
    """
    model, paths = placed.model, _paths(directory, len(placed.layers))
    with placed.ends():
        model.save_pretrained(directory / "ends", state_dict=state(None))
    for file in (directory / "ends").iterdir():
        file.replace(paths[None] if file.suffix == ".safetensors" else directory / file.name)
    (directory / "ends").rmdir()
    for i in Walk(placed, "save, layer by layer"):
        own = state(i)
        tensors: dict[str, Tensor] = revert_weight_conversion(model, own)
        if _same(tensors, own) and link(i, paths[i]):
            continue
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, paths[i], metadata={"format": "pt"})
    parameters = list(model.parameters())
    index = {
        "metadata": {
            "total_parameters": sum(parameter.numel() for parameter in parameters),
            "total_size": sum(parameter.nbytes for parameter in parameters),
        },
        "weight_map": {name: path.name for path in paths.values() for name in tensor_shapes(path)},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _same(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> bool:
    """Return whether the tensors of a checkpoint's file are those of the model, under their own names."""
    there, here = ({name: (t.data_ptr(), t.shape, t.stride()) for name, t in of.items()} for of in (tensors, own))
    return there == here


def _paths(directory: Path, num_layers: int) -> dict[int | None, Path]:
    """Return the shard of each layer, and under None the shard of the rest."""
    layers = [None, *range(num_layers)]
    return {
        layer: directory / f"model-{number:05d}-of-{len(layers):05d}.safetensors"
        for number, layer in enumerate(layers, start=1)
    }
