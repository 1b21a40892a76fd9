"""FP8 in, FP8 out: matrices in 8 bits with a scale for each block, as the dense checkpoint has them.

What pruning did not change keeps its bytes. What it changed is rounded in memory first, to 8 bits times a power of two
for each block, which bfloat16 holds exactly: so the files hold the numbers that the model in memory computes with.
"""

import json
import logging
from collections import defaultdict
from math import gcd
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
from transformers.utils import cached_file

from flap.models import ModelSource, PlacedModel, Walk, find_family
from flap.models.weights import INDEX, tensor_files
from flap.storage.tensor_headers import tensor_shapes

log = logging.getLogger(__name__)


class FP8:
    """The matrices of a dense checkpoint that are in FP8, and those of a pruned one that can be so, by their names."""

    def __init__(self, path: str, values: dict[str, Any]) -> None:
        """Take the names. path: of the dense model. values: its `quantization_config`."""
        self.values, self.block = values, tuple(values["weight_block_size"])
        self._files = tensor_files(Path(cached_file(path, "config.json")).parent)
        self._packed: set[str] = set()
        self._plain: set[str] = set()
        options = FineGrainedFP8Config(weight_block_size=self.block, scale_fmt="ue8m0")
        self._quantise = Fp8Quantize(SimpleNamespace(quantization_config=options)).convert

    @torch.no_grad()
    def round(self, placed: PlacedModel) -> None:
        """Round what pruning changed to numbers that FP8 has."""
        names = {module: name for name, module in placed.model.named_modules()}
        for i in Walk(placed, "round to FP8"):
            by_block: dict[str, dict[str, nn.Linear]] = defaultdict(dict)
            for module in placed.layers[i].modules():
                name = f"{names[module]}.weight"
                if isinstance(module, nn.Linear) and f"{name}_scale_inv" in self._files:
                    by_block[name.rsplit(".", 2)[0]][name] = module
            for linears in by_block.values():
                self._round_block(linears)

    def warn(self, placed: PlacedModel) -> None:
        """Warn of matrices that the blocks of FP8 do not divide, after rounding."""
        if self._plain:
            size = max(self.block)
            heads = size // gcd(size, placed.adapter.head_dim or size)
            log.warning(
                "%d of %d matrices are not in FP8 any more: its blocks take multiples of %d, and round_to=%d "
                "structure.multiple_of_heads=%d makes them so",
                *(len(self._plain), len(self._plain | self._packed), size, size, heads),
            )

    def _round_block(self, linears: dict[str, nn.Linear]) -> None:
        """Round the matrices of an attention or an MLP: all or none, as engines join some of them."""
        changed = {name: one for name, one in linears.items() if self._unchanged(name, one.weight) is None}
        shapes = [tuple(one.weight.shape) for one in changed.values()]
        if any(0 in shape or shape[0] % self.block[0] or shape[1] % self.block[1] for shape in shapes):
            self._plain |= linears.keys()
            return
        self._packed |= linears.keys()
        for one in changed.values():
            rounded = dequantised(self._quantise({"weight": one.weight})).to(one.weight.dtype)
            one.weight = nn.Parameter(rounded, requires_grad=one.weight.requires_grad)

    def pack(self, checkpoint: Path) -> None:
        """Write the weights of a plain checkpoint in FP8, one file at a time in memory, and say so in its config."""
        tensors: dict[str, Tensor] = {}
        shards = sorted(checkpoint.glob("*.safetensors"))
        for shard in shards:
            with safe_open(shard, framework="pt") as file:
                tensors.clear()
                for name in file.keys():  # noqa: SIM118 - the file is no mapping
                    tensors |= self._encoded(name, file.get_tensor(name))
            shard.unlink()  # may be the file of a changed layer, too, which stays
            save_file(tensors, shard, metadata={"format": "pt"})
        config = json.loads((checkpoint / "config.json").read_text())
        plain = [name.removesuffix(".weight") for name in sorted(self._plain)]
        skipped = [*(self.values.get("modules_to_not_convert") or ()), *plain]
        config["quantization_config"] = self.values | {"modules_to_not_convert": skipped}
        (checkpoint / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if (checkpoint / INDEX).is_file():
            index = json.loads((checkpoint / INDEX).read_text())
            index["weight_map"] = {name: shard.name for shard in shards for name in tensor_shapes(shard)}
            index["metadata"]["total_size"] = sum(shard.stat().st_size for shard in shards)
            (checkpoint / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _encoded(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """Return a tensor as the checkpoint has it, with its scales: the bytes of the dense one where it is equal."""
        if name not in self._packed:
            return {name: weight}
        found = self._unchanged(name, weight) or self._quantise({"weight": weight})
        scale = found["weight_scale_inv"].to(self._read(f"{name}_scale_inv").dtype)
        return {name: found["weight"], f"{name}_scale_inv": scale}

    def _unchanged(self, name: str, weight: Tensor) -> dict[str, Tensor] | None:
        """Return the dense model's matrix and scales if the weight is equal to them, else None."""
        stored = {"weight": self._read(name), "weight_scale_inv": self._read(f"{name}_scale_inv")}
        if stored["weight"].shape != weight.shape:
            return None
        dense = dequantised(stored).to(weight.dtype).to(weight.device)
        return stored if torch.equal(dense, weight) else None

    def _read(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return tensor


def dequantised(stored: dict[str, Tensor]) -> Tensor:
    """Return a matrix in float32 from its entries `weight` and `weight_scale_inv`."""
    scale = stored["weight_scale_inv"].float()
    weight: Tensor = Fp8Dequantize(None).convert(stored | {"weight_scale_inv": scale})["weight"]
    return weight


def fp8_of(source: ModelSource) -> FP8 | None:
    """Return the form of a dense model in FP8; None for plain ones, and with a warning for other quantised ones."""
    values = dict(getattr(source.config, "quantization_config", None) or {})
    if not values or source.loaded:
        return None
    blocks = values.get("weight_block_size") and values.get("activation_scheme", "dynamic") == "dynamic"
    if values["quant_method"] != "fp8" or not blocks or find_family(source.config).experts:
        log.warning("the checkpoint is not quantised: only FP8 in blocks stays so, and not that of mixtures")
        return None
    return FP8(source.path, values)
