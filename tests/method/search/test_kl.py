"""The divergence of a window, by hand and by its definition."""

import math

import pytest
import torch

from flap.method.search.divergence import kl

# Two positions, two words. The pruned model differs at the first position alone.
P_TV = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
LOGITS_TV = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log() + 3  # of any height


def test_by_hand() -> None:
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl(P_TV, P_TV.log(), LOGITS_TV) == pytest.approx(expected, rel=1e-6)


def test_of_a_large_vocabulary_the_model_itself_diverges_by_nothing() -> None:
    """Two sums over 6 million terms that differ by rounding would give 0.001 nats a token."""
    generator = torch.Generator().manual_seed(0)
    logits_TV = 4 * torch.randn(128, 50_000, generator=generator)
    log_p_TV = logits_TV.log_softmax(-1)
    assert abs(kl(log_p_TV.exp(), log_p_TV, logits_TV)) / 128 < 1e-5
    other_TV = logits_TV + 0.01 * torch.randn(logits_TV.shape, generator=generator)
    p_TV, q_TV = logits_TV.double().softmax(-1), other_TV.double().softmax(-1)
    expected = (p_TV * (p_TV / q_TV).log()).sum().item()
    assert kl(log_p_TV.exp(), log_p_TV, other_TV) == pytest.approx(expected, rel=1e-3)
