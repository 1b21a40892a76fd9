"""What a sweep says of its cells that failed."""

import os
from pathlib import Path

from flap.runs.sweeps.failures import failures
from flap.storage import write_status
from flap.storage.status import STATUS


def test_a_failure_of_an_earlier_command_is_not_told_again(tmp_path: Path) -> None:
    for name, state in (("0_a", "failed"), ("1_b", "failed"), ("2_c", "finished")):
        write_status(tmp_path / name, state, f"ratio={name}")  # type: ignore[arg-type]
    os.utime(tmp_path / "0_a" / STATUS, (1000, 1000))
    assert failures(tmp_path, since=2000) == [f"failed: {tmp_path / '1_b'}: ratio=1_b"]
    assert len(failures(tmp_path)) == 2
