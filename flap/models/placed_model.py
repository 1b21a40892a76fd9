"""A model whose weights may be anywhere: the base class of the placements.

A placement says where the weights of a model are, and how they get to the device that runs them.

Legend: N windows · T tokens a window · P positions of a batch · D hidden size.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flap.data import Batch
from flap.models.architecture import adapt
from flap.models.devices import ROOM_TO_RUN, free_bytes
from flap.models.model_files import ModelFiles
from flap.runtime import ranks
from flap.runtime.progress import progress
from flap.storage import NOT_KEPT, WorkFolder

# Opens what records a layer while a batch runs, given the mask_P of the batch. None: all count.
Recording: TypeAlias = Callable[[Tensor | None], AbstractContextManager[Any]]


def unrecorded(mask_P: Tensor | None) -> AbstractContextManager[None]:
    """Record nothing."""
    return nullcontext()


class PlacedModel(ABC):
    """A model at one of the placements.

    `model` always has the right shapes, class and config. A layer is *present* while its weights
    are on the device. The methods that are defined here are for models that can run as a whole, so
    that a forward pass replaces a walk over the layers.
    """

    name: ClassVar[str]  # the value of `model.placement`
    # Whether layers are read from files when they are needed. Then work is kept in files, and
    # changes that were not written are lost.
    streams: ClassVar[bool] = False
    # Whether all weights are on the device that runs them. Only then can the model be timed and
    # trained.
    whole: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.adapter = adapt(model)
        self.passes = 0  # the number of walks over all layers, or of forward passes instead
        self.work = NOT_KEPT  # a folder for data that is not kept in memory

    @classmethod
    @abstractmethod
    def open(cls, source: ModelFiles, work: WorkFolder) -> "PlacedModel":
        """Return the model of a source at this placement.

        work: The folder for data that is too large for memory. An interrupted run resumes from it.
        """

    def if_streamed(self, work: WorkFolder) -> WorkFolder:
        """Return the folder in which a walk keeps its work.

        A model in memory keeps nothing: it is quick, and its changes are lost with the process.
        """
        return work if self.streams else NOT_KEPT

    def saved_in(self, directory: Path) -> "PlacedModel":
        """Return the model for further work after it was written.

        This is the model itself, or a model that reads the written files.
        """
        return self

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.model.device)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, first to last. Their weights may be absent."""
        return self.adapter.layers

    @property
    def device_map(self) -> dict[str, str]:
        """The device of each module by its name. Empty if all are on one device."""
        return {}

    @abstractmethod
    def layer(self, index: int) -> AbstractContextManager[nn.Module]:
        """Make a decoder layer present inside the block, and yield it. Changes to it are kept."""

    def copy_layer(self, index: int) -> nn.Module:
        """Return a copy of a layer that is present.

        The copy may be changed, and may run while the layer is present.
        """
        hooks = [getattr(module, "_hf_hook", None) for module in self.layers[index].modules()]
        # The copy shares accelerate's hooks, which refer to all offloaded weights.
        return copy.deepcopy(self.layers[index], {id(hook): hook for hook in hooks})

    def ends(self) -> AbstractContextManager[None]:
        """Make the embeddings, the final norm and the head present inside the block."""
        return nullcontext()

    def callable(self) -> AbstractContextManager[None]:
        """Make `model` itself run inside the block, as `generate` needs.

        Layers on disk are read at each call.
        """
        return nullcontext()

    def resume_changes(self, layers_done: int) -> None:  # noqa: B027 - nothing to do in memory
        """Restore the changes of an interrupted run to the first `layers_done` layers.

        Changes of other layers are discarded.
        """

    def fits_in_memory(self, beside_bytes: int = 0) -> bool:
        """Return whether each process has room for the whole model.

        beside_bytes: The bytes of another model that must fit beside it.
        """
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
        self, batches: Sequence[Batch], recordings: Sequence[Recording], work: WorkFolder
    ) -> Iterator[int]:
        """Run all windows once, with recording i open at layer i.

        Yields the index of each layer that is finished. With the work of an interrupted run, only
        the remaining layers run.
        """
        self.passes += 1
        for batch in progress(batches, "calibrate", Batch.numel):
            with ExitStack() as stack:
                for recording in recordings:
                    stack.enter_context(recording(batch.mask_P))
                self.adapter.decoder(input_ids=batch.tokens_NT.to(self.device), use_cache=False)
        yield from range(len(self.layers))

    @torch.no_grad()
    def hidden_states(self, batches_NT: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the hidden states of each batch after the last norm.

        The ends of the model are present at each yield.
        """
        for batch_NT in batches_NT:
            output = self.adapter.decoder(input_ids=batch_NT.to(self.device), use_cache=False)
            yield output.last_hidden_state

    @torch.no_grad()
    def logits(self, tokens_NT: Tensor) -> Tensor:
        output = self.model(input_ids=tokens_NT.to(self.device), use_cache=False)
        return cast(Tensor, output.logits)
