"""Write a tokenizer into a GGUF.

llama.cpp has its own tokenizers: a GGUF names one of them and holds the vocabulary. A tokenizer's kind is recognised by
its steps before the merges, which are built into llama.cpp. A tokenizer that is not exactly one of these kinds is
refused, because llama.cpp would split texts in another way than the model was trained with.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from flap.config import one_line
from flap.models import find_gguf

log = logging.getLogger(__name__)

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _WORDS.format(digits=r"\p{N}{1,3}")
_QWEN2 = _WORDS.format(digits=r"\p{N}")
NEVER_MERGED = -1e6  # a score below that of all merges
# By llama.cpp's name: the steps before the merges, the normalizer, and whether whole words go before merges.
_BPE = {
    "llama-bpe": ([_LLAMA3, "bytes"], None, True),
    "qwen2": ([_QWEN2, "bytes"], "NFC", False),
    "smollm": (["digit", "bytes and words"], None, False),
}


def add_tokenizer(
    writer: GGUFWriter,
    tokenizer: PreTrainedTokenizerBase,
    source: Path | None,
    vocab_size: int,
    ends: Sequence[int],
) -> None:
    """Write the keys of a tokenizer.

    source: the GGUF that the model came from, whose keys are copied. vocab_size: of the embeddings. ends: the tokens
    that end a text.

    Raises:
        ValueError: its kind is not supported, it has ids without an embedding, or another vocabulary than the source.
    """
    if source is not None:
        _copy(writer, source, tokenizer)
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)  # of the tokenizers with a Rust backend
    spec: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    model, pre, space_prefix = _kind(spec, type(tokenizer).__name__)
    tokens, types = _vocabulary(spec, tokenizer, vocab_size, ends)
    merges = [
        merge.split(" ") if isinstance(merge, str) else merge for merge in spec["model"]["merges"]
    ]
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if model == "llama":
        scores = {
            left + right: -float(rank) for rank, (left, right) in reversed(list(enumerate(merges)))
        }
        writer.add_token_scores([scores.get(token, NEVER_MERGED) for token in tokens])
    else:
        writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_add_space_prefix(space_prefix)
    _add_special(writer, tokenizer, ends)


def _copy(writer: GGUFWriter, source: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Copy the keys of the tokenizer from the GGUF that the model came from, if it has the same vocabulary."""
    fields = {
        name: field
        for name, field in GGUFReader(source).fields.items()
        if name.startswith("tokenizer.")
    }
    if dict(enumerate(fields["tokenizer.ggml.tokens"].contents())) != {
        i: t for t, i in tokenizer.get_vocab().items()
    }:
        raise ValueError(
            f"gguf: the tokenizer has another vocabulary than {source.name}, which the model came from"
        )
    for name, field in fields.items():
        kind, *item_types = field.types
        writer.add_key_value(name, field.contents(), kind, item_types[0] if item_types else None)


def _kind(spec: dict[str, Any], name: str) -> tuple[str, str, bool]:
    """Return llama.cpp's names of a tokenizer's model and pre-tokenizer, and whether it puts a space before a text.

    The model is llama for SentencePiece, gpt2 for byte-level BPE. spec: the content of its tokenizer.json. name: of its
    class, for the error where it is of no such kind.
    """
    model, pre_tokenizer, normalizer = (
        spec.get(part) or {} for part in ("model", "pre_tokenizer", "normalizer")
    )
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        if (prefix := _space_prefix(normalizer, pre_tokenizer)) is not None:
            return "llama", "default", prefix
    elif model.get("type") == "BPE":
        names = [_step_name(step) for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer])]
        steps = (names, normalizer.get("type"), bool(model.get("ignore_merges")))
        if pres := [pre for pre, expected in _BPE.items() if steps == expected]:
            return "gpt2", pres[0], False
    raise ValueError(
        f"gguf: the export does not support the tokenizer ({name}); expected LLaMA's (SentencePiece or BPE), "
        "Qwen2's, SmolLM's, or that of a model that came as a GGUF"
    )


