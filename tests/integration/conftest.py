from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.helpers.forked import command_line
from tests.helpers.runs import run_tiny  # noqa: F401 - a fixture


@pytest.fixture
def quick_flap(tmp_path: Path) -> Callable[..., CompletedProcess[str]]:
    """The command line in a process of its own that has imported everything, in an empty folder."""
    return partial(command_line, tmp_path)


@pytest.fixture
def no_account(tmp_path: Path) -> dict[str, str]:
    """An environment in which W&B finds no key and no server."""
    home = {"HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "home" / ".netrc")}
    return home | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_ERROR_REPORTING": "false", "WANDB_API_KEY": ""}
