"""Take the units out, and let the output projections absorb what they did."""

from flap.compression.compensation import BiasCompensation, Compensation, NoCompensation
from flap.compression.prune import Compress, compress, mask_layer, prune_layer

__all__ = [
    "BiasCompensation", "Compensation", "Compress", "NoCompensation", "compress", "mask_layer", "prune_layer",
]  # fmt: skip
