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
    """The measured results of a run, such as perplexities, and facts about the run.

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
    # where the run's inputs come from: the model, the calibration, training and vocabulary texts,
    # the data sets of the evaluation tasks, and the plan (list of kept units) if `plan=` is set
    sources: Texts = field(default_factory=dict)
    # Facts about the texts that the dense model generated, such as the number of tokens. The keys
    # are "calibration" and "recovery" for texts that the model generated without prompts. If the
    # model answered the prompts of a text NAME, the key is "calibration (NAME)" or "recovery
    # (NAME)".
    own_text: Facts = field(default_factory=dict)
    # warnings about the run, the model and the texts (`Run.warnings`)
    warnings: list[str] = field(default_factory=list)
    # Numbers of parameters before and after pruning: of the whole model ("total_before" and
    # "total_after"), and of the prunable part of its decoder ("decoder_before" and
    # "decoder_after"). If the vocabulary was trimmed, "total_trimmed" is the number of
    # parameters of the whole model after trimming.
    parameters: dict[str, int] = field(default_factory=dict)
    # Numbers of tokens in the vocabulary "before" and "after" trimming. The tokens of a text were
    # counted to choose the vocabulary; "covered" is the share of these tokens that is in the
    # trimmed vocabulary.
    vocabulary: Numbers = field(default_factory=dict)
    # Shares of the parameters: "requested" is the share to remove, "realised_decoder" is the share
    # that was removed from the decoder, and "realised_total" is the share that was removed from the
    # whole model. If numbers of heads or neurons are rounded, "rounding_cost" is
    # "realised_decoder" minus "requested".
    ratio: Numbers = field(default_factory=dict)
    # for each target, such as "bytes": the requested value ("asked"), the value of the dense model
    # ("dense"), and the value of the pruned model ("realised")
    target: dict[str, Numbers] = field(default_factory=dict)
    # numbers of heads, neurons and experts of each layer of the pruned model
    layers: list[Widths] = field(default_factory=list)
    # numbers of heads, neurons and experts of each layer of the dense model
    layers_before: list[Widths] = field(default_factory=list)
    # How exact linear compensation is in each attention module, MLP or expert (`FitReport`). Linear
    # compensation predicts the contribution of the removed channels from the channels that stay,
    # with a least-squares fit. The keys are the names of the modules.
    repairs: Facts = field(default_factory=dict)
    # Facts about training after compression: divergences from the dense model, numbers of tokens,
    # and the standard errors of the differences that training made. Empty if the run does not
    # train.
    recovery: Facts = field(default_factory=dict)
    # how many times pruning read all weights of the model, from calibration to compression
    weight_passes: int = 0
    # digests of inputs that are not part of the config, such as the weights and the texts
    inputs: Texts = field(default_factory=dict)
    # whether the token windows begin with the beginning-of-sequence (BOS) token; the keys are
    # "calibration" and the names of the evaluation tasks that measure windows
    bos: dict[str, bool] = field(default_factory=dict)
    # for each evaluation task, "calibration" if the task uses the same data set or documents as the
    # calibration, training or vocabulary text of the run, else "other"
    domains: Texts = field(default_factory=dict)
    # number of documents that each evaluation task leaves out, because the run has already read
    # these documents, for example in its calibration text
    left_out: dict[str, int] = field(default_factory=dict)
    # Measured numbers, such as perplexities, of the models "dense" and "pruned". If the run trains
    # the pruned model, "compressed" has the numbers that were measured before training.
    evaluation: dict[str, Numbers] = field(default_factory=lambda: {"dense": {}, "pruned": {}})
    # for each measured number, whether "higher" or "lower" values are better; numbers for which
    # this is unknown are left out
    better: dict[str, Better] = field(default_factory=dict)
    # for each number that is an average over tasks, the names of the averaged numbers
    averages: dict[str, list[str]] = field(default_factory=dict)
    # standard errors of the differences between the pruned and the dense model, paired by document
    difference_stderr: Numbers = field(default_factory=dict)
    # p-values of the same differences as in `difference_stderr`, from 0 to 1
    difference_p_value: Numbers = field(default_factory=dict)
    # wall-clock seconds spent in each stage, such as calibration
    seconds: Numbers = field(default_factory=dict)
    # peak bytes in the memory of the host and of the device; the keys are "host" and "device", and
    # the value of "device" is None without a GPU
    peak_memory_bytes: dict[str, int | None] = field(default_factory=dict)
    # "hit": the calibration statistics were in the cache; "miss": they were computed and stored;
    # "off": the cache is off, or the run has not collected statistics before pruning
    statistics_cache: str = ""
    checkpoint: str | None = None  # the folder of the checkpoint; None if none was saved
    # what is needed to load the checkpoint, such as "stock transformers", and the reason if
    # transformers alone is not sufficient
    loads_with: str = ""
    schema: int = SCHEMA  # version of the format of report.json
    # the versions of flap, Python and libraries
    versions: Texts = field(default_factory=dict)
    # the git commit of flap's checkout, and whether the checkout has uncommitted changes ("dirty")
    git: Facts = field(default_factory=dict)
    # the heads, neurons or experts that stay; null in report.json, because plan.json has them
    plan: PruningPlan | None = field(default=None, repr=False)
