"""YAML and dataclass say the same: over every file of conf/, a default has one value."""

from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from flap.config import FlapConfig, config_dir

CONF = Path(config_dir())
FILES = sorted(
    path.relative_to(CONF) for path in CONF.glob("*/*.yaml") if path.parent.name != "experiment"
)


def plain(path: Path) -> dict[str, Any]:
    """What the file says, less Hydra's own list of defaults; interpolations stay as they are written."""
    content = OmegaConf.to_container(OmegaConf.load(CONF / path), resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key != "defaults"}


def default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("${")


@pytest.mark.parametrize("path", [path for path in FILES if "_target_" in plain(path)], ids=str)
def test_a_choice_says_what_its_class_says(path: Path) -> None:
    node = plain(path)
    options = {field.name: default(field) for field in fields(get_class(node.pop("_target_")))}
    required = {name for name, value in options.items() if value is MISSING}
    assert node.keys() <= options.keys()
    for name, value in node.items():
        assert name in required or is_interpolation(value) or value == options[name], name


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parts[0] in ("model", "calibration")], ids=str
)
def test_a_preset_of_a_section_has_its_fields(path: Path) -> None:
    section = getattr(FlapConfig(), path.parts[0])
    assert is_dataclass(section)
    assert plain(path).keys() <= asdict(section).keys()


def test_the_default_choices_say_what_the_schema_says() -> None:
    entries = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml").defaults)
    names = {
        group: name for entry in entries if isinstance(entry, dict) for group, name in entry.items()
    }
    calibration = plain(Path("calibration") / f"{names['calibration']}.yaml")
    schema = asdict(FlapConfig().calibration)
    assert {key: schema[key] for key in calibration} == calibration
    assert plain(Path("method") / f"{names['method']}.yaml") == {"method": FlapConfig().method}
