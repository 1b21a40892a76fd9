import json
from collections.abc import Callable
from typing import Any

import pytest

from flap.results import Report


@pytest.fixture(scope="session")
def plain_report(tmp_path_factory: pytest.TempPathFactory, run_tiny: Callable[..., Report]) -> dict[str, Any]:
    """report.json of a real run on the tiny model."""
    folder = tmp_path_factory.mktemp("run")
    run_tiny(folder)
    plain: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return plain