def _step_name(step: dict[str, Any]) -> str:
    """Return the name of a step of a pre-tokenizer; a regular expression is its own name."""
    match step:
        case {
            "type": "Split",
            "pattern": {"Regex": regex},
            "behavior": "Isolated",
            "invert": False,
        }:
            return str(regex)
        case {"type": "Digits", "individual_digits": True}:
            return "digit"
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": words}:
            return "bytes and words" if words else "bytes"
    return f"unknown: {step}"


def _space_prefix(normalizer: dict[str, Any], pre_tokenizer: dict[str, Any]) -> bool | None:
    """Return whether a SentencePiece tokenizer puts a space before the text; None if it has any other step.

    llama.cpp does the same as SentencePiece: it puts a space before the text and after each special token.
    transformers' Metaspace adds no space where there is one already, and mostly none after special tokens; llama.cpp
    has no option for that.
    """
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    first_too = {
        "type": "Replace",
        "pattern": {"Regex": r"\A▁"},
        "content": "▁▁",
    }  # of SentencePiece's own file
    if not pre_tokenizer and steps == [{"type": "Prepend", "prepend": "▁"}, replace]:
        return True
    match pre_tokenizer.get("pretokenizers", pre_tokenizer):
        case [
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
        ]:
            return True if steps == [replace, first_too] else None
        case {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": scheme,
            "split": False,
        } if not steps:
            return bool(scheme != "never")
    return None


def _vocabulary(
    spec: dict[str, Any], tokenizer: PreTrainedTokenizerBase, vocab_size: int, ends: Sequence[int]
) -> tuple[list[str], list[int]]:
    """Return the token and the type of each id; ids of the embedding that the tokenizer does not use get fillers."""
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    byte_fallback = spec["model"][
        "byte_fallback"
    ]  # bytes are tokens such as <0x0A>, and there is an unknown token
    added = {entry["id"]: entry for entry in spec["added_tokens"]}
    used = {
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
        tokenizer.pad_token_id,
        *ends,
    }
    for token, i in tokenizer.get_vocab().items():
        if i >= vocab_size and i in added and i not in used:
            log.warning("gguf: token %r has no embedding in this model, and is left out", token)
            continue  # Gemma 3 has <image_soft_token>, for the outputs of a vision tower
        if i >= vocab_size:
            raise ValueError(
                f"gguf: token {token!r} has id {i}, and the model has embeddings for {vocab_size} tokens"
            )
        if byte_fallback and i == tokenizer.unk_token_id:
            kind = TokenType.UNKNOWN
        elif byte_fallback and len(token) == 6 and token.startswith("<0x"):
            kind = TokenType.BYTE
        elif i in added:
            kind = TokenType.CONTROL if added[i]["special"] else TokenType.USER_DEFINED
        else:
            kind = TokenType.NORMAL
        tokens[i], types[i] = token, int(kind)
    return tokens, types


def _add_special(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> None:
    """Write the ids of the special tokens, whether the tokenizer adds them to a text, and the chat template.

    llama.cpp ends a text with any of three: the end of a text, of a turn, and of a message.
    """
    own_first = sorted(ends, key=lambda i: i != tokenizer.eos_token_id) or [tokenizer.eos_token_id]
    places = writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id
    for i, add in (
        *zip(own_first, places, strict=False),
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
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


def source_gguf(model: str) -> Path | None:
    """Return the GGUF that a model (hub id, directory, or "") came from, or None; flap.json names its source.

    Raises:
        ValueError: a flap.json cannot be read.
    """
    visited: set[str] = set()
    while model and model not in visited:
        if (gguf := find_gguf(model)) and gguf.is_file():
            return gguf
        visited.add(model)
        record = Path(model) / "flap.json"
        try:
            config = (
                json.loads(record.read_text())["provenance"].get("config", {})
                if record.is_file()
                else {}
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{model}: its flap.json cannot be read ({one_line(error, 300)})"
            ) from error
        model = (
            "" if config.get("vocabulary") else config.get("model", {}).get("path", "")
        )  # trimmed: it has its own
    return None
