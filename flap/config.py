"""The configuration: types, defaults and checks. The choices are the YAML files in conf/.

Nothing here imports torch or touches network, environment or disk when it is imported, so that `--cfg job` and
`--help` answer at once. Every error names field, value and what is allowed.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
PROPAGATE = ("dense", "pruned")


@dataclass
class ModelConfig:
    """What to prune: a hub id or a local directory, and how to hold it."""

    name: str = "???"
    path: str = "???"
    dtype: str = "auto"  # auto: as the checkpoint says
    device: str = "auto"  # auto: cuda, else mps, else cpu


@dataclass
class CalibrationConfig:
    """The text that the statistics are taken from. `propagate`: what a layer sees, dense or pruned layers before it."""

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
    seed: int = 0
    mask_only: bool = False
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cache_dir: str | None = None
    trust_remote_code: bool = False
    run_name: str = "flap"


ConfigStore.instance().store(name="schema", node=FlapConfig)


def config_dir() -> str:
    """Absolute path of conf/: inside the package when it was installed as a wheel, else the checkout's."""
    package = Path(__file__).resolve().parent
    packaged = package / "conf"
    return str(packaged if packaged.is_dir() else package.parent / "conf")


def build(node: dict[str, Any]) -> Any:
    """The object that a YAML choice names with `_target_`.

    Raises:
        ValueError: an option of the choice is out of range.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from error


def typed(config: DictConfig) -> FlapConfig:
    """The checked config as dataclasses, interpolations resolved; `Any` fields are dicts that `build` makes objects of.

    Raises:
        ValueError: one line that names the field, its value and what is allowed.
    """
    made = OmegaConf.to_object(config)
    assert isinstance(made, FlapConfig)
    check(made)
    return made


def check(config: FlapConfig) -> None:
    """All checks that need no model, no tokenizer and no text."""
    _require(0 <= config.ratio < 1, "ratio", config.ratio, "a number with 0 <= ratio < 1")
    _require(config.seed >= 0, "seed", config.seed, "a whole number >= 0")
    _require(config.model.dtype in DTYPES, "model.dtype", config.model.dtype, f"one of {', '.join(DTYPES)}")
    _require(config.model.device in DEVICES, "model.device", config.model.device, f"one of {', '.join(DEVICES)}")
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
