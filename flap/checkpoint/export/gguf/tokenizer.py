"""Write a tokenizer into a GGUF file.

llama.cpp implements several kinds of tokenizers (`tokenizer_kind.py`). A GGUF file names one of
these kinds, and contains the vocabulary.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from flap.checkpoint.export.gguf.tokenizer_kind import tokenizer_kind

log = logging.getLogger(__name__)

NEVER_MERGED = -1e6  # score of tokens that no merge produces; lower than all other scores


def add_tokenizer(
    writer: GGUFWriter,
    tokenizer: PreTrainedTokenizerBase,
    source: Path | None,
    vocab_size: int,
    ends: Sequence[int],
) -> None:
    """Write the GGUF keys of a tokenizer.

    source: the GGUF file from which the model was loaded before pruning; its tokenizer keys are
        copied. None if there is no such file, or if pruning has trimmed the vocabulary.
    vocab_size: the number of token embeddings of the model.
    ends: the ids of the tokens that end a text.

    Raises:
        ValueError: the export does not support this kind of tokenizer, a token has no embedding, or
            the vocabulary differs from the vocabulary of `source`.
    """
    if source is not None:
        _copy(writer, source, tokenizer)
        return

    spec: dict[str, Any] = {}  # the content of tokenizer.json
    backend = getattr(tokenizer, "backend_tokenizer", None)  # only fast tokenizers have a backend
    if backend is not None:
        spec = json.loads(backend.to_str())
    kind = tokenizer_kind(spec, type(tokenizer).__name__)
    tokens, types = _vocabulary(spec, tokenizer, vocab_size, ends)
    writer.add_tokenizer_model(kind.model)
    writer.add_tokenizer_pre(kind.pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)

    merges = _merges(spec)
    if kind.model == "llama":
        writer.add_token_scores(_scores(tokens, merges))
    else:
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_add_space_prefix(kind.space_prefix)
    _add_special(writer, tokenizer, ends)


def _copy(writer: GGUFWriter, source: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Copy the keys of the tokenizer from `source`, the GGUF file of the model before pruning.

    Raises:
        ValueError: the vocabularies of `tokenizer` and `source` differ.
    """
    fields = {}
    for name, field in GGUFReader(source).fields.items():
        if name.startswith("tokenizer."):
            fields[name] = field

    # compare tokens with spaces instead of "▁", because llama.cpp's converter writes some tokens of
    # Gemma with spaces
    theirs = [token.replace("▁", " ") for token in fields["tokenizer.ggml.tokens"].contents()]
    ours = {i: token.replace("▁", " ") for token, i in tokenizer.get_vocab().items()}
    if dict(enumerate(theirs)) != ours:
        raise ValueError(
            f"gguf: the tokenizer has another vocabulary than {source.name}, which the model "
            "came from"
        )

    for name, field in fields.items():
        kind, *item_types = field.types
        writer.add_key_value(name, field.contents(), kind, item_types[0] if item_types else None)


def _merges(spec: dict[str, Any]) -> list[list[str]]:
    """Return the pairs of tokens that BPE merges, the highest priority first."""
    merges = []
    for merge in spec["model"]["merges"]:
        # in older versions of tokenizer.json, a merge is "a b" instead of ["a", "b"]
        merges.append(merge.split(" ") if isinstance(merge, str) else merge)
    return merges


def _scores(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> list[float]:
    """Return a score for each token: the earlier the merge that makes it, the higher the score."""
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    return [scores.get(token, NEVER_MERGED) for token in tokens]


def _vocabulary(
    spec: dict[str, Any], tokenizer: PreTrainedTokenizerBase, vocab_size: int, ends: Sequence[int]
) -> tuple[list[str], list[int]]:
    """Return the token and the type of each id below `vocab_size`. Unused ids get filler tokens.

    Added tokens with higher ids, which have no embedding, are left out, unless they have a special
    role. The tokens with a special role are BOS, EOS, UNK, PAD and the tokens that end a text.

    Raises:
        ValueError: a token that must not be left out has no embedding.
    """
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    added = {entry["id"]: entry for entry in spec["added_tokens"]}
    needed = {
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
        tokenizer.pad_token_id,
        *ends,
    }

    for token, i in tokenizer.get_vocab().items():
        if i < vocab_size:
            tokens[i] = token
            types[i] = int(_token_type(token, i, spec, tokenizer, added))
        elif i in added and i not in needed:
            # for example <image_soft_token> of Gemma 3: a vision tower computes its embeddings
            log.warning("gguf: token %r has no embedding in this model and is left out", token)
        else:
            raise ValueError(
                f"gguf: token {token!r} has id {i}, and the model has embeddings for "
                f"{vocab_size} tokens"
            )
    return tokens, types


def _token_type(
    token: str,
    i: int,
    spec: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    added: dict[int, dict[str, Any]],
) -> TokenType:
    if spec["model"]["byte_fallback"]:  # the vocabulary has tokens for bytes, such as <0x0A>
        if i == tokenizer.unk_token_id:
            return TokenType.UNKNOWN
        if len(token) == 6 and token.startswith("<0x"):
            return TokenType.BYTE
    if i in added:
        return TokenType.CONTROL if added[i]["special"] else TokenType.USER_DEFINED
    return TokenType.NORMAL


def _add_special(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> None:
    """Write the special tokens, the chat templates, and two flags.

    The flags say whether encoded texts begin with BOS, and whether they end with EOS. llama.cpp
    stops generating at each of three tokens: end of text (EOS), end of turn (EOT), and end of
    message (EOM). Up to three ids in `ends` are written as EOS, EOT and EOM. If the tokenizer's EOS
    is among the ids, it is written as EOS.
    """
    eos = tokenizer.eos_token_id
    ordered = sorted(ends, key=lambda i: i != eos) or [eos]
    writers = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    special = list(zip(ordered, writers, strict=False))
    special.append((tokenizer.bos_token_id, writer.add_bos_token_id))
    special.append((tokenizer.unk_token_id, writer.add_unk_token_id))
    special.append((tokenizer.pad_token_id, writer.add_pad_token_id))
    for i, add in special:
        if i is not None:
            add(i)

    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    match tokenizer.chat_template:
        case str() as template:
            writer.add_chat_template(template)
        case dict() as templates:
            writer.add_chat_template(
                [{"name": name, "template": template} for name, template in templates.items()]
            )
