"""The base class of the placements: where a model's weights are, and how a layer comes to the device that runs it.

The plain one is here as well: placement=device, the whole model on the device that runs it.

Legend: N windows · T tokens a window · D hidden size.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flap.data.counted import counted_positions, unmarked
from flap.models.architecture import adapt
from flap.models.devices import ROOM_TO_RUN, free_bytes
from flap.models.model_files import ModelFiles
from flap.storage import NOT_KEPT, WorkFolder, ranks
from flap.storage.progress import progress

Recorders = Sequence[AbstractContextManager[Any]]


class PlacedModel(ABC):
    """The base class of the placements: a model whose weights may be anywhere.

    `model` always has the right shapes, class and config. A layer is *present* while its weights are on the device. The
    methods that are defined here are for models that can run as a whole: a forward pass replaces a walk.
    """

    name: ClassVar[str]  # as `model.placement` names it
    streams: ClassVar[bool] = (
        False  # layers are read from files when needed: work is kept, unsaved changes are lost
    )
    whole: ClassVar[bool] = (
        False  # all weights are on the device that runs them: it can be timed and trained there
    )

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.adapter = adapt(model)
        self.passes = 0  # walks over all layers, and forward passes in their place
        self.work = (
            NOT_KEPT  # for what must not be in memory, where the placement has such a folder
        )

    @classmethod
    @abstractmethod
    def open(cls, source: ModelFiles, work: WorkFolder) -> "PlacedModel":
        """Return the model of a source at this placement.

        work: for data that is too large for memory; an interrupted run resumes from it.
        """

    def if_streamed(self, work: WorkFolder) -> WorkFolder:
        """Return where a walk keeps its work; nowhere in memory, where it is quick, and its changes are lost."""
        return work if self.streams else NOT_KEPT

    def saved_in(self, directory: Path) -> "PlacedModel":
        """Return the model for further work after it was written to a directory: itself, or what is in the files."""
        return self

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.model.device)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, first to last; their weights may be absent."""
        return self.adapter.layers

    @property
    def device_map(self) -> dict[str, str]:
        """The device of each module, by the module's name; empty if all are on one device."""
        return {}

    @abstractmethod
    def layer(self, index: int) -> AbstractContextManager[nn.Module]:
        """Make a decoder layer present inside the block, and yield it; changes to it are kept."""

    def copy_layer(self, index: int) -> nn.Module:
        """Return a copy of a layer that is present; it may be changed, and run while the layer is present."""
        hooks = [getattr(module, "_hf_hook", None) for module in self.layers[index].modules()]
        # accelerate's hooks refer to all offloaded weights: the copy shares them
        return copy.deepcopy(self.layers[index], {id(hook): hook for hook in hooks})

    def ends(self) -> AbstractContextManager[None]:
        """Make the ends of the model (embeddings, final norm and head) present inside the block."""
        return nullcontext()

    def callable(self) -> AbstractContextManager[None]:
        """Make `model` itself run inside the block, as its `generate` needs; layers on disk are read at each call."""
        return nullcontext()

    def resume_changes(self, layers_done: int) -> None:  # noqa: B027 - nothing to do if changes are in memory
        """Restore the first `layers_done` layers as an interrupted run has changed them; discard changes of others."""

    def fits_in_memory(self, beside_bytes: int = 0) -> bool:
        """Return whether each process has room for the whole model, together with another one of `beside_bytes`."""
        return all(ranks.gather(self.has_room(beside_bytes)))

    def has_room(self, beside_bytes: int) -> bool:
        return ROOM_TO_RUN * beside_bytes <= free_bytes(self.device)

    def in_memory(self) -> "PlacedModel":
        return self

    def write(self, directory: Path) -> None:
        """Write weights and config in transformers' format."""
        self.model.save_pretrained(directory)

    @torch.no_grad()
    def observe(
        self, batches_NT: Sequence[Tensor], recorders: Recorders, work: WorkFolder
    ) -> Iterator[int]:
        """Run all windows once, with recorder i open at layer i, and yield the index of each layer that is finished.

        With the work of an interrupted run, only the remaining layers.
        """
        self.passes += 1
        with ExitStack() as stack:
            for recorder in recorders:
                stack.enter_context(recorder)
            for batch_NT in progress(batches_NT, "calibrate", Tensor.numel):
                self.adapter.counted_P = counted_positions(batch_NT)
                self.adapter.decoder(input_ids=unmarked(batch_NT).to(self.device), use_cache=False)
        yield from range(len(self.layers))

    @torch.no_grad()
    def hidden_states(self, batches_NT: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the final hidden states of each batch, after the last norm. The ends are present at each yield."""
        for batch_NT in batches_NT:
            yield self.adapter.decoder(
                input_ids=batch_NT.to(self.device), use_cache=False
            ).last_hidden_state

    @torch.no_grad()
    def logits(self, tokens_NT: Tensor) -> Tensor:
        return cast(Tensor, self.model(input_ids=tokens_NT.to(self.device), use_cache=False).logits)


class Resident(PlacedModel):
    """A model that is completely on one device."""

    name = "device"
    whole = True

    @classmethod
    def open(cls, source: ModelFiles, work: WorkFolder) -> "Resident":
        """Return the model, loaded on the device of its source."""
        return cls(source.on_device())

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        yield self.layers[index]
