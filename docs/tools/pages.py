"""Hook for MkDocs: add pages from outside docs/, and pages that are made from the code.

The folder docs/ has no copies of these pages: the hook makes README.md the first page of the site,
and adds the pages of experiments/. The hook changes links between files of the repository, so that
these links lead to pages of the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from options import options_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
COPIED = (
    "CITATION.cff",
    "LICENSE",
    "examples/*.py",
    "experiments/**/*.md",
    "experiments/**/*.py",
    "experiments/**/*.csv",
    "experiments/**/*.png",
)
LINK = re.compile(r"(?<=\]\()(?!https?:)[^)#\s]+")  # matches a relative link without its anchor
API = "api/"  # the hook replaces this entry of the navigation with a page for each subpackage


def on_config(config: MkDocsConfig) -> None:
    """Add the pages of the Python reference to the navigation."""
    _replace(config.nav, [{room: f"{API}{room}.md"} for room in _rooms()])


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add to the site the files outside docs/, and the pages that are made from the code."""
    for path in _elsewhere():
        files.append(File.generated(config, _uri(path), abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "options.md", content=options_page()))
    for room, modules in _rooms().items():
        files.append(File.generated(config, f"{API}{room}.md", content=_reference(room, modules)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change links between files of the repository so that they lead to the pages of the site."""
    uri = page.file.src_uri
    origin = next((path for path in _elsewhere() if _uri(path) == uri), f"docs/{uri}")
    folder = posixpath.dirname(origin)
    own_folder = posixpath.dirname(uri)

    def lead(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[0]))
        return posixpath.relpath(_uri(target), own_folder or ".")

    return LINK.sub(lead, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Add a label to the search field of the theme, because screen readers need it."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)


def _elsewhere() -> list[str]:
    """Return the paths, relative to ROOT, of all files of the site that are outside docs/."""
    copied = [
        path.relative_to(ROOT).as_posix()
        for pattern in COPIED
        for path in sorted(ROOT.glob(pattern))
    ]
    return [*PAGES, *copied]


def _uri(path: str) -> str:
    """Return the path that a file of the repository has on the site."""
    return PAGES.get(path, path.removeprefix("docs/"))


def _rooms() -> dict[str, list[str]]:
    """Return a dict from the name of each page of the Python reference to the modules on this page.

    Each subpackage of flap has a page, such as `data`. In place of a page for the subpackage
    `method`, each of its own subpackages has a page, such as `method.search`. The page `flap` has
    the modules that are in no subpackage.
    """
    rooms: dict[str, list[str]] = {"flap": []}
    for path in sorted((ROOT / "flap").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not parts[-1].startswith("__"):
            depth = 3 if parts[1] == "method" else 2
            room = ".".join(parts[1:depth]) if len(parts) > 2 else "flap"
            rooms.setdefault(room, []).append(".".join(parts))
    return rooms


def _reference(room: str, modules: list[str]) -> str:
    """Return a page of the Python reference as Markdown: a package's docstring, and its modules.

    room: the name of the page: a key of the dict that `_rooms` returns.
    """
    package = "flap" if room == "flap" else f"flap.{room}"
    own = f"::: {package}\n    options: {{heading_level: 1, members: false}}"
    return "\n\n".join([own, *(f"::: {module}" for module in modules)])


def _replace(nav: Any, pages: list[Any]) -> None:
    """In a navigation, replace the value `API` with the list `pages`, at any depth."""
    for entry in nav:
        for title, value in entry.items() if isinstance(entry, dict) else ():
            if value == API:
                entry[title] = pages
            elif isinstance(value, list):
                _replace(value, pages)
