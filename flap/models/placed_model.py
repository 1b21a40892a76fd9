"""The base class of the placements: a model whose weights may be in memory or on disk.

A placement defines where the weights of a model are, and how they get to the device
that runs the model.

Legend: N: windows (token sequences) · T: tokens per window · P: positions of a batch.
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

# A function that returns a context manager, which records statistics of a layer while a batch runs.
# The argument is a mask of the positions that the statistics include, or None for all positions.
Recording: TypeAlias = Callable[[Tensor | None], AbstractContextManager[Any]]


def unrecorded(mask_P: Tensor | None) -> AbstractContextManager[None]:
    """Return a context manager that records nothing."""
    return nullcontext()


class PlacedModel(ABC):
    """A model together with its placement. Each placement is a subclass of this class.

    The attribute `model` always has the current shapes, class and config. The methods of this class
    run forward passes of the whole model. `OnDisk` overrides them with methods that load and run
    one layer after the other.
    """

    name: ClassVar[str]  # the value of `model.placement`
    # Whether layers are read from files when they are needed. If so, a run can resume from files in
    # its working directory.
    streams: ClassVar[bool] = False
    # Whether all weights are always on the device that runs the model. Timing and training require
    # this.
    whole: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.adapter = adapt(model)
        self.passes = 0  # how many times all layers were run, or read from disk
        self.work = NOT_KEPT  # the working directory for data that does not fit into memory

    @classmethod
    @abstractmethod
    def open(cls, source: ModelFiles, work: WorkFolder) -> "PlacedModel":
        """Open the model that `source` describes, at this placement.

        work: the working directory for data that is too large for memory, from which an interrupted
            run resumes.
        """

    def if_streamed(self, work: WorkFolder) -> WorkFolder:
        """Return `work` if layers are read from files (`streams`), else NOT_KEPT.

        With NOT_KEPT, no files are written. Files would be useless for steps that change a model in
        memory: these steps cannot resume, because the changes are lost if the process ends.
        """
        return work if self.streams else NOT_KEPT

    def saved_in(self, directory: Path) -> "PlacedModel":
        """Return the model with which the run continues after this model was saved.

        The caller has already written this model to `directory`. The returned model is this model,
        or a model that reads the written files.
        """
        return self

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.model.device)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers in order. The weights of layers may be on the meta device."""
        return self.adapter.layers

    @property
    def device_map(self) -> dict[str, str]:
        """A dict from names of modules to devices; empty unless accelerate has placed the model."""
        return {}

    @abstractmethod
    def layer(self, index: int) -> AbstractContextManager[nn.Module]:
        """Keep the weights of a decoder layer on the device that runs it, inside a `with` block.

        Changes to the layer inside the block are kept.
        """

    def copy_layer(self, index: int) -> nn.Module:
        """Return a copy of a layer whose weights are on the device that runs it (`layer`).

        Changes to the copy do not affect the layer. The copy can run as long as the weights of the
        layer are on the device.
        """
        hooks = [getattr(module, "_hf_hook", None) for module in self.layers[index].modules()]
        # Do not copy accelerate's hooks, because they refer to all offloaded weights.
        return copy.deepcopy(self.layers[index], {id(hook): hook for hook in hooks})

    def ends(self) -> AbstractContextManager[None]:
        """Keep embeddings, final norm and LM head on the device inside a `with` block."""
        return nullcontext()

    def callable(self) -> AbstractContextManager[None]:
        """Make `model` callable inside a `with` block, for example for `model.generate`.

        If layers are on disk, each call of the model reads them again.
        """
        return nullcontext()

    def resume_changes(self, layers_done: int) -> None:  # noqa: B027 - nothing to do in memory
        """Restore the changes that an interrupted run has made to the first `layers_done` layers.

        Changes that the interrupted run has made to later layers are discarded.
        """

    def fits_in_memory(self, beside_bytes: int = 0) -> bool:
        """Return whether every process has enough memory to run the whole model.

        beside_bytes: the size in bytes of another model that must be in memory at the same time.
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
        """Run all windows once, and yield the index of each finished layer.

        `recordings[i]` is called with the mask of each batch, and the context manager that it
        returns is active while layer i runs. After an interruption, a model that is read from files
        runs only the layers that the interrupted run has not finished.
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
        """Yield the hidden states of each batch after the final norm.

        The weights of embeddings, final norm and LM head are on the device at each yield.
        """
        for batch_NT in batches_NT:
            output = self.adapter.decoder(input_ids=batch_NT.to(self.device), use_cache=False)
            yield output.last_hidden_state

    @torch.no_grad()
    def logits(self, tokens_NT: Tensor) -> Tensor:
        output = self.model(input_ids=tokens_NT.to(self.device), use_cache=False)
        return cast(Tensor, output.logits)
