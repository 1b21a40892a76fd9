"""The memory that training takes at least, from shapes alone."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from flap.method.recovery.base import Recovery
from flap.method.recovery.student import LOGITS_BYTES
from flap.models import Block, ModelAdapter

TRAINED_BYTES = 12  # of a trained parameter, besides itself: its gradient and AdamW's two moments
LOGITS_COPIES = 4  # logits and log probabilities of both models


def bytes_to_train(
    recovery: Recovery, adapter: ModelAdapter, ratio: float, dtype: torch.dtype, device: torch.device
) -> int:
    """Return what a step takes at least: both models' weights, gradients and moments, activations, logits.

    adapter, dtype: of the dense model. ratio: what is removed of it. The dense weights are not counted on a CPU, which
    maps them from their files. Each of several processes takes it.
    """
    total, removed = sum(p.numel() for p in adapter.model.parameters()), ratio * adapter.num_parameters()
    itemsize, trained = 2 if dtype == torch.bfloat16 else 4, trained_parameters(recovery, adapter, ratio)
    weights = (total - removed) * (4 if recovery.rank is None else itemsize)
    dense = 0 if device.type == "cpu" else total * dtype.itemsize
    tokens = max(recovery.tokens_a_step // recovery.processes, recovery.seq_len)
    activations = tokens * itemsize * _kept_activations(adapter, ratio, recovery.gradient_checkpointing)
    logits = LOGITS_COPIES * min(LOGITS_BYTES, 4 * tokens * adapter.vocab_size)
    return int(dense + weights + TRAINED_BYTES * trained + activations + logits)


def trained_parameters(recovery: Recovery, adapter: ModelAdapter, ratio: float) -> float:
    """Return about how many parameters are trained. adapter: of the dense model. ratio: what is removed of it."""
    if recovery.rank is None:
        return sum(p.numel() for p in adapter.layers.parameters()) - ratio * adapter.num_parameters()
    linears = [module for module in adapter.layers.modules() if isinstance(module, nn.Linear | Conv1D)]
    return (1 - ratio) * recovery.rank * sum(sum(linear.weight.shape) for linear in linears)


def _kept_activations(adapter: ModelAdapter, ratio: float, checkpointing: bool) -> float:
    """Return how many activations of a token are kept for the backward pass, at least."""
    hidden = int(adapter.attention(0).output.weight.shape[0])
    layers = [4 * hidden + (1 - ratio) * sum(map(_width, adapter.blocks(i))) for i in range(len(adapter.layers))]
    return len(layers) * hidden + max(layers) if checkpointing else sum(layers)


def _width(block: Block) -> float:
    """Return the outputs of the input projections and the inputs of the output projection, for one token."""
    outputs = sum(int(linear.out_features) for linear, _ in block.inputs)
    return (outputs + block.columns_UC.numel()) * block.num_chosen / len(block.members)
