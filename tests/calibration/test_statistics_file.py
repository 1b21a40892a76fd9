"""Statistics on disk: bit-equal when they come back, and under a key of all that they depend on and nothing else."""

from itertools import chain
from pathlib import Path

import pytest
import torch

from flap.calibration import STATISTICS, collect
from flap.models import Resident
from flap.pipeline import run
from tests.cases import tiny_model, tokens
from tests.helpers.runs import composed, tiny


@pytest.mark.parametrize("architecture", ["llama-gqa", "qwen3_moe"])
def test_bit_equal_when_they_come_back(architecture: str, tmp_path: Path) -> None:
    statistics = collect(Resident(tiny_model(architecture)), [tokens()], batch_size=2)
    STATISTICS.write(statistics, tmp_path / "data")
    back = STATISTICS.read(tmp_path / "data")
    assert len(back) == len(statistics) >= 3
    for one, other in zip(statistics, back, strict=True):
        assert one.inverse_power == other.inverse_power > 0
        assert one.routed_power == other.routed_power
        for expected, found in zip(chain(*one.blocks), chain(*other.blocks), strict=True):
            assert found.num_tokens == expected.num_tokens
            assert found.mean_I.dtype == torch.float64
            assert torch.equal(found.mean_I, expected.mean_I) and torch.equal(found.deviation_I, expected.deviation_I)
            assert found.comoments is expected.comoments is None and found.parts is expected.parts is None


def test_a_hit_gives_the_same_plan_and_numbers(model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    arguments = (*tiny(model_dir, text_file), f"cache_dir={tmp_path / 'cache'}", "ratio=0.4")
    first, second = (run(composed(*arguments), tmp_path / name) for name in ("first", "second"))
    off = run(composed(*arguments, "use_cache=false"), tmp_path / "off")
    assert [one.statistics_cache for one in (first, second, off)] == ["miss", "hit", "off"]
    assert first.evaluation == second.evaluation == off.evaluation
    plans = [(tmp_path / name / "plan.json").read_text() for name in ("first", "second", "off")]
    assert plans[0] == plans[1] == plans[2]


@pytest.fixture(scope="module")
def first(model_dir: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a run that has filled its cache."""
    folder = tmp_path_factory.mktemp("first")
    arguments = [*tiny(model_dir, text_file), "checkpoint.save=false", f"cache_dir={folder / 'cache'}"]
    assert run(composed(*arguments), folder / "run").statistics_cache == "miss"
    return arguments


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ("metric=IFV", "hit"),
        ("structure=UL-MM", "hit"),
        ("ratio=0.6", "hit"),
        ("compensation=none", "hit"),
        ("mask_only=true", "hit"),
        ("calibration.batch_size=3", "hit"),
        ("eval.perplexity.seq_len=8", "hit"),
        ("seed=1", "miss"),
        ("calibration.num_samples=7", "miss"),
        ("calibration.seq_len=15", "miss"),
        ("model.dtype=bfloat16", "miss"),
        ("method=mag_sp", "off"),  # needs none
        ("method=wanda_sp", "off"),  # not of the dense model
    ],
)
def test_what_the_key_holds(first: list[str], tmp_path: Path, change: str, state: str) -> None:
    assert run(composed(*first, change), tmp_path).statistics_cache == state


def test_another_text_or_model_is_another_key(model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    def state(model: Path, text: Path, folder: str) -> str:
        arguments = (*tiny(model, text), f"cache_dir={tmp_path / 'cache'}", "checkpoint.save=false")
        return run(composed(*arguments), tmp_path / folder).statistics_cache

    shifted = tmp_path / text_file.name
    shifted.write_text("cat " + text_file.read_text())
    other = tmp_path / "model"
    tiny_model("llama-gqa", seed=1).save_pretrained(other)
    for file in model_dir.glob("tokenizer*"):
        (other / file.name).write_bytes(file.read_bytes())
    assert [state(model_dir, text_file, "a"), state(model_dir, text_file, "b")] == ["miss", "hit"]
    assert [state(model_dir, shifted, "c"), state(other, text_file, "d")] == ["miss", "miss"]
