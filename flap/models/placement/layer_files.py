"""The safetensors files of a model, by decoder layer: which tensors belong to a layer, and reading them."""

from collections import defaultdict
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from flap.models.quantised import dequantiser
from flap.models.source import CheckpointSource
from flap.models.weights import tensor_files


class LayerFiles:
    """The files of a model on the meta device, by decoder layer; None stands for embeddings, final norm and head."""

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList, source: CheckpointSource) -> None:
        self.model, self.source, self.dequantiser = model, source, dequantiser(source.config)
        self.prefix = next(f"{name}." for name, module in model.named_modules() if module is layers)
        self._conversions = (
            get_model_conversion_mapping(model, None, self.dequantiser)
            if self.dequantiser
            else model._weight_conversions
        )

    def read(self, index: int | None) -> None:
        """Read the tensors of a layer into the model, renamed, fused, dequantised and cast as transformers does it."""
        own, names = getattr(self.model, "_weight_conversions", None), self._names[index]
        with ExitStack() as files:
            opened = {
                path: files.enter_context(safe_open(path, framework="pt"))
                for path in sorted({self._files[name] for name in names})
            }
            # the files are closed after each layer: while a file is open, what was read from it stays in memory
            convert_and_load_state_dict_in_model(
                self.model,
                {name: opened[self._files[name]].get_slice(name) for name in names},
                LoadStateDictConfig(
                    device_map={"": self.source.device},
                    dtype=self.model.dtype,
                    weight_mapping=self._conversions,
                    hf_quantizer=self.dequantiser,
                ),
            )
        self.model._weight_conversions = own  # the call above keeps only those that it used

    def state(self, index: int | None) -> dict[str, Tensor]:
        """Return the entries of the model's state dict that belong to a layer, as they are now."""
        prefix = self.prefix if index is None else f"{self.prefix}{index}."
        state = self.model.state_dict()
        return {name: tensor for name, tensor in state.items() if name.startswith(prefix) == (index is not None)}

    @cached_property
    def _files(self) -> dict[str, Path]:
        return tensor_files(Path(self.source.path))

    @cached_property
    def _names(self) -> dict[int | None, list[str]]:
        """The names in the files of each layer's tensors."""
        expected = self.model.state_dict()
        rules = [
            [rule for rule in self._conversions if isinstance(rule, kind)] for kind in (WeightRenaming, WeightConverter)
        ]
        names: dict[int | None, list[str]] = defaultdict(list)
        for name in self._files:
            target, _ = rename_source_key(name, *rules, self.model.base_model_prefix, expected)
            inside = target.startswith(self.prefix)
            names[int(target.removeprefix(self.prefix).split(".")[0]) if inside else None].append(name)
        return names
