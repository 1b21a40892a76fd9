"""What is refused of the checkpoints of `make.py`, and with what words; vLLM must compute everything else."""

REFUSED = {
    "llama-no-attention": r"^vLLM: num_attention_heads=0 in layer 1: .*; prune with structure\.min_heads=1$",
    "llama-no-mlp": r"^vLLM: intermediate_size=0 in layer 1: .*; prune with structure\.min_neurons=1$",
}
