"""A tiny model's directory opened at a placement, and a layer that raises."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from torch import Tensor, nn

from flap.config import ModelConfig
from flap.models import PlacedModel, find_model
from flap.storage import WorkFolder


def placed_at(placement: str, directory: Path, folder: Path | None = None) -> PlacedModel:
    """Return the model of a directory, with its tokenizer, at a placement.

    folder: for the data that is not kept in memory.
    """
    config = ModelConfig("tiny", str(directory), device="cpu", placement=placement)
    return find_model(config, directory.parent / "cache", trust_remote_code=False).open(
        WorkFolder(folder)
    )


class Interruption(Exception):  # noqa: N818 - no error
    """Raised by a layer inside `interrupted`."""


@contextmanager
def interrupted(placed: PlacedModel, layer: int, call: int = 1) -> Iterator[None]:
    """Let the MLP of a layer raise when it is called for the n-th time, while the block lasts."""
    calls = count(1)

    def stop(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if next(calls) == call:
            raise Interruption

    hook = placed.layers[layer].mlp.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        hook.remove()
