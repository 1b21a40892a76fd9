"""A row of the table of families: the names that modules and config keys have in a family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """The names of the modules in a family's layers, and of its config keys. The defaults are LLaMA's.

    An output projection is a path in a decoder layer; the input projections are beside it. A Linear that is several
    input projections in one has their rows unit after unit, or, if `stacked`, one projection after the other.
    """

    decoder: str = ""  # a path in the base model; empty: it is the base model
    layers: str = "layers"  # a path in the decoder
    tuples: bool = False  # a layer returns its output as the first of a tuple
    attention: str = "self_attn.o_proj"
    attention_inputs: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    attention_norms: tuple[str, ...] = ()  # RMS norms, each over all outputs of the input projection in its place
    attention_vectors: tuple[str, ...] = ()  # parameters with the same number of values for each head
    whole_attention: str = ""  # the output projection in layers whose attention cannot be divided into heads
    stacked: bool = False
    mlp: str = "mlp.down_proj"
    mlp_inputs: tuple[str, ...] = ("gate_proj", "up_proj")
    experts: str = ""  # the module of a layer's experts, where it has any
    router: str = ""  # the module that chooses from them, if one of its rows can leave with an expert
    num_experts: str = "num_experts"  # a config key
    chosen_experts: str = "num_experts_per_tok"  # a config key
    kv_heads: str = "num_key_value_heads"  # a config key; multi-head attention has none
    neurons: str = "intermediate_size"  # a config key, as is the next one
    expert_neurons: str = ""  # of one expert, if its key is another one
    without: tuple[str, ...] = ()  # config keys that must be false or 0
