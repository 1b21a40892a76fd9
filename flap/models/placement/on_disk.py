"""placement=stream: the layers stay on disk. One at a time is read from the safetensors files, used and dropped."""

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
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from flap.config import gigabytes
from flap.data.temporary_state import forwards_replaced
from flap.models.block import set_tensor
from flap.models.config_files import read_config
from flap.models.devices import ROOM_TO_RUN, free_bytes
from flap.models.forward import output_after_layers
from flap.models.model_files import ModelFiles
from flap.models.placement.base import PlacedModel, Recorders, Resident
from flap.models.placement.layer_files import LayerFiles
from flap.models.walk import Walk
from flap.models.weights import INDEX, tensor_headers
from flap.storage import NOT_KEPT, WorkFolder

log = logging.getLogger(__name__)


class OnDisk(PlacedModel):
    """A model on the meta device whose weights are loaded inside `with` blocks.

    A layer that is changed inside its block is written to a file (`LayerFiles`) when the block ends, and later read
    from that file. Its new shapes stay on the meta device.
    """

    name = "stream"
    streams = True

    def __init__(self, source: ModelFiles, work: WorkFolder) -> None:
        """Take the model without reading a weight.

        work: for hidden states and changed layers; where it is not kept, a temporary one, deleted with this object.
        """
        super().__init__(source.read(device_map={"": "meta"}))
        self.source = source
        if work.path is None:
            self._temporary = TemporaryDirectory(ignore_cleanup_errors=True)
        self.folder = work.path or Path(self._temporary.name)
        self.work = WorkFolder(self.folder)
        self._files = LayerFiles(self.adapter, source, self.folder / "layers")
        _fill_buffers(self.model, self.device)

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
        """Read a layer, or the ends, for the block, and drop it at the end; what was changed is written first."""
        self._files.read(index)
        before = self._parameters(index)
        try:
            yield
            if not self._parameters(index) <= before:
                self._files.write(index)
        finally:
            _drop(self._modules(index))

    def _modules(self, index: int | None) -> Iterable[nn.Module]:
        if index is not None:
            return self.layers[index].modules()
        return set(self.model.modules()) - set(self.layers.modules())

    def _parameters(self, index: int | None) -> set[nn.Parameter]:
        return {one for module in self._modules(index) for one in module.parameters(recurse=False)}

    @contextmanager
    def callable(self) -> Iterator[None]:
        def read(index: int, *args: Any, **options: Any) -> Any:
            with self.layer(index) as layer:
                return type(layer).forward(layer, *args, **options)

        with self.ends(), forwards_replaced(self.layers, read):
            yield

    def observe(
        self, batches_NT: Sequence[Tensor], recorders: Recorders, work: WorkFolder
    ) -> Iterator[int]:
        walk = Walk(self, "calibrate, layer by layer", work)
        stream = walk.enter("windows", batches_NT)
        for i in walk:
            with recorders[i]:
                stream.advance(i, self.layers[i])
            yield i

    @torch.no_grad()
    def hidden_states(self, batches_NT: Sequence[Tensor]) -> Iterator[Tensor]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as folder:
            # after it no file is mapped, as NFS needs to remove them
            yield from self._walked(batches_NT, WorkFolder(Path(folder)))

    def _walked(self, batches_NT: Sequence[Tensor], work: WorkFolder) -> Iterator[Tensor]:
        walk = Walk(self, "evaluate, layer by layer", work, single_process=True)
        stream = walk.enter("windows", batches_NT)
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
        """Write the checkpoint: a shard for each layer, and one for embeddings, final norm and head.

        Files of changed layers become files of the checkpoint.
        """
        layers = [None, *range(len(self.layers))]
        names = (
            f"model-{number:05d}-of-{len(layers):05d}.safetensors"
            for number in range(1, len(layers) + 1)
        )
        paths = {layer: directory / name for layer, name in zip(layers, names, strict=True)}
        with self.ends():
            self.model.save_pretrained(directory / "ends", state_dict=self._files.state(None))
        for file in (directory / "ends").iterdir():
            file.replace(paths[None] if file.suffix == ".safetensors" else directory / file.name)
        (directory / "ends").rmdir()
        for i in Walk(self, "save, layer by layer"):
            self._write_shard(i, paths[i])
        index = {
            "metadata": {
                "total_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
                "total_size": self.num_bytes,
            },
            "weight_map": {
                name: path.name for path in paths.values() for name in tensor_headers(path)
            },
        }
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _write_shard(self, index: int, path: Path) -> None:
        own = self._files.state(index)
        tensors: dict[str, Tensor] = revert_weight_conversion(self.model, own)
        if not (_places(tensors) == _places(own) and self._files.link(index, path)):
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, path, metadata={"format": "pt"})


def _places(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return where each tensor is in memory: a checkpoint's file may have those of the model under their own names."""
    return {
        name: (tensor.data_ptr(), tensor.shape, tensor.stride()) for name, tensor in tensors.items()
    }


def _fill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute the buffers that are in no file (rotary frequencies), as transformers does after loading."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty_like(buffer, device=device)
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    for part in parts:  # outer before inner: a vision tower has a rule of its own
        for (
            module
        ) in part.modules():  # all of them: Falcon-H1's decoder fills buffers of its layers
            part._init_weights(module)


def _drop(modules: Iterable[nn.Module]) -> None:
    """Move the parameters of these modules, without their children, back to the meta device."""
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            set_tensor(module, name, parameter.detach().to("meta"))


def open_checkpoint(directory: Path, device: torch.device, work: WorkFolder = NOT_KEPT) -> OnDisk:
    """Return the model that this program has written to a directory, one layer at a time on a device.

    It can be compared with the model in memory without room for a second one. work: see `OnDisk`.
    """
    return OnDisk(ModelFiles(str(directory), read_config(directory), device), work / "checkpoint")
