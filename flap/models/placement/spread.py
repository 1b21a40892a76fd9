"""placement=auto: accelerate distributes the model over GPUs, host memory and disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from flap.models.devices import free_bytes
from flap.models.model_files import ModelFiles
from flap.models.offload import onloaded, running_device
from flap.models.placed_model import PlacedModel
from flap.storage import WorkFolder
from flap.storage.atomic_files import remove_unused
from flap.storage.locks import use


class Spread(PlacedModel):
    """A model on several devices. accelerate loads offloaded weights while their modules run."""

    name = "auto"

    @classmethod
    def open(cls, source: ModelFiles, work: WorkFolder) -> "Spread":
        """Fill the GPUs with weights first, then host memory. Keep all other weights on disk.

        With model.device=cpu, no GPU is used. If a layer on disk is changed, it is written to a
        folder that is deleted with the model.
        """
        source.offload.mkdir(parents=True, exist_ok=True)
        # Remove the offload folders of processes that have ended.
        for lock in source.offload.glob("*.lock"):
            remove_unused(lock.with_suffix(""))
        changes = TemporaryDirectory(dir=source.offload, ignore_cleanup_errors=True)
        use(Path(changes.name))
        model = source.read(
            device_map="auto", max_memory=memory_limits(source.device), offload_folder=changes.name
        )
        model.offload_folder = changes
        return cls(model)

    @property
    def device(self) -> torch.device:
        return running_device(self.model)

    @property
    def device_map(self) -> dict[str, str]:
        return {
            module: str(place) for module, place in getattr(self.model, "hf_device_map", {}).items()
        }

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        with onloaded(self.layers[index]):
            yield self.layers[index]

    def write(self, directory: Path) -> None:
        """Write weights and config.

        Weights that are tied to each other are written once. By default, transformers would write
        every offloaded copy of these weights.
        """
        tied: dict[str, str] = getattr(self.model, "all_tied_weights_keys", {})
        state = self.model.state_dict()
        untied = {name: tensor for name, tensor in state.items() if name not in tied}
        self.model.save_pretrained(directory, state_dict=untied)

    def has_room(self, beside_bytes: int) -> bool:
        return True  # accelerate offloads the weights that do not fit


def memory_limits(device: torch.device) -> dict[int | str, int]:
    """Return the maximum bytes of weights for each GPU and for the host.

    The rest of the memory stays free for activations and the statistics of calibration.
    """
    limits: dict[int | str, int] = {}
    if device.type == "cuda":
        for i in range(torch.cuda.device_count()):
            limits[i] = free_bytes(torch.device("cuda", i)) * 7 // 10
    limits["cpu"] = free_bytes(torch.device("cpu")) * 9 // 10
    return limits
