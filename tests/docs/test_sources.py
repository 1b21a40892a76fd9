"""All links between the Markdown files of the repository lead to existing files."""

import re
from pathlib import Path

import pytest

from tests.docs.conftest import ROOT

FILES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "experiments").rglob("*.md")]
)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_link_between_files_leads_to_a_file(file: Path) -> None:
    assert [
        link for link in LINK.findall(file.read_text()) if not (file.parent / link).exists()
    ] == []
