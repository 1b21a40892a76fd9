"""The report of one run: report.json, schema 1."""

import json
import math
import platform
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from flap.allocation import Budget, PruningPlan
from flap.compression import Correction, Repair
from flap.files import write_text
from flap.models import AnyModel, ModelAdapter
from flap.reporting.provenance import device_name, git_state, versions

SCHEMA = 1


@dataclass
class Report:
    """Filled stage by stage; units are in the names. `evaluation` holds {"dense": {...}, "pruned": {...}}."""

    config: dict[str, Any]
    device: str = ""
    device_map: dict[str, str] = field(default_factory=dict)  # where accelerate put each module (model.placement=auto)
    sources: dict[str, str] = field(default_factory=dict)  # where model and texts came from
    warnings: list[str] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)
    layers: list[dict[str, int]] = field(default_factory=list)
    layers_before: list[dict[str, int]] = field(default_factory=list)
    repairs: dict[str, dict[str, Any]] = field(default_factory=dict)  # of linear compensation, by block
    corrections: dict[str, dict[str, Any]] = field(default_factory=dict)  # of calibration.propagate=pruned, by block
    search_nats: list[float] = field(default_factory=list)  # of structure=search: the first plan's, each round's
    domains: dict[str, str] = field(default_factory=dict)  # of each task, to the calibration's: "calibration", "other"
    evaluation: dict[str, dict[str, float]] = field(default_factory=lambda: {"dense": {}, "pruned": {}})
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: dict[str, int | None] = field(default_factory=dict)
    statistics_cache: str = "off"
    checkpoint: str | None = None
    loads_with: str = ""  # what the pruned model needs to be loaded, and why it is not less
    schema: int = SCHEMA
    versions: dict[str, str] = field(default_factory=versions)
    git: dict[str, Any] = field(default_factory=git_state)

    @classmethod
    def start(cls, config: dict[str, Any]) -> "Report":
        """The report of a run that begins now; in a process that had others before, the GPU's peak is not theirs."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return cls(config)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds that the block takes to the stage's."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the result: goes into the checkpoint, too."""
        return {"config": self.config, "versions": self.versions, "git": self.git}

    def note_devices(self, model: AnyModel) -> None:
        """Where the model is: the device that runs it, and where parts of it wait."""
        self.device = device_name(model.device)
        if isinstance(model, PreTrainedModel):
            self.device_map = {module: str(place) for module, place in getattr(model, "hf_device_map", {}).items()}

    def count_before(self, adapter: ModelAdapter, budget: Budget) -> None:
        """Parameters and widths of the dense model, counted from its tensors."""
        self.parameters = {
            "total_before": _total(adapter),
            "decoder_before": adapter.num_parameters(),
        }
        self.layers_before = [_widths(one.kv_heads, one.queries_per_group, one.neurons) for one in budget.layers]

    def count_after(self, adapter: ModelAdapter, plan: PruningPlan, budget: Budget, masked: bool) -> None:
        """What is left, counted from the tensors; of a masked model, whose tensors keep their shapes, from the plan.

        A masked model has the dense widths, so its total holds the zero biases of a stock form that the sliced one may
        not have (docs/exports.md).

        Raises:
            RuntimeError: the tensors do not hold what the plan says.
        """
        kept, total = budget.kept(plan), _total(adapter)
        held = [tuple(block.num_units for block in adapter.blocks(i)) for i in range(len(adapter.layers))]
        planned = [(len(layer.kv_heads), len(layer.neurons)) for layer in plan.layers]
        if not masked and held != planned:
            raise RuntimeError(f"the plan keeps {planned} KV heads and neurons, the layers have {held}")
        if masked:
            total -= budget.total - kept
        self.parameters |= {"total_after": total, "decoder_after": kept}
        self.ratio = {
            "requested": budget.ratio,
            "realised_decoder": 1 - kept / budget.total,
            "realised_total": 1 - total / self.parameters["total_before"],
        }
        if self.config["structure"].get("round_to"):
            self.ratio["round_to_cost"] = self.ratio["realised_decoder"] - budget.ratio
        self.layers = [
            _widths(len(one.kv_heads), prices.queries_per_group, len(one.neurons) // prices.experts)
            for one, prices in zip(plan.layers, budget.layers, strict=True)
        ]

    def note_repairs(self, repairs: Mapping[str, Repair]) -> None:
        """What linear fits say of each block that lost units; `ridge` is None where the bias stayed."""
        self.repairs |= {block: repair._asdict() for block, repair in repairs.items()}

    def note_corrections(self, corrections: Mapping[str, Correction]) -> None:
        """What the second pass did to each block that lost units; `ridge` is None where no map was better."""
        self.corrections |= {block: correction._asdict() for block, correction in corrections.items()}

    def note_peak(self) -> None:
        """Peak memory of the process so far; also to be called before something resets what it is read from."""
        unit = 1 if platform.system() == "Darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        before = self.peak_memory_bytes
        self.peak_memory_bytes = {
            "host": max(host, before.get("host") or 0),
            "device": device if device is None else max(device, before.get("device") or 0),
        }

    def finish(self) -> None:
        """Total time and peak memory of the process."""
        self.seconds["total"] = sum(seconds for stage, seconds in self.seconds.items() if stage != "total")
        self.note_peak()

    def save(self, path: Path) -> None:
        """Write report.json; a number that JSON cannot hold (an infinite perplexity) becomes null."""
        plain = asdict(self)
        for numbers in plain["evaluation"].values():
            numbers.update({name: None for name, value in numbers.items() if not math.isfinite(value)})
        write_text(path, json.dumps(plain, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Read report.json back.

        Raises:
            ValueError: it is damaged, or another version wrote it.
        """
        try:
            plain = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read ({type(error).__name__}); resume=false runs it again") from error
        if plain.get("schema") != SCHEMA:
            raise ValueError(
                f"{path}: schema {plain.get('schema')}, this version reads {SCHEMA}; choose another folder, or "
                "resume=false to replace it"
            )
        for numbers in plain["evaluation"].values():
            numbers.update({name: math.inf for name, value in numbers.items() if value is None})
        return cls(**plain)


def _total(adapter: ModelAdapter) -> int:
    return sum(parameter.numel() for parameter in adapter.model.parameters())


def _widths(kv_heads: int, queries_per_group: int, neurons: int) -> dict[str, int]:
    return {"query_heads": kv_heads * queries_per_group, "kv_heads": kv_heads, "neurons": neurons}
