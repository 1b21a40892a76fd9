"""The parts of a mixture of texts, as `calibration.dataset` names them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flap.config import require

SELF = "self"  # the text that the model itself writes
HEAVIEST = 1e9  # sums and products of weights stay numbers


@dataclass(frozen=True)
class Part:
    """A text of a mixture."""

    dataset: str  # a name or a file
    weight: float = 1.0  # share of the tokens, relative to the other parts; above 0, at most HEAVIEST
    # a window may go on in the next document; false: what is left of a document after its last window is not used
    packing: bool = True
    # prompts and conversations go through the tokenizer's chat template, None: where there is one; `self`: the model
    # begins as in it
    chat_template: bool | None = None


def parse(dataset: Any, field: str) -> list[Part]:
    """Return the parts of a name, a list of names, or a mapping from names to weights or options. Weight 0 leaves out.

    Raises:
        ValueError: it is none of these, has a text twice, a weight is negative, all are zero, or an option is unknown.
    """
    if isinstance(dataset, str):
        return [Part(dataset)]
    if isinstance(dataset, Mapping):
        parts = [_part(str(name), options, field) for name, options in dataset.items()]
    elif isinstance(dataset, Sequence) and all(isinstance(name, str) for name in dataset):
        parts = [Part(name) for name in dataset]
    else:
        raise ValueError(f"{field}={dataset}: expected a text, [text, text] or {{text: weight, text: weight}}")
    different = {os.path.realpath(part.dataset) for part in parts}
    require(len(different) == len(parts), field, dataset, "each text once; {name: 2} gives it more weight")
    used = [part for part in parts if part.weight > 0]
    require(bool(used), field, dataset, "at least one text with a weight above 0")
    return used


def _part(name: str, options: Any, field: str) -> Part:
    options = options if isinstance(options, Mapping) else {"weight": options}
    unknown = options.keys() - {"weight", "packing", "chat_template"}
    require(not unknown, f"{field}.{name}", ", ".join(sorted(map(str, unknown))), "weight, packing, chat_template")
    weight = options.get("weight", 1.0)
    valid = isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight <= HEAVIEST
    require(valid, f"{field}.{name}", weight, f"a weight >= 0 and at most {HEAVIEST:.0e}")
    for option in ("packing", "chat_template"):
        value = options.get(option)
        require(value is None or isinstance(value, bool), f"{field}.{name}.{option}", value, "true or false")
    return Part(name, float(weight), options.get("packing") is not False, options.get("chat_template"))
