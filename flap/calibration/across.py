"""The statistics across layers: what an MLP adds to the residual stream, beside what the layers after it add.

Legend: N windows · T tokens a window · D hidden size · I = 2 D channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flap.calibration.statistics import Statistics
from flap.calibration.symmetric import Symmetric
from flap.models.devices import widest_float


def moments_across(
    added: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor], device: torch.device
) -> Statistics:
    """Return the moments of (m, δ) over some windows: m what an MLP adds, δ what the layers after it add together.

    They are about zero: a map that is fitted to them needs no bias, for which few families have a place. added: m of
    each batch. before, after: the hidden states before and after these layers.
    """
    size, num_tokens = 2 * before[0].shape[-1], 0
    products, zeros_I = Symmetric.zeros(size, device), torch.zeros(size, dtype=widest_float(device), device=device)
    for mlp_NTD, before_NTD, after_NTD in zip(added, before, after, strict=True):
        parts = [mlp_NTD, after_NTD.float() - before_NTD.float()]
        both_TI = torch.cat([part.reshape(-1, size // 2).to(device).float() for part in parts], dim=1)
        products.add_products(both_TI)
        num_tokens += len(both_TI)
    return Statistics(num_tokens, zeros_I, products.diagonal().to(zeros_I), products)
