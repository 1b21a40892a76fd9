"""The documentation's page of options lists all options with their defaults and meanings."""

import sys
from dataclasses import fields, is_dataclass

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from flap.config import FlapConfig, config_dir
from tests.docs.conftest import ROOT

sys.path.append(str(ROOT / "docs" / "tools"))
from options import options_page


@pytest.fixture(scope="module")
def table() -> list[list[str]]:
    """Return the cells of all table rows of the page, without the header rows."""
    lines = [line for line in options_page().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_it_has_every_key_of_the_schema(table: list[list[str]]) -> None:
    sections = {field.name: field.type for field in fields(FlapConfig) if is_dataclass(field.type)}
    keys = [field.name for field in fields(FlapConfig) if not is_dataclass(field.type)]
    keys += [
        f"{name}.{field.name}" for name, section in sections.items() for field in fields(section)
    ]  # type: ignore[arg-type]
    groups = {
        "metric",
        "structure",
        "compensation",
        "vocabulary",
        "recover",
        "eval",
        "tracking",
        "debug",
    }
    assert {f"`{key}`" for key in keys if key not in groups} <= {row[0] for row in table}


def test_its_defaults_are_those_of_a_run(table: list[list[str]]) -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose(
            "config", ["structure=search", "eval=[perplexity,efficiency]", "recover=lora"]
        )
    written = {
        row[0].strip("`"): row[2].strip("`") for row in table if len(row) == 4 or "`lora`" in row[3]
    }
    for key in ("ratio", "calibration.seq_len", "recover.rank"):
        assert written[key] == str(OmegaConf.select(config, key))
    of_choices = {row[0].strip("`"): row[2].strip("`") for row in table}
    assert of_choices["structure.tokens"] == str(config.structure.tokens)
    assert of_choices["eval.efficiency.repeats"] == str(config.eval.efficiency.repeats)


def test_each_option_says_what_it_does(table: list[list[str]]) -> None:
    assert [row[0] for row in table if not row[-1]] == []
