"""Pruned models whose layers differ in width. It is saved with the weights; needs transformers and torch.

One file, whatever its length: whoever loads a checkpoint with `trust_remote_code` reads and trusts this one.

The config is the base architecture's, with three more keys. Keys that are absent are as in the dense model.

- `per_layer_config`: for each layer its number of heads and neurons, and whether its two output
  projections have a bias. Of a vision-language model only the language model is pruned, so this
  key and `head_dim` are in its `text_config`.
- `head_dim`: the size of a head.
- `flap_modules`: the paths of the modules that pruning changes (`Family.modules` in
  flap/modeling/families.py).

The classes of an architecture are made when they are first used: `FlapLlamaConfig` derives from
`LlamaConfig`, and so on.
Written by flap (flap-pruning); the method is FLAP, An et al., AAAI 2024.
"""

import math
import sys
from copy import copy
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

# The grouped kernel takes experts whose number of neurons is a multiple of this, in any dtype.
KERNEL_MULTIPLE = 8
# The Auto class of a class of transformers, by the suffix of its name. The first suffix counts.
AUTO_CLASSES = {
    "Config": "AutoConfig",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForImageTextToText",
    "Model": "AutoModel",
}
# Finds the modules of a config without `flap_modules`, as earlier versions have saved it. flap sets
# this when it registers the classes.
find_modules: Any = None

# The class before object: what comes after it is a plain lookup, without the names and warnings of transformers.
LAST_MIXIN = transformers.PreTrainedConfig.__mro__[-2]


class PrunedConfigMixin:
    """A config with widths for each layer. Its global widths are the dense model's and may still be read."""

    attention_output_bias = None  # None: as in the base architecture
    mlp_output_bias = None
    head_dim = None  # Falcon computes it from the number of heads
    flap_modules = None  # None: saved by an earlier version

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


def decoder(model):
    """Return the part of a model that has the decoder layers."""
    base = model.base_model
    if base is model:
        base = getattr(model, "model", model)  # Llama 4's class with a head does not name its base
    return base.get_submodule(model.config.flap_modules["decoder"])


def decoder_layers(model):
    """Return the decoder layers of a model."""
    return decoder(model).get_submodule(model.config.flap_modules["layers"])


def share_config(model):
    """Give the language model its config, and the modules of each layer the same with the widths of that layer."""
    config = model.config.get_text_config()
    language_model = decoder(model)
    language_model.config = config  # transformers has copied it
    if hasattr(language_model, "rotary_emb"):
        language_model.rotary_emb.config = RotaryConfig(
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


def _build(dense, layer_config, i, modules):
    """Build layer i with its own widths and biases.

    modules: `flap_modules` of the config. Modules that are not pruned are those of the dense layer.
    """
    if getattr(layer_config, "use_double_wide_mlp", False):  # Gemma 4 doubles what it reads
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
            # OLMoE builds its norms of queries and keys for the hidden size
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
    """Return whether a layer has a module at a path; an empty path is that of no module."""
    return bool(path) and path in dict(layer.named_modules())


def _build_square(layer_class, config, i, attention, output):
    """Build a layer whose attention is of the hidden size, then its attention of width heads × head_dim."""
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
    linear = layer.get_submodule(path)
    if bias is not None and (linear.bias is not None) != bias:
        parent, _, name = path.rpartition(".")
        new = _linear(linear, linear.in_features, linear.out_features, bias=bias)
        setattr(layer.get_submodule(parent), name, new)


def pruned_class(name):
    """Return the class of pruned models that derives from a class of transformers, given by its name.

    It is made when it is first asked for. Checkpoints refer to it as `Flap` and that name.
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
    if hasattr(base, "logits_scaling"):  # Granite divides logits by it, vLLM's backend multiplies
        attributes["logit_scale"] = property(lambda config: 1 / config.logits_scaling)
    return type(name, (PrunedConfigMixin, base), attributes)


def __getattr__(name):
    base = name.removeprefix("Flap")
    if base != name and base.endswith(tuple(AUTO_CLASSES)) and hasattr(transformers, base):
        return pruned_class(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
