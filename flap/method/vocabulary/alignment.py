"""Align the tokens of a text in the old vocabulary with its tokens in the trimmed vocabulary.

Trimming removes tokens from a vocabulary. Old tokens belong to the tokenizer before trimming, and
new tokens to the trimmed tokenizer. A removed token is spelled with several new tokens, and a kept
token with one new token. The old and the new tokens of a text have boundaries at the same places,
except inside removed tokens.

Legend of tensor suffixes: V: tokens of the old vocabulary, by id · K: tokens of the trimmed
vocabulary, by id · T: new tokens of a window · S: old tokens of the window's text · P: positions ·
B: tokens of a text, old or new.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.method.vocabulary.tokens import Tokens
from flap.method.vocabulary.trim import Trimmed

# the replacement character, which tokenizers return if they decode an incomplete character
BROKEN = "\ufffd"
NOWHERE = -1  # value in `Aligned.position_T` of a new token without an aligned old token


class Aligned(NamedTuple):
    """The old tokens of a window's text, and the aligned old token of each new token."""

    old_S: Tensor
    # For each new token, the position in old_S of the old token that ends at the same place in the
    # text. NOWHERE if there is no such old token, or if the spelling of the next old token does not
    # begin with the next new token.
    position_T: Tensor


@dataclass(frozen=True, eq=False)
class Alignment:
    """A tokenizer before and after trimming, and the new token with which each old token begins."""

    before: PreTrainedTokenizerBase
    after: PreTrainedTokenizerBase
    # For each old token, the id of the new token with which its spelling begins. If an old token
    # has no spelling, its entry is the number of new tokens, because no new token has this id.
    first_V: Tensor
    length_V: Tensor  # number of bytes of each old token
    length_K: Tensor  # number of bytes of each new token

    @classmethod
    def of(cls, before: PreTrainedTokenizerBase, trimmed: Trimmed, rows: int) -> "Alignment":
        """Return the alignment of a tokenizer with its trimmed version.

        rows: number of rows of the embedding before the vocabulary was trimmed.
        """
        tokens = Tokens.of(before, rows)
        kept = len(trimmed.rows_K)
        new_ids = {old: new for new, old in enumerate(trimmed.rows_K.tolist())}
        model = trimmed.tokenizer.backend_tokenizer.model

        first_V = torch.full((rows,), kept)
        length_V = torch.zeros(rows, dtype=torch.long)
        for name, i in tokens.ids.items():
            length_V[i] = tokens.num_bytes(name)
            if i in new_ids:
                first_V[i] = new_ids[i]
            elif spelling := model.tokenize(name):
                first_V[i] = spelling[0].id
        return cls(before, trimmed.tokenizer, first_V, length_V, length_V[trimmed.rows_K])

    def align(self, tokens_T: Tensor) -> Aligned:
        """Tokenise a window's text with the old tokenizer, and align the old and the new tokens.

        The window may begin or end inside a character. An incomplete character is left out of the
        text. Because bytes may be missing at the beginning of the text, a place in the text is
        given by the number of bytes between this place and the end of the text.

        tokens_T: the new tokens of the window.
        """
        # 1. tokenise the text with the old tokenizer
        new = tokens_T.tolist()
        text = self._text(new)
        while text.endswith(BROKEN):
            new.pop()
            text = self._text(new)
        encoded = self.before(text.lstrip(BROKEN), add_special_tokens=False, verbose=False)
        known = [i for i in encoded.input_ids if i < len(self.first_V)]
        # If there are more old tokens than new tokens, drop the first old tokens, so that the dense
        # model does not read a longer window than the trimmed model. If there is no old token, use
        # token 0, because a model cannot read an empty sequence.
        old_S = torch.tensor(known[-len(tokens_T) :] or [0])

        # 2. find pairs of an old and a new token that end at the same place, which means that the
        # same number of bytes follows both
        left_S = _bytes_after_each_token(self.length_V[old_S])
        position_of = {left: s for s, left in enumerate(left_S.tolist()[:-1])}
        next_S = self.first_V[old_S[1:]].tolist()
        position_T = torch.full_like(tokens_T, NOWHERE)
        left_T = _bytes_after_each_token(self.length_K[torch.tensor(new).long()])
        for t, left in enumerate(left_T.tolist()[:-1]):
            s = position_of.get(left)
            if s is not None and next_S[s] == new[t + 1]:
                position_T[t] = s
        return Aligned(old_S, position_T)

    def marginal(self, p_PV: Tensor) -> Tensor:
        """Return, for each position, the probability that each new token comes next (p_PK).

        p_PK is computed from p_PV, the probability that each old token comes next. For each new
        token, the probabilities of the old tokens whose spelling begins with the new token are
        summed. Old tokens without a spelling are in none of these sums, so the sums are divided by
        their total.
        """
        kept = len(self.length_K)
        sums_PK = p_PV.new_zeros(len(p_PV), kept + 1)
        sums_PK.index_add_(1, self.first_V.to(p_PV.device), p_PV)
        p_PK = sums_PK[:, :kept]
        return p_PK / p_PK.sum(-1, keepdim=True)

    def _text(self, new: list[int]) -> str:
        text: str = self.after.decode(new, clean_up_tokenization_spaces=False)
        return text


def _bytes_after_each_token(length_B: Tensor) -> Tensor:
    return length_B.sum() - length_B.cumsum(0)
