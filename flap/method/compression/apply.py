"""Apply a plan, which lists the units that stay, to the layers of a model.

A block is the attention or the MLP of a layer. A unit is a KV head with its query heads, a neuron
of an MLP, or an expert. Slicing removes the rows and columns of pruned units from the matrices, and
masking sets these rows and columns to zero. A compensation changes an output projection to make up
for its removed input channels. Slicing and masking use the same compensated weights, so a sliced
model and a masked model have the same logits.

Legend of tensor suffixes: O: output channels of the output projection · I: input channels of the
output projection · K: kept input channels · U: units · C: input channels of a unit · R: rows of a
unit in an input projection.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from flap.method.allocation import LayerPlan, PruningPlan
from flap.method.calibration import LayerStatistics, Visits
from flap.method.compression.compensation import Compensation, FitReport
from flap.method.compression.fitting import BlockFit, fit_layer
from flap.models import Block, ModelAdapter, Pair
from flap.models.block import bias_of, set_tensor
from flap.storage import NOT_KEPT, Notes, WorkFolder, as_json

FITS = as_json("fits")  # the file format for the fit reports of one layer
# A function that prunes a block in memory: `slice_out` or `zero_out`. Its arguments are the block,
# the indices of the kept units, and the fitted output projection.
Write: TypeAlias = Callable[[Block, Tensor, BlockFit], None]
# A dict from the names of blocks to their fit reports. A fit report says how well linear
# compensation makes up for removed channels. In a mixture of experts, the keys are the names of the
# experts. With compensation=bias or none, the dict is empty.
Reports: TypeAlias = dict[str, FitReport]
# A function that changes one layer in memory: `slice_layer` or `mask_layer`.
CompressLayer: TypeAlias = Callable[
    [ModelAdapter, int, LayerPlan, Compensation, LayerStatistics | None], Reports
]


def compress_layers(
    adapter: ModelAdapter,
    plan: PruningPlan,
    compensation: Compensation,
    statistics: Visits,
    compress_layer: CompressLayer,
    work: WorkFolder = NOT_KEPT,
) -> Reports:
    """Prune every layer according to a plan, and return the fit reports.

    statistics: yields the statistics of each layer while the layer is in memory.
    work: the working directory that `statistics` also uses, from which an interrupted pass over the
        layers resumes. The fit reports of finished layers are stored in this directory.
    """
    notes = Notes(FITS, work)
    for i, observed in statistics:
        notes.write(i, compress_layer(adapter, i, plan.layers[i], compensation, observed))
        del observed  # free this layer's covariances before the next layer is observed
    return joined(map(notes.read, range(len(plan.layers))))


def joined(reports: Iterable[Mapping[str, Sequence[Any]]]) -> Reports:
    """Join the fit reports of several layers into one dict.

    After reading from JSON, each report is a plain list, which is converted back to a `FitReport`.
    """
    every: Reports = {}
    for of_layer in reports:
        for name, report in of_layer.items():
            every[name] = FitReport(*report)
    return every


def _compress_layer(
    write: Write,
    adapter: ModelAdapter,
    layer: int,
    plan: LayerPlan,
    compensation: Compensation,
    statistics: LayerStatistics | None,
) -> Reports:
    """Fit the output projections of one layer, and prune the layer in memory.

    A block that keeps all of its units is not changed.
    """
    [fits] = fit_layer(adapter.blocks(layer), [plan], compensation, statistics)
    write_layer(write, adapter, layer, plan, fits)
    reports: Reports = {}
    for fit in fits:
        if fit is not None:
            reports |= fit.reports
    return reports


def write_layer(
    write: Write, adapter: ModelAdapter, layer: int, plan: LayerPlan, fits: Pair[BlockFit | None]
) -> None:
    """Prune a layer in memory according to its plan, with output projections fitted beforehand.

    fits: the fitted output projections of the attention and of the MLP; None for a block that keeps
        all of its units.
    """
    for block, kept, fit in zip(adapter.blocks(layer), plan, fits, strict=True):
        if fit is not None:
            write(block, torch.tensor(kept, dtype=torch.int64), fit)
    adapter.refresh(layer)


def slice_out(block: Block, kept_U: Tensor, fit: BlockFit) -> None:
    """Reduce a block to the units `kept_U`, and replace its output projection by the fitted one.

    If the block has an RMS norm over the channels of all units, the norm keeps only the weights of
    the kept channels. The norm then divides by the root mean square of the kept channels instead of
    all channels.
    """
    assign(block.output, fit.weight_OK, fit.bias_O)

    kept_rows = {}
    for linear, rows_UR in block.inputs:
        kept_rows[linear] = rows_UR[kept_U].flatten().sort().values
    for linear, rows in kept_rows.items():
        bias = bias_of(linear)
        if bias is not None:
            bias = bias.detach()[rows]
        assign(linear, linear.weight.detach()[rows], bias)

    for module, name, rows_UR in block.vectors:
        rows = rows_UR[kept_U].flatten().sort().values
        set_tensor(module, name, getattr(module, name).detach()[rows])
    for norm, linear in block.norms:
        set_tensor(norm, "weight", norm.weight.detach()[kept_rows[linear]])


def zero_out(block: Block, kept_U: Tensor, fit: BlockFit) -> None:
    """Set the weights of all units except `kept_U` to zero, and set the fitted output projection.

    The weights of a unit are its rows and biases in the input projections, and its columns in the
    output projection.

    If the block has an RMS norm over the channels of all units, the zeros lower the root mean
    square of these channels. So the inputs of the norm are multiplied by √(number of all units /
    number of kept units), which gives the same root mean square as in the sliced model. To undo
    this factor in the outputs, the weights of the norm are divided by it.
    """
    weight_OI = torch.zeros_like(block.output.weight)
    kept_columns = block.columns_UC[kept_U].flatten().sort().values
    weight_OI[:, kept_columns] = fit.weight_OK
    assign(block.output, weight_OI, fit.bias_O)

    # create new tensors, because another copy of the model may share the old tensors
    pruned_U = torch.ones(block.num_units, dtype=torch.bool).index_fill(0, kept_U, False)
    for linear, rows_UR in block.inputs:
        rows = rows_UR[pruned_U].flatten().to(linear.weight.device)
        bias = bias_of(linear)
        if bias is not None:
            bias = bias.detach().index_fill(0, rows, 0)
        assign(linear, linear.weight.detach().index_fill(0, rows, 0), bias)

    factor = (block.num_units / len(kept_U)) ** 0.5
    for norm, linear in block.norms:
        bias = None if linear.bias is None else linear.bias.detach() * factor
        assign(linear, linear.weight.detach() * factor, bias)
        set_tensor(norm, "weight", norm.weight.detach() / factor)


def assign(linear: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Replace the weight and bias of a Linear, a router or a `LinearLike`.

    The `in_features` and `out_features` of a Linear are updated, too.

    If `bias` is None, an `nn.Module` keeps its old bias.
    """
    if not isinstance(linear, nn.Module):
        linear.assign(weight, bias)
        return
    set_tensor(linear, "weight", weight)
    if bias is not None:
        set_tensor(linear, "bias", bias)


slice_layer: CompressLayer = partial(_compress_layer, slice_out)
mask_layer: CompressLayer = partial(_compress_layer, zero_out)
