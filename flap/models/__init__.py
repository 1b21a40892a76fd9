"""Load a model and speak of its parts by role."""

from flap.models.adapter import Block, ModelAdapter
from flap.models.families import adapt, adapter_class
from flap.models.load import Source, find_model
from flap.models.locate import packaged_gguf
from flap.models.offload import at_hand
from flap.models.stream import ON_META, AnyModel, StreamedModel, adapter_of, in_memory, room_for

__all__ = [
    "ON_META", "AnyModel", "Block", "ModelAdapter", "Source", "StreamedModel", "adapt", "adapter_class", "adapter_of",
    "at_hand", "find_model", "in_memory", "packaged_gguf", "room_for",
]  # fmt: skip
