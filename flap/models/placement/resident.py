"""placement=device: the whole model is on the device that runs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from flap.models.model_files import ModelFiles
from flap.models.placed_model import PlacedModel
from flap.storage import WorkFolder


class Resident(PlacedModel):
    """A model on one device."""

    name = "device"
    whole = True

    @classmethod
    def open(cls, source: ModelFiles, work: WorkFolder) -> "Resident":
        """Load the whole model onto the device that `source` names."""
        return cls(source.on_device())

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        yield self.layers[index]
