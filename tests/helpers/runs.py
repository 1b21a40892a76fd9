"""Make the arguments of runs on the tiny model, and compose configs as the command line does."""

import copy
from functools import cache
from itertools import compress
from operator import not_
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from flap.config import FlapConfig, config_dir, typed

GROUPS = {
    str(path.relative_to(config_dir())) for path in Path(config_dir()).rglob("*") if path.is_dir()
}


def tiny(model_dir: Path, text_file: Path) -> list[str]:
    """Return arguments for a run of a second or two, with a tiny model and a local text."""
    return [
        f"model.path={model_dir}",
        "model.name=tiny",
        f"calibration.dataset={text_file}",
        "calibration.num_samples=8",
        "calibration.seq_len=16",
        f"eval.perplexity.datasets=[{text_file}]",
        "eval.perplexity.seq_len=16",
    ]


def composed(*overrides: str) -> FlapConfig:
    """Return the checked config that the command line would compose from these arguments.

    To compose a config, Hydra reads some twenty files, which takes half as long as a tiny run. So
    each combination of files is read only once, and arguments that choose no file are applied to a
    copy of the config.
    """
    given = OverridesParser.create().parse_overrides(["run_name=test", *overrides])
    of_files = [
        one.key_or_group in GROUPS or one.key_or_group.startswith("hydra.") for one in given
    ]
    config = copy.deepcopy(_of_files(tuple(one.input_line for one in compress(given, of_files))))
    ConfigLoaderImpl._apply_overrides_to_config([*compress(given, map(not_, of_files))], config)
    return typed(config)


def tensors_of(run_dir: Path) -> dict[str, Tensor]:
    """Read the tensors of a run's checkpoint, which may consist of one file per layer."""
    files = (run_dir / "checkpoint").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@cache
def _of_files(choices: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        # run_name is set here, because its default reads Hydra's choices, which exist only in an
        # application that Hydra has started.
        return compose("config", ["run_name=test", *choices])
