"""Pruned models whose layers differ in width, which means in the numbers of heads and neurons.

This file comes from flap (the package flap-pruning), which prunes language models with the method
FLAP (An et al., AAAI 2024). When flap saves a pruned model, it saves this file with the weights.
The file needs only transformers and torch. All code is in this file, so that users can read the
code before they load a checkpoint with `trust_remote_code`.

The config has the keys of the base architecture and three additional keys:

- `per_layer_config`: for each layer, the numbers of heads and neurons, and whether the output
  projections of its attention and its MLP have a bias. If a value of a layer is missing, the value
  of the dense (unpruned) model is used. In a vision-language model, only the language model is
  pruned, so `per_layer_config` and `head_dim` are in `text_config`, the part of the config for the
  language model.
- `head_dim`: the number of channels of a head, if it is the same in all layers.
- `flap_modules`: the paths of the modules that pruning changes (`Family.modules` in
  flap/modeling/families.py).

The classes of an architecture are created on first use, and derive from the classes of the base
architecture. For example, `FlapLlamaConfig` derives from `LlamaConfig`.
"""

import math
import sys
from copy import copy
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

# In transformers' grouped kernel for experts, the number of neurons of an expert must be a multiple
# of this number, whatever the dtype.
KERNEL_MULTIPLE = 8
# The Auto class for each suffix of a class name in transformers. The first matching suffix is used.
AUTO_CLASSES = {
    "Config": "AutoConfig",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForImageTextToText",
    "Model": "AutoModel",
}
# A function that returns the value of `flap_modules` for a config that lacks it, because an earlier
# version of flap has saved the config. None until flap/modeling/register.py sets this variable.
find_modules: Any = None

# The last class before `object` in the MRO of a config. `super(LAST_MIXIN, config)` looks up
# attributes in `object`, and so skips the attribute map and the warnings of transformers.
LAST_MIXIN = transformers.PreTrainedConfig.__mro__[-2]


class PrunedConfigMixin:
    """A config with the widths of each layer, which are the layer's numbers of heads and neurons.

    The widths of the dense model can still be read as attributes of this config.
    """

    # None means that output projections have a bias if they have one in the base architecture
    attention_output_bias = None
    mlp_output_bias = None
    # overrides FalconConfig's property, which computes head_dim from the number of heads
    head_dim = None
    flap_modules = None  # None if an earlier version of flap has saved the config

    @property
    def allow_global_per_layer_attribute_access(self):
        """Return True, so that transformers allows reading the widths of the dense model."""
        return True

    def __getattribute__(self, key):
        """Return an attribute, without transformers' warning about reading the dense widths."""
        # `plain.__getattribute__` is the method of `object`. It is looked up with `super`, because
        # torch.compile cannot trace `object.__getattribute__(self, ...)`.
        plain = super(LAST_MIXIN, self)
        return plain.__getattribute__(plain.__getattribute__("attribute_map").get(key, key))


class PrunedModelMixin:
    """A model whose layers have pruned widths.

    The model first builds the dense architecture, and then replaces each layer by a layer with
    pruned widths. When a checkpoint is loaded, all layers are built on the meta device, and need no
    memory.
    """

    def __init__(self, config, *args, **kwargs):
        if config.flap_modules is None:
            if find_modules is None:
                raise ValueError(
                    "config.json: flap_modules is missing; load the model with flap.load"
                )
            config.flap_modules = find_modules(config)
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
        for i, layer_config in enumerate(text_config.per_layer_config):
            layers[i] = _build(layers[i], layer_config, i, config.flap_modules)
        share_config(self)
        self.post_init()

    @classmethod
    def is_custom_code(cls):
        """Return False, so that transformers computes the buffers that are not stored in files.

        False is correct, because all modules are instances of classes in transformers.
        """
        return False


class PrunedExpertsMixin:
    """Experts with output biases. The router's weights multiply the sum of output and bias."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        """Run the chosen experts, and add their biases."""
        output = super().forward(hidden_states, top_k_index, top_k_weights)
        return output + (top_k_weights[..., None] * self.down_proj_bias[top_k_index]).sum(1).to(
            output.dtype
        )


class PrunedEachMixin:
    """Experts of Llama 4 with output biases.

    In Llama 4, each expert gets one row for each token. If a token is not routed to the expert, its
    row is zero, and gets no bias.
    """

    def forward(self, hidden_states):
        """Run the experts, and add each expert's bias to the outputs of tokens routed to it."""
        inputs = hidden_states.unflatten(0, (self.num_experts, -1))
        biases = inputs.any(dim=-1, keepdim=True) * self.down_proj_bias[:, None]
        return (super().forward(hidden_states) + biases.flatten(0, 1)).to(hidden_states.dtype)


