"""A pruned model for mlx-lm, whose layers differ in width. It is saved with the weights; needs mlx-lm.

mlx-lm's own model of the base architecture is built. Then each parameter takes the shape of the tensor in the file, and
each attention the number of heads, and the sliding window, that `config.json` gives its layer.
Written by flap (flap-pruning); the method is FLAP, An et al., AAAI 2024.
"""

import importlib

import mlx.core as mx
from mlx_lm.models.base import create_attention_mask
from mlx_lm.utils import MODEL_REMAPPING

HEADS = (
    "n_heads",
    "num_heads",
    "num_attention_heads",
)  # the names that mlx-lm's architectures have for them
KV_HEADS = ("n_kv_heads", "num_key_value_heads")
# Names that transformers has changed, which mlx-lm has not.
RENAMED = {"mixtral": {".mlp.": ".block_sparse_moe."}, "gpt_neox": {"lm_head.": "embed_out."}}


class ModelArgs(dict):
    """The config, as it is."""

    @classmethod
    def from_dict(cls, config):
        """Return the config. This is what mlx-lm calls."""
        return cls(config)


def Model(config):
    """Return a model of the base architecture. Loading gives it the widths of the weights."""
    name = config["model_type"]
    base = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(name, name)}")
    heads = (
        config["hidden_size"] // config["head_dim"]
    )  # some architectures compute the head size from this number
    dense = {"num_attention_heads": heads, "num_key_value_heads": heads}
    model = type("Model", (PrunedMixin, base.Model), {})(base.ModelArgs.from_dict(config | dense))
    model.quantization = config.get("quantization")
    for layer, heads_by_kind, window in zip(
        model.layers, config["heads"], config["windows"], strict=True
    ):
        set_heads(layer, *heads_by_kind)
        if window is not None:
            layer.__class__ = type("SlidingBlock", (SlidingMixin, type(layer)), {"window": window})
    return model


def set_heads(layer, heads, kv_heads):
    """Give the attention of a layer its number of heads."""
    numbers = (
        dict.fromkeys(HEADS, heads)
        | dict.fromkeys(KV_HEADS, kv_heads)
        | {"repeats": heads // kv_heads}
    )
    for module in layer.modules():
        for name in numbers.keys() & vars(module).keys():
            setattr(module, name, numbers[name])


class SlidingMixin:
    """A layer whose tokens attend to the last `window` ones; most architectures of mlx-lm have no such window."""

    def __call__(self, x, mask=None, cache=None):
        """Run the layer with the mask of its window."""
        return super().__call__(
            x, create_attention_mask(x, cache, self.window, return_array=True), cache
        )


class PrunedMixin:
    """A model whose parameters take the shapes of the tensors that are loaded."""

    def sanitize(self, weights):
        """Return the weights by mlx-lm's names, after giving each parameter the shape of its tensor."""
        for old, new in RENAMED.get(self.model_type, {}).items():
            weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
        weights = getattr(super(), "sanitize", dict)(split_experts(weights))
        for path, module in self.named_modules():
            for kind in ("weight", "bias"):
                if f"{path}.{kind}" in weights:
                    setattr(module, kind, mx.zeros(self.shape(f"{path}.{kind}", weights)))
            if "bias" in module and f"{path}.bias" not in weights:
                del module.bias
        return weights

    def shape(self, name, weights):
        """Return the shape that a tensor had before it was quantised."""
        path, _, kind = name.rpartition(".")
        shape = weights[name].shape
        scales = weights.get(f"{path}.scales")
        if kind == "bias" or scales is None:
            return shape
        return (
            *shape[:-1],
            scales.shape[-1] * self.quantization.get(path, self.quantization)["group_size"],
        )


def split_experts(weights):
    """Return the weights with the experts of a layer, which transformers joins, by mlx-lm's names."""
    renamed = {}
    for name, tensor in weights.items():
        block, _, kind = name.rpartition(".experts.")
        experts = f"{block}.switch_mlp"
        if kind == "gate_up_proj":
            renamed[f"{experts}.gate_proj.weight"], renamed[f"{experts}.up_proj.weight"] = mx.split(
                tensor, 2, axis=1
            )
        elif kind in ("down_proj", "down_proj_bias"):
            renamed[f"{experts}.down_proj.{'bias' if kind.endswith('bias') else 'weight'}"] = tensor
        else:
            renamed[name] = tensor
    return renamed
