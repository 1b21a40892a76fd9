"""Load a model and speak of its parts by role."""

from flap.models.adapter import Block, ModelAdapter
from flap.models.families import adapt, adapter_class
from flap.models.load import Source, find_model, packaged_gguf

__all__ = ["Block", "ModelAdapter", "Source", "adapt", "adapter_class", "find_model", "packaged_gguf"]
