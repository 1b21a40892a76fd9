"""Run a decoder one layer at a time; hidden states of all windows wait on the host, in files mapped into memory.

Legend: N windows · T tokens a window · D hidden size.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flap.files import write_text
from flap.models.adapter import ModelAdapter
from flap.models.stream import AnyModel, StreamedModel, adapter_of
from flap.progress import progress


@dataclass(frozen=True)
class Call:
    """What a decoder gives to one of its layers besides hidden states: masks, rotary angles, …"""

    args: tuple[Any, ...]
    options: dict[str, Any]

    @torch.no_grad()
    def __call__(self, layer: nn.Module, hidden_NTD: Tensor) -> Tensor:
        """What the layer puts out, on its own device."""
        device = next(layer.parameters()).device
        if device.type != "meta":  # else accelerate holds the weights and brings both together
            hidden_NTD = hidden_NTD.to(device)
        output = layer(hidden_NTD, *self.args, **self.options)
        return output if isinstance(output, Tensor) else output[0]


@torch.no_grad()
def enter(adapter: ModelAdapter, tokens_NT: Tensor) -> tuple[Tensor, list[Call]]:
    """The hidden states that the first layer gets for these windows, and how each layer is called.

    The model's own forward pass says so, whatever its family; its layers are not run and need no weights. The calls
    depend on the shape of `tokens_NT` and not on the tokens.
    """
    hidden: list[Tensor] = []
    calls: list[Call] = []

    def note(index: int, hidden_NTD: Tensor, *args: Any, **options: Any) -> Tensor:
        hidden.append(hidden_NTD)
        calls.append(Call(args, options))
        return hidden_NTD

    with _instead_of_layers(adapter.layers, note):
        adapter.decoder(input_ids=tokens_NT, use_cache=False)
    return hidden[0], calls


def calls_by_size(adapter: ModelAdapter, batches_NT: Sequence[Tensor], device: torch.device) -> dict[int, list[Call]]:
    """How each layer is called, for each number of windows that a batch has."""
    one_of_each = {len(batch_NT): batch_NT for batch_NT in batches_NT}
    return {size: enter(adapter, batch_NT.to(device))[1] for size, batch_NT in one_of_each.items()}


@torch.no_grad()
def leave(adapter: ModelAdapter, model: PreTrainedModel, tokens_NT: Tensor, hidden_NTD: Tensor) -> Any:
    """What the model, or its decoder alone, makes of what its last layer put out for these windows."""
    with _instead_of_layers(adapter.layers, lambda index, given, *args, **options: hidden_NTD):
        return model(input_ids=tokens_NT, use_cache=False)


@contextmanager
def _instead_of_layers(layers: nn.ModuleList, forward: Callable[..., Tensor]) -> Iterator[None]:
    """For as long as the block lasts, `forward(index, hidden, …)` is called instead of the layers."""
    own = [vars(layer).get("forward") for layer in layers]
    for index, layer in enumerate(layers):
        layer.forward = partial(forward, index)
    try:
        yield
    finally:
        for layer, before in zip(layers, own, strict=True):
            del layer.forward
            if before is not None:  # accelerate's hooks stand there
                layer.forward = before


class LayerwisePass:
    """All windows on their way through a streamed model, one layer at a time.

    Their hidden states wait in `folder`, mapped into memory: as long as the host has room, they stay there. A layer
    reads one file and writes the other, and only then is it noted as done: a kill loses one layer's work.

    Raises:
        ValueError: the disk has no room for the hidden states.
    """

    def __init__(self, model: StreamedModel, batches_NT: Sequence[Tensor], folder: Path) -> None:
        self.folder = folder
        self._sizes = [len(batch_NT) for batch_NT in batches_NT]
        with model.rest():
            self._calls = calls_by_size(model.adapter, batches_NT, model.device)
            first_NTD, _ = enter(model.adapter, batches_NT[0].to(model.device))
            self._shape, self._dtype = (sum(self._sizes), *first_NTD.shape[1:]), first_NTD.dtype
            if self.layers_done < 0:
                self._check_room()
                for target, batch_NT in zip(self.given_to(0), batches_NT, strict=True):
                    target.copy_(enter(model.adapter, batch_NT.to(model.device))[0])
                self.note_done(0)

    def given_to(self, layer: int) -> tuple[Tensor, ...]:
        """hidden_NTD that this layer gets, in batches; behind the last layer, what the last one puts out."""
        file = str(self.folder / f"hidden-{layer % 2}")
        flat: Tensor = torch.from_file(file, shared=True, size=math.prod(self._shape), dtype=self._dtype)
        batches: tuple[Tensor, ...] = flat.view(self._shape).split(self._sizes)
        return batches

    def run(self, index: int, layer: nn.Module) -> None:
        """All windows through one layer; may be done again until the layer is noted as done."""
        for given, put_out in zip(self.given_to(index), self.given_to(index + 1), strict=True):
            # a clone begins where any tensor would, so that the same kernels run as without a buffer
            put_out.copy_(self._calls[len(given)][index](layer, given.clone()))

    @property
    def layers_done(self) -> int:
        """How many layers have been run; -1: not even the first one's inputs are there."""
        try:
            return int(json.loads((self.folder / "layers_done.json").read_text()))
        except FileNotFoundError:
            return -1

    def note_done(self, layers: int) -> None:
        write_text(self.folder / "layers_done.json", json.dumps(layers))

    def _check_room(self) -> None:
        needed = 2 * math.prod(self._shape) * self._dtype.itemsize
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise ValueError(
                f"cache_dir: the hidden states of {self._shape[0]} windows take {needed / 1e9:.3g} GB, and "
                f"{free / 1e9:.3g} GB are free in {self.folder}; name a larger disk, or take fewer windows"
            )


@torch.no_grad()
def final_hidden_states(model: AnyModel, batches_NT: Sequence[Tensor]) -> Iterator[Tensor]:
    """What the decoder makes of each batch; a streamed one with one layer in memory at a time, for all batches.

    While the caller looks at a batch, the model's head has its weights.
    """
    adapter = adapter_of(model)
    if not isinstance(model, StreamedModel):
        for batch_NT in batches_NT:
            yield adapter.decoder(input_ids=batch_NT.to(model.device), use_cache=False).last_hidden_state
        return
    with TemporaryDirectory() as folder:
        windows = LayerwisePass(model, batches_NT, Path(folder))
        for i in progress(range(len(model.layers)), "layer by layer"):
            with model.layer(i) as layer:
                windows.run(i, layer)
        with model.rest():
            for batch_NT, hidden_NTD in zip(batches_NT, windows.given_to(len(model.layers)), strict=True):
                tokens_NT, hidden_NTD = batch_NT.to(model.device), hidden_NTD.to(model.device)
                yield leave(adapter, adapter.decoder, tokens_NT, hidden_NTD).last_hidden_state