def add_biases(experts):
    """Change the class of experts that have output biases to a class that adds these biases.

    Nothing changes if the experts already have this class, or if their class in transformers adds
    output biases.
    """
    added = hasattr(experts, "down_proj_bias") and not getattr(experts, "has_bias", False)
    if added and not any(cls.__name__.startswith("PrunedE") for cls in type(experts).__mro__):
        mixin = PrunedExpertsMixin if hasattr(experts, "has_bias") else PrunedEachMixin
        experts.__class__ = type(type(experts).__name__, (mixin, type(experts)), {})


def _head_dims(widths):
    """Return a `per_layer_config` with only the head sizes, or None if `widths` has no head sizes.

    Layers of Gemma 4 differ in head size, and Gemma 4's classes read these sizes from the config.

    widths: the `per_layer_config` of the pruned model.
    """
    sizes = {}
    for i, layer in widths.items():
        if "head_dim" in layer:
            sizes[i] = {"head_dim": layer["head_dim"]}
    return sizes or None


def check_for_vllm(widths, ranks):
    """Raise a ValueError if vLLM cannot divide the widths among its processes.

    Each process gets an equal part of the heads and neurons of every layer.

    widths: the `per_layer_config` of the pruned model.
    ranks: the number of vLLM's processes (`tensor_parallel_size`).
    """
    split = []
    for i, layer in widths.items():
        for name, number in layer.items():
            whole = "experts" in name or name == "head_dim"
            if type(number) is int and not whole:
                split.append((i, name, number))
    for i, name, number in split:
        if number % ranks:
            fits = math.gcd(ranks, *(number for _, _, number in split))
            option = "round_to=8"
            if name.endswith("heads"):
                option = f"structure.multiple_of_heads={ranks}"
            raise ValueError(
                f"vLLM: {name}={number} in layer {i} does not split over "
                f"tensor_parallel_size={ranks}: serve with tensor_parallel_size={fits}, "
                f"or prune with {option}"
            )


def decoder(model):
    """Return the decoder of a model, which is the module with the decoder layers."""
    base = model.base_model
    if base is model:
        # `base_model` of Llama4ForCausalLM is the model itself, so use the attribute `model`
        base = getattr(model, "model", model)
    return base.get_submodule(model.config.flap_modules["decoder"])


def decoder_layers(model):
    """Return the decoder layers of a model."""
    return decoder(model).get_submodule(model.config.flap_modules["layers"])


def share_config(model):
    """Set the configs of the decoder and of the modules in its layers.

    The decoder gets the config of the language model, and the modules in a layer get the
    `LayerConfig` of this layer.
    """
    config = model.config.get_text_config()
    language_model = decoder(model)
    language_model.config = config  # replaces transformers' copy of the config
    if hasattr(language_model, "rotary_emb"):
        language_model.rotary_emb.config = RotaryConfig(
            config, _head_dims(config.to_dict()["per_layer_config"])
        )
    for i, layer in enumerate(decoder_layers(model)):
        for module in layer.modules():
            if hasattr(module, "config"):
                module.config = LayerConfig(config, i)
                neurons = getattr(module, "intermediate_size", 0)
                neurons = getattr(module, "intermediate_dim", neurons)
                if hasattr(module, "num_experts") and neurons % KERNEL_MULTIPLE:
                    module.config._experts_implementation = "eager"


class LayerConfig:
    """The config of a layer: the layer's widths, and all other values of the model's config.

    If one of these other values changes later in the model's config, this config changes, too.
    """

    def __init__(self, config, layer):
        of_layer = config.per_layer_config[layer]
        for name in config.per_layer_attributes or ():
            setattr(self, name, getattr(of_layer, name))
        self._shared = config

    def __getattr__(self, name):
        # `copy` looks up special methods before `_shared` is set. Without this check, reading
        # `_shared` would then call `__getattr__` again and again.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._shared, name)


class RotaryConfig(LayerConfig):
    """The model's config for rotary embeddings, in which only the head size differs by layer.

    All layers of the same type, such as sliding attention, have the same head size.
    """

    def __init__(self, config, sizes):
        with_sizes = copy(config)
        with_sizes.per_layer_config = sizes
        self.per_layer_config = with_sizes.per_layer_config
        self._shared = config


