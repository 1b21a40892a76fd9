"""A model for mlx-lm whose layers may have different numbers of heads and neurons.

This file is saved with the weights.

First, mlx-lm's model of the base architecture (the architecture before pruning) is built. Then each
parameter gets the shape of its tensor in the safetensors files. Each attention module gets its
number of heads and its sliding window from `config.json`.

This file was written by flap (flap-pruning); the method is FLAP, An et al., AAAI 2024.
"""

import importlib

import mlx.core as mx
from mlx_lm.models.base import create_attention_mask
from mlx_lm.utils import MODEL_REMAPPING

# Names of the attributes with the number of query heads (HEADS) or of KV heads (KV_HEADS) in the
# architectures of mlx-lm.
HEADS = ("n_heads", "num_heads", "num_attention_heads")
KV_HEADS = ("n_kv_heads", "num_key_value_heads")
# For architectures whose tensors have different names in transformers and in mlx-lm: dicts from
# parts of transformers' names to the parts that replace them.
RENAMED = {"mixtral": {".mlp.": ".block_sparse_moe."}, "gpt_neox": {"lm_head.": "embed_out."}}


class ModelArgs(dict):
    """The config of a model as a dict."""

    @classmethod
    def from_dict(cls, config):
        """Return the config. mlx-lm calls this method."""
        return cls(config)


def Model(config):
    """Return a model of the base architecture. Loading weights changes the shapes of its layers."""
    model_type = config["model_type"]
    base = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(model_type, model_type)}")
    # this number of heads is needed because some architectures compute the head dimension as
    # hidden size / number of heads
    dense_heads = config["hidden_size"] // config["head_dim"]
    dense = {"num_attention_heads": dense_heads, "num_key_value_heads": dense_heads}
    model_class = type("Model", (PrunedMixin, base.Model), {})
    model = model_class(base.ModelArgs.from_dict(config | dense))
    model.quantization = config.get("quantization")

    layers = zip(model.layers, config["heads"], config["windows"], strict=True)
    for layer, (query_heads, kv_heads), window in layers:
        set_heads(layer, query_heads, kv_heads)
        if window is not None:
            layer.__class__ = type("SlidingBlock", (SlidingMixin, type(layer)), {"window": window})
    return model


def set_heads(layer, query_heads, kv_heads):
    """Set the numbers of heads in all modules of a layer that have attributes for them."""
    numbers = {"repeats": query_heads // kv_heads}
    numbers |= dict.fromkeys(HEADS, query_heads)
    numbers |= dict.fromkeys(KV_HEADS, kv_heads)
    for module in layer.modules():
        for name in numbers.keys() & vars(module).keys():
            setattr(module, name, numbers[name])


class SlidingMixin:
    """A layer in which each token attends only to the last `window` tokens.

    This class is needed because most architectures of mlx-lm have no sliding window.
    """

    def __call__(self, x, mask=None, cache=None):
        mask = create_attention_mask(x, cache, self.window, return_array=True)
        return super().__call__(x, mask, cache)


class PrunedMixin:
    """A model whose parameters get the shapes of the loaded tensors."""

    def sanitize(self, weights):
        """Give each parameter of the model the shape that its tensor has in `weights`.

        mlx-lm calls this method before it loads the weights, and then loads the dict that the
        method returns. In this dict, the tensors of `weights` have the names and the form that
        mlx-lm's model needs (see `split_experts`).
        """
        for old, new in RENAMED.get(self.model_type, {}).items():
            weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
        weights = split_experts(weights)
        if hasattr(super(), "sanitize"):
            weights = super().sanitize(weights)

        for path, module in self.named_modules():
            for kind in ("weight", "bias"):
                name = f"{path}.{kind}"
                if name in weights:
                    setattr(module, kind, mx.zeros(self.shape(name, weights)))
            if "bias" in module and f"{path}.bias" not in weights:
                del module.bias
        return weights

    def shape(self, name, weights):
        """Return the shape of a tensor in `weights`; for a quantised tensor, the unpacked shape."""
        path, _, kind = name.rpartition(".")
        shape = weights[name].shape
        scales = weights.get(f"{path}.scales")
        if kind == "bias" or scales is None:
            return shape
        group_size = self.quantization.get(path, self.quantization)["group_size"]
        return (*shape[:-1], scales.shape[-1] * group_size)


def split_experts(weights):
    """Return weights in which the experts of each layer have mlx-lm's names.

    transformers stores the gate and up projections of experts in one tensor, and mlx-lm in two.
    """
    renamed = {}
    for name, tensor in weights.items():
        block, _, kind = name.rpartition(".experts.")
        experts = f"{block}.switch_mlp"
        if kind == "gate_up_proj":
            gate, up = mx.split(tensor, 2, axis=1)
            renamed[f"{experts}.gate_proj.weight"] = gate
            renamed[f"{experts}.up_proj.weight"] = up
        elif kind == "down_proj":
            renamed[f"{experts}.down_proj.weight"] = tensor
        elif kind == "down_proj_bias":
            renamed[f"{experts}.down_proj.bias"] = tensor
        else:
            renamed[name] = tensor
    return renamed
