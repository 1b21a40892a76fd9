"""Pruned models whose layers differ in width. This file travels with the weights and needs transformers alone.

The config is the base architecture's, plus `head_dim` and `per_layer_config`: for each layer its number of heads and
neurons, and whether its two output projections have a bias. Keys left out are as in the dense model.
Written by flap (flap-pruning); the method is FLAP, An et al., AAAI 2024.
"""

import torch
import transformers
from torch import nn

# In a layer of each architecture: the output projections of its attention and of its MLP.
USUAL = ("self_attn.o_proj", "mlp.down_proj")
ARCHITECTURES = {
    "Llama": USUAL,
    "Mistral": USUAL,
    "Qwen2": USUAL,
    "Qwen3": USUAL,
    "SmolLM3": USUAL,
    "Granite": USUAL,
    "Gemma2": USUAL,
    "Gemma3": USUAL,
    "Olmo2": USUAL,
    "Phi3": USUAL,
    "Starcoder2": ("self_attn.o_proj", "mlp.c_proj"),
    "OPT": ("self_attn.out_proj", "fc2"),
    "GPTNeoX": ("attention.dense", "mlp.dense_4h_to_h"),
    "Mixtral": USUAL,
    "Qwen3Moe": USUAL,
}
GROUPED = 8  # neurons: the kernel for all experts at once takes multiples of it in every precision
SQUARE = ("OPT", "GPTNeoX")  # their attention is as wide as the hidden size, whatever `head_dim` says
AUTO_CLASSES = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}


class PrunedConfigMixin:
    """A config whose global widths are the dense model's and may be read beside the layers' own."""

    attention_output_bias = None  # None: as the base architecture has it
    mlp_output_bias = None

    @property
    def allow_global_per_layer_attribute_access(self):
        return True


class PrunedModelMixin:
    """Builds the dense architecture (on the meta device when loading), then each layer anew at its own widths."""

    def __init__(self, config, *args, **kwargs):
        widths = config.to_dict().get("per_layer_config")
        config.per_layer_config = None
        super().__init__(config, *args, **kwargs)
        config.per_layer_config = widths
        layers = decoder_layers(self)
        for i, layer_config in enumerate(config.per_layer_config):
            layers[i] = _build(type(layers[i]), layer_config, i, self.architecture)
        share_config(self)
        self.post_init()


class BiasedExpertsMixin:
    """Adds to a token's output the biases of its experts, weighted by the router, whatever kernel runs the experts."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        output = super().forward(hidden_states, top_k_index, top_k_weights)
        bias = (top_k_weights[..., None] * self.down_proj_bias[top_k_index]).sum(1)
        return output + bias.to(output.dtype)


def decoder_layers(model):
    base = model.base_model
    return getattr(base, "decoder", base).layers  # OPT has a decoder inside the decoder


def share_config(model):
    """Give the modules of each layer the model's config, read through the layer's own widths."""
    for i, layer in enumerate(decoder_layers(model)):
        for module in layer.modules():
            if hasattr(module, "config"):
                module.config = LayerConfig(model.config, i)
                if getattr(module, "intermediate_dim", 0) % GROUPED:
                    module.config._experts_implementation = "eager"


class LayerConfig:
    """A layer's own widths, and for all else the model's config as it is now: the attention kernel can be changed."""

    def __init__(self, config, layer):
        own = config.per_layer_config[layer]
        vars(self).update({name: getattr(own, name) for name in config.per_layer_attributes or ()}, _shared=config)

    def __getattr__(self, name):
        if name.startswith("__"):  # asked by copy, before there is anything
            raise AttributeError(name)
        return getattr(self._shared, name)


def _build(layer_class, layer_config, i, architecture):
    attention_output, mlp_output = ARCHITECTURES[architecture]
    if architecture in SQUARE:
        layer = _build_square(layer_class, layer_config, i, *attention_output.split("."))
    else:
        layer = layer_class(layer_config, i)
    _match_bias(layer, attention_output, layer_config.attention_output_bias)
    experts = getattr(getattr(layer, "mlp", None), "experts", None)
    if experts is None:
        _match_bias(layer, mlp_output, layer_config.mlp_output_bias)
    elif layer_config.mlp_output_bias:
        experts.down_proj_bias = nn.Parameter(torch.zeros(experts.num_experts, experts.hidden_dim))
        experts.__class__ = type(type(experts).__name__, (BiasedExpertsMixin, type(experts)), {})
    return layer


def _build_square(layer_class, config, i, attention, output):
    """The attention for a hidden size of heads × head_dim, then its projections between that and the true one."""
    heads, hidden_size = config.num_attention_heads, config.hidden_size
    config.num_attention_heads = hidden_size // config.head_dim
    layer = layer_class(config, i)
    config.num_attention_heads, config.hidden_size = heads, heads * config.head_dim
    narrow = type(getattr(layer, attention))(config, i)
    for name, linear in narrow.named_children():
        sides = (linear.in_features, hidden_size) if name == output else (hidden_size, linear.out_features)
        setattr(narrow, name, nn.Linear(*sides, bias=linear.bias is not None))
    setattr(layer, attention, narrow)
    return layer


def _match_bias(layer, path, bias):
    linear, (parent, _, name) = layer.get_submodule(path), path.rpartition(".")
    if bias is not None and (linear.bias is not None) != bias:
        new = nn.Linear(linear.in_features, linear.out_features, bias=bias)
        setattr(layer.get_submodule(parent), name, new)


def _classes(architecture):
    """Config, decoder and causal LM of one architecture, under the names that `auto_map` gives to the Auto classes."""
    classes = {}
    for auto_class, kind in AUTO_CLASSES.items():
        text = "Text" if architecture == "Gemma3" and kind != "ForCausalLM" else ""
        base = getattr(transformers, architecture + text + kind)
        mixin = PrunedConfigMixin if kind == "Config" else PrunedModelMixin
        if kind == "Config":
            extra = {"model_type": f"flap_{base.model_type}"}
        else:
            extra = {"config_class": classes["Config"], "architecture": architecture}
        names = _here | {"_auto_class": auto_class} | extra
        classes[kind] = type(f"Flap{architecture}{kind}", (mixin, base), names)
    return {one.__name__: one for one in classes.values()}


_here = {"__module__": __name__}
for _architecture in ARCHITECTURES:
    globals().update(_classes(_architecture))
