"""placement=stream: layers stay on disk. Each layer is loaded, run, and dropped from memory."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from flap.config import gigabytes
from flap.data import Batch
from flap.models.block import set_tensor
from flap.models.config_files import read_config
from flap.models.devices import ROOM_TO_RUN, free_bytes
from flap.models.forward import output_after_layers
from flap.models.model_files import ModelFiles
from flap.models.placed_model import PlacedModel, Recording
from flap.models.placement.layer_files import LayerFiles
from flap.models.placement.resident import Resident
from flap.models.random_weights import fill_buffers
from flap.models.walk import Walk
from flap.models.weights import INDEX, tensor_headers
from flap.runtime.temporary_state import forwards_replaced
from flap.storage import NOT_KEPT, WorkFolder

log = logging.getLogger(__name__)


class OnDisk(PlacedModel):
    """A model on the meta device whose weights are loaded inside `with` blocks.

    If a layer is changed inside its `with` block, the layer is written to a file at the end of the
    block (`LayerFiles`). Later blocks read the layer from this file. After the block, the layer on
    the meta device has the new shapes.
    """

    name = "stream"
    streams = True

    def __init__(self, source: ModelFiles, work: WorkFolder) -> None:
        """Open the model without reading a weight.

        work: the working directory for hidden states and changed layers. If `work` is NOT_KEPT, a
            temporary folder is used, which is deleted with this object.
        """
        super().__init__(source.read(device_map={"": "meta"}))
        self.source = source
        if work.path is None:
            self._temporary = TemporaryDirectory(ignore_cleanup_errors=True)
        self.folder = work.path or Path(self._temporary.name)
        self.work = WorkFolder(self.folder)
        self._files = LayerFiles(self.adapter, source, self.folder / "layers")
        fill_buffers(self.model, self.device)

    @classmethod
    def open(cls, source: ModelFiles, work: WorkFolder) -> "OnDisk":
        return cls(source, work)

    @property
    def device(self) -> torch.device:
        return self.source.device

    @property
    def num_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        with self._present(index):
            yield self.layers[index]

    @contextmanager
    def ends(self) -> Iterator[None]:
        try:
            with self._present(None):
                self.model.tie_weights()
                yield
        finally:
            self.model.tie_weights()

    @contextmanager
    def _present(self, index: int | None) -> Iterator[None]:
        """Load the weights of a layer inside a `with` block.

        At the end of the block, write these weights to a file if they were changed, and drop them.

        index: the index of the layer, or None for all weights outside the layers.
        """
        self._files.read(index)
        before = self._parameters(index)
        try:
            yield
            if not self._parameters(index) <= before:
                self._files.write(index)
        finally:
            _move_to_meta(self._modules(index))

    def _modules(self, index: int | None) -> Iterable[nn.Module]:
        if index is not None:
            return self.layers[index].modules()
        return set(self.model.modules()) - set(self.layers.modules())

    def _parameters(self, index: int | None) -> set[nn.Parameter]:
        parameters: set[nn.Parameter] = set()
        for module in self._modules(index):
            parameters.update(module.parameters(recurse=False))
        return parameters

    @contextmanager
    def callable(self) -> Iterator[None]:
        def read(index: int, *args: Any, **options: Any) -> Any:
            with self.layer(index) as layer:
                return type(layer).forward(layer, *args, **options)

        with self.ends(), forwards_replaced(self.layers, read):
            yield

    def observe(
        self, batches: Sequence[Batch], recordings: Sequence[Recording], work: WorkFolder
    ) -> Iterator[int]:
        walk = Walk(self, "calibrate, layer by layer", work)
        stream = walk.enter("windows", batches)
        for i in walk:
            stream.advance(i, self.layers[i], recordings[i])
            yield i

    @torch.no_grad()
    def hidden_states(self, batches_NT: Sequence[Tensor]) -> Iterator[Tensor]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as folder:
            # NFS cannot remove files that are still mapped. So the separate generator `_walked`
            # visits the layers. When it ends, it unmaps all files, and then the folder is removed.
            yield from self._walked(batches_NT, WorkFolder(Path(folder)))

    def _walked(self, batches_NT: Sequence[Tensor], work: WorkFolder) -> Iterator[Tensor]:
        walk = Walk(self, "evaluate, layer by layer", work, single_process=True)
        stream = walk.enter("windows", [Batch.of(batch_NT) for batch_NT in batches_NT])
        for i in walk:
            stream.advance(i, self.layers[i])
        with self.ends():
            for batch_NT, hidden_NTD in zip(batches_NT, stream.batches, strict=True):
                tokens_NT = batch_NT.to(self.device)
                last_NTD = hidden_NTD.to(self.device)
                yield output_after_layers(
                    self.adapter, self.adapter.decoder, tokens_NT, last_NTD
                ).last_hidden_state

    @torch.no_grad()
    def logits(self, tokens_NT: Tensor) -> Tensor:
        [hidden_NTD] = self.hidden_states([tokens_NT])
        with self.ends():
            return self.adapter.logits(hidden_NTD)

    def resume_changes(self, layers_done: int) -> None:
        self._files.resume(layers_done)

    def saved_in(self, directory: Path) -> PlacedModel:
        return open_checkpoint(directory, self.device, self.work)

    def has_room(self, beside_bytes: int) -> bool:
        return ROOM_TO_RUN * (self.num_bytes + beside_bytes) <= free_bytes(self.device)

    def in_memory(self) -> PlacedModel:
        log.info(
            "loading %s as a whole, to measure it (%s GB)",
            self.source.path,
            gigabytes(self.num_bytes),
        )
        return Resident(self.source.on_device())

    def write(self, directory: Path) -> None:
        """Write a checkpoint with one shard for each layer, and one shard for all other weights.

        If possible, the shard of a changed layer is a hard link to the file of this layer.
        """
        layers = [None, *range(len(self.layers))]
        paths: dict[int | None, Path] = {}
        for number, layer in enumerate(layers, start=1):
            paths[layer] = directory / f"model-{number:05d}-of-{len(layers):05d}.safetensors"

        with self.ends():
            self.model.save_pretrained(directory / "ends", state_dict=self._files.state(None))
        for file in (directory / "ends").iterdir():
            file.replace(paths[None] if file.suffix == ".safetensors" else directory / file.name)
        (directory / "ends").rmdir()

        for i in Walk(self, "save, layer by layer"):
            self._write_shard(i, paths[i])

        weight_map: dict[str, str] = {}
        for path in paths.values():
            weight_map.update(dict.fromkeys(tensor_headers(path), path.name))
        num_parameters = self.model.num_parameters()
        index = {
            "metadata": {"total_parameters": num_parameters, "total_size": self.num_bytes},
            "weight_map": weight_map,
        }
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _write_shard(self, index: int, path: Path) -> None:
        state = self._files.state(index)
        tensors: dict[str, Tensor] = revert_weight_conversion(self.model, state)
        unchanged = _memory(tensors) == _memory(state)
        if not (unchanged and self._files.link(index, path)):
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, path, metadata={"format": "pt"})


def _memory(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the memory address, the shape and the strides of each tensor.

    If the results for two dicts are equal, the tensors of the two dicts share their memory.
    """
    return {
        name: (tensor.data_ptr(), tensor.shape, tensor.stride()) for name, tensor in tensors.items()
    }


def _move_to_meta(modules: Iterable[nn.Module]) -> None:
    """Move the weights of the given modules to meta. Weights of child modules are not moved."""
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            set_tensor(module, name, parameter.detach().to("meta"))


def open_checkpoint(directory: Path, device: torch.device, work: WorkFolder = NOT_KEPT) -> OnDisk:
    """Open a checkpoint that flap has saved. Only one layer at a time is on the device.

    The checkpoint can thus be compared with a model in memory, without memory for a second model.

    work: see `OnDisk`.
    """
    files = ModelFiles(str(directory), read_config(directory), device)
    return OnDisk(files, work / "checkpoint")
