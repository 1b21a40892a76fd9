"""dry_run=true: a table from config and shapes alone, without weights, tokenizer, text or network."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, GPT2Config, LlamaConfig, MixtralConfig, OlmoeConfig, PreTrainedConfig

from flap.config import config_dir
from flap.models import CheckpointSource, find_model
from flap.pipeline import run, stages
from flap.runs.forecast import Forecast, forecast
from flap.runs.free_memory import FreeMemory
from flap.runs.operations import from_parameters
from flap.storage.atomic_files import cache_root
from tests.helpers.forked import command_line
from tests.helpers.runs import composed, tiny

PARAMETERS = {
    "llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320, "llama-30b": 32_528_943_616, "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "mistral-7b": 7_248_023_552, "qwen2.5-7b": 7_615_616_512, "qwen3-8b": 8_190_735_360, "smollm2-135m": 134_515_008,
    "qwen3-30b-a3b": 30_532_122_624, "glm-4.5-air": 106_852_245_504, "gpt-oss-120b": 116_829_156_672,
}  # fmt: skip
# Llama-3.1-70B
LARGE = LlamaConfig(
    vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
    num_key_value_heads=8, max_position_embeddings=131072, dtype="bfloat16",
)  # fmt: skip
MIXTURE = MixtralConfig(num_hidden_layers=2, dtype="bfloat16")


def foretell(*arguments: str) -> Forecast:
    return forecast(composed(*arguments), stages)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what reads a model of the hub would use it, and would wait for it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def only_config(folder: Path, config: PreTrainedConfig) -> Path:
    config.save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    return folder


def test_every_preset_is_in_the_table() -> None:
    assert {path.stem for path in Path(config_dir(), "model").glob("*.yaml")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_needs_no_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flap.runs.forecast.counted", from_parameters)  # seconds, and the same for every preset
    foretold = foretell(f"model={name}", "dry_run=true", f"cache_dir={tmp_path}")
    assert foretold.place.shapes.parameters == PARAMETERS[name]
    assert foretold.place.dtype.itemsize == (4 if name == "smollm2-135m" else 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_architecture_at_hand_is_that_of_the_packaged_model() -> None:
    config = composed("model=smollm2-135m", "dry_run=true").model
    packaged = AutoConfig.from_pretrained(find_model(config, cache_root(None), False).path)
    assert {key: getattr(packaged, key) for key in config.architecture if key != "dtype"} == {
        key: value for key, value in config.architecture.items() if key != "dtype"
    }
    assert packaged.dtype == getattr(torch, config.architecture["dtype"])


def test_a_folder_with_nothing_but_a_config_is_enough(tmp_path: Path) -> None:
    model = only_config(tmp_path / "llama-70b", LARGE)
    arguments = [f"model.path={model}", "dry_run=true", "method=flap_plus", "model.placement=stream"]
    done = command_line(tmp_path, *arguments, f"cache_dir={tmp_path / 'cache'}")
    assert done.returncode == 0, done.stderr
    [run_dir] = tmp_path.glob("outputs/*/*")
    assert {path.name for path in run_dir.iterdir()} == {".hydra", ".lock", "flap.log", "estimate.json"}
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())
    stages = json.loads((run_dir / "estimate.json").read_text())["stages"]
    names = ["load", "write", "score", "allocate", "compress", "save", "evaluate"]
    assert [one["stage"] for one in stages] == names
    lines = done.stdout.splitlines()
    assert lines[0] == "llama-70b_OBS_search_r0.2_s0"
    rows = [line for line in lines if line.split(" ")[0] in names]
    assert [row.split()[0] for row in rows] == names and len(set(map(len, rows))) == 1


def test_the_numbers_of_70b_are_those_on_paper(tmp_path: Path) -> None:
    """docs/scale.md: a layer has 1.71 GB, hidden states of 262,144 tokens 4.29 GB, a checkpoint at ratio 0.2 114 GB."""
    model = only_config(tmp_path / "llama-70b", LARGE)
    windows = ["calibration.num_samples=128", "calibration.seq_len=2048"]
    streamed = [f"model.path={model}", "dry_run=true", "model.placement=stream", *windows]
    found = {one.stage: one for one in foretell(*streamed).estimate.stages}
    assert found["calibrate"].cache_bytes == pytest.approx(2 * 4.29e9, rel=0.01)
    assert found["save"].disk_bytes - 4.29e9 == pytest.approx(114e9, rel=0.01)  # which has the files of changed layers
    assert 1.71e9 < found["calibrate"].device_bytes < 10e9
    assert found["calibrate"].operations == pytest.approx(3.6e16, rel=0.1)


def test_a_text_of_its_own_is_counted(tmp_path: Path) -> None:
    model = only_config(tmp_path / "llama-70b", LARGE)
    mixture = ["calibration.dataset={c4: 1, self: 3}", "calibration.num_samples=1024", "calibration.seq_len=128"]
    [writing] = [
        one for one in foretell(f"model.path={model}", "dry_run=true", *mixture).estimate.stages if one.stage == "write"
    ]
    assert writing.tokens == 3 * 1024 * 128 // 4
    assert writing.passes == 512 * 3  # 192 sequences, 64 at a time
    keys_and_values = 64 * 512 * 80 * 2 * 1024 * 2  # sequences, tokens, layers, both, channels, bytes
    assert 137e9 < writing.device_bytes - keys_and_values < 145e9


def test_experts_are_counted(tmp_path: Path) -> None:
    model = only_config(tmp_path / "mixture", MIXTURE)
    found = {one.stage: one for one in foretell(f"model.path={model}", "metric=OBS").estimate.stages}
    assert found["score"].device_bytes > 4 * 8 * 14336**2 / 2  # co-moments of each expert, half of a matrix


def test_what_is_not_estimated_is_named(model_dir: Path, text_file: Path) -> None:
    base = tiny(model_dir, text_file)
    lines = foretell(*base, "eval=[perplexity,divergence]", "eval.perplexity.max_tokens=null").lines()
    assert "not estimated: eval.perplexity, eval.divergence" in lines
    assert not any("not estimated" in line for line in foretell(*base).lines())


def test_a_name_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ValueError, match=f"model.path={path}: no model in a local directory or on the hub"):
            foretell(f"model.path={path}", "dry_run=true")


@pytest.mark.parametrize("mine", ["org/mine", "meta-llama/Llama-2-7b-hf"])
def test_the_architecture_of_a_preset_is_not_taken_for_another_model(mine: str) -> None:
    with pytest.raises(ValueError, match=f"model.path={mine}: "):
        foretell(f"model.path={mine}", "model.name=mine", "dry_run=true")


def test_the_report_of_a_run_does_not_hold_the_architecture(model_dir: Path, text_file: Path) -> None:
    assert composed(*tiny(model_dir, text_file)).model.architecture is None
    assert composed("model=llama-7b").model.architecture is None


def test_a_run_that_cannot_fit_is_refused_before_a_weight_is_read(
    model_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointSource, "open", lambda *_: pytest.fail("the weights were loaded"))
    monkeypatch.setattr(FreeMemory, "here", lambda *_: FreeMemory(1000, 1000, 10**12))
    with pytest.raises(ValueError, match=r"^model.placement=device: expected [\d.e-]+ GB free in the host's memory"):
        run(composed(*tiny(model_dir, text_file)), tmp_path / "run")
    lines = foretell(*tiny(model_dir, text_file)).lines()
    assert lines[-1].startswith("would be refused: model.placement=device: expected ")


def test_an_mlp_that_cannot_be_empty_keeps_a_neuron(tmp_path: Path) -> None:
    model = only_config(tmp_path / "model", GPT2Config())
    with pytest.raises(ValueError, match=r"structure\.min_neurons=0: expected 1 or more for this model, whose MLP"):
        foretell(f"model.path={model}", "structure.min_neurons=0")


@pytest.mark.parametrize("config", [GPT2Config(), OlmoeConfig()], ids=["gpt2", "olmoe"])
def test_attention_that_needs_a_head_keeps_one(config: PreTrainedConfig, tmp_path: Path) -> None:
    model = f"model.path={only_config(tmp_path / 'model', config)}"
    with pytest.raises(ValueError, match=r"structure\.min_heads=0: expected 1 or more for this model, whose attention"):
        foretell(model, "dry_run=true", "structure.min_heads=0")
