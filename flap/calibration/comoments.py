"""The co-moments of the channels of an output projection, summed in place over batches.

Legend: I input channels of an output projection · T tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flap.calibration.symmetric import Symmetric
from flap.models.devices import widest_float


class Comoments:
    """The sums of products of the deviations of two channels from their means, for each expert (one for a plain MLP).

    Products are summed about a fixed origin, the mean of the first batch, and shifted to the mean at the end: exact in
    real numbers, and well-conditioned as long as a batch's mean is within a few deviations of the mean.
    about_zero: the origin is zero, so that tokens with zero activations need not be added.
    """

    def __init__(self, about_zero: bool = False) -> None:
        self._about_zero = about_zero
        self._products: list[Symmetric] = []
        self._origins: list[Tensor | None] = []

    def add(self, activations: Sequence[Tensor]) -> None:
        """Add a batch of activations (…, I), one tensor for each expert."""
        if not self._products:
            self._products = [Symmetric.zeros(one.shape[-1], one.device) for one in activations]
            self._origins = [None] * len(activations)
        for e, activation in enumerate(activations):
            if activation.numel():
                activation_TI = activation.reshape(-1, activation.shape[-1]).float()
                self._origins[e] = origin_I = self._first(self._origins[e], activation_TI)
                self._products[e].add_products(activation_TI - origin_I)

    def finish(self, num_tokens: int | Tensor, mean_I: Tensor) -> tuple[Symmetric, ...]:
        """Return the co-moments of each expert. num_tokens, mean_I: of all tokens, of all experts."""
        experts = len(self._products)
        counts = torch.as_tensor(num_tokens).to(mean_I.device).expand_as(mean_I).chunk(experts)
        columns = self._products, self._origins, mean_I.chunk(experts), counts
        for products, origin_I, mean, count in zip(*columns, strict=True):
            if origin_I is not None:
                shift_I = mean - origin_I.to(widest_float(mean.device))
                products.add_outer((shift_I * count).float(), shift_I.float(), alpha=-1)
        return tuple(self._products)

    def _first(self, origin_I: Tensor | None, activation_TI: Tensor) -> Tensor:
        if origin_I is not None:
            return origin_I
        return torch.zeros_like(activation_TI[0]) if self._about_zero else activation_TI.mean(0)
