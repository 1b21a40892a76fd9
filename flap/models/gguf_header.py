"""Read the header of a GGUF, and check that transformers builds the same model as llama.cpp.

transformers converts most keys of a GGUF into config keys, and leaves all other config keys at
their defaults. This module sets some of these other config keys, so that the model in transformers
computes the same outputs as in llama.cpp. If the outputs would still differ, the file is refused.
"""

import re
from typing import Any

import torch
from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

BLOCK = re.compile(r"blk\.(\d+)\.")  # prefix of the names of a layer's tensors in a GGUF
SUFFIXES = (".weight", ".bias")
ROPE_FACTORS = "rope_freqs.weight"  # the only tensor whose values become config values
# A dict from projections, as a GGUF names them, to the config key that says whether the projection
# has a bias.
BIASES = {"attn_q": "attention_bias", "attn_output": "attention_bias", "ffn_down": "mlp_bias"}
# llama.cpp recognises the 27B models of Gemma by these numbers of layers.
LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
# Keys for the soft caps of Gemma 2, which have the same names in a GGUF and in a config.
SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


class GGUFHeader:
    """The keys of a GGUF, and the names of its tensors.

    Raises:
        LookupError, ValueError and others: the header is damaged.
    """

    def __init__(self, reader: GGUFReader) -> None:
        self.reader = reader
        self.architecture: str = reader.fields["general.architecture"].contents()
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    def value(self, key: str) -> Any:
        """Return the value of a key, or None if the file does not have it."""
        field = self.reader.fields.get(key)
        return field.contents() if field else None

    def check_sizes(self) -> None:
        """Check the numbers of layers and heads, before a model with these numbers is built.

        Raises:
            ValueError: the tensors belong to more or fewer layers than the header says, the width
                of the query projection is no multiple of the number of heads, or the number of
                heads is no multiple of the number of KV heads.
        """
        layers = self._own("block_count")
        blocks = {match[1] for match in map(BLOCK.match, self.tensors) if match}
        if layers != len(blocks) or not blocks:
            raise ValueError(
                f"{self.architecture}.block_count={layers}: must be the number of layers that have "
                f"tensors in the file, which is {len(blocks)}"
            )
        self._check_heads()

    def complete(self, config: PreTrainedConfig) -> None:
        """Set the config keys for biases, Gemma's attention and RoPE that transformers leaves out.

        Raises:
            ValueError: RoPE is scaled in a way that is not supported.
        """
        for tensor, key in BIASES.items():
            if hasattr(config, key) and f"blk.0.{tensor}.bias" in self.tensors:
                setattr(config, key, True)
        if self.architecture in LAYERS_OF_27B:
            self._complete_gemma(config)
        self._complete_rope(config)

    def check_tensors(self, model: PreTrainedModel) -> None:
        """Check that a model uses every tensor of the file. The model may be on the meta device.

        Raises:
            ValueError: transformers would ignore a tensor.
        """
        archs = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
        table = get_tensor_name_map(archs[self.architecture], model.config.num_hidden_layers)
        processor = TENSOR_PROCESSORS.get(self.architecture, TensorProcessor)()
        places = {ROPE_FACTORS: "config"}
        for name in model.state_dict():
            gguf_name = table.get_name(name, try_suffixes=SUFFIXES)
            # the table lacks names of some tensors, such as the gate and up projections of experts
            if gguf_name is None:
                processor.perform_fallback_tensor_mapping(places, "", "", name)
            else:
                places[gguf_name] = name
        ignored = [
            name
            for name in self.tensors
            if name not in places and name.removesuffix(".weight") not in places
        ]
        if ignored:
            raise ValueError(
                f"{len(ignored)} tensors are not used in a {model.config.model_type} with "
                f"{model.config.num_hidden_layers} layers, as {', '.join(ignored[:3])}"
            )

    def _own(self, key: str) -> Any:
        return self.value(f"{self.architecture}.{key}")

    def _check_heads(self) -> None:
        name = f"{self.architecture}.attention.head_count"
        heads = self._own("attention.head_count")
        queries = self.tensors.get("blk.0.attn_q.weight")
        if self._own("attention.key_length") is None or queries is None:
            hidden_size = self._own("embedding_length")
            _check_divides(name, heads, f"{self.architecture}.embedding_length", hidden_size)
        else:
            _check_divides(name, heads, "the rows of blk.0.attn_q.weight", int(queries.shape[1]))
        kv_heads = self._own("attention.head_count_kv")
        if kv_heads is not None:
            _check_divides(f"{name}_kv", kv_heads, name, heads)

    def _complete_gemma(self, config: PreTrainedConfig) -> None:
        """Set the scale of attention scores and the soft caps to the values of llama.cpp.

        A GGUF has no key for the scale. llama.cpp computes the scale from the number of channels of
        a head, or in Gemma's 27B models, from hidden size / number of heads.
        """
        if config.num_hidden_layers == LAYERS_OF_27B[self.architecture]:
            config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
        else:
            config.query_pre_attn_scalar = config.head_dim
        for key in SOFT_CAPS:
            cap = self._own(key)
            if cap is not None:
                setattr(config, key, cap or None)

    def _complete_rope(self, config: PreTrainedConfig) -> None:
        scaled = [key for key in self.reader.fields if ".rope.scaling." in key]
        # for gpt_oss, transformers reads the keys that scale RoPE, so the file need not be refused
        if config.model_type == "gpt_oss":
            scaled = []
        if ROPE_FACTORS in self.tensors:
            factors = torch.tensor(self.tensors[ROPE_FACTORS].data)
            if not _set_llama3_rope(config, factors):
                scaled.append(ROPE_FACTORS)
        if scaled:
            raise ValueError(f"it does not compute {', '.join(scaled)}")


def _check_divides(name: str, number: Any, width_name: str, width: Any) -> None:
    if isinstance(number, list) or isinstance(width, list):
        return  # a list, which has a number for each layer, is not checked
    if not number or not width or width % number:
        raise ValueError(f"{name}={number}: must divide {width_name}={width}")


def _set_llama3_rope(config: PreTrainedConfig, factors: torch.Tensor) -> bool:
    """Set RoPE scaling as in LLaMA 3. Return whether this scaling gives the GGUF's frequencies.

    factors: the tensor `rope_freqs.weight` of the GGUF, which has a divisor for the frequency of
        each pair of dimensions.
    """
    theta = config.rope_parameters["rope_theta"]
    dim = getattr(config, "head_dim", 0) or 2 * len(factors)
    expected = theta ** (-torch.arange(0, dim, 2).double() / dim) / factors
    config.rope_parameters |= {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return torch.allclose(frequencies.double(), expected, rtol=1e-3)
