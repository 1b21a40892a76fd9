"""Runs work with files on NFS (a network file system), and behind symbolic links.

On NFS, a folder cannot be removed while it contains a file that a process has mapped into memory.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flap.results import Report
from tests.helpers.network_files import as_on_nfs


@pytest.mark.parametrize(
    "choice",
    [
        "structure=search",
        "model.placement=stream",
        (
            "model.placement=stream eval=[perplexity,divergence] eval.divergence.seq_len=16 "
            "eval.divergence.max_tokens=64"
        ),
    ],
)
def test_a_run_on_nfs_ends_with_its_report_and_leaves_nothing(
    choice: str, run_tiny: Callable[..., Report], text_file: Path, tmp_path: Path
) -> None:
    options = choice.split() + [f"eval.divergence.datasets=[{text_file}]"] * (
        "divergence" in choice
    )
    with as_on_nfs(tmp_path):
        run_tiny(tmp_path / "run", *options, f"cache_dir={tmp_path / 'cache'}")
    assert (tmp_path / "run" / "report.json").is_file()
    left = [path for path in (tmp_path / "cache" / "streams").iterdir() if path.suffix != ".lock"]
    assert [*left, *tmp_path.glob("run/.*")] == []


@pytest.mark.parametrize("target", ["new", "empty", "older"])
def test_a_checkpoint_goes_where_a_link_leads(
    target: str, run_tiny: Callable[..., Report], tmp_path: Path
) -> None:
    large = tmp_path / "large-disk" / target
    link = tmp_path / "kept"
    large.parent.mkdir()
    if target == "empty":
        large.mkdir()
    if target == "older":
        run_tiny(tmp_path / "older", f"checkpoint.dir={large}", "ratio=0.2")
    link.symlink_to(large)
    run_tiny(tmp_path / "run", f"checkpoint.dir={link}", "checkpoint.overwrite=true")
    assert link.is_symlink() and [path.name for path in large.parent.iterdir()] == [target]
    plans = [
        json.loads(path.read_text())
        for path in (link / "flap.json", tmp_path / "run" / "plan.json")
    ]
    assert plans[0]["plan"] == plans[1]
