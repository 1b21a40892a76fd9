from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.helpers.forked import command_line


@pytest.fixture
def quick_flap(tmp_path: Path) -> Callable[..., CompletedProcess[str]]:
    """The command line in a process of its own that has imported everything, in an empty folder."""
    return partial(command_line, tmp_path)
