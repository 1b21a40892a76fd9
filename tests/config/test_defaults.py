"""Every default has the same value in the YAML files of conf/ and in flap's dataclasses."""

from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from flap.config import FlapConfig, config_dir

CONF = Path(config_dir())


def load(path: Path) -> Any:
    """Read a file below conf/ without resolving its interpolations."""
    return OmegaConf.to_container(OmegaConf.load(CONF / path), resolve=False)


def options_in(path: Path) -> dict[str, Any]:
    """Return the options that a file sets, without Hydra's entry `defaults`."""
    options = load(path)
    options.pop("defaults", None)
    return options


def files_in(*groups: str) -> list[Path]:
    files = []
    for group in groups:
        files += sorted(CONF.glob(f"{group}/*.yaml"))
    return [file.relative_to(CONF) for file in files]


CHOICES = [path for path in files_in("*") if "_target_" in options_in(path)]


def default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("${")


@pytest.mark.parametrize("path", CHOICES, ids=str)
def test_a_choice_says_what_its_class_says(path: Path) -> None:
    options = options_in(path)
    choice = get_class(options.pop("_target_"))
    defaults = {field.name: default(field) for field in fields(choice)}
    assert options.keys() <= defaults.keys()
    for name, value in options.items():
        required = defaults[name] is MISSING
        if not required and not is_interpolation(value):
            assert value == defaults[name], name


@pytest.mark.parametrize("path", files_in("model", "calibration"), ids=str)
def test_a_preset_of_a_section_has_its_fields(path: Path) -> None:
    section = getattr(FlapConfig(), path.parts[0])
    assert is_dataclass(section)
    assert options_in(path).keys() <= asdict(section).keys()


def test_the_default_choices_say_what_the_schema_says() -> None:
    choices = {}
    for entry in load(Path("config.yaml"))["defaults"]:
        if isinstance(entry, dict):
            choices |= entry

    schema = FlapConfig()
    calibration = options_in(Path(f"calibration/{choices['calibration']}.yaml"))
    assert calibration.items() <= asdict(schema.calibration).items()
    method = options_in(Path(f"method/{choices['method']}.yaml"))
    assert method == {"method": schema.method}
