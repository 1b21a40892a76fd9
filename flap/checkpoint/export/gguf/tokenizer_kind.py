"""Find the tokenizer of llama.cpp that is equivalent to a tokenizer of transformers.

Each kind of tokenizer in llama.cpp has fixed steps that split a text before BPE merges tokens. This
module recognises the kind by these steps. If no kind has the steps of a tokenizer, the export
raises an error, because llama.cpp would split texts differently than the tokenizer does.
"""

from typing import Any, NamedTuple

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _WORDS.format(digits=r"\p{N}{1,3}")
_QWEN2 = _WORDS.format(digits=r"\p{N}")


class Steps(NamedTuple):
    """The steps by which a byte-level BPE tokenizer is recognised."""

    pre_tokenizer: list[str]  # for each step of the pre-tokenizer, the result of `_step_name`
    normalizer: str | None
    # whether a piece of the split text that is in the vocabulary becomes one token, without merges
    ignore_merges: bool


class TokenizerKind(NamedTuple):
    """A kind of tokenizer in llama.cpp, as the GGUF keys of a tokenizer describe it."""

    model: str  # "llama" for SentencePiece, "gpt2" for byte-level BPE
    pre: str  # llama.cpp's name of the pre-tokenizer
    space_prefix: bool  # whether a space is added before a text


# The steps of the supported byte-level BPE tokenizers. The keys are llama.cpp's names of the
# pre-tokenizers.
_BPE = {
    "llama-bpe": Steps([_LLAMA3, "bytes"], None, ignore_merges=True),
    "qwen2": Steps([_QWEN2, "bytes"], "NFC", ignore_merges=False),
    "smollm": Steps(["digit", "bytes and words"], None, ignore_merges=False),
    # GPT-2's tokenizer has these steps, and so has every byte-level BPE tokenizer that transformers
    # reads from a GGUF file
    "gpt-2": Steps(["bytes and words"], None, ignore_merges=False),
}


def tokenizer_kind(spec: dict[str, Any], name: str) -> TokenizerKind:
    """Return the kind of tokenizer in llama.cpp that is equivalent to a transformers tokenizer.

    spec: the content of tokenizer.json.
    name: the name of the tokenizer's class, for the error message.

    Raises:
        ValueError: the export knows no equivalent tokenizer in llama.cpp.
    """
    model = spec.get("model") or {}
    pre_tokenizer = spec.get("pre_tokenizer") or {}
    normalizer = spec.get("normalizer") or {}

    if model.get("type") == "BPE" and model.get("byte_fallback"):
        prefix = _space_prefix(normalizer, pre_tokenizer)
        if prefix is not None:
            return TokenizerKind("llama", "default", prefix)
    elif model.get("type") == "BPE":
        names = [_step_name(step) for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer])]
        steps = Steps(names, normalizer.get("type"), bool(model.get("ignore_merges")))
        for pre, expected in _BPE.items():
            if steps == expected:
                return TokenizerKind("gpt2", pre, space_prefix=False)

    raise ValueError(
        f"gguf: the export does not support the tokenizer ({name}); expected LLaMA's "
        "(SentencePiece or BPE), Gemma's, Qwen2's, SmolLM's, GPT-2's, or that of a model that came "
        "as a GGUF"
    )


def _step_name(step: dict[str, Any]) -> str:
    """Return a name for a step of a pre-tokenizer; for a Split step, its regular expression."""
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
    """Return whether a tokenizer that follows SentencePiece adds a space before a text.

    Return None if the tokenizer does not have the steps of SentencePiece. If llama.cpp adds spaces,
    it adds them like SentencePiece: before the text and after each special token. The step
    Metaspace is accepted, although it adds fewer spaces: none before a text that begins with a
    space, and usually none after special tokens. llama.cpp has no option for this behaviour.
    """
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    # Tokenizers that were converted from a SentencePiece file have this step. It doubles a "▁" at
    # the beginning of a text.
    double_first = {"type": "Replace", "pattern": {"Regex": r"\A▁"}, "content": "▁▁"}

    if not pre_tokenizer and steps == [prepend, replace]:
        return True
    # Gemma's pre-tokenizer splits at spaces, but it never finds any, because the normalizer has
    # already replaced all spaces
    if steps == [replace] and pre_tokenizer.get("pattern") == {"String": " "}:
        return False
    match pre_tokenizer.get("pretokenizers", pre_tokenizer):
        case [
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
        ]:
            return True if steps == [replace, double_first] else None
        case {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": scheme,
            "split": False,
        } if not steps:
            return bool(scheme != "never")
    return None
