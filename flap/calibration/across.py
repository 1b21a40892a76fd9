"""The statistics across layers: what an MLP adds to the residual stream, beside what the layers after it add.

Legend: N windows · T tokens a window · D hidden size · I = 2 D channels.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flap.calibration.statistics import Statistics, merge
from flap.calibration.symmetric import Symmetric
from flap.models import Stream
from flap.models.devices import widest_float


class Across:
    """What the MLP before some layers adds, and what these layers add together, for the windows of some streams.

    The streams are those at the first of the layers. added: what the MLP adds, for each stream.
    """

    def __init__(self, streams: Sequence[Stream], added: Sequence[Sequence[Tensor]]) -> None:
        self.entered, self.added = [list(stream.batches) for stream in streams], added

    def statistics(self, streams: Sequence[Stream], device: torch.device) -> Statistics:
        """Return the statistics of both side by side, now that the streams are behind the last of the layers.

        They are moments about zero: a map that is fitted to them needs no bias, for which few families have a place.
        streams: of the fitting and of the held-out windows, which stay apart.
        """
        fitting, held_out = (
            _moments(added, entered, stream.batches, device)
            for added, entered, stream in zip(self.added, self.entered, streams, strict=True)
        )
        return replace(merge(fitting, held_out), parts=(fitting, held_out))


def _moments(
    added: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor], device: torch.device
) -> Statistics:
    """Return the moments of (m, δ): m what the MLP adds, δ the difference of the hidden states before and after."""
    size, num_tokens = 2 * before[0].shape[-1], 0
    products, zeros_I = Symmetric.zeros(size, device), torch.zeros(size, dtype=widest_float(device), device=device)
    for mlp_NTD, before_NTD, after_NTD in zip(added, before, after, strict=True):
        parts = [mlp_NTD, after_NTD.float() - before_NTD.float()]
        both_TI = torch.cat([part.reshape(-1, size // 2).to(device).float() for part in parts], dim=1)
        products.add_products(both_TI)
        num_tokens += len(both_TI)
    return Statistics(num_tokens, zeros_I, products.diagonal().to(zeros_I), products)
