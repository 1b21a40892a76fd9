from pathlib import Path

import pytest


@pytest.fixture
def no_account(tmp_path: Path) -> dict[str, str]:
    """An environment in which W&B finds no key and no server."""
    home = {"HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "home" / ".netrc")}
    return home | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_ERROR_REPORTING": "false", "WANDB_API_KEY": ""}
