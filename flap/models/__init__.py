"""Load a model and speak of its parts by role."""

from flap.models.adapter import Block, ModelAdapter
from flap.models.families import adapt, adapter_class
from flap.models.load import Source, find_model, free_bytes, packaged_gguf
from flap.models.stream import ON_META, AnyModel, StreamedModel, adapter_of

__all__ = [
    "ON_META", "AnyModel", "Block", "ModelAdapter", "Source", "StreamedModel", "adapt", "adapter_class", "adapter_of",
    "find_model", "free_bytes", "packaged_gguf",
]  # fmt: skip