def _build(dense, layer_config, i, modules):
    """Build layer i with its pruned widths and biases.

    modules: the value of `flap_modules`. Modules whose paths are in `modules["unpruned"]` are taken
        from the layer `dense`.
    """
    # with use_double_wide_mlp, Gemma 4 would double the MLP's width, but `layer_config` already has
    # the final width
    if getattr(layer_config, "use_double_wide_mlp", False):
        layer_config.use_double_wide_mlp = False
    if modules["square_attention"]:
        layer = _build_square(type(dense), layer_config, i, *modules["attention"].split("."))
    else:
        layer = type(dense)(layer_config, i)

    for path in modules["unpruned"]:
        if _has(dense, path):
            parent, _, name = path.rpartition(".")
            setattr(layer.get_submodule(parent), name, dense.get_submodule(path))
    if _has(layer, modules["attention"]):
        attention = layer.get_submodule(modules["attention"].rpartition(".")[0])
        for norm, linear in modules["attention_norms"].items():
            # OLMoE builds its query and key norms for the hidden size, whatever the number of
            # heads, so give each norm as many weights as its projection has outputs
            width = getattr(attention, linear).out_features
            if getattr(attention, norm).weight.shape != (width,):
                getattr(attention, norm).weight = nn.Parameter(torch.ones(width))
        _match_bias(layer, modules["attention"], layer_config.attention_output_bias)

    if not _has(layer, modules["experts"]):
        if _has(layer, modules["mlp"]):
            _match_bias(layer, modules["mlp"], layer_config.mlp_output_bias)
        return layer
    experts = layer.get_submodule(modules["experts"])
    if layer_config.mlp_output_bias and not getattr(experts, "has_bias", False):
        width = getattr(layer_config, "moe_latent_size", None) or layer_config.hidden_size
        experts.down_proj_bias = nn.Parameter(torch.zeros(experts.num_experts, width))
    add_biases(experts)
    return layer


def _has(layer, path):
    """Return whether a layer has a module at a path. For an empty path, return False."""
    return bool(path) and path in dict(layer.named_modules())


def _build_square(layer_class, config, i, attention, output):
    """Build a layer whose class takes the attention width from the hidden size.

    attention: the name of the attention module in the layer.
    output: the name of the output projection in the attention module.
    """
    # 1. build the layer with an attention module whose width is the hidden size
    heads = config.num_attention_heads
    hidden_size = config.hidden_size
    config.num_attention_heads = hidden_size // config.head_dim
    layer = layer_class(config, i)

    # 2. build an attention module whose projections go from heads × head_dim to heads × head_dim
    config.num_attention_heads = heads
    config.hidden_size = heads * config.head_dim
    narrow = type(getattr(layer, attention))(config, layer_idx=i)

    # 3. replace the input projections of this attention by projections from the hidden size to
    #    heads × head_dim, and its output projection by one from heads × head_dim to the hidden size
    for name, linear in narrow.named_children():
        if hasattr(linear, "weight"):
            weight = linear.weight.T if isinstance(linear, Conv1D) else linear.weight
            outputs, inputs = weight.shape
            if name == output:
                outputs = hidden_size
            else:
                inputs = hidden_size
            setattr(
                narrow, name, _linear_like(linear, inputs, outputs, bias=linear.bias is not None)
            )
    setattr(layer, attention, narrow)
    return layer


def _linear_like(like, inputs, outputs, bias):
    if isinstance(like, Conv1D):
        return Conv1D(outputs, inputs)
    return type(like)(inputs, outputs, bias=bias)


def _match_bias(layer, path, bias):
    """Replace the Linear at `path` by one with or without a bias, as `bias` says.

    bias: whether the Linear should have a bias; None if the Linear stays as it is.
    """
    linear = layer.get_submodule(path)
    if bias is not None and (linear.bias is not None) != bias:
        parent, _, name = path.rpartition(".")
        new = _linear_like(linear, linear.in_features, linear.out_features, bias=bias)
        setattr(layer.get_submodule(parent), name, new)


def pruned_class(name):
    """Return the pruned class that derives from the transformers class with this name.

    The class is created on first use. The name of the class, which checkpoints contain, is `Flap`
    followed by the given name.
    """
    flap_name = f"Flap{name}"
    if flap_name not in globals():
        globals()[flap_name] = _make_class(flap_name, getattr(transformers, name))
    return globals()[flap_name]


def _make_class(name, base):
    auto_class = next(AUTO_CLASSES[suffix] for suffix in AUTO_CLASSES if name.endswith(suffix))
    attributes = {"__module__": __name__, "_auto_class": auto_class}
    if auto_class != "AutoConfig":
        attributes["config_class"] = pruned_class(base.config_class.__name__)
        return type(name, (PrunedModelMixin, base), attributes)
    attributes["model_type"] = f"flap_{base.model_type}"
    # Granite divides logits by `logits_scaling`, but vLLM multiplies them by `logit_scale`, so give
    # vLLM the inverse
    if hasattr(base, "logits_scaling"):
        attributes["logit_scale"] = property(lambda config: 1 / config.logits_scaling)
    return type(name, (PrunedConfigMixin, base), attributes)


def __getattr__(name):
    base = name.removeprefix("Flap")
    if base != name and base.endswith(tuple(AUTO_CLASSES)) and hasattr(transformers, base):
        return pruned_class(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
