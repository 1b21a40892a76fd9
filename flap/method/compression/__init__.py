"""Compression: remove units from layers, and change output projections to make up for the loss.

A unit is a KV head with its query heads, a neuron of an MLP, or an expert. An output projection is
the last matrix of an attention or an MLP.
"""

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
