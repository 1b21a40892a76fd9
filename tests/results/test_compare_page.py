"""The page of a comparison, as a browser without network shows it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from flap.compare import main
from flap.results import Report
from tests.helpers.browser import opened


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, run_tiny: Callable[..., Report]) -> Path:
    """The page of two runs of different methods, the second with a model of a nasty name."""
    folder = tmp_path_factory.mktemp("page")
    for name, more in {"a": [], "b": ["structure=UL-UM"]}.items():
        run_tiny(folder / name, *more)
    report: dict[str, Any] = json.loads((folder / "b" / "report.json").read_text())
    report["config"]["model"]["name"] = '<script>document.title="owned"</script>'
    report["layer_errors"] = [0.1] * len(report["layers"])
    (folder / "b" / "report.json").write_text(json.dumps(report))
    main([str(folder / "a"), str(folder / "b"), "--page", str(folder / "compare.html")])
    return folder / "compare.html"


def test_the_page_shows_all_tables_and_the_layers_over_each_other(browser: Browser, page_file: Path) -> None:
    with opened(browser, page_file.as_uri()) as page:
        assert page.title() == "A, B side by side"
        titles = ["Config", "Numbers of the pruned models", "Size, seconds and memory", "Plans by layer"]
        assert page.locator("h2").all_inner_texts() == titles
        assert "Different models. A: tiny; B: <script>" in page.locator(".warning").first.inner_text()
        row = page.locator("tr", has=page.get_by_role("rowheader", name="structure", exact=True))
        assert row.locator("td").all_inner_texts() == ["ALAM", "ULUM"]
        legend = page.locator("figure svg text").all_text_contents()
        assert {"A", "B", "dense", "error of hidden states"} <= set(legend)
        colours = page.locator(".swatch").evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
        assert colours == ["rgb(0, 114, 178)", "rgb(213, 94, 0)"]  # those of the lines


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_scrolls_tables_and_not_the_page(
    browser: Browser, page_file: Path, width: int, scheme: str
) -> None:
    with opened(browser, page_file.as_uri()) as page:
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        light, dark = "rgb(255, 255, 255)", "rgb(18, 22, 27)"
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == (light if scheme == "light" else dark)
        page.keyboard.press("Tab")  # tables that scroll can be reached without a mouse
        assert page.evaluate("document.activeElement.className") == "scroll"
