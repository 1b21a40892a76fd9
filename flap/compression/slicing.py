"""Slicing: the rows and columns of removed units are cut out of the tensors."""

from torch import nn

from flap.compression.apply import Change, assign, compress_layer_by, set_weight


def slice_out(change: Change) -> None:
    """Reduce every input projection to the rows of the kept units, and replace the output projection by the fitted one.

    A norm over the channels of all units then divides by the root mean square of the kept ones; their weights stay.
    """
    assign(change.block.output, change.weight_OK, change.bias_O)
    rows = {linear: rows_UR[change.kept_U].flatten().sort().values for linear, rows_UR in change.block.inputs}
    for linear, kept in rows.items():
        bias = None if linear.bias is None else linear.bias.detach()[kept]
        assign(linear, linear.weight.detach()[kept], bias)
    for module, name, rows_UR in change.block.vectors:
        old = getattr(module, name)
        kept = rows_UR[change.kept_U].flatten().sort().values
        new = old.detach()[kept]
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad) if name in module._parameters else new)
    for norm, linear in change.block.norms:
        set_weight(norm, norm.weight.detach()[rows[linear]])


slice_layer = compress_layer_by(slice_out)
