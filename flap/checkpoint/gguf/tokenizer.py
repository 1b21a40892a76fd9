"""The tokenizer inside a GGUF: llama.cpp has its own, told what to do by a name and the vocabulary.

A kind is recognised by what the tokenizer does before it merges, which llama.cpp has built in under a name; anything
that is not exactly one of those is refused rather than tokenized otherwise than the model has learnt.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from flap.models import packaged_gguf

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3, _QWEN2 = _WORDS.format(digits=r"\p{N}{1,3}"), _WORDS.format(digits=r"\p{N}")
NEVER_MERGED = -1e6  # a score below that of all merges


@dataclass(frozen=True)
class Kind:
    """A tokenizer in llama.cpp's words: its model (llama: SentencePiece, gpt2: byte-level BPE) and what cuts words."""

    model: str
    pre: str
    space_prefix: bool = False


def tokenizer_kind(tokenizer: PreTrainedTokenizerBase) -> Kind:
    """Raises: ValueError: it is not a LLaMA (SentencePiece or BPE), Qwen2 or SmolLM tokenizer."""
    plain = _plain(tokenizer)
    model, cutter, normalizer = (plain.get(part) or {} for part in ("model", "pre_tokenizer", "normalizer"))
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        prefix = _space_prefix(normalizer, cutter)
        if prefix is not None:
            return Kind("llama", "default", prefix)
    elif model.get("type") == "BPE":
        found = (_cuts(cutter), normalizer.get("type"), bool(model.get("ignore_merges")))
        for pre, expected in _BPE.items():
            if found == expected:
                return Kind("gpt2", pre)
    raise ValueError(
        f"gguf: the tokenizer ({type(tokenizer).__name__}) is none that llama.cpp is told of here: LLaMA's "
        "(SentencePiece or BPE), Qwen2's, SmolLM's, or that of a model that came as a GGUF"
    )


_BPE = {
    "llama-bpe": ([_LLAMA3, "bytes"], None, True),
    "qwen2": ([_QWEN2, "bytes"], "NFC", False),
    "smollm": (["digit", "bytes and words"], None, False),
}


def _cuts(cutter: dict[str, Any]) -> list[str]:
    """The steps before merging in words, but for a regular expression, which stands for itself."""
    steps = cutter.get("pretokenizers", [cutter])
    return [_cut(step) for step in steps]


def _cut(step: dict[str, Any]) -> str:
    match step:
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return str(regex)
        case {"type": "Digits", "individual_digits": True}:
            return "digit"
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": words}:
            return "bytes and words" if words else "bytes"
    return f"unknown: {step}"


def _space_prefix(normalizer: dict[str, Any], cutter: dict[str, Any]) -> bool | None:
    """Whether a SentencePiece tokenizer puts a space before the text; None where it does something else, too.

    llama.cpp does as SentencePiece did: a space before the text, and after each special token. transformers' Metaspace
    leaves it out where one is there already, and mostly after special tokens; llama.cpp has no switch for that.
    """
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if not cutter and steps == [{"type": "Prepend", "prepend": "▁"}, replace]:
        return True
    match cutter:
        case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False} if not steps:
            return bool(scheme != "never")
    return None


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Write the vocabulary, its merges and the special tokens.

    Raises:
        ValueError: the kind is unknown, or the tokenizer has ids that the model has no embedding for.
    """
    kind, plain = tokenizer_kind(tokenizer), _plain(tokenizer)
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in plain["model"]["merges"]]
    tokens, types = _vocabulary(plain, tokenizer, vocab_size)
    writer.add_tokenizer_model(kind.model)
    writer.add_tokenizer_pre(kind.pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if kind.model == "llama":
        first = {left + right: -float(rank) for rank, (left, right) in reversed(list(enumerate(merges)))}
        writer.add_token_scores([first.get(token, NEVER_MERGED) for token in tokens])
    else:
        writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_add_space_prefix(kind.space_prefix)
    _add_special(writer, tokenizer)


def _vocabulary(
    plain: dict[str, Any], tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> tuple[list[str], list[int]]:
    """Token and type of each id; ids that the tokenizer does not use are filled up to the embedding's rows."""
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    in_bytes = plain["model"]["byte_fallback"]  # bytes are tokens such as <0x0A>, and there is one for the unknown
    added = {one["id"]: one for one in plain["added_tokens"]}
    for token, i in tokenizer.get_vocab().items():
        if i >= vocab_size:
            raise ValueError(f"gguf: token {token!r} has id {i}, and the model has embeddings for {vocab_size} tokens")
        if in_bytes and i == tokenizer.unk_token_id:
            kind = TokenType.UNKNOWN
        elif in_bytes and len(token) == 6 and token.startswith("<0x"):
            kind = TokenType.BYTE
        elif i in added:
            kind = TokenType.CONTROL if added[i]["special"] else TokenType.USER_DEFINED
        else:
            kind = TokenType.NORMAL
        tokens[i], types[i] = token, int(kind)
    return tokens, types


def _add_special(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    for i, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if i is not None:
            add(i)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def carry_over(writer: GGUFWriter, source: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Copy the tokenizer of the GGUF that the model came from, field by field.

    Raises:
        ValueError: the checkpoint has another vocabulary by now.
    """
    fields = {name: field for name, field in GGUFReader(source).fields.items() if name.startswith("tokenizer.")}
    if dict(enumerate(fields["tokenizer.ggml.tokens"].contents())) != {i: t for t, i in tokenizer.get_vocab().items()}:
        raise ValueError(f"gguf: the checkpoint's tokenizer has another vocabulary than {source.name}, its source")
    for name, field in fields.items():
        kind, *of = field.types
        writer.add_key_value(name, field.contents(), kind, of[0] if of else None)


def source_gguf(model: str) -> Path | None:
    """The GGUF that a model (hub id or directory) came from; a pruned one says in flap.json what it was made of."""
    seen: set[str] = set()
    while model not in seen:
        if found := packaged_gguf(model):
            return found
        seen.add(model)
        record = Path(model) / "flap.json"
        if record.is_file():
            model = json.loads(record.read_text())["provenance"].get("config", {}).get("model", {}).get("path", "")
    return None


def _plain(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    plain: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    return plain
