"""placement=device: the whole model is on the device that runs it."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

from torch import nn
from transformers import PreTrainedModel

from flap.models.model_files import ModelFiles
from flap.models.placement.base import PlacedModel
from flap.storage import WorkFolder


class Resident(PlacedModel):
    """A model that is completely on one device."""

    name = "device"
    whole = True

    @classmethod
    def open(cls, source: ModelFiles, work: WorkFolder) -> "Resident":
        """Return the model, loaded on the device of its source.

        If the source keeps the dense model, the returned one shares its tensors: pruning gives a model new tensors and
        does not change the old ones.
        """
        dense = source.kept_dense
        return cls(source.on_device() if dense is None else copy_sharing_tensors(dense))

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        yield self.layers[index]


def copy_sharing_tensors(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model whose parameters and buffers are those of the model."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return deepcopy(model, shared)
