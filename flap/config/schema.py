"""The types and defaults of the config. The choices of config groups are files below conf/.

A unit is a KV head with its query heads, an MLP neuron or an expert.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

TARGETS = ("parameters", "bytes", "kv_cache_bytes", "memory", "active_parameters")
LONGEST_TIMEOUT = 525_600  # a year in minutes; torch's process groups accept this timeout
CHOICES = {
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "model.device": ("auto", "cpu", "cuda", "mps"),
    "calibration.propagate": ("dense", "pruned"),
    "calibration.answers": ("given", "self"),
    "calibration.count": ("all", "answers"),
}


@dataclass
class ModelConfig:
    """The model to prune: its path, its data type, and where its weights are kept."""

    # The model's name in tables and in the names of folders.
    name: str = "???"
    # Where the model is read from: an id on the Hugging Face hub, a local directory or a GGUF file.
    path: str = "???"
    # The data type: float32, bfloat16, float16, or auto for the data type of the checkpoint.
    dtype: str = "auto"
    # The device: cpu, cuda, mps, or auto for the first of cuda, mps and cpu that is available.
    device: str = "auto"
    # Where the weights are kept: `device` keeps all of them on the device, `auto` spreads them over
    # GPUs, host memory and disk, and `stream` reads one layer at a time from disk.
    placement: str = "device"
    # Whether the LM head and the embedding of a GGUF file become one tied matrix, if they are the
    # same matrix in two quantisations. The tied matrix gets the values of the more precise
    # quantisation.
    tie_copied_head: bool = True


@dataclass
class CalibrationConfig:
    """The texts on which statistics are computed, and how the texts are cut into token windows."""

    # The texts: a name or a file, a list of names and files, or a mapping from names and files to
    # weights or options, such as {name: 1, file: {weight: 2, chat_template: false}}.
    dataset: Any = "boolq-passages"
    # The number of windows, at least 1.
    num_samples: int = 128
    # The number of tokens in a window, at least 2.
    seq_len: int = 128
    # The number of windows in a forward pass, at least 1.
    batch_size: int = 8
    # Whether each window begins with the BOS token: true, false, or auto, which means true if the
    # tokenizer puts BOS in front of texts.
    bos: str = "auto"
    # Whether the calibration inputs of a layer come from the dense or from the pruned layers before
    # it. With `pruned`, the model is pruned layer by layer, which needs structure=UL-UM, UL-MM or
    # middle.
    propagate: str = "dense"
    # Who answers the prompts in texts for calibration and for recovery (training after
    # compression): `given` takes the answers that come with the prompts, and `self` lets the model
    # write the answers.
    answers: str = "given"
    # Which tokens are used for statistics and losses in texts that have prompts: `all` uses all
    # tokens, and `answers` uses only the tokens of the answers. In texts without prompts, all
    # tokens are used.
    count: str = "all"
    # The maximum number of tokens in an answer that the model writes, at least 1.
    max_new_tokens: int = 64
    # The temperature at which the model samples its answers, at least 0. At 0, the model always
    # takes the most likely token.
    temperature: float = 0.0


@dataclass
class TargetConfig:
    """The targets: upper limits on the size of the pruned model.

    If several targets are set, the pruned model meets all of them.
    """

    # At most this many parameters in the whole model, including embeddings and LM head.
    parameters: float | None = None
    # At most this many bytes of weights, in the data type of the checkpoint.
    bytes: float | None = None
    # At most this many bytes for the KV cache (keys and values) of one sequence of `context`
    # tokens.
    kv_cache_bytes: float | None = None
    # At most this many bytes for the weights and the KV cache of `sequences` sequences together,
    # each of `context` tokens.
    memory: float | None = None
    # At most this many active parameters. A parameter is active if the computation for one token
    # uses it. In a mixture of experts, each token uses only some of the experts.
    active_parameters: float | None = None
    # The number of tokens in a sequence, for the targets `kv_cache_bytes` and `memory`; null stands
    # for the context length of the model.
    context: int | None = None
    # The number of sequences in the KV cache, for the target `memory`; at least 1.
    sequences: int = 1


@dataclass
class CheckpointConfig:
    """Whether and where the pruned model is saved."""

    # If false, the pruned model is measured but not saved.
    save: bool = True
    # The folder of the checkpoint; null stands for checkpoint/ in the run's folder.
    dir: str | None = None
    # If true, a checkpoint that flap has already written to the folder `dir` is replaced.
    overwrite: bool = False


@dataclass
class FlapConfig:
    """The config of a run. Most fields of type `Any` hold the choice of a config group."""

    model: ModelConfig = field(default_factory=ModelConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    # The metric, which scores how much each input channel of an output projection (such as
    # `down_proj`) matters, or how much each expert matters.
    metric: Any = None
    # The structure, which selects the units (attention heads, neurons or experts) to remove, given
    # their scores and the size that the pruned model may have.
    structure: Any = None
    # The compensation, which replaces what the removed units contribute to the output of a layer.
    compensation: Any = None
    # Which tokens stay in the vocabulary; the empty choice `none` keeps all tokens.
    vocabulary: Any = None
    # The training after compression; the empty choice `none` trains nothing.
    recover: Any = None
    # The measurements of the dense and the pruned model: a mapping from the name of each
    # measurement, such as perplexity, to its class and options.
    eval: Any = field(default_factory=dict)
    # The experiment tracker, such as MLflow, that the results of the run are sent to.
    tracking: Any = None
    # A preset of metric, structure, compensation and calibration.
    method: str = "flap"
    # The share of the weights in the decoder's Linear layers to remove, at least 0 and below 1;
    # null if a target or a plan is set.
    ratio: float | None = 0.2
    target: TargetConfig = field(default_factory=TargetConfig)
    # A plan (the list of the units that stay) to use again: the folder of a finished run, its
    # plan.json, or the name of a packaged plan, such as smollm2-135m/flap-0.2. Units are then not
    # scored.
    plan: str | None = None
    # The number of neurons that each layer keeps is a multiple of this number: 8, 32, 64, 128 or
    # 256; null allows any number.
    round_to: int | None = None
    # The seed for drawing windows, for random scores, and for text that the model writes: a whole
    # number from 0 to 2**32 - 1. The seed for drawing few-shot examples is set separately, with
    # eval.zero_shot.seed and eval.generation.seed.
    seed: int = 0
    # If true, the weights of removed units become zeros, and all matrices keep their shapes.
    mask_only: bool = False
    # Values that replace the values of other keys, as with +debug=smoke. Keys that are missing in
    # the run's config are skipped.
    debug: Any = None
    # Which numbers of its report a run returns to Hydra: a name, such as
    # pruned/sciq_answers/exact_match, or a list of names. Sweepers of Hydra can search for the
    # options that make these numbers best. With null, a run returns nothing.
    objective: Any = None
    # If true, a sweep ends after the first of its runs that fails.
    stop_on_failure: bool = False
    # If true, flap only prints the memory, disk space and time that the run would need, without
    # reading weights.
    dry_run: bool = False
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    # If true, results that an earlier invocation of `python -m flap` has stored in the run's folder
    # are used, and only missing results are computed.
    resume: bool = True
    # The folder of the cache. null stands for the folder in the environment variable
    # FLAP_CACHE_DIR. If this variable is not set, null stands for the folder `flap` in the user's
    # cache directory.
    cache_dir: str | None = None
    # If true, results that several runs can share, such as calibration statistics, are stored in
    # the cache and read from the cache.
    use_cache: bool = True
    # The maximum number of seconds that this run waits for another run that computes the same
    # result, at least 0.
    cache_wait_seconds: float = 3600
    # The maximum number of minutes, above 0, that a process of a distributed run (with torchrun or
    # SLURM) waits for another process of the run.
    timeout_minutes: float = 120
    # If true, Python code that comes with the model may be executed.
    trust_remote_code: bool = False
    # The name of the run in an experiment tracker. The name of the run's folder ends with this
    # name.
    run_name: str = "flap"


ConfigStore.instance().store(name="schema", node=FlapConfig)


def targets(target: Any) -> dict[str, float]:
    """Return the targets that are set, in a dict from name to value.

    target: a TargetConfig, or the section `target` of a composed config.
    """
    values = {name: getattr(target, name) for name in TARGETS}
    return {name: value for name, value in values.items() if value is not None}


def config_dir() -> str:
    """Return the absolute path of conf/."""
    return str(shipped_folder("conf"))


def shipped_folder(folder: str) -> Path:
    """Return the absolute path of conf/ or plans/ (the packaged plans, see `FlapConfig.plan`).

    In an installed wheel, these folders are inside the package flap. In a checkout of the
    repository, they are next to the package.
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder
