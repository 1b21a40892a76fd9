"""A plan can be written to a file and read again. A new plan replaces the file atomically.

A plan says which heads and neurons each layer keeps.
"""

import os
from pathlib import Path

from flap.method.allocation import LayerPlan, PruningPlan


def test_a_plan_that_is_written_again_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """A new plan is written to another file, which then replaces the old file.

    So if the process is killed while it writes, the old file is unchanged. To check this, the test
    creates a hard link to the old file. The link still has the old plan after the new plan was
    written.
    """
    old = PruningPlan((LayerPlan((0, 1), (0, 2, 5)),))
    new = PruningPlan((LayerPlan((0,), (1, 2)),))
    plan = tmp_path / "new" / "plan.json"
    old.save(plan)
    os.link(plan, tmp_path / "old.json")
    new.save(plan)
    assert PruningPlan.load(plan) == new
    assert PruningPlan.load(tmp_path / "old.json") == old
