"""The report of a run and its file report.json (schema 1)."""

import json
import platform
import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from flap.evaluation.base import Better
from flap.method.allocation import PruningPlan
from flap.results.provenance import git_state, versions
from flap.storage.atomic_files import write_text
from flap.storage.json_files import infinite, to_json

SCHEMA = 1
NEEDED: dict[str, Any] = {  # parts of a report.json
    "config": dict, "device": str, "sources": dict, "warnings": list, "parameters.total_before": int,
    "parameters.total_after": int, "ratio.realised_decoder": (int, float), "layers": list, "layers_before": list,
    "evaluation.dense": dict, "evaluation.pruned": dict, "versions": dict,
    "git.commit": str | None, "git.dirty": bool | None,
}  # fmt: skip
MEASURED = ("target", "recovery", "evaluation", "difference_stderr", "difference_p_value")


@dataclass
class Report:
    """The report of a run; units are in the names. `evaluation` is a table: `pandas.DataFrame(report.evaluation)`."""

    config: dict[str, Any]  # of the run, as composed
    device: str = ""  # that the model ran on
    dtype: str = ""  # of the weights
    processes: list[str] = field(default_factory=list)  # the device of each process and its machine; empty: one
    device_map: dict[str, str] = field(default_factory=dict)  # the device of each module (model.placement=auto)
    sources: dict[str, str] = field(default_factory=dict)  # origins of the model and the texts
    own_text: dict[str, dict[str, Any]] = field(default_factory=dict)  # what it took the model to write, by its use
    warnings: list[str] = field(default_factory=list)  # each once, as logged
    parameters: dict[str, int] = field(default_factory=dict)  # total_before, decoder_before, total_after, decoder_after
    vocabulary: dict[str, float] = field(default_factory=dict)  # tokens before, after; covered: share of those counted
    ratio: dict[str, float] = field(default_factory=dict)  # shares of the parameters: requested, realised_decoder, …
    target: dict[str, dict[str, float]] = field(default_factory=dict)  # by name: asked, dense, realised
    layers: list[dict[str, int]] = field(default_factory=list)  # widths of each layer of the pruned model, by unit
    layers_before: list[dict[str, int]] = field(default_factory=list)  # and of the dense model
    repairs: dict[str, dict[str, Any]] = field(default_factory=dict)  # fit reports of linear compensation, by block
    # training after compression: divergences, tokens, and differences as below, of pruned - compressed
    recovery: dict[str, Any] = field(default_factory=dict)
    weight_passes: int = 0  # times that pruning went over the model's weights, from calibration to compression
    inputs: dict[str, str] = field(default_factory=dict)  # digests of what the config does not hold
    bos: dict[str, bool] = field(default_factory=dict)  # whether windows begin with the beginning-of-sequence token
    domains: dict[str, str] = field(default_factory=dict)  # of each task's text: "calibration", "other"
    # {"dense": {name: number}, "pruned": {name: number}}, with "compressed" too for a model that was then trained
    evaluation: dict[str, dict[str, float]] = field(default_factory=lambda: {"dense": {}, "pruned": {}})
    better: dict[str, Better] = field(default_factory=dict)  # which values of a number are better; not in: unknown
    averages: dict[str, list[str]] = field(default_factory=dict)  # over tasks: the numbers that each is the mean of
    difference_stderr: dict[str, float] = field(default_factory=dict)  # of pruned - dense by name, paired by document
    difference_p_value: dict[str, float] = field(default_factory=dict)  # of the same differences, 0 to 1
    seconds: dict[str, float] = field(default_factory=dict)  # of each stage
    peak_memory_bytes: dict[str, int | None] = field(default_factory=dict)  # of "host" and "device"; None: no GPU
    statistics_cache: str = "off"  # "hit", "miss", "off"
    checkpoint: str | None = None  # its folder; None: not saved
    loads_with: str = ""  # what is needed to load the pruned model, and why
    schema: int = SCHEMA  # of report.json
    versions: dict[str, str] = field(default_factory=versions)  # of this package, Python and libraries
    git: dict[str, Any] = field(default_factory=git_state)  # the commit, and whether files differ from it (dirty)
    plan: PruningPlan | None = field(
        default=None, repr=False
    )  # the kept units; in report.json null, as plan.json has it

    def _repr_markdown_(self) -> str:
        """Return the tables of the report, which a notebook shows."""
        from flap.results.report_tables import tables  # here, because it imports this module

        return "\n\n".join(table.markdown() for table in tables(self))

    def save(self, path: Path) -> None:
        """Write report.json; a number that is not finite (an infinite perplexity) becomes null."""
        write_text(path, to_json(asdict(replace(self, plan=None)), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Read report.json; null among what was measured becomes infinity.

        Raises:
            ValueError: the file is missing or damaged, has another schema, or lacks a part.
        """
        try:
            plain = read_report(path)
            return cls(**{part.name: plain[part.name] for part in fields(cls) if part.name in plain})
        except ValueError as error:
            raise ValueError(
                f"{path.parent}/{error}; choose another folder, or resume=false to run it again"
            ) from error


def read_report(path: Path) -> dict[str, Any]:
    """Return the content of report.json; null among what was measured becomes infinity.

    Raises:
        ValueError: the file is missing or damaged, has another schema, or lacks a part: says which file, and why.
    """
    try:
        plain = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path.name}: cannot be read ({type(error).__name__})") from error
    if plain.get("schema") != SCHEMA:
        raise ValueError(f"{path.name}: schema {plain.get('schema')}, this version reads {SCHEMA}")
    inner = {f"{name}.{part}": value for name, section in plain.items() if isinstance(section, dict)
             for part, value in section.items()}  # fmt: skip
    if parts := [name for name, kind in NEEDED.items() if not isinstance((plain | inner).get(name, ...), kind)]:
        raise ValueError(f"{path.name}: has no valid {', '.join(parts)}")
    return plain | {part: infinite(plain[part]) for part in MEASURED if part in plain}


def peak_memory(before: Mapping[str, int | None] | None = None) -> dict[str, int | None]:
    """Return the peak memory of the process, "host" and "device", in bytes; at least what it was before."""
    unit = 1 if platform.system() == "Darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    gpus = range(torch.cuda.device_count())
    device = sum(map(torch.cuda.max_memory_allocated, gpus)) if gpus else None
    earlier = before or {}
    return {
        "host": max(host, earlier.get("host") or 0),
        "device": device if device is None else max(device, earlier.get("device") or 0),
    }


def reset_peak_memory() -> None:
    """Forget the peak memory of the GPUs in earlier runs."""
    for gpu in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(gpu)
