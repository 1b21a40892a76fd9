"""The configuration: types, defaults and checks. The choices are the YAML files in conf/.

Nothing here imports torch or touches network, environment or disk when it is imported, so that `--cfg job` and
`--help` answer at once. Every error names field, value and what is allowed.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from flap.errors import one_line

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
PLACEMENTS = ("device", "auto", "stream")
PROPAGATE = ("dense", "pruned")
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")


@dataclass
class ModelConfig:
    """What to prune: a hub id or a local directory, and how to hold it."""

    name: str = "???"
    path: str = "???"
    dtype: str = "auto"  # auto: as the checkpoint says
    device: str = "auto"  # auto: cuda, else mps, else cpu
    placement: str = "device"  # all on the device; auto: spread over GPUs, host, disk; stream: one layer at a time


@dataclass
class CalibrationConfig:
    """The text that the statistics are taken from.

    `propagate`: what a layer is fitted on, the outputs of dense or of pruned layers before it. pruned: a second pass
    corrects what compensation fitted, in any structure; with compensation=none, which fits nothing, each layer is
    scored on what pruned ones put out, in UL-UM and UL-MM.
    """

    dataset: str = "boolq-passages"
    num_samples: int = 128
    seq_len: int = 128
    batch_size: int = 8
    propagate: str = "dense"


@dataclass
class CheckpointConfig:
    """Whether and where the pruned model is written."""

    save: bool = True
    dir: str | None = None  # null: checkpoint/ in the run's folder
    overwrite: bool = False
    formats: list[str] = field(default_factory=lambda: ["hf"])  # [hf,gguf]: with a GGUF file inside, for llama.cpp
    gguf_type: str = "f16"


@dataclass
class FlapConfig:
    """The whole run. `Any` fields are filled by a YAML file whose `_target_` names a dataclass."""

    model: ModelConfig = field(default_factory=ModelConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    metric: Any = None
    structure: Any = None
    compensation: Any = None
    eval: Any = field(default_factory=dict)
    tracking: Any = None
    method: str = "flap"
    ratio: float = 0.2
    round_to: int | None = None  # 8, 32, 64, 256: every layer keeps a multiple of so many neurons
    seed: int = 0
    mask_only: bool = False
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    resume: bool = True  # in a folder that holds results already, keep those and do what is missing
    cache_dir: str | None = None
    use_cache: bool = True  # of statistics and dense scores
    cache_wait_seconds: float = 3600
    trust_remote_code: bool = False
    run_name: str = "flap"


ConfigStore.instance().store(name="schema", node=FlapConfig)


def config_dir() -> str:
    """Absolute path of conf/: inside the package when it was installed as a wheel, else the checkout's."""
    package = Path(__file__).resolve().parent
    packaged = package / "conf"
    return str(packaged if packaged.is_dir() else package.parent / "conf")


