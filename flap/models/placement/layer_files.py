"""Read the weights of single decoder layers from files, and write each changed layer to a file."""

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
from flap.runtime.ranks import by_first, on_first
from flap.storage.atomic_files import atomic_file


class LayerFiles:
    """The files from which the weights of a model on the meta device are read, layer by layer.

    The index None stands for all weights outside the decoder layers: embeddings, final norm, LM
    head, and any vision tower.

    folder: the folder for the files of changed layers. Checkpoints may contain hard links to these
        files.
    """

    def __init__(self, adapter: ModelAdapter, source: ModelFiles, folder: Path) -> None:
        self.adapter = adapter
        self.source = source
        self.folder = folder
        self.model = adapter.model
        self.dequantiser = dequantiser(source.config)
        names = {module: name for name, module in self.model.named_modules()}
        self.prefix = f"{names[adapter.layers]}."  # prefix of the tensor names of all layers
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
        """Return the entries of the model's current state dict that belong to a layer.

        If `index` is None, return all entries that belong to no layer.
        """
        state = self.model.state_dict()
        if index is None:
            names = [name for name in state if not name.startswith(self.prefix)]
        else:
            names = [name for name in state if name.startswith(f"{self.prefix}{index}.")]
        return {name: state[name] for name in names}

    def write(self, index: int | None) -> None:
        """Write the current tensors of a layer to its file. Only rank 0 writes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(index)
        self._changed.add(index)

    @by_first
    def _write(self, index: int | None) -> None:
        tied: dict[str, str] = getattr(self.model, "all_tied_weights_keys", {})
        state = self.state(index)
        tensors = {name: state[name].contiguous() for name in state if name not in tied}
        with atomic_file(self._path(index)) as scratch:
            save_file(tensors, scratch, metadata={"format": "pt"})

    def link(self, index: int, target: Path) -> bool:
        """Make `target` a hard link to the file of a changed layer, if possible.

        Return whether the link was made. No link is made for an unchanged layer, because this class
        has written no file for it. Hard links between two disks, and on some file systems, are
        impossible.
        """
        if index not in self._changed:
            return False
        try:
            os.link(self._path(index), target)
        except OSError:
            return False
        return True

    def resume(self, layers_done: int) -> None:
        """Use the files that an interrupted run has written for the first `layers_done` layers.

        These layers get the shapes of the tensors in the files.
        """

        def changed() -> set[int | None]:
            return {i for i in range(layers_done) if self._path(i).is_file()}

        self._changed = on_first(changed)
        for i in self._changed:
            self._read_changed(i, torch.device("meta"))

    def _path(self, index: int | None) -> Path:
        return self.folder / ("ends.safetensors" if index is None else f"layer-{index}.safetensors")

    def _read_changed(self, index: int | None, device: torch.device) -> None:
        """Load the tensors of a changed layer. If `device` is meta, only the shapes are set."""
        for name, tensor in load_file(self._path(index)).items():
            module, _, attribute = name.rpartition(".")
            set_tensor(self.model.get_submodule(module), attribute, tensor.to(device))
        if index is not None:
            self.adapter.refresh(index)

    def _read_dense(self, index: int | None) -> None:
        """Let transformers read, rename, fuse and cast the tensors of an unchanged layer."""
        conversions = getattr(self.model, "_weight_conversions", None)
        names = self._names[index]
        # Close the files after each layer, because data that was read from a file stays in memory
        # as long as the file is open.
        with ExitStack() as files:
            opened = {
                path: files.enter_context(safe_open(path, framework="pt"))
                for path in sorted({self._files[name] for name in names})
            }
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
        # the call above removes the conversions that this layer does not use, so restore them all
        self.model._weight_conversions = conversions

    @cached_property
    def _files(self) -> dict[str, Path]:
        return tensor_files(Path(self.source.path))

    @cached_property
    def _names(self) -> dict[int | None, list[str]]:
        """The names of each layer's tensors in the files; the key None is for all other tensors."""
        expected = self.model.state_dict()
        renamings = [one for one in self._conversions if isinstance(one, loading.WeightRenaming)]
        converters = [one for one in self._conversions if isinstance(one, loading.WeightConverter)]
        prefix = self.model.base_model_prefix
        names: dict[int | None, list[str]] = defaultdict(list)
        for name in self._files:
            target, _ = loading.rename_source_key(name, renamings, converters, prefix, expected)
            index = None
            if target.startswith(self.prefix):
                index = int(target.removeprefix(self.prefix).split(".")[0])
            names[index].append(name)
        return names
