"""Pruned models whose layers differ in width. It is saved with the weights; needs transformers and torch.

The config is the base architecture's, plus `head_dim` and `per_layer_config`: for each layer its number of heads and
neurons, and whether its two output projections have a bias. Keys that are absent are as in the dense model.
Written by flap (flap-pruning); the method is FLAP, An et al., AAAI 2024.
"""

import torch
import transformers
from torch import nn

# The output projections of attention and MLP in a layer of each architecture.
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
KERNEL_MULTIPLE = 8  # the grouped kernel takes experts whose number of neurons is a multiple of it, in any dtype
SQUARE = ("OPT", "GPTNeoX")  # their attention has the hidden size as its width; they do not use `head_dim`
AUTO_CLASSES = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}


class PrunedConfigMixin:
    """A config with widths for each layer. Its global widths are the dense model's and may still be read."""

    attention_output_bias = None  # None: as in the base architecture
    mlp_output_bias = None

    @property
    def allow_global_per_layer_attribute_access(self):
        """True: transformers may read the global widths."""
        return True


class PrunedModelMixin:
    """A model that builds the dense architecture (on meta when loading), then each layer again with its own widths."""

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
    """Experts with output biases, which are added to their output, weighted by the router; any kernel can be used."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        """Run the experts and add the biases of the chosen ones."""
        output = super().forward(hidden_states, top_k_index, top_k_weights)
        bias = (top_k_weights[..., None] * self.down_proj_bias[top_k_index]).sum(1)
        return output + bias.to(output.dtype)


def decoder_layers(model):
    """Return the decoder layers of a model."""
    base = model.base_model
    return getattr(base, "decoder", base).layers  # OPT has a decoder inside the decoder


def share_config(model):
    """Give the modules of each layer the model's config with the widths of that layer."""
    for i, layer in enumerate(decoder_layers(model)):
        for module in layer.modules():
            if hasattr(module, "config"):
                module.config = LayerConfig(model.config, i)
                if getattr(module, "intermediate_dim", 0) % KERNEL_MULTIPLE:
                    module.config._experts_implementation = "eager"


class LayerConfig:
    """The config of a layer: its own widths, all else from the model's config, also what is changed there later."""

    def __init__(self, config, layer):
        own = config.per_layer_config[layer]
        vars(self).update({name: getattr(own, name) for name in config.per_layer_attributes or ()}, _shared=config)

    def __getattr__(self, name):
        if name.startswith("__"):  # copy asks before `_shared` is set
            raise AttributeError(name)
        return getattr(self._shared, name)


def _build(layer_class, layer_config, i, architecture):
    """Build layer i with its own widths and biases."""
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
    """Build a layer of a SQUARE architecture: attention of width heads × head_dim between two of the hidden size."""
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
    """Replace the Linear at `path` if it must have a bias and has none, or the reverse."""
    linear, (parent, _, name) = layer.get_submodule(path), path.rpartition(".")
    if bias is not None and (linear.bias is not None) != bias:
        new = nn.Linear(linear.in_features, linear.out_features, bias=bias)
        setattr(layer.get_submodule(parent), name, new)


def _classes(architecture):
    """Make config, decoder and causal LM classes of an architecture, with the names that `auto_map` refers to."""
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
    return {cls.__name__: cls for cls in classes.values()}


_here = {"__module__": __name__}
for _architecture in ARCHITECTURES:
    globals().update(_classes(_architecture))
