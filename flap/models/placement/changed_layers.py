"""The changed layers of a model on disk: one file for each, which the checkpoint then shares."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flap.models.adapter import ModelAdapter
from flap.storage.atomic_files import atomic_file
from flap.storage.tensor_headers import tensor_shapes


class ChangedLayers:
    """The files of changed layers in a folder. prefix: of all layers' names in the model's state dict."""

    def __init__(self, folder: Path, adapter: ModelAdapter, prefix: str) -> None:
        self.folder, self.adapter, self.prefix = folder, adapter, prefix
        self._changed: set[int] = set()

    def __contains__(self, index: int) -> bool:
        return index in self._changed

    def resume(self, layers_done: int) -> None:
        """Use the files that an interrupted run has written of the first layers, and give those layers their shapes."""
        self._changed = {i for i in range(layers_done) if self.path(i).is_file()}
        for i in self._changed:
            self.read(i, torch.device("meta"))

    def path(self, index: int) -> Path:
        """Return the file of a layer."""
        return self.folder / f"layer-{index}.safetensors"

    def write(self, index: int) -> None:
        """Write the layer as it is now, with the names that it has in the model."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = self.adapter.layers[index].state_dict(prefix=f"{self.prefix}{index}.")
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        with atomic_file(self.path(index)) as scratch:
            save_file(tensors, scratch, metadata={"format": "pt"})
        self._changed.add(index)

    def link(self, index: int, target: Path) -> bool:
        """Let `target` be the file of a layer as well, which takes no room; return whether that was possible.

        It is not for a layer that is not changed, from one disk to another, and on a disk without hard links.
        """
        if index not in self:
            return False
        try:
            os.link(self.path(index), target)
        except OSError:
            return False
        return True

    def read(self, index: int, device: torch.device) -> None:
        """Give the layer the tensors of its file; on the meta device, only their shapes."""
        layer = self.adapter.layers[index]
        for name, tensor in self._tensors(index, device).items():
            path, _, attribute = name.removeprefix(f"{self.prefix}{index}.").rpartition(".")
            _set(layer.get_submodule(path), attribute, tensor)
        self.adapter.refresh(index)

    def _tensors(self, index: int, device: torch.device) -> dict[str, Tensor]:
        if device.type != "meta":
            return {name: tensor.to(device) for name, tensor in load_file(self.path(index)).items()}
        shapes, dtype = tensor_shapes(self.path(index)), self.adapter.model.dtype
        return {name: torch.empty(shape, dtype=dtype, device=device) for name, shape in shapes.items()}


def _set(module: Any, name: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer of a module, and update the widths of a Linear."""
    if name in module._buffers:
        module._buffers[name] = tensor
        return
    old = getattr(module, name, None)
    like = old if old is not None else next(module.parameters(recurse=False))  # a bias that it did not have
    trainable = like.requires_grad
    module.register_parameter(name, nn.Parameter(tensor, requires_grad=trainable))
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
