"""Write the model card of a checkpoint (README.md), but never replace a user's own model card."""

import logging
from pathlib import Path, PureWindowsPath
from typing import Any

from flap.data.text_files import FILE_FORMATS
from flap.storage.atomic_files import write_text

log = logging.getLogger(__name__)

CARD = "README.md"
# By this line, flap recognises the model cards that it has written. Do not change the line, because
# existing cards contain it.
MARK = (
    "<!-- Written by flap, and replaced with the checkpoint. "
    "Delete this line, and the card is yours and stays. -->"
)


def is_generated(card: Path) -> bool:
    """Return whether a file is a model card that flap has written and that still contains MARK."""
    return card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")


def write_card(directory: Path, text: str) -> None:
    """Write the model card of a checkpoint, unless a README.md without MARK exists."""
    card = directory / CARD
    if card.exists() and not is_generated(card):
        log.info("%s is not replaced, because it does not have the mark of flap's cards", card)
        return
    write_text(card, text)


def without_folders(value: Any) -> Any:
    """Return a copy of `value` (JSON data) in which each path is replaced by its last component.

    Model cards are published, and should not reveal the folders of the machine that wrote them.
    Strings that may be ids on the hub, such as org/name, are not replaced.
    """
    if isinstance(value, dict):
        return {without_folders(key): without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and not _may_be_hub_id(value):
        return PureWindowsPath(value).name
    return value


def _may_be_hub_id(name: str) -> bool:
    path = PureWindowsPath(name)  # splits a name at slashes and at backslashes
    if len(path.parts) != 2 or path.anchor:
        return False
    return path.parts[0] not in ("~", "..") and path.suffix not in FILE_FORMATS
