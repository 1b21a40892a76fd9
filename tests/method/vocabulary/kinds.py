"""The tokenizers from which tokens can leave, and what they make of a text, as text."""

import json
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.helpers.tokenizers import KINDS as BPES
from tests.helpers.tokenizers import TEXT


def unigram(byte_fallback: bool) -> PreTrainedTokenizerFast:
    """As sentencepiece makes it, with an unknown token, and with bytes for unknown characters or without."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, unk_token="<unk>", special_tokens=["<s>", "<unk>"]
    )
    backend.train_from_iterator(TEXT, trainer)
    vocabulary = [(token, score) for token, score in plain(backend)["vocab"]]
    bytes_ = [(f"<0x{byte:02X}>", -20.0) for byte in range(256)] if byte_fallback else []
    backend.model = models.Unigram(vocabulary + bytes_, unk_id=1, byte_fallback=byte_fallback)
    steps = [decoders.ByteFallback(), decoders.Fuse()] if byte_fallback else []
    backend.decoder = decoders.Sequence([*steps, decoders.Metaspace()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", unk_token="<unk>", eos_token="<stop>"
    )


def plain(backend: Tokenizer) -> dict:
    return json.loads(backend.to_str())["model"]


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    **BPES, "unigram": lambda: unigram(byte_fallback=False), "unigram-bytes": lambda: unigram(byte_fallback=True),
}  # fmt: skip


def pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The tokens of a text by their names, which are the same after others have left."""
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
