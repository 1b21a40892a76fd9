"""True pruning: the units' rows and columns leave the tensors."""

from flap.compression.apply import Change, assign, compress_layer_by, set_weight


def slice_out(change: Change) -> None:
    """Keep the rows of the kept units in every input projection, and the fitted output projection.

    A norm over all units' channels divides by the root mean square of those that stay; its weights stay as they are.
    """
    assign(change.block.output, change.weight_OK, change.bias_O)
    rows = {linear: rows_UR[change.kept_U].flatten().sort().values for linear, rows_UR in change.block.inputs}
    for linear, kept in rows.items():
        bias = None if linear.bias is None else linear.bias.detach()[kept]
        assign(linear, linear.weight.detach()[kept], bias)
    for norm, linear in change.block.norms:
        set_weight(norm, norm.weight.detach()[rows[linear]])


prune_layer = compress_layer_by(slice_out)