def build(group: str, node: Any) -> Any:
    """The object of a group's choice: the dataclass that `_target_` names, its options checked against its types.

    Raises:
        ValueError: no choice was made, or an option is unknown, of the wrong type, or out of range.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise ValueError(f"{group}={node}: expected one of the names that --help lists for this group")
    options = {key: value for key, value in node.items() if key != "_target_"}
    try:
        schema = OmegaConf.structured(get_class(node["_target_"]))
    except (ImportError, AttributeError, ValueError, OmegaConfBaseException) as error:
        raise ValueError(f"{group}._target_={node['_target_']}: expected a dataclass that can be imported") from error
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, options))
    except OmegaConfBaseException as error:
        expected = "expected a list, as [a,b]" if "ListConfig" in str(error.msg) else str(error.msg).splitlines()[0]
        raise ValueError(f"{group}.{error.full_key}={options.get(error.full_key)}: {expected}") from error


def explain(error: Exception) -> str:
    """One line about a command line that does not compose: key, value, and what is allowed."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = error.options or sorted(path.stem for path in (Path(config_dir()) / group).glob("*.yaml"))
        return f"{group}={name}: expected one of {', '.join(options)}"
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        section, _, key = str(cause.full_key).rpartition(".")
        if section == "eval" and (Path(config_dir()) / "eval" / f"{key}.yaml").is_file():
            chosen = ",".join([*map(str, cause.parent_node or ()), key])
            return f"{cause.full_key}: this run does not measure it; choose it with 'eval=[{chosen}]'"
        allowed = sorted(str(name) for name in cause.parent_node or ())
        near = get_close_matches(key, allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{cause.full_key}: unknown key; {hint}{section or 'the config'} has {', '.join(allowed) or 'no keys'}"
    if isinstance(cause, OmegaConfBaseException):
        return f"{cause.full_key}: {cause.msg}".splitlines()[0]
    if "group override must be" in str(error):
        return "a group takes the name of one of its options, as --help lists them, and not null or a number"
    return one_line(error)


def typed(config: DictConfig) -> FlapConfig:
    """The checked config as dataclasses, interpolations resolved; `Any` fields are dicts that `build` makes objects of.

    Raises:
        ValueError: one line that names the field, its value and what is allowed.
    """
    _refuse_unknown(config, FlapConfig, "")
    made = OmegaConf.to_object(config)
    assert isinstance(made, FlapConfig)
    check(made)
    return made


def _refuse_unknown(config: DictConfig, schema: type, prefix: str) -> None:
    """A `+key=value` gets past Hydra's own check; here nothing that nobody reads is let through."""
    known = {one.name: one.type for one in fields(schema)}
    for key in map(str, config):
        if key not in known:
            raise ValueError(f"{prefix}{key}: unknown key; expected one of {', '.join(sorted(known))}")
        section = known[key]
        if isinstance(section, type) and is_dataclass(section):
            _refuse_unknown(config[key], section, f"{key}.")


def check(config: FlapConfig) -> None:
    """All checks that need no model, no tokenizer and no text."""
    _require(0 <= config.ratio < 1, "ratio", config.ratio, "a number with 0 <= ratio < 1")
    _require(config.seed >= 0, "seed", config.seed, "a whole number >= 0")
    _require(config.model.dtype in DTYPES, "model.dtype", config.model.dtype, f"one of {', '.join(DTYPES)}")
    _require(config.model.device in DEVICES, "model.device", config.model.device, f"one of {', '.join(DEVICES)}")
    placement = config.model.placement
    _require(placement in PLACEMENTS, "model.placement", placement, f"one of {', '.join(PLACEMENTS)}")
    saved = config.checkpoint.save or placement != "stream"
    _require(saved, "checkpoint.save", False, "true with model.placement=stream, whose result is nowhere but on disk")
    _require(config.cache_wait_seconds >= 0, "cache_wait_seconds", config.cache_wait_seconds, "a number >= 0")
    formats, gguf_type = config.checkpoint.formats, config.checkpoint.gguf_type
    _require(set(formats) in ({"hf"}, {"hf", "gguf"}), "checkpoint.formats", formats, "[hf] or [hf,gguf]")
    saved = config.checkpoint.save or "gguf" not in formats
    _require(saved, "checkpoint.save", False, "true with checkpoint.formats=[hf,gguf], which is made from the former")
    _require(gguf_type in GGUF_TYPES, "checkpoint.gguf_type", gguf_type, f"one of {', '.join(GGUF_TYPES)}")
    calibration = config.calibration
    for name, least in (("num_samples", 1), ("seq_len", 2), ("batch_size", 1)):
        value = getattr(calibration, name)
        _require(value >= least, f"calibration.{name}", value, f"a whole number >= {least}")
    _require(
        calibration.propagate in PROPAGATE,
        "calibration.propagate",
        calibration.propagate,
        f"one of {', '.join(PROPAGATE)}",
    )


def _require(holds: bool, name: str, value: Any, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value}: expected {allowed}")
