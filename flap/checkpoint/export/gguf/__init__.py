"""Export of a checkpoint as a GGUF file for llama.cpp and the engines that are built on it."""
