import json
from collections.abc import Callable

import pytest

from flap.results import Report
from tests.helpers.browser import browser
from tests.helpers.study_grid import Report as Plain

__all__ = ["browser"]


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory, run_tiny: Callable[..., Report]) -> Plain:
    """report.json of a real run on the tiny model."""
    folder = tmp_path_factory.mktemp("run")
    run_tiny(folder)
    plain: Plain = json.loads((folder / "report.json").read_text())
    return plain
