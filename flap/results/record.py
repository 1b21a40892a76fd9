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
    """The numbers and facts of a run.

    If the values of a field have a unit, the name of the field contains this unit, as in
    `peak_memory_bytes`.
    """

    config: Facts  # the composed config of the run
    device: str = ""  # the device that the model ran on
    dtype: str = ""  # the dtype of the weights
    # the device and the machine of each process; empty if there is only one process
    processes: list[str] = field(default_factory=list)
    # the device of each module, with model.placement=auto
    device_map: Texts = field(default_factory=dict)
    # the origins of the model and of the texts
    sources: Texts = field(default_factory=dict)
    # facts about the texts that the model wrote itself, such as their tokens, and the seconds that
    # writing took; the keys are "calibration" and "recovery"
    own_text: Facts = field(default_factory=dict)
    # warnings that the run has logged, without repetitions
    warnings: list[str] = field(default_factory=list)
    # number of parameters: total_before, decoder_before, total_after, decoder_after
    parameters: dict[str, int] = field(default_factory=dict)
    # number of tokens in the vocabulary before and after trimming; "covered" is the share of the
    # tokens in the counted text that the trimmed vocabulary still contains
    vocabulary: Numbers = field(default_factory=dict)
    # shares of the parameters that were removed; the keys are names, such as "realised_decoder"
    ratio: Numbers = field(default_factory=dict)
    # requested, dense and realised values of each target; the keys are names of targets
    target: dict[str, Numbers] = field(default_factory=dict)
    # widths of each layer of the pruned model
    layers: list[Widths] = field(default_factory=list)
    # widths of each layer of the dense model
    layers_before: list[Widths] = field(default_factory=list)
    # reports on the fits of linear compensation; the keys are names of blocks
    repairs: Facts = field(default_factory=dict)
    # facts about training after compression: divergences, tokens, and the standard errors of the
    # differences that training made
    recovery: Facts = field(default_factory=dict)
    # how many times pruning read all weights of the model, from calibration to compression
    weight_passes: int = 0
    # digests of inputs that are not part of the config, such as the weights and the texts
    inputs: Texts = field(default_factory=dict)
    # for each text, whether its windows begin with the beginning-of-sequence token
    bos: dict[str, bool] = field(default_factory=dict)
    # for each task, "calibration" if the task and the calibration use the same data set or
    # documents, else "other"
    domains: Texts = field(default_factory=dict)
    # number of documents that each task leaves out, because they are part of the run's calibration
    # or training texts
    left_out: dict[str, int] = field(default_factory=dict)
    # measured numbers of the models "dense", "pruned" and, if the run trains, "compressed" (before
    # training)
    evaluation: dict[str, Numbers] = field(default_factory=lambda: {"dense": {}, "pruned": {}})
    # whether higher or lower values of a number are better; a number is missing if this is unknown
    better: dict[str, Better] = field(default_factory=dict)
    # for each average over tasks, the names of the averaged numbers
    averages: dict[str, list[str]] = field(default_factory=dict)
    # standard errors of the differences between the pruned and the dense model, paired by document
    difference_stderr: Numbers = field(default_factory=dict)
    # p-values of the differences between the pruned and the dense model, from 0 to 1
    difference_p_value: Numbers = field(default_factory=dict)
    seconds: Numbers = field(default_factory=dict)  # wall-clock seconds spent in each stage
    # peak bytes in the memory of the host and of the device; the keys are "host" and "device", and
    # the value of "device" is None without a GPU
    peak_memory_bytes: dict[str, int | None] = field(default_factory=dict)
    # whether the calibration statistics were in the cache: "hit", "miss", or "off" without a cache
    statistics_cache: str = ""
    checkpoint: str | None = None  # the folder of the checkpoint; None if none was saved
    loads_with: str = ""  # what is needed to load the checkpoint, and why
    schema: int = SCHEMA  # version of the format of report.json
    # the versions of flap, Python and libraries
    versions: Texts = field(default_factory=dict)
    # the git commit of flap's checkout, and whether the checkout has uncommitted changes ("dirty")
    git: Facts = field(default_factory=dict)
    # the kept units; null in report.json, because plan.json has them
    plan: PruningPlan | None = field(default=None, repr=False)
