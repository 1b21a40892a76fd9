"""The tokens of a fast tokenizer: which tokens each token is built from, and which must stay.

When a vocabulary is trimmed, some of its tokens stay, and all other tokens are removed.

This module reads and writes the content of a tokenizer.json. No other module of this package
depends on the format of this file.
"""

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from flap.config import require

BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token that stands for a byte


@dataclass(frozen=True)
class Tokens(ABC):
    """The tokens of a tokenizer that have a row in the embedding."""

    spec: dict[str, Any]  # the content of the tokenizer's file tokenizer.json
    ids: dict[str, int]  # dict from tokens to their ids
    special: frozenset[int]  # ids of special tokens, and token ids in the model's configs

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase, rows: int, named: Collection[int] = ()) -> "Tokens":
        """Return the tokens of a tokenizer.

        rows: number of rows of the embedding. Tokens whose ids are not below this number are
            ignored.
        named: token ids that occur in the configs of the model. Tokens with these ids must stay,
            like special tokens.

        Raises:
            ValueError: the tokenizer is not a fast tokenizer, its algorithm is neither Unigram nor
                BPE, or it marks tokens that continue or end a word with a prefix or a suffix.
        """
        name = type(tokenizer).__name__
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"vocabulary=trim: expected none, as the tokenizer ({name}) is not a fast one"
            )
        spec: dict[str, Any] = json.loads(backend.to_str())
        model = spec["model"]
        kind = model["type"]
        plain = not model.get("continuing_subword_prefix") and not model.get("end_of_word_suffix")
        allowed = f"none, as the tokenizer ({kind}) is neither BPE without word marks nor Unigram"
        require(kind in KINDS and plain, "vocabulary", "trim", allowed)
        ids = {token: i for token, i in tokenizer.get_vocab().items() if i < rows}
        return KINDS[kind](spec, ids, frozenset({*tokenizer.all_special_ids, *named}))

    @property
    @abstractmethod
    def of_model(self) -> list[str]:
        """The tokens in the tokenizer's model (the part `model` of tokenizer.json), sorted by id.

        Some of these tokens may also be added tokens.
        """

    @abstractmethod
    def needed(self, token: str) -> Iterable[str]:
        """Return a token, and all tokens from which the tokenizer builds it."""

    @abstractmethod
    def model_with(self, ids: Mapping[str, int]) -> dict[str, Any]:
        """Return the tokenizer's model with only the tokens in `ids`.

        ids: a dict from tokens to their new ids.
        """

    @cached_property
    def stay(self) -> frozenset[str]:
        """The tokens that must stay so that every text can be tokenised.

        Special tokens, added tokens and the unknown token must stay. If the tokenizer has byte
        tokens, such as <0x0A>, they must stay, and the token "▁", which stands for a space, must
        stay, too. If "▁" were removed, spaces would be tokenised into the bytes of "▁", and decoded
        as "▁". If the tokenizer has no byte tokens, all tokens of one character must stay.
        """
        stay = {token for token, i in self.ids.items() if i in self.special}
        stay |= {entry["content"] for entry in self.spec["added_tokens"]}
        stay |= self._unknown
        if self.spec["model"].get("byte_fallback"):
            stay |= {"▁", *(f"<0x{byte:02X}>" for byte in range(256))}
        else:
            stay |= {token for token in self.of_model if len(token) == 1}
        return frozenset(stay & self.ids.keys())

    def num_bytes(self, token: str) -> int:
        """Return the number of bytes of a token's spelling in tokenizer.json, encoded as UTF-8.

        A token that stands for a byte, such as <0x0A>, has one byte.
        """
        of_byte = self.spec["model"].get("byte_fallback") and BYTE.fullmatch(token)
        return 1 if of_byte else len(token.encode())

    @property
    def _unknown(self) -> set[str]:
        return {self.spec["model"].get("unk_token")}

    def cut(self, kept: Collection[str]) -> tuple[dict[str, Any], list[int]]:
        """Return the content of tokenizer.json with only the kept tokens, and their old ids.

        The new ids have no gaps. The tokens of the tokenizer's model get the first ids, and added
        tokens that are not in the model get the ids after them. In each of these two groups, the
        order of the tokens does not change. The old ids are returned in the order of the new ids.
        """
        of_model = [token for token in self.of_model if token in kept]
        added = sorted(set(kept).difference(of_model), key=self.ids.__getitem__)
        order = of_model + added
        ids = {token: i for i, token in enumerate(order)}

        spec = dict(self.spec)
        for part in ("post_processor", "padding"):
            spec[part] = _renumbered(self.spec.get(part), ids)
        spec["added_tokens"] = [
            entry | {"id": ids[entry["content"]]}
            for entry in self.spec["added_tokens"]
            if entry["content"] in ids
        ]
        spec["model"] = self.model_with({token: ids[token] for token in of_model})
        return spec, [self.ids[token] for token in order]


