"""Write a checkpoint one decoder layer at a time, for a model that never lies in memory as a whole.

One shard holds embeddings, final norm and head, and each layer has its own. A killed start's shards are not made again.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from flap.allocation import PruningPlan
from flap.checkpoint.convert import Form, become_checkpointable
from flap.checkpoint.load import stream
from flap.checkpoint.save import check_target, compare, probe
from flap.files import unfinished_steps, written_in_steps
from flap.models import ModelAdapter, StreamedModel
from flap.models.layerwise import enter, leave
from flap.progress import progress


def check_room(target: Path, num_bytes: int) -> None:
    """Raises: ValueError: the disk has too little room for a checkpoint of this size."""
    place = next(path for path in target.absolute().parents if path.exists())
    there = sum(file.stat().st_size for folder in unfinished_steps(target) for file in folder.rglob("*"))
    free = shutil.disk_usage(place).free + there
    if free < num_bytes:
        raise ValueError(
            f"checkpoint.dir={target}: the pruned model takes {num_bytes / 1e9:.3g} GB, and {free / 1e9:.3g} GB are "
            "free there; name a place on a larger disk"
        )


def save_streamed(
    model: StreamedModel,
    dense: StreamedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    plan: PruningPlan,
    provenance: dict[str, Any],
    overwrite: bool,
    *,
    change_layer: Callable[[ModelAdapter, int], None],
    becomes_another_class: bool,
    key: str,
) -> str:
    """Read each layer of `dense`, change it, write it; then the rest, config and index; reload all that and compare.

    `model` gets the shapes of what is written, and its class. Compared are logits: of the layers as they were in
    memory, one after the other, and of the checkpoint, streamed. A killed start leaves its shards to the next one with
    the same `key`. Returns what the checkpoint loads with, where it became another class.

    Raises:
        ValueError: the target is taken, cannot be written, or what was written computes something else.
    """
    check_target(directory, overwrite)
    for i in range(len(model.layers)):
        change_layer(model.adapter, i)  # on the meta device
    form = become_checkpointable(model.adapter) if becomes_another_class else Form("")
    try:
        with written_in_steps(directory, key) as scratch:
            shards = _Shards(scratch, len(model.layers))
            hidden_NTD = _write_layers(shards, model, dense, change_layer)
            expected = _write_rest(shards, model, hidden_NTD, form.zero_biases)
            tokenizer.save_pretrained(scratch)
            (scratch / "flap.json").write_text(json.dumps({"provenance": provenance, "plan": plan.to_dict()}) + "\n")
            compare(expected, logits(stream(scratch, model.device)), scratch)
            shards.probed.unlink()  # not sooner: a start that is killed while it compares leaves all shards to the next
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint.dir={directory}: cannot be written, what was there stays ({error})") from error
    return form.loads_with


@dataclass(frozen=True)
class _Shards:
    """The shards in a folder, each written whole; and behind the last one, the hidden states that go on from there."""

    folder: Path
    num_layers: int

    def path(self, layer: int | None) -> Path:
        number = 1 if layer is None else layer + 2
        return self.folder / f"model-{number:05d}-of-{self.num_layers + 1:05d}.safetensors"

    @property
    def probed(self) -> Path:
        return self.folder / "probed.safetensors"

    def start(self, hidden_NTD: Tensor) -> tuple[int, Tensor]:
        """How many layers are there, and the hidden states behind them."""
        try:
            with safe_open(self.probed, framework="pt") as file:
                hidden: Tensor = file.get_tensor("hidden").to(hidden_NTD.device)
                return int(file.metadata()["layers"]), hidden
        except FileNotFoundError:
            return 0, hidden_NTD

    def write(self, layer: int, tensors: dict[str, Tensor], hidden_NTD: Tensor) -> None:
        _write_whole(self.path(layer), tensors, {"format": "pt"})
        _write_whole(self.probed, {"hidden": hidden_NTD}, {"layers": str(layer + 1)})

    def finish(self, num_parameters: int, num_bytes: int) -> None:
        """The index, from what the shards hold."""
        paths = [self.path(layer) for layer in (None, *range(self.num_layers))]
        index = {
            "metadata": {"total_parameters": num_parameters, "total_size": num_bytes},
            "weight_map": {name: path.name for path in paths for name in _names(path)},
        }
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_layers(
    shards: _Shards, model: StreamedModel, dense: StreamedModel, change_layer: Callable[[ModelAdapter, int], None]
) -> Tensor:
    """Every layer's shard; what the probe's hidden states are behind the last layer."""
    tokens_NT = probe(model.model).to(model.device)
    with dense.rest():
        hidden_NTD, calls = enter(dense.adapter, tokens_NT)
    layers_there, hidden_NTD = shards.start(hidden_NTD)
    for i in progress(range(layers_there, len(model.layers)), "prune, layer by layer"):
        with dense.layer(i) as layer:
            change_layer(dense.adapter, i)
            hidden_NTD = calls[i](layer, hidden_NTD)
            shards.write(i, revert_weight_conversion(model.model, dense.tensors(i)), hidden_NTD)
    return hidden_NTD


def _write_rest(shards: _Shards, model: StreamedModel, hidden_NTD: Tensor, zero_biases: list[str]) -> Tensor:
    """The files besides the layers' shards, with biases that came after those; the logits that all must give."""
    tokens_NT = probe(model.model).to(model.device)
    with model.rest():
        zeros = {name: torch.zeros_like(model.model.get_parameter(name), device="cpu") for name in zero_biases}
        model.model.save_pretrained(shards.folder / "rest", state_dict=model.tensors(None) | zeros)
        expected: Tensor = leave(model.adapter, model.model, tokens_NT, hidden_NTD).logits
    for file in (shards.folder / "rest").iterdir():
        file.replace(shards.path(None) if file.suffix == ".safetensors" else shards.folder / file.name)
    (shards.folder / "rest").rmdir()
    parameters = list(model.model.parameters())
    shards.finish(sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters))
    return expected


def logits(model: StreamedModel) -> Tensor:
    """The logits of a streamed model on the probe, one layer in memory at a time."""
    tokens_NT = probe(model.model).to(model.device)
    with model.rest():
        hidden_NTD, calls = enter(model.adapter, tokens_NT)
    for i, call in enumerate(calls):
        with model.layer(i) as layer:
            hidden_NTD = call(layer, hidden_NTD)
    with model.rest():
        found: Tensor = leave(model.adapter, model.model, tokens_NT, hidden_NTD).logits
    return found


def _write_whole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    scratch = path.with_name(f".{path.name}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch, metadata=metadata)
    scratch.replace(path)


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())
