"""How far a pruned model's predictions are from the dense model's: what `structure.divergence` names.

Legend: T positions of a window · V vocabulary · p_TV, log_p_TV probabilities of the dense model and their logarithms ·
logits_TV of the pruned model, whose probabilities are q.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def kl(p_TV: Tensor, log_p_TV: Tensor, logits_TV: Tensor) -> float:
    """Return KL(p ‖ q) in nats, summed over all positions of a window: differences before sums.

    Σ p log p - Σ p log q as two sums of T · V terms cancel badly: that was off by 0.001 nats a token at 50,000 words.
    """
    nats_TV = log_softmax(logits_TV, dim=-1)
    # in place: to have such an array of the system takes as long as to compute it
    return torch.sub(log_p_TV, nats_TV, out=nats_TV).mul_(p_TV).sum().item()


def acceptance(p_TV: Tensor, log_p_TV: Tensor, logits_TV: Tensor) -> float:
    """Return 1 - Σ min(p, q), the total variation |p - q| / 2, summed over all positions of a window; 0 to 1 for each.

    Σ min(p, q) is the share of tokens drawn from q that speculative decoding with p accepts (EvoESAP's fitness).
    """
    return (p_TV - logits_TV.softmax(dim=-1)).abs().sum().item() / 2


# By the names of `structure.divergence`. Lower is better.
DISTANCES: dict[str, Callable[[Tensor, Tensor, Tensor], float]] = {"kl": kl, "acceptance": acceptance}
