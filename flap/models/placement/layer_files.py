"""The safetensors files of a model, by decoder layer. A layer that was changed has a file of its own."""

import os
from collections import defaultdict
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import core_model_loading as loading
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import LoadStateDictConfig

from flap.models.adapter import ModelAdapter
from flap.models.block import set_tensor
from flap.models.model_files import ModelFiles, dequantiser
from flap.models.weights import tensor_files
from flap.storage.atomic_files import atomic_file
from flap.storage.ranks import by_first, on_first


class LayerFiles:
    """The files of a model on the meta device, by decoder layer; None stands for embeddings, final norm and head.

    folder: for the files of changed layers, which the checkpoint then shares.
    """

    def __init__(self, adapter: ModelAdapter, source: ModelFiles, folder: Path) -> None:
        self.adapter = adapter
        self.source = source
        self.folder = folder
        self.model, self.dequantiser = adapter.model, dequantiser(source.config)
        self.prefix = next(
            f"{name}." for name, module in self.model.named_modules() if module is adapter.layers
        )
        if self.dequantiser:
            self._conversions = get_model_conversion_mapping(self.model, None, self.dequantiser)
        else:
            self._conversions = self.model._weight_conversions
        self._changed: set[int | None] = set()

    def read(self, index: int | None) -> None:
        if index in self._changed:
            self._read_changed(index, self.source.device)
        else:
            self._read_dense(index)

    def state(self, index: int | None) -> dict[str, Tensor]:
        """Return the entries of the model's state dict that belong to a layer, as they are now."""
        prefix = self.prefix if index is None else f"{self.prefix}{index}."
        state = self.model.state_dict()
        return {
            name: tensor
            for name, tensor in state.items()
            if name.startswith(prefix) == (index is not None)
        }

    def write(self, index: int | None) -> None:
        """Write the layer as it is now, with the names that it has in the model; one process does it for all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(index)
        self._changed.add(index)

    @by_first
    def _write(self, index: int | None) -> None:
        tied: dict[str, str] = getattr(self.model, "all_tied_weights_keys", {})
        tensors = {
            name: tensor.contiguous()
            for name, tensor in self.state(index).items()
            if name not in tied
        }
        with atomic_file(self._path(index)) as scratch:
            save_file(tensors, scratch, metadata={"format": "pt"})

    def link(self, index: int, target: Path) -> bool:
        """Let `target` be the file of a changed layer as well, which takes no room; return whether that was possible.

        It is not from one disk to another, and on a disk without hard links.
        """
        if index not in self._changed:
            return False
        try:
            os.link(self._path(index), target)
        except OSError:
            return False
        return True

    def resume(self, layers_done: int) -> None:
        """Use the files that an interrupted run has written of the first layers, and give those layers their shapes."""
        self._changed = on_first(lambda: {i for i in range(layers_done) if self._path(i).is_file()})
        for i in self._changed:
            self._read_changed(i, torch.device("meta"))

    def _path(self, index: int | None) -> Path:
        return self.folder / ("ends.safetensors" if index is None else f"layer-{index}.safetensors")

    def _read_changed(self, index: int | None, device: torch.device) -> None:
        """Give the layer the tensors of its own file; on the meta device, only their shapes."""
        for name, tensor in load_file(self._path(index)).items():
            module, _, attribute = name.rpartition(".")
            set_tensor(self.model.get_submodule(module), attribute, tensor.to(device))
        if index is not None:
            self.adapter.refresh(index)

    def _read_dense(self, index: int | None) -> None:
        """Read the tensors of a layer, renamed, fused, dequantised and cast as transformers does it."""
        own = getattr(self.model, "_weight_conversions", None)
        names = self._names[index]
        with ExitStack() as files:
            opened = {
                path: files.enter_context(safe_open(path, framework="pt"))
                for path in sorted({self._files[name] for name in names})
            }
            # the files are closed after each layer: while a file is open, what was read from it stays in memory
            loading.convert_and_load_state_dict_in_model(
                self.model,
                {name: opened[self._files[name]].get_slice(name) for name in names},
                LoadStateDictConfig(
                    device_map={"": self.source.device},
                    dtype=self.model.dtype,
                    weight_mapping=self._conversions,
                    hf_quantizer=self.dequantiser,
                ),
            )
        self.model._weight_conversions = own  # the call above keeps only those that it used

    @cached_property
    def _files(self) -> dict[str, Path]:
        return tensor_files(Path(self.source.path))

    @cached_property
    def _names(self) -> dict[int | None, list[str]]:
        """The names in the files of each layer's tensors."""
        expected = self.model.state_dict()
        rules = [
            [rule for rule in self._conversions if isinstance(rule, kind)]
            for kind in (loading.WeightRenaming, loading.WeightConverter)
        ]
        names: dict[int | None, list[str]] = defaultdict(list)
        for name in self._files:
            target, _ = loading.rename_source_key(
                name, *rules, self.model.base_model_prefix, expected
            )
            inside = target.startswith(self.prefix)
            names[int(target.removeprefix(self.prefix).split(".")[0]) if inside else None].append(
                name
            )
        return names
