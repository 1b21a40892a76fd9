"""Pruned models whose layers differ in width. It is saved with the weights; needs transformers and torch.

One file, whatever its length: whoever loads a checkpoint with `trust_remote_code` reads and trusts this one.

The config is the base architecture's, plus `head_dim` and `per_layer_config`: for each layer its number of heads and
neurons, and whether its two output projections have a bias. Keys that are absent are as in the dense model.
Of a vision-language model, only the language model is pruned: these keys are in its `text_config`.
The classes of an architecture are made when they are asked for: `FlapLlamaConfig` of `LlamaConfig`, and so on.
Written by flap (flap-pruning); the method is FLAP, An et al., AAAI 2024.
"""

import math
import sys
from copy import copy

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

# The output projections of attention and MLP in a decoder layer, which has one of each.
ATTENTION_OUTPUTS = (
    "self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attention.dense", "self_attention.dense",
    "attn.c_proj", "mixer.o_proj",
)  # fmt: skip
MLP_OUTPUTS = (
    "mlp.down_proj", "feed_forward.down_proj", "mlp.c_proj", "mlp.fc2", "fc2", "mlp.dense_4h_to_h", "mixer.down_proj",
)  # fmt: skip
# The architectures whose attention has the hidden size as its width; they do not use `head_dim`.
SQUARE = ("OPT", "GPTNeoX", "StableLm", "Falcon", "GPT2", "Qwen2_5_VL")
KERNEL_MULTIPLE = (
    8  # the grouped kernel takes experts whose number of neurons is a multiple of it, in any dtype
)
AUTO_CLASSES = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
# Of a vision-language model; its language model may have the same prefix, as Gemma 3 has.
WHOLE_AUTO_CLASSES = {
    "AutoConfig": "WholeConfig", "AutoModel": "WholeModel", "AutoModelForImageTextToText": "ForConditionalGeneration",
}  # fmt: skip
# What ends the names of the classes of transformers that they derive from.
BASES = {
    "Config": ("TextConfig", "Config"), "Model": ("TextModel", "Model"), "ForCausalLM": ("ForCausalLM", "LMHeadModel"),
    "WholeConfig": ("Config",), "WholeModel": ("Model",), "ForConditionalGeneration": ("ForConditionalGeneration",),
}  # fmt: skip
# The language model of a vision-language model, in its base model; Llama 4's is beside its head.
TOWERS = ("language_model", "text_model", "model")

# The class before object: what comes after it is a plain lookup, without the names and warnings of transformers.
LAST_MIXIN = transformers.PreTrainedConfig.__mro__[-2]


class PrunedConfigMixin:
    """A config with widths for each layer. Its global widths are the dense model's and may still be read."""

    attention_output_bias = None  # None: as in the base architecture
    mlp_output_bias = None
    head_dim = None  # Falcon computes it from the number of heads

    @property
    def allow_global_per_layer_attribute_access(self):
        """True: transformers may read the global widths."""
        return True

    def __getattribute__(self, key):
        """Return an attribute; a global width, too, which transformers would return with a warning."""
        plain = super(
            LAST_MIXIN, self
        )  # that of object, which torch.compile cannot trace by its name
        return plain.__getattribute__(plain.__getattribute__("attribute_map").get(key, key))


class PrunedModelMixin:
    """A model that builds the dense architecture (on meta when loading), then each layer again with its own widths."""

    def __init__(self, config, *args, **kwargs):
        text_config = config.get_text_config()
        widths = text_config.to_dict().get("per_layer_config")
        if config._attn_implementation == "vllm":
            check_for_vllm(
                widths, sys.modules["vllm.distributed"].get_tensor_model_parallel_world_size()
            )
        text_config.per_layer_config = _head_dims(widths)
        super().__init__(config, *args, **kwargs)
        text_config.per_layer_config = widths
        layers = decoder_layers(self)
        architecture = _architecture(self)
        for i, layer_config in enumerate(text_config.per_layer_config):
            layers[i] = _build(layers[i], layer_config, i, architecture)
        share_config(self)
        self.post_init()

    @classmethod
    def is_custom_code(cls):
        """Return False: the modules are those of transformers, which then also fills buffers that are in no file."""
        return False


