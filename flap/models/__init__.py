"""Finding and loading models, adapters that give their parts by role, placements, and the walk over the layers."""

from flap.models.adapter import ModelAdapter
from flap.models.architecture import Architecture, find_architecture
from flap.models.base_card import base_facts
from flap.models.block import Block, Pair
from flap.models.configs import read_config
from flap.models.emptied import may_lose_all_heads, run_empty_attention
from flap.models.families import adapt, find_family, sees_images
from flap.models.find import find_model
from flap.models.forward import Batch, Seen
from flap.models.locate import packaged_gguf
from flap.models.offload import distinct_parameters, running_device
from flap.models.placement import PLACEMENTS, OnDisk, PlacedModel, Resident, Spread, open_checkpoint
from flap.models.products import products_in
from flap.models.read import read_model
from flap.models.source import Given, Source
from flap.models.walk import Stream, Walk

__all__ = [
    "PLACEMENTS", "Architecture", "Batch", "Block", "Given", "ModelAdapter", "OnDisk", "Pair",
    "PlacedModel", "Resident", "Seen", "Source", "Spread", "Stream", "Walk", "adapt", "base_facts",
    "distinct_parameters", "find_architecture", "find_family", "find_model", "may_lose_all_heads",
    "open_checkpoint", "packaged_gguf", "products_in", "read_config", "read_model", "run_empty_attention",
    "running_device", "sees_images",
]  # fmt: skip
