"""Load a tiny model at a placement, and interrupt its forward pass with an exception in a layer.

The placement says where the weights are, for example all in memory, or all on disk.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from torch import Tensor, nn

from flap.config import ModelConfig
from flap.models import PlacedModel, find_model
from flap.storage import WorkFolder


def placed_at(placement: str, directory: Path, folder: Path | None = None) -> PlacedModel:
    """Load the model in a directory and its tokenizer at a placement, such as "stream".

    folder: where the placement stores data that is not in memory.
    """
    config = ModelConfig("tiny", str(directory), device="cpu", placement=placement)
    return find_model(config, directory.parent / "cache", trust_remote_code=False).open(
        WorkFolder(folder)
    )


class Interruption(Exception):  # noqa: N818 - this exception is no error
    """The exception that a layer raises within the block of `interrupted`."""


@contextmanager
def interrupted(placed: PlacedModel, layer: int, call: int = 1) -> Iterator[None]:
    """In a `with` block, make the MLP of a layer raise Interruption.

    call: the number of the MLP's call that raises the exception, counted from 1.
    """
    calls = count(1)

    def stop(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if next(calls) == call:
            raise Interruption

    hook = placed.layers[layer].mlp.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        hook.remove()
