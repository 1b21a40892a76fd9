"""As long as flap.storage.VERSION is unchanged, runs give the results in tests/runs/golden.json."""

import json
from pathlib import Path

import pytest

from flap.storage import VERSION
from tests.helpers.golden_run import GOLDEN, results

ANEW = "raise VERSION in flap/storage/artefacts.py and run python -m tests.helpers.golden_run"


def test_results_of_a_version_do_not_change(tmp_path: Path) -> None:
    """Plans equal the recorded plans, and results differ from recorded results by at most 0.01 %.

    The tolerance is necessary because other processors and other versions of torch round
    differently.
    """
    golden = json.loads(GOLDEN.read_text())
    assert golden["version"] == VERSION, "run python -m tests.helpers.golden_run"
    found = results(tmp_path)
    assert found.keys() == golden["results"].keys()
    for name, expected in golden["results"].items():
        assert found[name]["plan"] == expected["plan"], f"{name} has another plan: {ANEW}"
        assert found[name]["numbers"] == pytest.approx(expected["numbers"], rel=1e-4), ANEW
