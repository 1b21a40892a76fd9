"""MkDocs hook: add the pages whose text is elsewhere in the repository, or is made from the code.

No page is written twice: README.md is the first page of the site, and the pages of experiments are
those of experiments/. Links between these files are changed so that they lead to the pages.
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
LINK = re.compile(r"(?<=\]\()(?!https?:)[^)#\s]+")  # a relative link, without its anchor
API = "api/"  # in the navigation, the pages of the rooms replace this entry


def on_config(config: MkDocsConfig) -> None:
    """Put the pages of the Python reference into the navigation."""
    _replace(config.nav, [{room: f"{API}{room}.md"} for room in _rooms()])


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the files outside docs/, and the pages that are made from the code."""
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
    """Give the search of the theme a name, which screen readers need."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)


def _elsewhere() -> list[str]:
    """Return the paths of the site's files outside docs/, from the repository's root."""
    copied = [
        path.relative_to(ROOT).as_posix()
        for pattern in COPIED
        for path in sorted(ROOT.glob(pattern))
    ]
    return [*PAGES, *copied]


def _uri(path: str) -> str:
    """Return the address of a file of the repository in the site."""
    return PAGES.get(path, path.removeprefix("docs/"))


def _rooms() -> dict[str, list[str]]:
    """Return the modules of each room of the package.

    The room `flap` has the modules that are directly in the package.
    """
    rooms: dict[str, list[str]] = {"flap": []}
    for path in sorted((ROOT / "flap").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not parts[-1].startswith("__"):
            # each stage of the method has its own page
            depth = 3 if parts[1] == "method" else 2
            room = ".".join(parts[1:depth]) if len(parts) > 2 else "flap"
            rooms.setdefault(room, []).append(".".join(parts))
    return rooms


def _reference(room: str, modules: list[str]) -> str:
    """Return the page of a room: its docstring, and the documentation of its modules."""
    package = "flap" if room == "flap" else f"flap.{room}"
    own = f"::: {package}\n    options: {{heading_level: 1, members: false}}"
    return "\n\n".join([own, *(f"::: {module}" for module in modules)])


def _replace(nav: Any, pages: list[Any]) -> None:
    """Replace the entry `API` of a navigation by pages, at any depth."""
    for entry in nav:
        for title, value in entry.items() if isinstance(entry, dict) else ():
            if value == API:
                entry[title] = pages
            elif isinstance(value, list):
                _replace(value, pages)
