"""`make release` builds and checks a small test project, or refuses a wrong version."""

import subprocess
from datetime import date
from pathlib import Path

import pytest
from release import refuse, release, versioned

ROOT = Path(__file__).resolve().parents[2]

TODAY = date(2026, 3, 1)
FILES = {
    "pyproject.toml": """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [project]
        name = "small"
        dynamic = ["version"]
        readme = "README.md"
        requires-python = ">=3.11"
        [tool.hatch.version]
        path = "flap/__init__.py"
        [tool.hatch.build.targets.wheel]
        packages = ["flap"]
    """.replace("\n        ", "\n"),
    "README.md": "# small\n",
    "CHANGELOG.md": "# Changelog\n\n## [Unreleased]\n- New.\n\n## [0.1.0] - 2026-01-01\n- First.\n",
    "CITATION.cff": "title: small\nversion: 0.1.0\ndate-released: 2026-01-01\nauthors: []\n",
    "flap/__init__.py": '__version__ = "0.1.0"\n',
    "flap/__main__.py": "import sys\n\nprint(*sys.argv[1:])\n",
    ".gitignore": "dist/\n",
}


def git(root: Path, *command: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@y", *command], cwd=root, check=True
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Create a checkout of a small project with one commit."""
    root = tmp_path / "project"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "All")
    return root


@pytest.mark.long  # long, because test_wheel.py, which is a quick test, also builds a wheel
def test_a_release_leaves_a_checked_sdist_and_wheel(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = release(project, "0.2.0", TODAY)
    assert {Path(file).name for file in files} == {
        "small-0.2.0.tar.gz",
        "small-0.2.0-py3-none-any.whl",
    }
    assert {path.name for path in (project / "dist").iterdir()} == {
        Path(file).name for file in files
    }
    assert (project / "flap/__init__.py").read_text() == '__version__ = "0.2.0"\n'
    assert (
        "version: 0.2.0\ndate-released: 2026-03-01\nauthors"
        in (project / "CITATION.cff").read_text()
    )
    assert (project / "CHANGELOG.md").read_text() == (
        "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-03-01\n- New.\n\n## [0.1.0] "
        "- 2026-01-01\n- First.\n"
    )
    lines = capfd.readouterr().out.splitlines()
    assert "--help" in lines and "doctor" in lines  # the command in the built wheel has run
    git(project, "commit", "--all", "--quiet", "--message", "Release 0.2.0")
    with pytest.raises(ValueError, match="nothing to release"):
        release(project, "0.3.0", TODAY)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("0.1.0", "VERSION=0.1.0: exists already, as a tag or in CHANGELOG.md; take the next one"),
        ("0.1.5", "VERSION=0.1.5: exists already, as a tag or in CHANGELOG.md; take the next one"),
        ("new", "VERSION=new: expected one as 0.2.0"),
        ("v0.2.0", "VERSION=v0.2.0: expected one as 0.2.0; write it 0.2.0"),
    ],
)
def test_versions_that_are_refused(project: Path, version: str, message: str) -> None:
    git(project, "tag", "v0.1.5")
    with pytest.raises(ValueError) as caught:
        release(project, version, TODAY)
    assert str(caught.value) == message


def test_a_checkout_with_changes_is_refused(project: Path) -> None:
    (project / "notes.txt").write_text("mine\n")
    with pytest.raises(
        ValueError,
        match=r"^the checkout has changes; commit or remove them first:\n\?\? notes.txt$",
    ):
        release(project, "0.2.0", TODAY)


def test_the_first_release_dates_the_section_that_names_it(project: Path) -> None:
    (project / "CHANGELOG.md").write_text("# Changelog\n\n## [0.1.0] - Unreleased\n- First.\n")
    git(project, "commit", "--all", "--quiet", "--message", "First")
    refuse(project, "0.1.0")
    assert versioned(project, "0.1.0", TODAY)["CHANGELOG.md"] == (
        "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-03-01\n- First.\n"
    )


def test_the_files_of_flap_name_the_version_where_the_release_looks_for_it() -> None:
    for name, text in versioned(ROOT, "99.0.0", TODAY).items():
        assert "99.0.0" in text and "99.0.0" not in (ROOT / name).read_text()
