"""The sections of report.json, in version 1 of its format."""

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
    dtype: str = ""  # the dtype of the model's weights
    # rank, machine and device of each process; empty if there is only one process
    processes: list[str] = field(default_factory=list)
    # with model.placement=auto: the device of each module; empty with other placements
    device_map: Texts = field(default_factory=dict)
    # where the model, a plan given with `plan=`, and the texts of the run and its tasks come from
    sources: Texts = field(default_factory=dict)
    # Facts about the texts that the model wrote itself, such as the number of tokens, and the
    # seconds that writing took. The keys are "calibration" and "recovery", or "calibration (NAME)"
    # and "recovery (NAME)" if the model only answered the prompts of the text NAME.
    own_text: Facts = field(default_factory=dict)
    # warnings about the run, the model and the texts (`Run.warnings`)
    warnings: list[str] = field(default_factory=list)
    # Numbers of parameters before and after pruning: of the whole model ("total_before" and
    # "total_after"), and of the prunable part of its decoder ("decoder_before" and
    # "decoder_after"). If the vocabulary was trimmed, "total_trimmed" is the number of
    # parameters of the whole model after trimming.
    parameters: dict[str, int] = field(default_factory=dict)
    # numbers of tokens in the vocabulary "before" and "after" trimming; "covered" is the share of
    # the tokens in the counted text that the trimmed vocabulary still contains
    vocabulary: Numbers = field(default_factory=dict)
    # Shares of parameters: "requested" (to remove), "realised_decoder" and "realised_total"
    # (removed from the decoder and from the whole model), and "rounding_cost" (if widths are
    # rounded: "realised_decoder" minus "requested").
    ratio: Numbers = field(default_factory=dict)
    # for each target, such as "bytes": the requested value ("asked"), the value of the dense model
    # ("dense"), and the value of the pruned model ("realised")
    target: dict[str, Numbers] = field(default_factory=dict)
    # widths of each layer of the pruned model
    layers: list[Widths] = field(default_factory=list)
    # widths of each layer of the dense model
    layers_before: list[Widths] = field(default_factory=list)
    # For each attention, MLP or expert, by its name: how well linear compensation, a least-squares
    # fit of the channels that stay, predicts what the removed channels added (`FitReport`).
    repairs: Facts = field(default_factory=dict)
    # Facts about training after compression: divergences from the dense model, numbers of tokens,
    # and the standard errors of the differences that training made. Empty if the run does not
    # train.
    recovery: Facts = field(default_factory=dict)
    # how many times pruning read all weights of the model, from calibration to compression
    weight_passes: int = 0
    # digests of inputs that are not part of the config, such as the weights and the texts
    inputs: Texts = field(default_factory=dict)
    # for "calibration" and for the tasks that measure windows: whether these windows begin with the
    # beginning-of-sequence token
    bos: dict[str, bool] = field(default_factory=dict)
    # for each task, "calibration" if the task uses the same data set or documents as the
    # calibration, recovery or vocabulary text of the run, else "other"
    domains: Texts = field(default_factory=dict)
    # number of documents that each task leaves out, because the run reads them in its texts for
    # calibration, training or trimming
    left_out: dict[str, int] = field(default_factory=dict)
    # measured numbers of the models "dense", "pruned" and, if the run trains, "compressed" (before
    # training)
    evaluation: dict[str, Numbers] = field(default_factory=lambda: {"dense": {}, "pruned": {}})
    # for each measured number, whether "higher" or "lower" values are better; a number is missing
    # if this is unknown
    better: dict[str, Better] = field(default_factory=dict)
    # for each average over tasks, the names of the averaged numbers
    averages: dict[str, list[str]] = field(default_factory=dict)
    # standard errors of the differences between the pruned and the dense model, paired by document
    difference_stderr: Numbers = field(default_factory=dict)
    # p-values of the same differences as in `difference_stderr`, from 0 to 1
    difference_p_value: Numbers = field(default_factory=dict)
    seconds: Numbers = field(default_factory=dict)  # wall-clock seconds spent in each stage
    # peak bytes in the memory of the host and of the device; the keys are "host" and "device", and
    # the value of "device" is None without a GPU
    peak_memory_bytes: dict[str, int | None] = field(default_factory=dict)
    # "hit": the calibration statistics were in the cache; "miss": they were computed and stored;
    # "off": the cache is off, or the run has not collected statistics before pruning
    statistics_cache: str = ""
    checkpoint: str | None = None  # the folder of the checkpoint; None if none was saved
    loads_with: str = ""  # which software loads the checkpoint, and why
    schema: int = SCHEMA  # version of the format of report.json
    # the versions of flap, Python and libraries
    versions: Texts = field(default_factory=dict)
    # the git commit of flap's checkout, and whether the checkout has uncommitted changes ("dirty")
    git: Facts = field(default_factory=dict)
    # the heads, neurons or experts that stay; null in report.json, because plan.json has them
    plan: PruningPlan | None = field(default=None, repr=False)
