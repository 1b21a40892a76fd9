"""Masking: the units are zeroed and the shapes stay. The oracle that slicing is tested against."""

import torch

from flap.compression.apply import Change, assign, channels, compress_layer_by, set_weight


def zero_out(change: Change) -> None:
    """Zero the removed units' rows and biases, and their columns of the output projection.

    A norm over all units' channels counts the zeros: what it gets is raised by √(all / kept), so that it divides by
    what the sliced one divides by, and its weights are lowered by as much.
    """
    weight_OI = torch.zeros_like(change.block.output.weight)
    weight_OI[:, channels(change.block, change.kept_U)] = change.weight_OK
    assign(change.block.output, weight_OI, change.bias_O)
    for linear, rows_UR in change.block.inputs:
        rows = rows_UR[change.pruned_U].flatten().to(linear.weight.device)
        bias = None if linear.bias is None else linear.bias.detach().index_fill(0, rows, 0)
        # new tensors: the model's own may be shared with another copy of it
        assign(linear, linear.weight.detach().index_fill(0, rows, 0), bias)
    raised = (change.block.num_units / len(change.kept_U)) ** 0.5
    for norm, linear in change.block.norms:
        bias = None if linear.bias is None else linear.bias.detach() * raised
        assign(linear, linear.weight.detach() * raised, bias)
        set_weight(norm, norm.weight.detach() / raised)


mask_layer = compress_layer_by(zero_out)
