"""Damaged configs and tokenizers are refused. For a config, the message names the damaged field."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import flap
from flap.models import read_config, read_tokenizer
from tests.cases import tiny_model


def change(directory: Path, values: dict[str, Any]) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))


@pytest.fixture
def model(model_dir: Path, tmp_path: Path) -> Path:
    """Return a copy of a saved model with four layers. A test may change this copy."""
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def test_a_value_of_another_type(model: Path) -> None:
    change(model, {"hidden_size": "abc"})
    with pytest.raises(ValueError, match=r"^config\.json: .*hidden_size") as caught:
        read_config(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_more_layers_than_the_weights_have(shard_size: str, tmp_path: Path) -> None:
    tiny_model("llama-gqa").save_pretrained(tmp_path, max_shard_size=shard_size)
    assert read_config(tmp_path).num_hidden_layers == 4
    change(tmp_path, {"num_hidden_layers": 10**9})
    line = r"^config\.json: num_hidden_layers=1000000000: must be at most 4, because no tensor"
    with pytest.raises(ValueError, match=line):
        read_config(tmp_path)
    change(tmp_path, {"num_hidden_layers": 4, "vision_config": {"depth": 10**9}})
    with pytest.raises(ValueError, match=r"^config\.json: vision_config\.depth=1000000000: must"):
        read_config(tmp_path)


def test_without_weights_any_number_of_layers_is_read(model: Path) -> None:
    (model / "model.safetensors").unlink()
    change(model, {"num_hidden_layers": 100})
    assert read_config(model).num_hidden_layers == 100


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "flap_llama"},
        {"model_type": "flap_llama", "per_layer_config": []},
        {"model_type": "flap_llama", "per_layer_config": {"0": 8}},
        {"model_type": "flap_gemma3", "text_config": {"num_hidden_layers": 4}},
        {"model_type": "flap_gemma3", "text_config": None},
    ],
)
def test_a_pruned_model_without_widths(values: dict[str, Any], model: Path) -> None:
    change(model, values)
    with pytest.raises(ValueError, match=r"^config\.json: per_layer_config: must have the widths"):
        flap.load(model)


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("tokenizer.json", "null", r"^tokenizer\.json=null: must be a JSON object$"),
        ("tokenizer.json", "{", r"^tokenizer\.json: cannot be read as JSON \("),
        ("tokenizer.json", "{}", "^KeyError|^Exception: "),
        ("tokenizer_config.json", "[]", r"^tokenizer_config\.json=\[\]: must be a JSON object$"),
    ],
)
def test_a_damaged_tokenizer(file: str, content: str, line: str, model: Path) -> None:
    (model / file).write_text(content)
    with pytest.raises(ValueError, match=line):
        read_tokenizer(model)
