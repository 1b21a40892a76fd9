"""True pruning: the units' rows and columns leave the tensors."""

from flap.compression.apply import Change, assign, compress_layer_by


def slice_out(change: Change) -> None:
    """Keep the rows of the kept units in every input projection, and the fitted output projection."""
    assign(change.block.output, change.weight_OK, change.bias_O)
    for linear, rows_UR in change.block.inputs:
        rows = rows_UR[change.kept_U].flatten().sort().values
        bias = None if linear.bias is None else linear.bias.detach()[rows]
        assign(linear, linear.weight.detach()[rows], bias)


prune_layer = compress_layer_by(slice_out)
