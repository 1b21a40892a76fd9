"""Export a checkpoint as one GGUF file, for llama.cpp and the engines that are built on it."""
