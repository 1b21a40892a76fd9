"""Whether a plan and statistics are those of the model that they are applied to.

Legend: D hidden size · I input channels of an output projection · N windows · T tokens a window.
"""

from functools import reduce

from flap.allocation import PruningPlan
from flap.calibration import LayerStatistics, merge, moments, statistics
from flap.compression.streams import Streams
from flap.models import ModelAdapter

# What half precision and other kernels may change of the channels' means, in units of their root mean squares.
ROUNDING = 0.02


def check_plan(adapter: ModelAdapter, plan: PruningPlan) -> None:
    """Raises: ValueError: it has other layers or units than the model."""
    if len(plan.layers) != len(adapter.layers):
        raise ValueError(f"plan: another model's, of {len(plan.layers)} layers; this one has {len(adapter.layers)}")
    for i, layer in enumerate(plan.layers):
        for block, kept in zip(adapter.blocks(i), (layer.kv_heads, layer.neurons), strict=True):
            if max(kept) >= block.num_units:
                raise ValueError(
                    f"plan: another model's, which keeps unit {max(kept)} of {block.name}; this one has "
                    f"{block.num_units} there"
                )


def check_statistics(adapter: ModelAdapter, i: int, known: LayerStatistics | None, streams: Streams) -> None:
    """Raises: ValueError: this layer has other channels, or of the first layer's attention other means.

    By the means, models of one shape are told apart.
    """
    if known is None:
        raise ValueError(f"statistics: another model's, of {i} layers; this one has {len(adapter.layers)}")
    for block, of_block in zip(adapter.blocks(i), (known.attention, known.mlp), strict=True):
        if len(of_block.mean_I) != block.output.in_features:
            raise ValueError(
                f"statistics: another model's, of {len(of_block.mean_I)} channels in {block.name}; this one has "
                f"{block.output.in_features} there"
            )
    if i == 0:
        attention, layer = adapter.attention(0), adapter.layers[0]
        inputs = (streams.up_to(attention.output, 0, layer, batch_NTD)[0] for batch_NTD in streams.dense)
        found = statistics(reduce(merge, map(moments, inputs)))
        if (found.mean_I - known.attention.mean_I).norm() > ROUNDING * found.msq_I.sum().sqrt():
            raise ValueError(f"statistics: another model's, or of other tokens; the means in {attention.name} differ")
