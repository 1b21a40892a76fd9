"""The documentation site works in a browser from the disk, without a network."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.docs.conftest import ROOT
from tests.helpers.browser import opened

pytestmark = pytest.mark.long
PAGES = [
    "index.html",
    "tour.html",
    "method.html",
    "options.html",
    "api/method.importance.html",
    "experiments/beyond_flap/index.html",
]
WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 390, "height": 800}
FORMS = ((WIDE, "light"), (NARROW, "dark"))


@contextmanager
def shown(browser: Browser, page_file: Path, size: dict[str, int], scheme: str) -> Iterator[Page]:
    with opened(browser, page_file.as_uri(), viewport=size, color_scheme=scheme) as page:
        page.locator("h1").first.wait_for()
        yield page


@pytest.mark.parametrize(("size", "scheme"), FORMS, ids=["wide, light", "narrow, dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window(
    browser: Browser, site: Path, name: str, size: dict[str, int], scheme: str
) -> None:
    with shown(browser, site / name, size, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"]


# The accessibility checker axe needs ten seconds for a page, so each page is checked in only one
# combination of colours and width. One combination is enough, because errors are usually in the
# theme or in tables, which many pages share.
@pytest.mark.parametrize(("name", "form"), zip(PAGES, FORMS * 3, strict=True), ids=PAGES)
def test_axe_finds_no_violation(
    browser: Browser, site: Path, name: str, form: tuple[dict[str, int], str]
) -> None:
    with shown(browser, site / name, *form) as page:
        found = Axe().run(page, options={"preload": False}).response["violations"]
        serious = [
            (one["id"], one["nodes"][0]["html"])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == []


def ask(page: Page, words: str) -> None:
    """Press / to open the search of the site, type `words`, and wait for the first result."""
    page.keyboard.press("/")
    page.keyboard.type(words)
    expect(page.locator(".md-search-result__item").first).to_be_visible(timeout=20_000)


def test_the_search_works_from_disk_and_by_keyboard(browser: Browser, site: Path) -> None:
    with opened(browser, (site / "tour.html").as_uri(), viewport=WIDE) as page:
        page.locator("h1").first.wait_for()
        ask(page, "cholesky")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        # The first result may be the page about the method, or an API page of the method's code.
        page.wait_for_url(re.compile(r"/(api/)?method[^/]*\.html"))
        assert "Cholesky" in page.locator("article").inner_text()


def test_every_page_of_docs_and_every_experiment_is_in_the_site(site: Path) -> None:
    expected = [path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")]
    expected += [
        f"experiments/{path.parent.name}/index.html"
        for path in (ROOT / "experiments").glob("*/README.md")
    ]
    assert [name for name in expected if not (site / name).is_file()] == []


def test_no_page_names_a_place_of_the_machine_that_built_it(site: Path) -> None:
    assert [path for path in site.rglob("*.html") if str(ROOT) in path.read_text()] == []
