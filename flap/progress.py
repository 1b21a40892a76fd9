"""One progress bar for every long step, on standard error."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(items: Iterable[T], description: str) -> Iterator[T]:
    """Yield the items and show how many are done; away from a terminal only the last state is printed."""
    total = len(items) if isinstance(items, Sized) else None
    yield from track(items, description=f"{description:<28}", total=total, console=Console(stderr=True))