class PrunedExpertsMixin:
    """Experts with output biases, which the router weights as outputs."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        """Run the chosen experts, and add their biases."""
        output = super().forward(hidden_states, top_k_index, top_k_weights)
        return output + (top_k_weights[..., None] * self.down_proj_bias[top_k_index]).sum(1).to(
            output.dtype
        )


class PrunedEachMixin:
    """As PrunedExpertsMixin, where each expert takes all tokens, and zeros for those that are sent to others."""

    def forward(self, hidden_states):
        """Run the experts, and add the bias of each to its own tokens."""
        inputs = hidden_states.unflatten(0, (self.num_experts, -1))
        biases = inputs.any(dim=-1, keepdim=True) * self.down_proj_bias[:, None]
        return (super().forward(hidden_states) + biases.flatten(0, 1)).to(hidden_states.dtype)


def add_biases(experts):
    """Give experts the class that adds their output biases, unless they have it or the family's own adds them."""
    added = hasattr(experts, "down_proj_bias") and not getattr(experts, "has_bias", False)
    if added and not any(cls.__name__.startswith("PrunedE") for cls in type(experts).__mro__):
        mixin = PrunedExpertsMixin if hasattr(experts, "has_bias") else PrunedEachMixin
        experts.__class__ = type(type(experts).__name__, (mixin, type(experts)), {})


def _head_dims(widths):
    """Return what the whole model must know of its layers: the sizes of heads, where they differ (Gemma 4)."""
    return {
        i: {"head_dim": layer["head_dim"]} for i, layer in widths.items() if "head_dim" in layer
    } or None


def check_for_vllm(widths, ranks):
    """Refuse in one line widths that do not split.

    ranks: vLLM's `tensor_parallel_size`; each of its processes takes an equal part of a layer's heads and neurons.
    """
    units = [
        (i, *one) for i, layer in widths.items() for one in layer.items() if type(one[1]) is int
    ]
    units = [
        one for one in units if "experts" not in one[1] and one[1] != "head_dim"
    ]  # which are not split
    for i, name, n in units:
        if n % ranks:
            option = (
                f"structure.multiple_of_heads={ranks}" if name.endswith("heads") else "round_to=8"
            )
            fits = math.gcd(ranks, *(n for _, _, n in units))
            rest = f"serve with tensor_parallel_size={fits}, or prune with {option}"
            raise ValueError(
                f"vLLM: {name}={n} in layer {i} does not split over tensor_parallel_size={ranks}: {rest}"
            )


def language_model(model):
    """Return the language model without its head: in a vision-language model a part of the base model."""
    base = model.base_model
    return next((getattr(base, name) for name in TOWERS if hasattr(base, name)), base)


def decoder_layers(model):
    """Return the decoder layers of a model."""
    base = language_model(model)
    base = getattr(base, "decoder", base)  # OPT has a decoder inside the decoder
    return base.layers if hasattr(base, "layers") else base.h


def _architecture(model):
    """Return the name of the language model's architecture, as Llama of LlamaModel."""
    name = type(language_model(model)).__name__.removeprefix("Flap")
    return name.removesuffix("Model").removesuffix("Text")


def share_config(model):
    """Give the language model its config, and the modules of each layer the same with the widths of that layer."""
    config = model.config.get_text_config()
    base = language_model(model)
    base.config = config  # transformers has copied it
    if hasattr(base, "rotary_emb"):
        base.rotary_emb.config = RotaryConfig(
            config, _head_dims(config.to_dict()["per_layer_config"])
        )
    for i, layer in enumerate(decoder_layers(model)):
        for module in layer.modules():
            if hasattr(module, "config"):
                module.config = LayerConfig(config, i)
                neurons = getattr(
                    module, "intermediate_dim", getattr(module, "intermediate_size", 0)
                )
                if hasattr(module, "num_experts") and neurons % KERNEL_MULTIPLE:
                    module.config._experts_implementation = "eager"


class LayerConfig:
    """The config of a layer: its own widths, all else from the model's config, also what is changed there later."""

    def __init__(self, config, layer):
        own = config.per_layer_config[layer]
        vars(self).update(
            {name: getattr(own, name) for name in config.per_layer_attributes or ()}, _shared=config
        )

    def __getattr__(self, name):
        if name.startswith("__"):  # copy asks before `_shared` is set
            raise AttributeError(name)
        return getattr(self._shared, name)


class RotaryConfig(LayerConfig):
    """The model's config with nothing but the size of heads by layer, which is the same in all layers of a type."""

    def __init__(self, config, sizes):
        alike = copy(config)
        alike.per_layer_config = sizes
        vars(self).update(per_layer_config=alike.per_layer_config, _shared=config)


