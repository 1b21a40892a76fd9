"""placement=auto: accelerate distributes the model over GPUs, host memory and disk."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from flap.models.devices import free_bytes
from flap.models.offload import onloaded
from flap.models.placement.base import Weights
from flap.models.placement.resident import InMemory
from flap.models.read import read_model


class Spread(InMemory):
    """A model whose modules are onloaded by accelerate while they run."""

    @classmethod
    def open(cls, source: Weights, more_to_come: bool, folder: Path | None) -> "Spread":
        """Load the model on the GPUs first, then in host memory, then on disk. A CPU run uses no GPU.

        Changes of layers that are on disk are written to a folder that is deleted with the model.
        """
        memory = {"cpu": free_bytes(source.device) * 9 // 10} if source.device.type == "cpu" else None
        source.offload.mkdir(parents=True, exist_ok=True)
        changes = TemporaryDirectory(dir=source.offload)
        model = source.read(device_map="auto", max_memory=memory, offload_folder=changes.name)
        model.offload_folder = changes
        return cls(model)

    @property
    def device_map(self) -> dict[str, str]:
        """The device of each module, as accelerate has placed them."""
        return {module: str(place) for module, place in getattr(self.model, "hf_device_map", {}).items()}

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """Onload a layer inside the block, and yield it."""
        with onloaded(self.layers[index]):
            yield self.layers[index]

    def copy_layer(self, index: int) -> nn.Module:
        """Return a copy of a layer that is present; it shares accelerate's hooks with the layer."""
        hooks = [getattr(module, "_hf_hook", None) for module in self.layers[index].modules()]
        return copy.deepcopy(
            self.layers[index], {id(hook): hook for hook in hooks}
        )  # hooks refer to all offloaded weights

    def reopen(self, directory: Path) -> "Spread":
        """Return the model of a directory, placed by accelerate."""
        return Spread(read_model(directory, device_map="auto"))
