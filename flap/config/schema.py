"""The types and defaults of the configuration. The choices of each group are the YAML files in conf/."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

TARGETS = ("parameters", "bytes", "kv_cache_bytes", "memory", "active_parameters")
LONGEST_TIMEOUT = 525_600  # minutes: a year, which fits into the counters of process groups
CHOICES = {
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "model.device": ("auto", "cpu", "cuda", "mps"),
    "calibration.propagate": ("dense", "pruned"),
    "calibration.answers": ("given", "self"),
    "calibration.count": ("all", "answers"),
}


@dataclass
class ModelConfig:
    """The model to prune (a hub id or a local directory), with its data type, device and placement."""

    name: str = "???"  # in the names of folders and tables
    path: str = "???"  # a hub id or a local directory
    dtype: str = "auto"  # float32, bfloat16, float16; auto: the checkpoint's
    device: str = "auto"  # auto: cuda, else mps, else cpu
    placement: str = "device"  # device: all of it there; auto: spread over GPUs, host, disk; stream: a layer at a time


@dataclass
class CalibrationConfig:
    """The texts that the statistics are computed on, and how they are cut into windows."""

    dataset: Any = "boolq-passages"  # name or file; [name, name]; {name: 1, file: {weight: 2, chat_template: false}}
    num_samples: int = 128  # windows, 1 or more
    seq_len: int = 128  # tokens in a window, 2 or more
    batch_size: int = 8  # windows at a time, 1 or more
    bos: str = "auto"  # each window begins with the BOS token: true, false; auto: where the tokenizer puts one there
    propagate: str = (
        "dense"  # pruned: sequential, on the outputs of pruned layers; UL-UM and UL-MM only
    )
    answers: str = "given"  # to prompts, also those of recover: given by their file; self: the model writes them
    count: str = "all"  # tokens that count: all; answers: of prompts with answers only these
    max_new_tokens: int = 64  # of an answer that the model writes, 1 or more
    temperature: float = 0.0  # at which it samples its answers; 0: always the likeliest token


@dataclass
class TargetConfig:
    """What the pruned model may be at most, in its own unit. What is not null holds together."""

    parameters: float | None = None  # of the whole model, with embeddings and head
    bytes: float | None = None  # of its weights in the checkpoint, in their type
    kv_cache_bytes: float | None = (
        None  # of the keys and values of one sequence of `context` tokens
    )
    memory: float | None = (
        None  # bytes of its weights and of the KV cache of `sequences` times `context` tokens
    )
    active_parameters: float | None = (
        None  # that a token passes through: of a mixture, not all experts
    )
    context: int | None = None  # None: the longest one of the model
    sequences: int = 1  # that `memory` has room for, 1 or more


@dataclass
class CheckpointConfig:
    """Whether and where the pruned model is saved."""

    save: bool = True  # false: the pruned model is only measured
    dir: str | None = None  # None: checkpoint/ in the run's folder
    overwrite: bool = False  # true: a checkpoint of this program that is there already is replaced


@dataclass
class FlapConfig:
    """The configuration of a whole run. An `Any` field holds a YAML file's choice; `_target_` names its dataclass."""

    model: ModelConfig = field(default_factory=ModelConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    metric: Any = None  # a file of conf/metric: how much a channel matters
    structure: Any = (
        None  # a file of conf/structure: which units are removed, given the scores and the budget
    )
    compensation: Any = None  # a file of conf/compensation: what replaces them
    vocabulary: Any = None  # which tokens stay; empty: all
    recover: Any = None  # training after compression; empty: none
    eval: Any = field(
        default_factory=dict
    )  # files of conf/eval by name: what is measured, dense and pruned
    tracking: Any = None  # a file of conf/tracking: where else the numbers go
    method: str = "flap"  # a preset over metric, structure, compensation and calibration
    ratio: float | None = (
        0.2  # share of the decoder's Linear weights to remove, 0 <= ratio < 1; None: with a target
    )
    target: TargetConfig = field(default_factory=TargetConfig)
    plan: str | None = (
        None  # the folder of a finished run, or its plan.json: its units stay, and nothing is scored
    )
    round_to: int | None = (
        None  # 8, 32, 64, 128 or 256: every layer keeps a multiple of this many neurons
    )
    seed: int = 0  # of all that is drawn: windows, random scores, text that the model writes; 0 to 2**32 - 1
    mask_only: bool = False  # true: units become zeros and the shapes stay
    debug: Any = None  # a file of conf/debug: values that take the place of those of the keys that the run has
    dry_run: bool = False  # print what the run will take, and read no weight
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    resume: bool = (
        True  # keep the results that the run's folder holds, and compute only what is missing
    )
    cache_dir: str | None = (
        None  # null: FLAP_CACHE_DIR of the environment, else the user's cache folder
    )
    use_cache: bool = True  # for statistics and for the scores of the dense model
    cache_wait_seconds: float = (
        3600  # how long a run waits for another that computes the same, in seconds; 0 or more
    )
    timeout_minutes: float = (
        120  # how long a process of torchrun or SLURM waits for another one; above 0
    )
    trust_remote_code: bool = False  # true: code that comes with the model may run
    run_name: str = "flap"  # ends the name of the run's folder


ConfigStore.instance().store(name="schema", node=FlapConfig)


def targets(target: Any) -> dict[str, float]:
    """Return the values of a target (a TargetConfig or its node) by name, without those that are not asked for."""
    return {name: value for name in TARGETS if (value := getattr(target, name)) is not None}


def config_dir() -> str:
    """Return the absolute path of conf/: inside the package if installed as a wheel, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "conf"
    return str(packaged if packaged.is_dir() else package.parent / "conf")
