"""Wanda, the score of Wanda-sp."""

from dataclasses import dataclass

from flap.importance.wifn import WIFN


@dataclass(frozen=True)
class Wanda(WIFN):
    """Wanda's score for whole channels, as in Wanda-sp (Sun et al. 2023, arXiv 2306.11695, equation 1).

        score_j = mean_o |W_oj| · √msq_j

    Symbols as in `WIFN`, which squares the scores of attention channels; here they are not squared. Higher = keep.

        python -m flap metric=wanda          or, with its structure and compensation, method=wanda_sp
    """

    square_attention: bool = False  # attention channels compete with their plain scores
