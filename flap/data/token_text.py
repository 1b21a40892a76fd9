"""The text that tokens stand for: its UTF-8 bytes, and the same text in tokens of another tokenizer.

Legend: N windows · T tokens in each window · V vocabulary.
"""

import re
from collections.abc import Sequence

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

NO_TOKEN = -1  # fills windows that are shorter than others
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# The bytes of a character that are left of it where a window begins behind its first byte, or ends before its last.
CUT_AT_START = re.compile(r"^(<0x[89AB].>)+")
CUT_AT_END = re.compile(r"(<0x[C-F].>|<0x[EF].><0x..>|<0xF.><0x..><0x..>)$")


def text_bytes(tokens_NT: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the UTF-8 bytes that each token of windows stands for, bytes_NT (int64); NO_TOKEN stands for none.

    A byte-level token has a character for each byte: a part of a character counts what it has of it. In other
    tokens "▁" is a space, and one such as <0x0A> is a byte. An added token stands for its own text.
    """
    vocabulary = tokenizer.get_vocab() | tokenizer.get_added_vocab()
    added = tokenizer.added_tokens_decoder
    if tokenizer.is_fast:
        byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    else:  # the steps of such a one are in its code; its vocabulary has the characters that GPT-2 has for bytes
        byte_level = vocabulary.keys() >= set(ByteLevel.alphabet())

    def size(i: int, token: str) -> int:
        if byte_level and i not in added:
            return len(token)
        return 1 if BYTE.fullmatch(token) else len(token.replace("▁", " ").encode())

    tokens = {i: token for token, i in vocabulary.items()}
    bytes_V = torch.tensor(
        [size(i, tokens.get(i, "")) for i in range(max(tokens) + 1)]
    )  # some leave ids out
    return torch.where(tokens_NT == NO_TOKEN, 0, bytes_V[tokens_NT])


def retokenised(
    tokens_NT: Tensor, before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, bos: bool
) -> Tensor:
    """Return windows of one tokenizer with the same text in tokens of another; shorter ones end with NO_TOKEN.

    A character that a window's edge cuts is left out. bos: each window begins with that token.
    """
    first = [after.bos_token_id] * bos
    mark = _mark(before)
    space = before.convert_tokens_to_ids(["▁"] * bool(mark))  # which decoding takes off
    behind = len(after(mark, add_special_tokens=False).input_ids) if mark else 0
    ids = (space + _whole(window, before) for window in tokens_NT[:, bos:].tolist())
    texts = [
        (mark + before.decode(one, clean_up_tokenization_spaces=False)).strip("\ufffd")
        for one in ids
    ]
    windows = [one[behind:] for one in after(texts, add_special_tokens=False).input_ids]
    longest = max(map(len, windows))
    return torch.tensor([[*first, *one, *[NO_TOKEN] * (longest - len(one))] for one in windows])


def continuation(
    prompt_ids: Sequence[int], answer_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> str:
    """Return the text that the tokens of an answer add to the text of a prompt.

    Prompt and answer are decoded together: alone, the first word of the answer would lose the space
    in front of it with a SentencePiece tokenizer.
    """
    before = decoded(prompt_ids, tokenizer)
    whole = decoded([*prompt_ids, *answer_ids], tokenizer)
    if whole.startswith(before):
        return whole[len(before) :]
    # Bytes that are no UTF-8 spoil the bytes before them, so the prompt's text is not in the whole.
    return decoded(answer_ids, tokenizer)


def decoded(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of tokens, without special tokens and with every space that the tokens have."""
    text: str = tokenizer.decode(
        [*ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def without_cut_character(answer_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return an answer without a last character that lacks some of its bytes."""
    for _ in range(3):  # a character in UTF-8 has at most four bytes
        if not decoded(answer_ids, tokenizer).endswith("\ufffd"):
            break
        answer_ids = answer_ids[:-1]
    return answer_ids


def _mark(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what windows stand behind while a tokenizer reads them that puts a space before a text: a character.

    So a window that begins inside a word is not given a space, nor one with a space a second. Nothing for others.
    """
    mark = (
        "\ue000"  # of no text, so never a piece with others, as a line feed is in some tokenizers
    )
    names = tokenizer.convert_ids_to_tokens(tokenizer(mark, add_special_tokens=False).input_ids)
    separate = all(
        name in (mark, tokenizer.unk_token) or BYTE.fullmatch(name) for name in names[1:]
    )
    return mark if names[:1] == ["▁"] != names and separate else ""


def _whole(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return a window without the bytes of characters that it cuts, with which whole ones beside them are no text."""
    names = tokenizer.convert_ids_to_tokens(ids)
    cuts = CUT_AT_START.search("".join(names[:3])), CUT_AT_END.search("".join(names[-3:]))
    start, end = (len(cut[0]) // len("<0x00>") if cut else 0 for cut in cuts)
    return ids[start : len(ids) - end]
