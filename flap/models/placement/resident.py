"""placement=device: the whole model is on the device that runs it."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flap.models.devices import ROOM_TO_RUN, free_bytes
from flap.models.forward import Batch, moved, run, tokens_of
from flap.models.placement.base import PlacedModel
from flap.models.source import CheckpointSource
from flap.storage import WorkFolder
from flap.storage.progress import progress


class InMemory(PlacedModel):
    """The base class of placements that can run the whole model: an ordinary forward pass replaces a walk."""

    @contextmanager
    def ends(self) -> Iterator[None]:
        """Do nothing: the ends are always present."""
        yield

    @contextmanager
    def callable(self) -> Iterator[None]:
        """Do nothing: the model runs as it is."""
        yield

    def fits_in_memory(self, beside_bytes: int = 0) -> bool:
        """Return whether there is room for the other model: this one is in memory."""
        return ROOM_TO_RUN * beside_bytes <= free_bytes(self.device)

    def in_memory(self) -> PlacedModel:
        """Return the model itself."""
        return self

    def write(self, directory: Path) -> None:
        """Write weights and config with `save_pretrained`."""
        self.model.save_pretrained(directory)

    @torch.no_grad()
    def observe(
        self,
        batches: Sequence[Batch],
        recorders: Sequence[AbstractContextManager[Any]],
        work: WorkFolder,
        stage: str = "calibrate",
    ) -> Iterator[int]:
        """Run one forward pass a batch with all recorders open, then yield every layer. work: not used."""
        self.passes += 1
        with ExitStack() as stack:
            for recorder in recorders:
                stack.enter_context(recorder)
            for batch in progress(batches, stage, lambda batch: tokens_of(batch).numel()):
                run(self.adapter, moved(batch, self.device, self.model.dtype))
        yield from range(len(self.layers))

    @torch.no_grad()
    def hidden_states(self, batches_NT: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the final hidden states of each batch, from a forward pass."""
        for batch_NT in batches_NT:
            yield self.adapter.decoder(input_ids=batch_NT.to(self.device), use_cache=False).last_hidden_state

    @torch.no_grad()
    def logits(self, tokens_NT: Tensor) -> Tensor:
        """Return the logits of one batch of windows."""
        return cast(Tensor, self.model(input_ids=tokens_NT.to(self.device), use_cache=False).logits)


class Resident(InMemory):
    """A model that is completely on one device."""

    name: ClassVar[str] = "device"
    whole: ClassVar[bool] = True

    @classmethod
    def open(cls, source: CheckpointSource, work: WorkFolder) -> "Resident":
        """Return the model, loaded on the device of its source.

        If the source keeps the dense model, the returned one shares its tensors: pruning gives a model new tensors and
        does not change the old ones.
        """
        dense = source.kept_dense
        return cls(source.on_device() if dense is None else copy_sharing_tensors(dense))

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """Yield a layer, which is always present."""
        yield self.layers[index]


def copy_sharing_tensors(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model whose parameters and buffers are those of the model."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return deepcopy(model, shared)
