"""A model whose decoder layers stay on disk: one at a time is read from the safetensors files and dropped again."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from flap.models.adapter import ModelAdapter
from flap.models.devices import free_bytes
from flap.models.families import adapt
from flap.models.weights import tensor_files

log = logging.getLogger(__name__)

AnyModel: TypeAlias = "PreTrainedModel | StreamedModel"
ON_META = {"device_map": {"": "meta"}}  # options of from_pretrained: the model as it would be, without its weights
ROOM_TO_RUN = 1.5  # of a model's size: the weights, and what runs them


class StreamedModel:
    """A model on the meta device, as `from_pretrained(…, **ON_META)` makes it, whose weights come and go in blocks.

    What happens to a layer's shapes inside such a block stays when its weights are dropped, so that a pruned layer
    can be counted and described, though not read again.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        directory: str | Path,
        device: torch.device,
        load: Callable[[], PreTrainedModel],
    ) -> None:
        """load: how the same weights come into memory as a whole, on the device."""
        self.model = model
        self.load = load
        self.adapter = adapt(model)
        self.directory = Path(directory)
        self.device = device
        self._conversions = model._weight_conversions
        _fill_buffers(model, device)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights, tied tensors once."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @property
    def layers(self) -> nn.ModuleList:
        return self.adapter.layers

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """One decoder layer with its weights, for as long as the block lasts."""
        self._read(self._names[index])
        try:
            yield self.layers[index]
        finally:
            _drop(self.layers[index].modules())

    @contextmanager
    def rest(self) -> Iterator[None]:
        """Embeddings, final norm and head with their weights, for as long as the block lasts."""
        self._read(self._names[None])
        self.model.tie_weights()
        try:
            yield
        finally:
            inside = set(self.layers.modules())
            _drop(module for module in self.model.modules() if module not in inside)
            self.model.tie_weights()

    def tensors(self, index: int | None) -> dict[str, Tensor]:
        """What the model's state holds of a layer, or under None of all the rest, by name."""
        inside = self._prefix if index is None else f"{self._prefix}{index}."
        state = self.model.state_dict()
        return {name: tensor for name, tensor in state.items() if name.startswith(inside) == (index is not None)}

    def _read(self, names: Iterable[str]) -> None:
        """Read these tensors into the model as transformers would: renamed, fused and cast the same way."""
        to_save_by = self.model._weight_conversions
        with ExitStack() as files:
            opened = {
                path: files.enter_context(safe_open(path, framework="pt"))
                for path in sorted({self._files[name] for name in names})
            }
            # the files are closed after each layer: as long as one is open, what was read of it stays in memory
            convert_and_load_state_dict_in_model(
                self.model,
                {name: opened[self._files[name]].get_slice(name) for name in names},
                LoadStateDictConfig(
                    device_map={"": self.device}, dtype=self.model.dtype, weight_mapping=self._conversions
                ),
            )
        self.model._weight_conversions = to_save_by  # the call above keeps only those that it used

    @cached_property
    def _files(self) -> dict[str, Path]:
        return tensor_files(self.directory)

    @cached_property
    def _prefix(self) -> str:
        return next(f"{name}." for name, module in self.model.named_modules() if module is self.layers)

    @cached_property
    def _names(self) -> dict[int | None, list[str]]:
        """Names in the files of what belongs to each layer; under None those of all the rest."""
        known = self.model.state_dict()
        rules = [
            [one for one in self._conversions if isinstance(one, kind)] for kind in (WeightRenaming, WeightConverter)
        ]
        names: dict[int | None, list[str]] = defaultdict(list)
        for name in self._files:
            becomes, _ = rename_source_key(name, *rules, self.model.base_model_prefix, known)
            inside = becomes.startswith(self._prefix)
            names[int(becomes.removeprefix(self._prefix).split(".")[0]) if inside else None].append(name)
        return names


def room_for(*models: AnyModel) -> bool:
    """Whether the device has room for those of the models that are streamed, as a whole and all at once."""
    streamed = [model for model in models if isinstance(model, StreamedModel)]
    needed = ROOM_TO_RUN * sum(model.num_bytes for model in streamed)
    return all(needed <= free_bytes(model.device) for model in streamed)


def in_memory(model: AnyModel) -> PreTrainedModel:
    """The model; a streamed one is loaded as a whole."""
    if not isinstance(model, StreamedModel):
        return model
    log.info("loading %s as a whole, to measure it (%.3g GB)", model.directory, model.num_bytes / 1e9)
    return model.load()


def adapter_of(model: AnyModel) -> ModelAdapter:
    """The adapter around a model in memory or a streamed one."""
    return model.adapter if isinstance(model, StreamedModel) else adapt(model)


def _fill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute the buffers that no file holds (rotary frequencies), as transformers does after loading."""
    for module in model.modules():
        buffers = dict(module.named_buffers(recurse=False))
        for name, buffer in buffers.items():
            module._buffers[name] = torch.empty_like(buffer, device=device)
        if buffers:
            model._init_weights(module)


def _drop(modules: Iterable[nn.Module]) -> None:
    """Put the parameters of these modules, not of their children, back on the meta device."""
    to_meta: Callable[[Tensor], Tensor] = lambda tensor: tensor.detach().to("meta")  # noqa: E731
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(to_meta(parameter), requires_grad=parameter.requires_grad))
