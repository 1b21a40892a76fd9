"""The text that tokens stand for: its UTF-8 bytes, and the same text in tokens of another tokenizer.

Legend: N windows · T tokens in each window · V vocabulary.
"""

import re

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

NO_TOKEN = -1  # fills windows that are shorter than others
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def text_bytes(tokens_NT: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the UTF-8 bytes that each token of windows stands for, bytes_NT (int64); NO_TOKEN stands for none.

    A byte-level token has a character for each byte: a part of a character counts what it has of it. In other
    tokens "▁" is a space, and one such as <0x0A> is a byte. An added token stands for its own text.
    """
    byte_level = tokenizer.is_fast and "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    added = tokenizer.added_tokens_decoder

    def size(i: int, token: str) -> int:
        if byte_level and i not in added:
            return len(token)
        return 1 if BYTE.fullmatch(token) else len(token.replace("▁", " ").encode())

    bytes_V = torch.tensor([size(*pair) for pair in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))])
    return torch.where(tokens_NT == NO_TOKEN, 0, bytes_V[tokens_NT])


def retokenised(
    tokens_NT: Tensor, before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, bos: bool
) -> Tensor:
    """Return windows of one tokenizer with the same text in tokens of another; shorter ones end with NO_TOKEN.

    A character that a window's edge cuts is left out. bos: each window begins with that token.
    """
    texts = (before.decode(ids, clean_up_tokenization_spaces=False) for ids in tokens_NT[:, bos:].tolist())
    windows = after([text.strip("\ufffd") for text in texts], add_special_tokens=False).input_ids
    first, longest = [after.bos_token_id] * bos, max(map(len, windows))
    return torch.tensor([[*first, *ids, *[NO_TOKEN] * (longest - len(ids))] for ids in windows])
