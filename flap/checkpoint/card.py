"""The model card of a checkpoint, README.md: written atomically, and never over one that is somebody's own."""

import logging
from pathlib import Path, PureWindowsPath
from typing import Any

from flap.data.text_files import FILE_FORMATS
from flap.storage.atomic_files import write_text

log = logging.getLogger(__name__)

CARD = "README.md"
MARK = "<!-- Written by flap, and replaced with the checkpoint. Delete this line, and the card is yours and stays. -->"


def is_generated(card: Path) -> bool:
    """Return whether a file is a card that this program wrote and nobody has claimed."""
    return card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")


def write_card(directory: Path, text: str) -> None:
    """Write the card of a checkpoint, unless the directory has a README.md that is somebody's own."""
    card = directory / CARD
    if card.exists() and not is_generated(card):
        log.info("%s is not replaced: it is somebody's own, without flap's mark", card)
        return
    write_text(card, text)


def without_folders(value: Any) -> Any:
    """Return a value with each path in it cut to its name: what is published tells nothing of its writer's folders."""
    if isinstance(value, dict):
        return {without_folders(key): without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return PureWindowsPath(value).name if isinstance(value, str) and not _on_a_hub(value) else value


def _on_a_hub(name: str) -> bool:
    """Return whether a text may be a name on a hub, as org/model."""
    path = PureWindowsPath(name)  # which takes both kinds of slashes
    return len(path.parts) == 2 and not (
        path.anchor or path.parts[0] in ("~", "..") or path.suffix in FILE_FORMATS
    )
