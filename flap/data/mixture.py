"""Parse mixtures of texts, as described by options such as `calibration.dataset`.

A mixture is a set of texts with weights. Each text, with its weight and its options, is called a
*part* of the mixture. Calibration and training windows are drawn from the texts in proportion to
the weights.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flap.config import require, shown
from flap.storage import digest

SELF = "self"  # the name of a text that the model itself generates
HEAVIEST = 1e9  # maximum weight of a text, so that sums and products of weights stay finite


@dataclass(frozen=True)
class TextsInMemory:
    """Texts in memory, which the caller of `flap.prune` passes instead of a name or a file."""

    documents: tuple[str, ...]

    @cached_property
    def label(self) -> str:
        """The name of these texts in reports and messages: their number and their digest."""
        return f"{len(self.documents)} texts in memory (digest {digest(self.documents)})"


@dataclass(frozen=True)
class Part:
    """One text of a mixture, with its weight and options."""

    dataset: str  # the name or the file of the text; for texts in memory, their label
    # The weight of the text, above 0 and at most HEAVIEST. This text supplies the fraction
    # weight / (sum of the weights of all parts) of the mixture's windows.
    weight: float = 1.0
    # whether prompts in this text are formatted with the tokenizer's chat template; None means true
    # if the tokenizer has a template, and false otherwise
    chat_template: bool | None = None
    documents: tuple[str, ...] = ()  # the texts in memory; empty for a name or a file


def parse(dataset: Any, field: str) -> list[Part]:
    """Return the parts of a mixture. Each part is one text, and a mixture may have only one part.

    dataset: the name or the file of a text, a list of names and files, a mapping from names and
        files to weights or options, or texts in memory. Texts with the weight 0 are left out.
    field: the config key that error messages name.

    Raises:
        ValueError: `dataset` has none of these forms, names a text twice, has an invalid weight or
            option, or gives all texts the weight 0.
    """
    if isinstance(dataset, TextsInMemory):
        return [Part(dataset.label, documents=dataset.documents)]
    if isinstance(dataset, str):
        return [Part(dataset)]
    if isinstance(dataset, Mapping):
        parts = [_part(str(name), options, field) for name, options in dataset.items()]
    elif isinstance(dataset, Sequence) and all(isinstance(name, str) for name in dataset):
        parts = [Part(name) for name in dataset]
    else:
        raise ValueError(
            f"{field}={shown(dataset)}: expected a text, [text, text] or "
            "{text: weight, text: weight}"
        )
    different = {os.path.realpath(part.dataset) for part in parts}
    allowed = "each text once; {name: 2} gives it more weight"
    require(len(different) == len(parts), field, dataset, allowed)
    used = [part for part in parts if part.weight > 0]
    require(bool(used), field, dataset, "at least one text with a weight above 0")
    return used


def _part(name: str, options: Any, field: str) -> Part:
    """Return one part of a mixture. options: the part's weight, or a dict of the part's options."""
    where = f"{field}.{name}"
    if not isinstance(options, Mapping):
        options = {"weight": options}
    unknown = options.keys() - {"weight", "chat_template"}
    names = ", ".join(sorted(map(str, unknown)))
    require(not unknown, where, names, "weight, chat_template")

    weight = options.get("weight", 1.0)
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    valid = is_number and 0 <= weight <= HEAVIEST
    require(valid, where, weight, f"a weight >= 0 and at most {HEAVIEST:.0e}")

    chat = options.get("chat_template")
    is_choice = chat is None or isinstance(chat, bool)
    require(is_choice, f"{where}.chat_template", chat, "true or false")
    allowed = "none: prompts with calibration.answers=self go through the template"
    require(name != SELF or chat is None, f"{where}.chat_template", chat, allowed)
    return Part(name, float(weight), chat)
