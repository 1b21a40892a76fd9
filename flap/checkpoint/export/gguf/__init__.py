"""Export a checkpoint as one GGUF file, for llama.cpp and the engines that are built on it."""

from flap.checkpoint.export.gguf.export import export_gguf
from flap.checkpoint.export.gguf.tokenizer import source_gguf

__all__ = ["export_gguf", "source_gguf"]
