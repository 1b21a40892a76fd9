"""Masking: removed units are set to zero and all shapes stay. The tests compare slicing with it."""

import torch

from flap.compression.apply import Change, assign, channels, compress_layer_by, set_weight


def zero_out(change: Change) -> None:
    """Set the rows and biases of the removed units, and their columns of the output projection, to zero.

    A norm over the channels of all units counts the zeros. Its inputs are multiplied by √(all / kept units), so that
    its root mean square is that of the sliced model, and its weights are divided by the same factor.
    """
    weight_OI = torch.zeros_like(change.block.output.weight)
    weight_OI[:, channels(change.block, change.kept_U)] = change.weight_OK
    assign(change.block.output, weight_OI, change.bias_O)
    for linear, rows_UR in change.block.inputs:
        rows = rows_UR[change.pruned_U].flatten().to(linear.weight.device)
        bias = None if linear.bias is None else linear.bias.detach().index_fill(0, rows, 0)
        # new tensors, as the old ones may be shared with another copy of the model
        assign(linear, linear.weight.detach().index_fill(0, rows, 0), bias)
    factor = (change.block.num_units / max(len(change.kept_U), 1)) ** 0.5
    for norm, linear in change.block.norms:
        bias = None if linear.bias is None else linear.bias.detach() * factor
        assign(linear, linear.weight.detach() * factor, bias)
        set_weight(norm, norm.weight.detach() / factor)


mask_layer = compress_layer_by(zero_out)
