"""Count the UTF-8 bytes of tokens, and convert tokens to text or to tokens of another tokenizer.

Legend: N: windows · T: tokens per window · V: tokens of the vocabulary.
"""

import re
from collections.abc import Sequence

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.data.batch import Batch

PADDING = 0  # id of the token that pads short windows; the token mask is false for padding
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# These patterns match the byte tokens, such as <0xE2>, of an incomplete character at the start or
# at the end of a window.
CUT_AT_START = re.compile(r"^(<0x[89AB].>)+")
CUT_AT_END = re.compile(r"(<0x[C-F].>|<0x[EF].><0x..>|<0xF.><0x..><0x..>)$")


def text_bytes(tokens_NT: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the number of UTF-8 bytes that each token in windows stands for, as int64 (bytes_NT).

    In the vocabulary of a byte-level tokenizer, the name of a token has one character for each byte
    that the token stands for. In the vocabularies of other tokenizers, "▁" in a name stands for a
    space, and a name such as <0x0A> stands for one byte. An added token, such as a special token,
    stands for its own name.
    """
    vocabulary = tokenizer.get_vocab() | tokenizer.get_added_vocab()
    added = tokenizer.added_tokens_decoder
    if tokenizer.is_fast:
        byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    else:
        # A slow tokenizer has no decoder object that shows whether the tokenizer is byte-level. It
        # is treated as byte-level if its vocabulary has all characters that GPT-2 uses for bytes.
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
    """Decode windows with the tokenizer `before`, and encode their texts with `after`.

    The text of each window stays the same, except that incomplete characters at the edges of the
    window are left out. All windows are padded to the length of the longest window, and the token
    mask is false for the padding.

    bos: whether each window begins with the beginning-of-sequence token (BOS).
    """
    mark = _mark(before)
    mark_ids = after(mark, add_special_tokens=False).input_ids if mark else []
    # A tokenizer that adds a space in front of a text (see `_mark`) removes the first space of each
    # text that it decodes. Therefore, put one more space in front of each window.
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
    """Decode the tokens of an answer that follows a prompt, and return the text of the answer.

    Prompt and answer are decoded together, because a SentencePiece tokenizer would remove the first
    space of an answer that is decoded alone.
    """
    before = decoded(prompt_ids, tokenizer)
    whole = decoded([*prompt_ids, *answer_ids], tokenizer)
    if whole.startswith(before):
        return whole[len(before) :]
    # If the answer begins with invalid UTF-8, the decoded text of prompt and answer may not begin
    # with the decoded prompt. In this case, decode the answer alone.
    return decoded(answer_ids, tokenizer)


def decoded(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Convert tokens to text. Special tokens are skipped, and spaces stay as they are."""
    text: str = tokenizer.decode(
        [*ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def without_cut_character(answer_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Remove the tokens of an incomplete character from the end of an answer."""
    for _ in range(3):  # an incomplete character in UTF-8 has at most three bytes
        if not decoded(answer_ids, tokenizer).endswith("\ufffd"):
            break
        answer_ids = answer_ids[:-1]
    return answer_ids


def _mark(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a character to put in front of the text of a window before this text is tokenised.

    Some tokenizers add a space in front of a text, which would be wrong for a window that begins
    inside a word. If the text begins with the returned character, these tokenizers add the space
    before this character, and `retokenised` removes the tokens of the space and of the character
    again. For all other tokenizers, return an empty string.
    """
    # Use a character from Unicode's private use area, because tokens do not join it with other
    # characters, as they may do with a line feed.
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
    """Remove the byte tokens of incomplete characters at the start and at the end of a window.

    Otherwise, the complete characters next to these byte tokens could not be decoded.
    """
    names = tokenizer.convert_ids_to_tokens(ids)
    cut_at_start = CUT_AT_START.search("".join(names[:3]))
    cut_at_end = CUT_AT_END.search("".join(names[-3:]))
    first = len(cut_at_start[0]) // len("<0x00>") if cut_at_start else 0
    last = len(cut_at_end[0]) // len("<0x00>") if cut_at_end else 0
    return ids[first : len(ids) - last]
