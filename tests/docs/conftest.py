import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers.browser import browser

__all__ = ["browser", "site"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the documentation site as `make docs` does, and return its folder.

    If MkDocs is not installed, the tests that use the site are skipped. With
    FLAP_REQUIRE_SYSTEM_TOOLS=1 in the environment, these tests fail instead of being skipped.
    """
    if find_spec("mkdocs") is None:
        required = os.environ.get("FLAP_REQUIRE_SYSTEM_TOOLS") == "1"
        (pytest.fail if required else pytest.skip)("no mkdocs: make docs installs it")
    folder = tmp_path_factory.mktemp("docs") / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder
