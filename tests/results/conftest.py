import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flap.results import Report
from tests.helpers.browser import browser
from tests.helpers.study_grid import Report as Plain

__all__ = ["browser"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, run_tiny: Callable[..., Report]) -> Path:
    """Run flap on the tiny model, and return the folder of the run."""
    folder = tmp_path_factory.mktemp("run")
    run_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def report(finished: Path) -> Plain:
    """Return the report.json of `finished`, which must be strict JSON without NaN."""
    plain: Plain = json.loads((finished / "report.json").read_text(), parse_constant=pytest.fail)
    return plain
