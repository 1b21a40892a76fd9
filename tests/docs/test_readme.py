"""The command under "Results" in README.md gives the two perplexities that its comment states."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.docs.conftest import ROOT


# This test runs only with --thorough, because it takes minutes, and test_parity.py prunes the same
# model (SmolLM2) even without --thorough.
@pytest.mark.thorough
def test_the_command_below_gives_its_digits(
    quick_flap: Callable[..., "CompletedProcess[str]"], tmp_path: Path
) -> None:
    below = (ROOT / "README.md").read_text().partition("## Results")[2]
    [command] = re.findall(r"^python -m flap (.*)$", below, re.MULTILINE)
    digits = re.search(r"# dense ([\d.]+), pruned ([\d.]+)", below)
    assert digits
    done = quick_flap(*shlex.split(command), "hydra.run.dir=run", "checkpoint.save=false")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "run" / "report.json").read_text())["evaluation"]
    found = [numbers[which]["boolq-passages/perplexity@1024"] for which in ("dense", "pruned")]
    expected = [float(number) for number in digits.groups()]
    # The tolerance allows for processors that round differently.
    assert found == pytest.approx(expected, rel=2e-3)
