"""Take the units out, and let the output projections absorb what they did."""

from flap.compression.apply import CompressLayer, compress
from flap.compression.compensation import BiasCompensation, Compensation, NoCompensation, Repair
from flap.compression.correction import Correction
from flap.compression.divergence import Divergence, Stack
from flap.compression.linear import LinearCompensation
from flap.compression.mask import mask_layer
from flap.compression.propagate import propagate
from flap.compression.prune import prune_layer

__all__ = [
    "BiasCompensation", "Compensation", "CompressLayer", "Correction", "Divergence", "LinearCompensation",
    "NoCompensation", "Repair", "Stack", "compress", "mask_layer", "propagate", "prune_layer",
]  # fmt: skip