def _build(dense, layer_config, i, architecture):
    """Build layer i with its own widths and biases; the modules that are not pruned are those of the dense layer."""
    layer_class = type(dense)
    names = dict(dense.named_modules())
    attention_output, mlp_output = (
        next((name for name in outputs if name in names), outputs[0])
        for outputs in (ATTENTION_OUTPUTS, MLP_OUTPUTS)
    )
    if getattr(layer_config, "use_double_wide_mlp", False):  # Gemma 4 doubles what it reads
        layer_config.use_double_wide_mlp = False
    if architecture in SQUARE:
        layer = _build_square(layer_class, layer_config, i, *attention_output.split("."))
    else:
        layer = layer_class(layer_config, i)
    for parent, name in (
        ("mlp", "shared_experts"),
        ("feed_forward", "shared_expert"),
        ("", "mamba"),
    ):
        if f"{parent}.{name}".strip(".") in names:
            setattr(layer.get_submodule(parent), name, getattr(dense.get_submodule(parent), name))
    if architecture == "Olmoe":  # its norms of queries and keys are built for the hidden size
        for norm, linear in (("q_norm", "q_proj"), ("k_norm", "k_proj")):
            width = getattr(layer.self_attn, linear).out_features
            getattr(layer.self_attn, norm).weight = nn.Parameter(torch.ones(width))
    _match_bias(layer, attention_output, layer_config.attention_output_bias)
    experts = next(
        (module for name, module in layer.named_modules() if name.rpartition(".")[2] == "experts"),
        None,
    )
    if experts is None:
        _match_bias(layer, mlp_output, layer_config.mlp_output_bias)
        return layer
    width = getattr(layer_config, "moe_latent_size", None) or layer_config.hidden_size
    if layer_config.mlp_output_bias and not getattr(experts, "has_bias", False):
        experts.down_proj_bias = nn.Parameter(torch.zeros(experts.num_experts, width))
    add_biases(experts)
    return layer


def _build_square(layer_class, config, i, attention, output):
    """Build a layer of a SQUARE architecture: attention of width heads × head_dim between two of the hidden size."""
    heads = config.num_attention_heads
    hidden_size = config.hidden_size
    config.num_attention_heads = hidden_size // config.head_dim
    layer = layer_class(config, i)
    config.num_attention_heads, config.hidden_size = heads, heads * config.head_dim
    narrow = type(getattr(layer, attention))(config, layer_idx=i)
    for name, linear in narrow.named_children():
        if hasattr(linear, "weight"):
            outputs, inputs = (
                linear.weight.T.shape if isinstance(linear, Conv1D) else linear.weight.shape
            )
            sides = (inputs, hidden_size) if name == output else (hidden_size, outputs)
            setattr(narrow, name, _linear(linear, *sides, bias=linear.bias is not None))
    setattr(layer, attention, narrow)
    return layer


def _linear(like, inputs, outputs, bias):
    """Make a projection of the class of another one."""
    return (
        Conv1D(outputs, inputs)
        if isinstance(like, Conv1D)
        else type(like)(inputs, outputs, bias=bias)
    )


def _match_bias(layer, path, bias):
    """Replace the Linear at `path` if it must have a bias and has none, or the reverse."""
    linear, (parent, _, name) = dict(layer.named_modules()).get(path), path.rpartition(".")
    if linear is not None and bias is not None and (linear.bias is not None) != bias:
        new = _linear(linear, linear.in_features, linear.out_features, bias=bias)
        setattr(layer.get_submodule(parent), name, new)


def _class(architecture, kind):
    """Make the config, decoder or causal LM class of an architecture, with the name that `auto_map` refers to."""
    names = [architecture + name for name in BASES[kind]]
    base = next(getattr(transformers, name) for name in names if hasattr(transformers, name))
    mixin = PrunedConfigMixin if kind.endswith("Config") else PrunedModelMixin
    kinds = WHOLE_AUTO_CLASSES if kind in WHOLE_AUTO_CLASSES.values() else AUTO_CLASSES
    extra = {
        "__module__": __name__,
        "_auto_class": next(auto for auto, one in kinds.items() if one == kind),
    }
    if kind.endswith("Config"):
        extra["model_type"] = f"flap_{base.model_type}"
        if hasattr(
            base, "logits_scaling"
        ):  # Granite divides logits by it, vLLM's backend multiplies
            extra["logit_scale"] = property(lambda config: 1 / config.logits_scaling)
    else:
        extra["config_class"] = pruned_class(architecture, kinds["AutoConfig"])
    return type(f"Flap{architecture}{kind}", (mixin, base), extra)


def pruned_class(architecture, kind):
    """Return the config, base model or model class of an architecture, made when it is first asked for."""
    name = f"Flap{architecture}{kind}"
    return globals().get(name) or globals().setdefault(name, _class(architecture, kind))


def __getattr__(name):
    for kind in (*WHOLE_AUTO_CLASSES.values(), *AUTO_CLASSES.values()):
        if name.startswith("Flap") and name.endswith(kind):
            return pruned_class(name.removeprefix("Flap").removesuffix(kind), kind)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
