"""The wheel that users install contains conf/ and plans/, and runs outside the checkout."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from release import build

ROOT = Path(__file__).resolve().parents[2]


def files_in(folder: Path, suffix: str) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob(f"*.{suffix}")}


def test_the_wheel_runs_outside_the_checkout(tmp_path: Path) -> None:
    _, wheel = build(ROOT, tmp_path / "dist")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    for folder, suffix in {"conf": "yaml", "plans": "json"}.items():
        shipped = files_in(site / "flap" / folder, suffix)
        assert shipped and shipped == files_in(ROOT / folder, suffix)
    pages = {
        path.name
        for path in (ROOT / "flap" / "results").iterdir()
        if path.suffix in (".j2", ".css", ".js")
    }
    assert pages and pages <= {path.name for path in (site / "flap" / "results").iterdir()}
    code = """
import flap, flap.config
print(flap.__file__, flap.config.config_dir(), flap.config.shipped_folder("plans"))
"""
    for command in (["-c", code], ["-m", "flap", "--cfg", "job"]):
        # With this PYTHONPATH, Python finds the files of the wheel before the files of the
        # checkout.
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=True,
        )
        if "-c" in command:
            assert done.stdout.split() == [
                str(site / "flap" / "__init__.py"),
                str(site / "flap" / "conf"),
                str(site / "flap" / "plans"),
            ]
        else:
            assert "seed: 0" in done.stdout


def test_the_lowest_versions_that_are_allowed_are_those_that_make_lowest_runs_with() -> None:
    asked = map(
        Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    )
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    tested = {canonicalize_name(pin.name): pin.specifier for pin in pins}
    lowest = {
        one.name: bound.version
        for one in asked
        for bound in one.specifier
        if bound.operator == ">="
    }
    assert lowest.pop("torch") == "2.6"  # constraints-lowest.txt pins a newer torch, and says why
    assert {name for name, version in lowest.items() if version not in tested[name]} == set()
