"""Masking: the units are zeroed and the shapes stay. The oracle that slicing is tested against."""

import torch

from flap.compression.apply import Change, assign, channels, compress_layer_by


def zero_out(change: Change) -> None:
    """Zero the removed units' rows and biases, and their columns of the output projection."""
    weight_OI = torch.zeros_like(change.block.output.weight)
    weight_OI[:, channels(change.block, change.kept_U)] = change.weight_OK
    assign(change.block.output, weight_OI, change.bias_O)
    for linear, rows_UR in change.block.inputs:
        rows = rows_UR[change.pruned_U].flatten().to(linear.weight.device)
        bias = None if linear.bias is None else linear.bias.detach().index_fill(0, rows, 0)
        # new tensors: the model's own may be shared with another copy of it
        assign(linear, linear.weight.detach().index_fill(0, rows, 0), bias)


mask_layer = compress_layer_by(zero_out)
