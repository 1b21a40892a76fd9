"""A checkpoint as one GGUF file, for llama.cpp and the engines that embed it."""

from flap.checkpoint.gguf.export import check_export, export_gguf
from flap.checkpoint.gguf.tokenizer import source_gguf

__all__ = ["check_export", "export_gguf", "source_gguf"]
