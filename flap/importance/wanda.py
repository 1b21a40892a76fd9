"""Wanda, the score of Wanda-sp: Wanda (Sun et al. 2023, arXiv 2306.11695, equation 1) for whole channels."""

from dataclasses import dataclass

from flap.importance.wifn import WIFN


@dataclass(frozen=True)
class Wanda(WIFN):
    """score_j = mean_o |W_oj| · sqrt(msq_j). FLAP's WIFN is this score, squared for attention channels."""

    square_attention: bool = False