class BPE(Tokens):
    """Byte-pair encoding, which merges two neighbouring tokens of a text at a time.

    Of all pairs of neighbours, the pair whose merge has the lowest rank is merged first. Merging
    ends when no pair of neighbours has a merge. A text whose tokens all stay is tokenised in the
    same way as before the trimming, because the merges that produce its tokens stay in the same
    order, and no merges are added.
    """

    @property
    def of_model(self) -> list[str]:
        vocabulary: dict[str, int] = self.spec["model"]["vocab"]
        return sorted(self.ids.keys() & vocabulary.keys(), key=vocabulary.__getitem__)

    @cached_property
    def merge_order(self) -> dict[tuple[str, str], int]:
        """The rank of each merge. The merge with the lowest rank is applied first."""
        ranks: dict[tuple[str, str], int] = {}
        for rank, merge in enumerate(self.spec["model"]["merges"]):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            ranks.setdefault((left, right), rank)
        return ranks

    def needed(self, token: str) -> Iterable[str]:
        """Return a token, its characters, and all tokens that merges produce on the way to it.

        The merges begin with the characters. If merges of tokens in the vocabulary cannot produce
        the token, which is possible with `ignore_merges`, return only the token.
        """
        parts = list(token)
        made = set(token)
        while len(parts) > 1:
            ranks = [self.merge_order.get(pair, math.inf) for pair in pairwise(parts)]
            lowest = min(ranks)
            if lowest == math.inf:
                return {token}
            i = ranks.index(lowest)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            made.add(parts[i])
        return made if made <= self.ids.keys() else {token}

    def model_with(self, ids: Mapping[str, int]) -> dict[str, Any]:
        """Return the tokenizer's model with the tokens in `ids`, and all merges of these tokens.

        A merge stays if its three tokens are in `ids`: the two merged tokens and the result. The
        order of the merges does not change.
        """
        pairs = [
            (left, right)
            for left, right in self.merge_order
            if {left, right, left + right} <= ids.keys()
        ]
        pairs.sort(key=self.merge_order.__getitem__)
        return {**self.spec["model"], "vocab": dict(ids), "merges": [list(pair) for pair in pairs]}


class Unigram(Tokens):
    """Unigram tokenisation, which divides a text so that the sum of its tokens' scores is highest.

    A text whose tokens all stay is divided in the same way as before the trimming.
    """

    @property
    def of_model(self) -> list[str]:
        return [token for token, _ in self.spec["model"]["vocab"] if token in self.ids]

    @property
    def _unknown(self) -> set[str]:
        """The unknown token and the token with the lowest score, which must both stay.

        The tokenizers library computes the score of unknown characters from the lowest score.
        """
        model = self.spec["model"]
        lowest, _ = min(model["vocab"], key=lambda entry: entry[1])
        tokens = {lowest}
        if model["unk_id"] is not None:
            tokens.add(model["vocab"][model["unk_id"]][0])
        return tokens

    def needed(self, token: str) -> Iterable[str]:
        return {token}

    def model_with(self, ids: Mapping[str, int]) -> dict[str, Any]:
        """Return the tokenizer's model with the tokens in `ids` and their scores.

        The unknown token gets its new id.
        """
        model = dict(self.spec["model"])
        vocabulary = model["vocab"]
        if model["unk_id"] is not None:
            model["unk_id"] = ids[vocabulary[model["unk_id"]][0]]
        model["vocab"] = [entry for entry in vocabulary if entry[0] in ids]
        return model


KINDS: dict[str, type[Tokens]] = {"BPE": BPE, "Unigram": Unigram}


def _renumbered(part: Any, ids: Mapping[str, int]) -> Any:
    """Return a part of tokenizer.json in which the new ids replace the old ids of tokens."""
    match part:
        case {"tokens": tokens, "ids": _}:
            return part | {"ids": [ids[token] for token in tokens]}
        case {"pad_token": token}:
            return part | {"pad_id": ids[token]}
        case [str(token), int()]:
            return [token, ids[token]]
        case list():
            return [_renumbered(item, ids) for item in part]
        case dict():
            return {name: _renumbered(item, ids) for name, item in part.items()}
    return part
