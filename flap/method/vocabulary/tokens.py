"""A fast tokenizer as a set of tokens of which some can be removed: what each one is made of, and which have to stay.

No other room knows how a tokenizer is made. What is here reads and writes the content of a tokenizer.json.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from flap.config import require


@dataclass(frozen=True)
class Tokens(ABC):
    """The tokens of a tokenizer that have a row in the embedding."""

    spec: dict[str, Any]  # the content of its tokenizer.json
    ids: dict[str, int]  # of all tokens
    special: frozenset[int]

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase, rows: int, named: Collection[int] = ()) -> "Tokens":
        """Return the tokens of a tokenizer. rows: of the embedding; a token beyond them is none of the model's.

        named: the ids that the model's configs name, whose tokens stay as special ones do.

        Raises:
            ValueError: the tokenizer is no fast one, or of a kind of which no token can be removed.
        """
        name = type(tokenizer).__name__
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"vocabulary=trim: expected none, as the tokenizer ({name}) is not a fast one"
            )
        spec: dict[str, Any] = json.loads(backend.to_str())
        model = spec["model"]
        plain = not model.get("continuing_subword_prefix") and not model.get("end_of_word_suffix")
        allowed = f"none, as the tokenizer ({model['type']}) is neither BPE without word marks nor Unigram"
        require(model["type"] in KINDS and plain, "vocabulary", "trim", allowed)
        ids = {token: i for token, i in tokenizer.get_vocab().items() if i < rows}
        return KINDS[model["type"]](spec, ids, frozenset({*tokenizer.all_special_ids, *named}))

    @property
    @abstractmethod
    def own(self) -> list[str]:
        """The tokens of the tokenizer's model, in the order of their ids; added ones may come on top."""

    @abstractmethod
    def needed(self, token: str) -> Iterable[str]:
        """Return a token, and those without which the tokenizer cannot make it."""

    @abstractmethod
    def model_of(self, ids: Mapping[str, int]) -> dict[str, Any]:
        """Return the model of the tokens that stay. ids: their new ones, in order."""

    @cached_property
    def stay(self) -> frozenset[str]:
        """The tokens that have to stay, so that any text can be written: special, added, bytes, else all characters.

        With bytes also "▁", a space: in bytes it would be read as the character itself.
        """
        model = self.spec["model"]
        added = {entry["content"] for entry in self.spec["added_tokens"]}
        of_bytes = (
            {"▁", *(f"<0x{byte:02X}>" for byte in range(256))}
            if model.get("byte_fallback")
            else set()
        )
        characters = (
            set()
            if model.get("byte_fallback")
            else {token for token in self.own if len(token) == 1}
        )
        special = {token for token, i in self.ids.items() if i in self.special}
        return frozenset(
            (added | of_bytes | characters | special | self._unknown) & self.ids.keys()
        )

    @property
    def _unknown(self) -> set[str]:
        return {self.spec["model"].get("unk_token")}

    def cut(self, kept: Collection[str]) -> tuple[dict[str, Any], list[int]]:
        """Return the content of the tokenizer.json of the tokens that stay, and their old ids in the order of the new.

        Ids are dense: first those of the model, then those that are only added, each in their old order.
        """
        own = [token for token in self.own if token in kept]
        order = own + sorted(set(kept).difference(own), key=self.ids.__getitem__)
        ids = {token: i for i, token in enumerate(order)}
        added = [
            entry | {"id": ids[entry["content"]]}
            for entry in self.spec["added_tokens"]
            if entry["content"] in ids
        ]
        renumbered = {
            part: _renumbered(self.spec.get(part), ids) for part in ("post_processor", "padding")
        }
        spec = (
            self.spec
            | renumbered
            | {"added_tokens": added, "model": self.model_of({one: ids[one] for one in own})}
        )
        return spec, [self.ids[token] for token in order]


class BPE(Tokens):
    """Byte-pair encoding: the pair of the lowest rank in a word is merged, until no pair has a rank.

    On a text whose tokens all stay, the same merges follow one another: each is on the way to a token of the text, and
    stays with it, and no other pair ever had a lower rank.
    """

    @property
    def own(self) -> list[str]:
        vocabulary: dict[str, int] = self.spec["model"]["vocab"]
        return sorted(self.ids.keys() & vocabulary.keys(), key=vocabulary.__getitem__)

    @cached_property
    def merge_order(self) -> dict[tuple[str, str], int]:
        """The rank of each merge; the lowest one goes first."""
        merges = (
            one.split(" ") if isinstance(one, str) else one for one in self.spec["model"]["merges"]
        )
        return {(left, right): rank for rank, (left, right) in reversed(list(enumerate(merges)))}

    def needed(self, token: str) -> Iterable[str]:
        """Return a token and all that merges make on the way to it; alone if they do not make it (`ignore_merges`)."""
        parts = list(token)
        made = set(token)
        while len(parts) > 1:
            rank, i = min(
                (self.merge_order.get(pair, math.inf), i) for i, pair in enumerate(pairwise(parts))
            )
            if rank == math.inf:
                return {token}
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            made.add(parts[i])
        return made if made <= self.ids.keys() else {token}

    def model_of(self, ids: Mapping[str, int]) -> dict[str, Any]:
        """Return the vocabulary, and the merges of which all three tokens stay, in their old order."""
        merges = [
            [left, right]
            for left, right in self.merge_order
            if {left, right, left + right} <= ids.keys()
        ]
        merges.sort(key=lambda pair: self.merge_order[pair[0], pair[1]])
        return {**self.spec["model"], "vocab": dict(ids), "merges": merges}


class Unigram(Tokens):
    """The division of a text with the highest sum of scores: it stays the highest where all its tokens stay."""

    @property
    def own(self) -> list[str]:
        return [token for token, _ in self.spec["model"]["vocab"] if token in self.ids]

    @property
    def _unknown(self) -> set[str]:
        """The unknown token, and that of the lowest score, from which the score of unknown characters is computed."""
        model = self.spec["model"]
        lowest = min(model["vocab"], key=lambda entry: entry[1])[0]
        return {lowest} | (
            {model["vocab"][model["unk_id"]][0]} if model["unk_id"] is not None else set()
        )

    def needed(self, token: str) -> Iterable[str]:
        return {token}

    def model_of(self, ids: Mapping[str, int]) -> dict[str, Any]:
        """Return the scores of the tokens that stay, and the id of the unknown one."""
        model = self.spec["model"]
        unknown = None if model["unk_id"] is None else ids[model["vocab"][model["unk_id"]][0]]
        return {
            **model,
            "vocab": [entry for entry in model["vocab"] if entry[0] in ids],
            "unk_id": unknown,
        }


KINDS: dict[str, type[Tokens]] = {"BPE": BPE, "Unigram": Unigram}


def _renumbered(part: Any, ids: Mapping[str, int]) -> Any:
    """Return a part of a tokenizer.json in which each id that stands beside its token is the new one."""
    match part:
        case {"tokens": tokens, "ids": _}:
            return part | {"ids": [ids[token] for token in tokens]}
        case {"pad_token": token}:
            return part | {"pad_id": ids[token]}
        case [str(token), int()]:
            return [token, ids[token]]
        case list():
            return [_renumbered(one, ids) for one in part]
        case dict():
            return {name: _renumbered(one, ids) for name, one in part.items()}
    return part
