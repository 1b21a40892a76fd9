"""The page of a study, as a browser without network shows it."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page

from flap.results.study_files import write_study
from tests.helpers.browser import opened
from tests.helpers.study_grid import CRASH, Report, full_grid

IN_ORDER = [
    f"{number}" for ratio in range(4) for number in range(ratio, 24, 4)
]  # by ratio, then perplexity


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, report: Report) -> Path:
    """The page of a grid: 24 finished cells, 1 failed, 1 unfinished."""
    return write_study(full_grid(tmp_path_factory.mktemp("page") / "grid", report))


@pytest.fixture
def page(browser: Browser, index: Path) -> Iterator[Page]:
    """The page, opened from disk."""
    with opened(browser, index.as_uri()) as page:
        yield page


def shown(page: Page) -> list[str]:
    """Numbers of the cells that are shown, in the order of the page."""
    return page.locator("#cells tr:visible > th").all_inner_texts()


def head(page: Page, name: str) -> str:
    """The state of a column's heading."""
    return page.locator("#results thead th", has_text=name).first.get_attribute("aria-sort") or ""


def press(page: Page, name: str) -> None:
    page.locator("#results thead button", has_text=name).first.click()


def choice(page: Page, name: str) -> Locator:
    return page.get_by_role("combobox", name=name)


def test_the_page_opens_by_ratio_then_perplexity_with_all_cells(page: Page) -> None:
    assert page.title() == "Pruning tiny: metric × structure × ratio"
    assert shown(page)[:24] == IN_ORDER and sorted(shown(page)[24:]) == ["24", "25"]
    assert page.locator("#shown").inner_text() == "26 of 26 cells shown"
    assert "24 finished · 1 failed · 1 unfinished" in page.locator(".counts").inner_text()
    assert "python -m flap -m metric=IFV,WIFN,WIFV" in page.locator(".command").inner_text()
    assert page.locator("figure svg").count() == 5
    dense = page.locator("tbody.dense").inner_text()
    assert "20.00" in dense and "0.7000 ± 0.0110" in dense


def test_sorting_by_perplexity_is_by_number_and_keeps_cells_without_one_last(page: Page) -> None:
    press(page, "cell")
    press(page, "cell")
    assert shown(page)[:2] == ["25", "24"]
    press(page, "perplexity@128")
    assert shown(page)[:24] == IN_ORDER  # as text, 2,000 would come before 51
    press(page, "perplexity@128")
    assert shown(page)[:24] == IN_ORDER[::-1] and sorted(shown(page)[24:]) == ["24", "25"]
    press(page, "ratio")
    assert head(page, "perplexity@128") == "none" and head(page, "ratio") == "ascending"


def test_filters_by_text_and_by_choice_together(page: Page) -> None:
    page.locator("#search").fill("wifn ul-um")
    assert shown(page) == ["12", "13", "14", "15"]
    assert page.locator("#shown").inner_text() == "4 of 26 cells shown"
    choice(page, "Ratio").select_option("0.3")
    assert shown(page) == ["14"]
    page.get_by_role("button", name="Clear").click()
    assert len(shown(page)) == 26
    choice(page, "Metric").select_option("IFV")
    choice(page, "Structure").select_option("AL-AM")
    assert shown(page) == ["0", "1", "2", "3"]
    choice(page, "Metric").select_option("")
    choice(page, "Structure").select_option("")
    choice(page, "State").select_option("failed")
    assert shown(page) == ["24"] and page.locator("#shown").inner_text() == "1 of 26 cells shown"
    page.locator("#search").fill("nothing of the kind")
    assert shown(page) == []


def test_a_link_keeps_the_view(page: Page, index: Path) -> None:
    choice(page, "Structure").select_option("UL-UM")
    page.locator("#search").fill("wifn")
    press(page, "ratio")
    press(page, "ratio")
    link = page.get_by_role("link", name="Link to this view").get_attribute("href") or ""
    assert shown(page) == ["15", "14", "13", "12"]
    page.goto("about:blank")
    page.goto(index.as_uri() + link)
    assert shown(page) == ["15", "14", "13", "12"] and head(page, "ratio") == "descending"
    assert page.locator("#search").input_value() == "wifn"
    page.get_by_role("button", name="Clear").click()
    assert shown(page)[:24] == IN_ORDER and head(page, "ratio") == "none"


def downloaded(page: Page, button: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return download.value.path().read_text()


def test_the_shown_rows_as_csv_are_those_of_the_study(page: Page, index: Path) -> None:
    page.locator("#search").fill("0.7")  # the failed cell, whose error has quotes
    assert downloaded(page, "CSV").count(CRASH.replace('"', '""')) == 1
    page.locator("#search").fill("wifn ul-um")
    press(page, "ratio")
    press(page, "ratio")
    whole, got = (list(csv.reader(text.splitlines())) for text in (
        (index.parent / "study.csv").read_text(), downloaded(page, "CSV")
    ))  # fmt: skip
    assert got[0] == whole[0]
    assert [row[0] for row in got[1:]] == [
        f"{i}_tiny_WIFN_UL-UM_r{r}_s0" for i, r in ((15, 0.5), (14, 0.3), (13, 0.2), (12, 0.1))
    ]
    numbers = [float(row[8]) for row in got[1:]]
    assert numbers == [float(next(row for row in whole if row[0] == one[0])[8]) for one in got[1:]]


def test_the_shown_rows_as_a_latex_table(page: Page) -> None:
    page.locator("#search").fill("0_tiny")
    choice(page, "Ratio").select_option("0.1")
    lines = downloaded(page, "LaTeX").splitlines()
    assert lines[:3] == [
        "% needs \\usepackage{booktabs}",
        "\\begin{tabular}{llrrrrrrrr}",
        "\\toprule",
    ]
    assert lines[3].startswith(
        "metric & structure & ratio & removed & parameters & wikitext2/perplexity@128 & "
    )
    assert lines[3].count(" & ") == lines[5].count(" & ") == lines[7].count(" & ") == 9
    assert lines[5].startswith("dense &  &  & 0.0000 & ") and "$\\pm$" in lines[5]
    assert lines[7].startswith("IFV & AL-AM & 0.1 & ") and lines[7].endswith(" \\\\")
    assert lines[-2:] == ["\\bottomrule", "\\end{tabular}"]


def test_the_failed_cell_shows_its_whole_error_and_its_log(page: Page) -> None:
    row = page.locator("#cells tr.failed")
    assert CRASH in row.locator(".error").inner_text()
    assert page.title() != "owned"
    row.locator(".error a").click()
    assert page.inner_text("body").strip() == "what happened"


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), pytest.param(390, "dark", marks=pytest.mark.long)]
)
def test_axe_finds_no_violation(browser: Browser, index: Path, width: int, scheme: str) -> None:
    with opened(
        browser, index.as_uri(), viewport={"width": width, "height": 800}, color_scheme=scheme
    ) as page:
        found = Axe().run(page, options={"preload": False}).response["violations"]
        serious = [
            (one["id"], one["nodes"][0]["html"])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == []


def test_every_link_leads_to_a_file_beside_the_page(page: Page, index: Path) -> None:
    links = page.locator("a").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    assert any(link.endswith("/report.json") for link in links)
    assert [
        link for link in links if not link.startswith("#") and not (index.parent / link).is_file()
    ] == []
