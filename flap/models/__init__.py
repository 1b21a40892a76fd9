"""Find and load models, access their parts in the same way for all families, and run layers."""

from flap.models.adapter import ModelAdapter
from flap.models.architecture import adapt, find_family, stock_class
from flap.models.block import Block, Pair
from flap.models.config_files import read_config, read_tokenizer
from flap.models.find import find_model
from flap.models.gguf_file import find_gguf
from flap.models.loaded_source import LoadedSource
from flap.models.locate import base_facts
from flap.models.model_files import read_model
from flap.models.offload import count_parameters, distinct_parameters, running_device
from flap.models.placed_model import PlacedModel
from flap.models.placement import PLACEMENTS, OnDisk, Resident, Spread, open_checkpoint
from flap.models.source import CheckpointSource, ModelSource
from flap.models.walk import Stream, Walk
from flap.models.whole_experts import OfToken

__all__ = [
    "PLACEMENTS",
    "Block",
    "CheckpointSource",
    "LoadedSource",
    "ModelAdapter",
    "ModelSource",
    "OfToken",
    "OnDisk",
    "Pair",
    "PlacedModel",
    "Resident",
    "Spread",
    "Stream",
    "Walk",
    "adapt",
    "base_facts",
    "count_parameters",
    "distinct_parameters",
    "find_family",
    "find_gguf",
    "find_model",
    "open_checkpoint",
    "read_config",
    "read_model",
    "read_tokenizer",
    "running_device",
    "stock_class",
]
