"""Pruned models whose layers differ in width. This file travels with the weights and needs transformers alone.

The config is the base architecture's, plus `per_layer_config`: for each layer its number of heads and neurons, and
whether its two output projections have a bias. Keys left out are as in the dense model.
Written by flap (flap-pruning); the method is FLAP, An et al., AAAI 2024.
"""

import transformers
from torch import nn

ARCHITECTURES = ("Llama", "Mistral", "Qwen2", "Qwen3")
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
        layers = self.base_model.layers
        for i, layer_config in enumerate(config.per_layer_config):
            layer = type(layers[i])(layer_config, i)
            for module in layer.modules():
                if hasattr(module, "config"):
                    module.config = config  # one config for all layers, or setting the attention kernel misses them
            _match_bias(layer.self_attn, "o_proj", layer_config.attention_output_bias)
            _match_bias(layer.mlp, "down_proj", layer_config.mlp_output_bias)
            layers[i] = layer
        self.post_init()


def _match_bias(module, name, bias):
    linear = getattr(module, name)
    if bias is not None and (linear.bias is not None) != bias:
        setattr(module, name, nn.Linear(linear.in_features, linear.out_features, bias=bias))


def _classes(architecture):
    """Config, decoder and causal LM of one architecture, under the names that `auto_map` gives to the Auto classes."""
    classes = {}
    for auto_class, kind in AUTO_CLASSES.items():
        base = getattr(transformers, architecture + kind)
        mixin = PrunedConfigMixin if kind == "Config" else PrunedModelMixin
        extra = {"model_type": f"flap_{base.model_type}"} if kind == "Config" else {"config_class": classes["Config"]}
        classes[kind] = type(f"Flap{base.__name__}", (mixin, base), _here | {"_auto_class": auto_class} | extra)
    return {one.__name__: one for one in classes.values()}


_here = {"__module__": __name__}
for _architecture in ARCHITECTURES:
    globals().update(_classes(_architecture))
