"""The sections of report.json (schema 1)."""

from dataclasses import dataclass, field
from typing import Any

from flap.evaluation.base import Better, Numbers
from flap.method.allocation import PruningPlan

SCHEMA = 1
Facts = dict[str, Any]
Texts = dict[str, str]
Widths = dict[str, int]  # number of query heads, KV heads, neurons and experts of a layer


@dataclass
class Record:
    """The numbers and facts of a run. Units are part of the names."""

    config: Facts  # the composed config of the run
    device: str = ""  # the device that the model ran on
    dtype: str = ""  # the type of the weights
    # the device and the machine of each process; empty if there is only one process
    processes: list[str] = field(default_factory=list)
    # the device of each module, with model.placement=auto
    device_map: Texts = field(default_factory=dict)
    # the origins of the model and of the texts
    sources: Texts = field(default_factory=dict)
    # what it took to generate the texts that the model wrote itself, by the use of the text
    own_text: Facts = field(default_factory=dict)
    # the warnings of the log, without repetitions
    warnings: list[str] = field(default_factory=list)
    # total_before, decoder_before, total_after, decoder_after
    parameters: dict[str, int] = field(default_factory=dict)
    # tokens before and after trimming; covered: the share of the counted tokens that stay
    vocabulary: Numbers = field(default_factory=dict)
    # shares of the parameters that were removed: requested, realised_decoder, …
    ratio: Numbers = field(default_factory=dict)
    # asked, dense and realised values, by the name of the target
    target: dict[str, Numbers] = field(default_factory=dict)
    # the pruned model, layer by layer
    layers: list[Widths] = field(default_factory=list)
    # the dense model, layer by layer
    layers_before: list[Widths] = field(default_factory=list)
    # fit reports of linear compensation, by block
    repairs: Facts = field(default_factory=dict)
    # training after compression: divergences, tokens, and the errors of pruned - compressed
    recovery: Facts = field(default_factory=dict)
    # how often pruning went over the model's weights, from calibration to compression
    weight_passes: int = 0
    # digests of what the config does not hold, such as the weights and the texts
    inputs: Texts = field(default_factory=dict)
    # whether the windows of a text begin with the beginning-of-sequence token
    bos: dict[str, bool] = field(default_factory=dict)
    # "calibration" or "other", for the text of each task
    domains: Texts = field(default_factory=dict)
    # how many documents of each task are left out, because the run has read them before
    left_out: dict[str, int] = field(default_factory=dict)
    # numbers of the models "dense", "pruned", and "compressed" if the model was then trained
    evaluation: dict[str, Numbers] = field(default_factory=lambda: {"dense": {}, "pruned": {}})
    # whether higher or lower values of a number are better, as far as this is known
    better: dict[str, Better] = field(default_factory=dict)
    # averages over tasks, with the names of the numbers that are averaged
    averages: dict[str, list[str]] = field(default_factory=dict)
    # standard errors of pruned - dense, paired by document
    difference_stderr: Numbers = field(default_factory=dict)
    # p-values of the same differences, from 0 to 1
    difference_p_value: Numbers = field(default_factory=dict)
    seconds: Numbers = field(default_factory=dict)  # wall-clock seconds spent in each stage
    # peak bytes in the memory of "host" and "device"; None without a GPU
    peak_memory_bytes: dict[str, int | None] = field(default_factory=dict)
    statistics_cache: str = ""  # "hit", "miss", "off"
    checkpoint: str | None = None  # the folder of the checkpoint; None if it was not saved
    loads_with: str = ""  # what is needed to load the pruned model, and why
    schema: int = SCHEMA  # the version of report.json
    # the versions of this package, Python and libraries
    versions: Texts = field(default_factory=dict)
    # the commit of this package's checkout, and whether files differ from it (dirty)
    git: Facts = field(default_factory=dict)
    # the kept units; null in report.json, because plan.json has them
    plan: PruningPlan | None = field(default=None, repr=False)
