"""Make a release: `make release VERSION=0.2.0`.

The script writes the version and today's date into the files that contain them, builds an sdist and
a wheel, and checks both. It does all this in a copy of the last commit. Only after all checks does
it change the files of the checkout, and put the sdist and the wheel into dist/. It uploads nothing.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.version import InvalidVersion, Version

OPEN = r"(?m)^## \[.*Unreleased\]?\n"  # matches "## [Unreleased]" and "## [0.1.0] - Unreleased"


def main() -> None:
    """Make a release of this checkout, or print an error and exit with code 1."""
    parser = argparse.ArgumentParser(
        description="The changelog's section, and a checked sdist and wheel in dist/."
    )
    parser.add_argument("version", help="as 0.2.0")
    version = parser.parse_args().version
    try:
        files = release(Path(__file__).resolve().parents[1], version, date.today())
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print("Checked, not uploaded:", *files, sep="\n  ")
    print(
        f"Next: git commit --all --message 'Release {version}' && git tag v{version} && "
        f"git push origin HEAD v{version}"
    )
    print(f"Then: {sys.executable} -m twine upload {' '.join(files)}")


def release(root: Path, version: str, today: date) -> list[str]:
    """Make the release `version` of the checkout `root`, and return its files in dist/.

    Raises:
        ValueError: the version exists already or does not have the form 0.2.0, the checkout has
            uncommitted changes, or the changelog has no unreleased changes.
        CalledProcessError: a check has failed. Its output says why.
    """
    refuse(root, version)
    texts = versioned(root, version, today)
    with TemporaryDirectory() as scratch:
        source = exported(root, Path(scratch) / "source")
        write(source, texts)
        files = build(source, Path(scratch) / "dist")
        check(files, Path(scratch) / "environment")
        write(root, texts)
        (root / "dist").mkdir(exist_ok=True)
        return [str(shutil.copy(file, root / "dist")) for file in files]


def refuse(root: Path, version: str) -> None:
    """Check that the checkout `root` can be released as `version`.

    Raises:
        ValueError: the version cannot be released, for one of the reasons that `release` lists.
    """
    try:
        usual = str(Version(version))
    except InvalidVersion:
        usual = ""
    if version != usual:
        raise ValueError(
            f"VERSION={version}: expected one as 0.2.0{f'; write it {usual}' if usual else ''}"
        )
    changelog = (root / "CHANGELOG.md").read_text()
    # the heading of a released version ends with a date, such as 2026-03-01
    dated = f"\n## [{version}] - 2" in changelog
    if dated or output("git", "tag", "--list", f"v{version}", cwd=root):
        raise ValueError(
            f"VERSION={version}: exists already, as a tag or in CHANGELOG.md; take the next one"
        )
    if changes := output("git", "status", "--porcelain", cwd=root):
        raise ValueError(f"the checkout has changes; commit or remove them first:\n{changes}")
    _, *rest = re.split(OPEN, changelog, maxsplit=1)
    if not "".join(rest).partition("## [")[0].strip():
        raise ValueError(
            "CHANGELOG.md has nothing under '## [Unreleased]', so there is nothing to release"
        )


def versioned(root: Path, version: str, today: date) -> dict[str, str]:
    """Return the new contents of the files of `root` that contain the version, by file name."""
    patterns = {
        "flap/__init__.py": (r'(?m)^__version__ = ".*"$', f'__version__ = "{version}"'),
        "CITATION.cff": (
            r"(?m)^version: .*(\ndate-released: .*)?$",
            f"version: {version}\ndate-released: {today}",
        ),
        "CHANGELOG.md": (OPEN, f"## [Unreleased]\n\n## [{version}] - {today}\n"),
    }
    return {
        name: re.sub(*pattern, (root / name).read_text(), count=1)
        for name, pattern in patterns.items()
    }


def write(root: Path, texts: dict[str, str]) -> None:
    """Write files into the folder `root`.

    texts: the content of each file, by file name.
    """
    for name, text in texts.items():
        (root / name).write_text(text)


def exported(root: Path, folder: Path) -> Path:
    """Copy the files of the last commit into a new folder, and return this folder."""
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=root, check=True, capture_output=True
    ).stdout
    folder.mkdir()
    subprocess.run(["tar", "--extract"], cwd=folder, input=archive, check=True)
    return folder


def build(source: Path, folder: Path) -> list[Path]:
    """Build an sdist of `source` into `folder`, then a wheel from the sdist; return both files."""
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source], check=True
    )
    return sorted(folder.iterdir(), key=lambda path: path.suffix)


def check(files: list[Path], environment: Path) -> None:
    """Check the metadata of the files, and that flap runs from the wheel in a new environment.

    files: the sdist and the wheel.
    environment: the folder of the new environment.

    Raises:
        CalledProcessError: a check has failed. Its output says why.
    """
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    [wheel] = [file for file in files if file.suffix == ".whl"]
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for command in (["pip", "install", "--quiet", wheel], ["flap", "--help"], ["flap", "doctor"]):
        subprocess.run([python, "-m", *command], cwd=environment, env=clean, check=True)


def output(*command: str, cwd: Path) -> str:
    """Run a command in the folder `cwd`, and return its standard output."""
    return subprocess.run(
        command, cwd=cwd, check=True, capture_output=True, text=True
    ).stdout.rstrip()


if __name__ == "__main__":
    main()
