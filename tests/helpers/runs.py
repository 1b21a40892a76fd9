"""Runs on the tiny model: arguments of the command line, and the same run composed and started in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from flap.config import FlapConfig, config_dir, typed
from flap.pipeline import run
from flap.results import Report


def tiny(model_dir: Path, text_file: Path) -> list[str]:
    """What makes any command line a run of a second or two: the tiny model and the local text."""
    return [
        f"model.path={model_dir}", "model.name=tiny",
        f"calibration.dataset={text_file}", "calibration.num_samples=8", "calibration.seq_len=16",
        f"eval.perplexity.datasets=[{text_file}]", "eval.perplexity.seq_len=16",
    ]  # fmt: skip


def composed(*overrides: str) -> FlapConfig:
    """The checked config that the command line would make of these arguments."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        # run_name reads Hydra's choices, which only a started application has
        return typed(compose("config", ["run_name=test", *overrides]))


@pytest.fixture(scope="session")
def run_tiny(model_dir: Path, text_file: Path) -> Callable[..., Report]:
    """A whole run of the pipeline on the tiny model: run_tiny(folder, "ratio=0.5", ...)."""
    inputs = [
        *tiny(model_dir, text_file), "model.device=cpu", "calibration.num_samples=6", "eval.perplexity.max_tokens=320",
        "ratio=0.4", "run_name=tiny",
    ]  # fmt: skip

    def run_in(folder: Path, *overrides: str) -> Report:
        return run(composed(*inputs, *overrides), folder)

    return run_in
