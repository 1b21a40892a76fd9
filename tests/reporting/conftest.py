from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from flap.config import config_dir, typed
from flap.pipeline import run
from flap.reporting import Report


@pytest.fixture(scope="session")
def run_tiny(model_dir: Path, text_file: Path) -> Callable[..., Report]:
    """A whole run of the pipeline on the tiny model: run_tiny(folder, "ratio=0.5", ...)."""
    inputs = (
        f"model.path={model_dir}", "model.device=cpu", f"calibration.dataset={text_file}", "calibration.seq_len=16",
        "calibration.num_samples=6", f"eval.perplexity.datasets=[{text_file}]", "eval.perplexity.seq_len=16",
        "eval.perplexity.max_tokens=320", "ratio=0.4", "run_name=tiny",
    )  # fmt: skip

    def run_in(folder: Path, *overrides: str) -> Report:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            config = typed(compose("config", [*inputs, *overrides]))
        return run(config, folder)

    return run_in
