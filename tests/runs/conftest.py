"""Forecasts of runs on the tiny model, composed as the command line would."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flap.pipeline import stages
from flap.runs.forecast import Forecast, forecast
from tests.helpers.runs import composed, run_tiny, tiny  # noqa: F401 - run_tiny is a fixture

Foretell = Callable[..., Forecast]


@pytest.fixture
def foretell(model_dir: Path, text_file: Path, tmp_path: Path) -> Foretell:
    """The forecast of the tiny run with more arguments: 8 windows of 16 tokens."""
    base = [*tiny(model_dir, text_file), "model.device=cpu", f"cache_dir={tmp_path / 'cache'}"]

    def of(*arguments: str) -> Forecast:
        return forecast(composed(*base, *arguments), stages)

    return of
