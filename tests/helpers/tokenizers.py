"""Train small tokenizers of the kinds that a GGUF file can contain.

Each tokenizer has the same kinds of components (such as pre-tokenizer and decoder) as the real
tokenizers of its family.
"""

import json
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    CohereTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

VOCAB = 512
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = [
    "The quick brown fox jumps over the lazy dog, and then it sat under the old tree.",
    "In 2024 there were 12345 cats; they're 3.14 times as old as I'M, you'll see!  Isn't it?",
    "A naïve café in Zürich costs 50 € a day.\n\n\tdef f(x):\n        return x + 1\n",
]
TRICKY = [
    *TEXT,
    "Hello world",
    "trailing ",
    "x  two   three    spaces\n\n\nlines \t tab",
    "numbers 1 12 123 1234 12345678 v2.0",
    "don't DON'T we'LL they'Re",
    "emoji 😀 and 中文字 and ünïcödé",
    "!!!???... (a[b]{c})",
    "the<|stop|>",
]
# Texts that a SentencePiece tokenizer of transformers splits differently from SentencePiece itself.
SPACES = [" leading", "the <|stop|> of it"]
LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def _byte_level(cutter: pre_tokenizers.PreTokenizer, ignore_merges: bool = False) -> Tokenizer:
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer, backend.decoder = cutter, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet)
    )
    return backend


def smollm() -> PreTrainedTokenizerFast:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend = _byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    )
    return _named(PreTrainedTokenizerFast(tokenizer_object=backend))


def llama_bpe() -> PreTrainedTokenizerFast:
    made = olmo2(ignore_merges=True)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", made.bos_token_id)]
    )
    return made


def olmo2(ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    cutter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return _named(PreTrainedTokenizerFast(tokenizer_object=_byte_level(cutter, ignore_merges)))


def _trained(kind: Any, **special: str | None) -> PreTrainedTokenizerFast:
    """Train the vocabulary of a tokenizer of class `kind`, with the pre-tokenizer of this class."""
    trained = _byte_level(kind(vocab={}, merges=[]).backend_tokenizer.pre_tokenizer).model
    return _named(kind(**_state(trained), eos_token="<|stop|>", pad_token="<|stop|>", **special))


def qwen2() -> PreTrainedTokenizerFast:
    return _trained(Qwen2Tokenizer, unk_token=None)


def gpt2() -> PreTrainedTokenizerFast:
    return _trained(GPT2Tokenizer, unk_token="<|stop|>")


def gpt_neox() -> PreTrainedTokenizerFast:
    return _trained(GPTNeoXTokenizer, unk_token="<|stop|>")


def cohere() -> PreTrainedTokenizerFast:
    return _trained(CohereTokenizer)


def llama_spm() -> PreTrainedTokenizerFast:
    """Return a tokenizer as transformers converts it from a SentencePiece model.

    The vocabulary consists of special tokens, one token for each byte, and pieces of words. Pieces
    are merged in the order of their scores.
    """
    made = LlamaTokenizer(**_pieces(LEGACY, "<unk>", "<s>", "</s>"))
    made.add_tokens([AddedToken("<|stop|>", special=True)])
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    return made


def gemma() -> PreTrainedTokenizerFast:
    """Return a tokenizer like `llama_spm`, except that it puts no space before the text."""
    made = GemmaTokenizer(
        **_pieces(normalizers.Replace(" ", "▁"), "<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    )
    made.add_tokens([AddedToken("<|stop|>", special=True)])
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", made.bos_token_id)]
    )
    return made


def _pieces(normalizer: normalizers.Normalizer, *special: str) -> dict[str, Any]:
    """Return the vocabulary and the merges of a SentencePiece model.

    The vocabulary consists of special tokens, one token for each byte, and pieces of words.
    """
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizer
    backend.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    state = _state(backend.model)
    pieces = sorted(state["vocab"], key=state["vocab"].__getitem__)
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    return {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": state["merges"]}


def llama_spm_legacy() -> PreTrainedTokenizerFast:
    """Return `llama_spm` in the form that checkpoints had before transformers 5."""
    made = llama_spm()
    made.backend_tokenizer.pre_tokenizer, made.backend_tokenizer.normalizer = None, LEGACY
    return made


def llama_spm_file() -> PreTrainedTokenizerFast:
    """Return `llama_spm` in the form that transformers 5 reads from SentencePiece's own file."""
    made = llama_spm()
    steps = [normalizers.Replace(" ", "▁"), normalizers.Replace(Regex(r"\A▁"), "▁▁")]
    made.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([metaspace])
    return made


def _state(model: models.BPE) -> dict:
    backend = Tokenizer(model)
    plain = json.loads(backend.to_str())["model"]
    return {"vocab": plain["vocab"], "merges": [tuple(merge) for merge in plain["merges"]]}


def _named(made: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    made.add_special_tokens({"bos_token": "<|begin|>", "eos_token": "<|stop|>"})
    return made


KINDS = {
    "smollm": smollm,
    "llama-bpe": llama_bpe,
    "qwen2": qwen2,
    "llama-spm": llama_spm,
    "llama-spm-legacy": llama_spm_legacy,
    "llama-spm-file": llama_spm_file,
    "gemma": gemma,
    "olmo2": olmo2,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "cohere": cohere,
}
