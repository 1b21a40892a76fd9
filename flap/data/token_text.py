"""From tokens back to text: its UTF-8 bytes, and the same text in tokens of another tokenizer.

Legend: N windows · T tokens per window · V vocabulary.
"""

import re
from collections.abc import Sequence

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.data.batch import Batch

PADDING = 0  # a token that pads windows which are shorter than others; it does not count
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# These match the remaining bytes of a character that the beginning or end of a window cuts.
CUT_AT_START = re.compile(r"^(<0x[89AB].>)+")
CUT_AT_END = re.compile(r"(<0x[C-F].>|<0x[EF].><0x..>|<0xF.><0x..><0x..>)$")


def text_bytes(tokens_NT: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the number of UTF-8 bytes of each token of windows, bytes_NT (int64).

    A byte-level token has one character for each byte, so a part of a character has a part of its
    bytes. In other tokens, "▁" stands for a space, and a name such as <0x0A> for a byte. An added
    token stands for its own text.
    """
    vocabulary = tokenizer.get_vocab() | tokenizer.get_added_vocab()
    added = tokenizer.added_tokens_decoder
    if tokenizer.is_fast:
        byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    else:
        # This tokenizer is not fast, so its decoder cannot be read. But the vocabulary of a
        # byte-level tokenizer contains all the characters that GPT-2 uses for bytes.
        byte_level = vocabulary.keys() >= set(ByteLevel.alphabet())

    bytes_V = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.long)
    for token, i in vocabulary.items():
        if byte_level and i not in added:
            bytes_V[i] = len(token)
        elif BYTE.fullmatch(token):
            bytes_V[i] = 1
        else:
            bytes_V[i] = len(token.replace("▁", " ").encode())
    return bytes_V[tokens_NT]


def retokenised(
    tokens_NT: Tensor, before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, bos: bool
) -> Batch:
    """Return windows of one tokenizer with the same text in tokens of another tokenizer.

    A character that the edge of a window cuts is left out. Shorter windows end with tokens that do
    not count.

    bos: each window begins with the beginning-of-sequence token.
    """
    mark = _mark(before)
    mark_ids = after(mark, add_special_tokens=False).input_ids if mark else []
    # Decoding removes the first space of a text, so there is one more in front of each window.
    space = before.convert_tokens_to_ids(["▁"]) if mark else []
    texts = list[str]()
    for window in tokens_NT[:, int(bos) :].tolist():
        ids = [*space, *_whole(window, before)]
        text = mark + before.decode(ids, clean_up_tokenization_spaces=False)
        texts.append(text.strip("\ufffd"))

    beginning = [after.bos_token_id] if bos else []
    windows = list[list[int]]()
    for ids in after(texts, add_special_tokens=False).input_ids:
        windows.append([*beginning, *ids[len(mark_ids) :]])
    longest = max(map(len, windows))
    padded = [window + [PADDING] * (longest - len(window)) for window in windows]
    length_N1 = torch.tensor([len(window) for window in windows])[:, None]
    return Batch(torch.tensor(padded), torch.arange(longest) < length_N1)


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
    """Return the text of tokens without special tokens. Spaces stay as the tokens have them."""
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
    """Return a character that windows are put behind, while a tokenizer reads them.

    Some tokenizers put a space in front of a text. Behind this character, a window that begins
    inside a word gets no space, and a window that begins with a space gets no second one. Returns
    an empty string for other tokenizers.
    """
    # This private character is in no text, so no token joins it to another character. A line feed
    # would be joined.
    mark = "\ue000"
    ids = tokenizer(mark, add_special_tokens=False).input_ids
    names = tokenizer.convert_ids_to_tokens(ids)
    if names[:1] != ["▁"] or len(names) == 1:
        return ""
    for name in names[1:]:
        if name not in (mark, tokenizer.unk_token) and not BYTE.fullmatch(name):
            return ""
    return mark


def _whole(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return a window without the bytes of characters that its edges cut.

    With these bytes, the whole characters beside them could not be decoded.
    """
    names = tokenizer.convert_ids_to_tokens(ids)
    cut_at_start = CUT_AT_START.search("".join(names[:3]))
    cut_at_end = CUT_AT_END.search("".join(names[-3:]))
    first = len(cut_at_start[0]) // len("<0x00>") if cut_at_start else 0
    last = len(cut_at_end[0]) // len("<0x00>") if cut_at_end else 0
    return ids[first : len(ids) - last]
