"""The score of Wanda-sp: Wanda (Sun et al. 2023, arXiv 2306.11695, equation 1) on whole channels."""

from dataclasses import dataclass

from flap.importance.wifn import WIFN


@dataclass(frozen=True)
class Wanda(WIFN):
    """score_j = mean_o |W_oj| · sqrt(msq_j). FLAP's WIFN is this score with the attention's squared."""

    square_attention: bool = False
