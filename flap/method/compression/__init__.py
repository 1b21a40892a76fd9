"""Compression: removing units from the layers, with compensation in the output projections."""

from flap.method.compression.apply import CompressLayer, compress_layers, mask_layer, slice_layer
from flap.method.compression.compensation import (
    BiasCompensation,
    Compensation,
    FitReport,
    NoCompensation,
)
from flap.method.compression.linear import LinearCompensation
from flap.method.compression.sequence import SequentialPruning

__all__ = [
    "BiasCompensation",
    "Compensation",
    "CompressLayer",
    "FitReport",
    "LinearCompensation",
    "NoCompensation",
    "SequentialPruning",
    "compress_layers",
    "mask_layer",
    "slice_layer",
]
