"""What a run has found, as report.json holds it (schema 1)."""

from dataclasses import dataclass, field
from typing import Any

from flap.evaluation.base import Better
from flap.method.allocation import PruningPlan
from flap.results.provenance import git_state, versions

SCHEMA = 1


@dataclass
class Record:
    """The numbers and facts of a run; units are in the names. `evaluation` is a table, as a DataFrame takes it."""

    config: dict[str, Any]  # of the run, as composed
    device: str = ""  # that the model ran on
    dtype: str = ""  # of the weights
    processes: list[str] = field(
        default_factory=list
    )  # the device of each process and its machine; empty: one
    device_map: dict[str, str] = field(
        default_factory=dict
    )  # the device of each module (model.placement=auto)
    sources: dict[str, str] = field(default_factory=dict)  # origins of the model and the texts
    own_text: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # what it took the model to write, by its use
    warnings: list[str] = field(default_factory=list)  # each once, as logged
    parameters: dict[str, int] = field(
        default_factory=dict
    )  # total_before, decoder_before, total_after, decoder_after
    vocabulary: dict[str, float] = field(
        default_factory=dict
    )  # tokens before, after; covered: share of those counted
    ratio: dict[str, float] = field(
        default_factory=dict
    )  # shares of the parameters: requested, realised_decoder, …
    target: dict[str, dict[str, float]] = field(
        default_factory=dict
    )  # by name: asked, dense, realised
    layers: list[dict[str, int]] = field(
        default_factory=list
    )  # widths of each layer of the pruned model, by unit
    layers_before: list[dict[str, int]] = field(default_factory=list)  # and of the dense model
    repairs: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # fit reports of linear compensation, by block
    # training after compression: divergences, tokens, and differences as below, of pruned - compressed
    recovery: dict[str, Any] = field(default_factory=dict)
    weight_passes: int = (
        0  # times that pruning went over the model's weights, from calibration to compression
    )
    inputs: dict[str, str] = field(default_factory=dict)  # digests of what the config does not hold
    bos: dict[str, bool] = field(
        default_factory=dict
    )  # whether windows begin with the beginning-of-sequence token
    domains: dict[str, str] = field(
        default_factory=dict
    )  # of each task's text: "calibration", "other"
    # the number of documents of each task that are left out, because the run has read them before it measures
    left_out: dict[str, int] = field(default_factory=dict)
    # {"dense": {name: number}, "pruned": {name: number}}, with "compressed" too for a model that was then trained
    evaluation: dict[str, dict[str, float]] = field(
        default_factory=lambda: {"dense": {}, "pruned": {}}
    )
    better: dict[str, Better] = field(
        default_factory=dict
    )  # which values of a number are better; not in: unknown
    averages: dict[str, list[str]] = field(
        default_factory=dict
    )  # over tasks: the numbers that each is the mean of
    difference_stderr: dict[str, float] = field(
        default_factory=dict
    )  # of pruned - dense by name, paired by document
    difference_p_value: dict[str, float] = field(
        default_factory=dict
    )  # of the same differences, 0 to 1
    seconds: dict[str, float] = field(default_factory=dict)  # of each stage
    peak_memory_bytes: dict[str, int | None] = field(
        default_factory=dict
    )  # of "host" and "device"; None: no GPU
    statistics_cache: str = "off"  # "hit", "miss", "off"
    checkpoint: str | None = None  # its folder; None: not saved
    loads_with: str = ""  # what is needed to load the pruned model, and why
    schema: int = SCHEMA  # of report.json
    versions: dict[str, str] = field(
        default_factory=versions
    )  # of this package, Python and libraries
    git: dict[str, Any] = field(
        default_factory=git_state
    )  # the commit, and whether files differ from it (dirty)
    # the kept units; in report.json null, as plan.json has it
    plan: PruningPlan | None = field(default=None, repr=False)
