"""Functions that make all kinds of tokenizers from which flap can remove tokens."""

import json
from collections.abc import Callable
from functools import partial

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.helpers.tokenizers import KINDS as BPES
from tests.helpers.tokenizers import TEXT


def unigram(byte_fallback: bool) -> PreTrainedTokenizerFast:
    """Return a Unigram tokenizer like those of SentencePiece, with an unknown token.

    byte_fallback: whether the tokenizer encodes unknown characters as bytes.
    """
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, unk_token="<unk>", special_tokens=["<s>", "<unk>"]
    )
    backend.train_from_iterator(TEXT, trainer)
    vocabulary = [(token, score) for token, score in plain(backend)["vocab"]]
    steps = [decoders.Metaspace()]
    if byte_fallback:
        vocabulary += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
        steps = [decoders.ByteFallback(), decoders.Fuse(), *steps]
    backend.model = models.Unigram(vocabulary, unk_id=1, byte_fallback=byte_fallback)
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", unk_token="<unk>", eos_token="<stop>"
    )


def plain(backend: Tokenizer) -> dict:
    return json.loads(backend.to_str())["model"]


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    **BPES,
    "unigram": partial(unigram, byte_fallback=False),
    "unigram-bytes": partial(unigram, byte_fallback=True),
}


def pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Return the tokens of a text as strings.

    Unlike its id, the string of a token does not change if other tokens are removed.
    """
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
