"""The placements, which define where the weights of a model are (option `model.placement`)."""

from flap.models.placed_model import PlacedModel
from flap.models.placement.on_disk import OnDisk, open_checkpoint
from flap.models.placement.resident import Resident
from flap.models.placement.spread import Spread

PLACEMENTS: dict[str, type[PlacedModel]] = {
    placement.name: placement for placement in (Resident, Spread, OnDisk)
}

# A dict from the name of each placement to whether it reads layers from disk.
STREAMS = {name: placed.streams for name, placed in PLACEMENTS.items()}

__all__ = [
    "PLACEMENTS",
    "STREAMS",
    "OnDisk",
    "Resident",
    "Spread",
    "open_checkpoint",
]
