"""The page of a study works in a browser without a network.

The page has a row for each cell, which is one run of the study.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page

from flap.results.study_files import write_study
from tests.helpers.browser import opened
from tests.helpers.study_grid import CRASH, Report, full_grid


def by_ratio_then_perplexity() -> list[str]:
    """Return the indices of the finished cells, sorted by ratio and then by perplexity.

    Cells 0, 4, 8 and so on have the lowest ratio, and cells 1, 5, 9 and so on the second lowest.
    """
    numbers: list[int] = []
    for ratio in range(4):
        numbers += range(ratio, 24, 4)
    return [str(number) for number in numbers]


FINISHED = by_ratio_then_perplexity()
UNFINISHED = {"24", "25"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, report: Report) -> Path:
    """Write the page of a sweep with 24 finished cells, a failed cell and an unfinished cell."""
    return write_study(full_grid(tmp_path_factory.mktemp("page") / "grid", report))


@pytest.fixture
def page(browser: Browser, index: Path) -> Iterator[Page]:
    """Open the page from the disk."""
    with opened(browser, index.as_uri()) as page:
        yield page


def shown_cells(page: Page) -> list[str]:
    """Return the indices of the visible cells, in the order of the page."""
    return page.locator("#cells tr:visible > th").all_inner_texts()


def text_of(page: Page, selector: str) -> str:
    return page.locator(selector).inner_text()


def sorting(page: Page, column: str) -> str:
    """Return how a column is sorted: "ascending", "descending" or "none"."""
    heading = page.locator("#results thead th", has_text=column).first
    return heading.get_attribute("aria-sort") or ""


def press(page: Page, column: str) -> None:
    page.locator("#results thead button", has_text=column).first.click()


def search(page: Page, text: str) -> None:
    page.locator("#search").fill(text)


def choice(page: Page, name: str) -> Locator:
    return page.get_by_role("combobox", name=name)


def test_the_page_opens_by_ratio_then_perplexity_with_all_cells(page: Page) -> None:
    assert page.title() == "Pruning tiny: metric × structure × ratio"
    cells = shown_cells(page)
    assert cells[:24] == FINISHED
    assert set(cells[24:]) == UNFINISHED
    assert text_of(page, "#shown") == "26 of 26 cells shown"
    assert "24 finished · 1 failed · 1 unfinished" in text_of(page, ".counts")
    assert "python -m flap -m metric=IFV,WIFN,WIFV" in text_of(page, ".command")
    assert page.locator("figure svg").count() == 5
    dense = text_of(page, "tbody.dense")
    assert "20.00" in dense
    assert "0.7000 ± 0.0110" in dense


def test_sorting_by_perplexity_is_by_number_and_keeps_cells_without_one_last(page: Page) -> None:
    press(page, "cell")
    press(page, "cell")
    assert shown_cells(page)[:2] == ["25", "24"]

    press(page, "perplexity@128")
    # The values are sorted as numbers. As texts, 2,000 would come before 51.
    assert shown_cells(page)[:24] == FINISHED
    press(page, "perplexity@128")
    cells = shown_cells(page)
    assert cells[:24] == FINISHED[::-1]
    assert set(cells[24:]) == UNFINISHED

    press(page, "ratio")
    assert sorting(page, "perplexity@128") == "none"
    assert sorting(page, "ratio") == "ascending"


def test_filters_by_text_and_by_choice_together(page: Page) -> None:
    search(page, "wifn ul-um")
    assert shown_cells(page) == ["12", "13", "14", "15"]
    assert text_of(page, "#shown") == "4 of 26 cells shown"
    choice(page, "Ratio").select_option("0.3")
    assert shown_cells(page) == ["14"]
    page.get_by_role("button", name="Clear").click()
    assert len(shown_cells(page)) == 26

    choice(page, "Metric").select_option("IFV")
    choice(page, "Structure").select_option("AL-AM")
    assert shown_cells(page) == ["0", "1", "2", "3"]
    choice(page, "Metric").select_option("")
    choice(page, "Structure").select_option("")
    choice(page, "State").select_option("failed")
    assert shown_cells(page) == ["24"]
    assert text_of(page, "#shown") == "1 of 26 cells shown"
    search(page, "nothing of the kind")
    assert shown_cells(page) == []


def test_a_link_keeps_the_view(page: Page, index: Path) -> None:
    choice(page, "Structure").select_option("UL-UM")
    search(page, "wifn")
    press(page, "ratio")
    press(page, "ratio")
    link = page.get_by_role("link", name="Link to this view").get_attribute("href")
    assert shown_cells(page) == ["15", "14", "13", "12"]

    page.goto("about:blank")
    page.goto(f"{index.as_uri()}{link}")
    assert shown_cells(page) == ["15", "14", "13", "12"]
    assert sorting(page, "ratio") == "descending"
    assert page.locator("#search").input_value() == "wifn"

    page.get_by_role("button", name="Clear").click()
    assert shown_cells(page)[:24] == FINISHED
    assert sorting(page, "ratio") == "none"


def downloaded(page: Page, button: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return download.value.path().read_text()


def test_quotes_in_an_error_are_escaped_in_csv(page: Page) -> None:
    search(page, "0.7")  # only the failed cell has a ratio of 0.7
    escaped = CRASH.replace('"', '""')
    assert downloaded(page, "CSV").count(escaped) == 1


def test_the_shown_rows_as_csv_are_those_of_the_study(page: Page, index: Path) -> None:
    search(page, "wifn ul-um")
    press(page, "ratio")
    press(page, "ratio")
    header, *rows = csv.reader(downloaded(page, "CSV").splitlines())
    assert [row[0] for row in rows] == [
        "15_tiny_WIFN_UL-UM_r0.5_s0",
        "14_tiny_WIFN_UL-UM_r0.3_s0",
        "13_tiny_WIFN_UL-UM_r0.2_s0",
        "12_tiny_WIFN_UL-UM_r0.1_s0",
    ]

    study = (index.parent / "study.csv").read_text()
    study_header, *study_rows = csv.reader(study.splitlines())
    assert header == study_header
    perplexities = {row[0]: row[8] for row in study_rows}
    for row in rows:
        assert float(row[8]) == float(perplexities[row[0]])


def test_the_shown_rows_as_a_latex_table(page: Page) -> None:
    search(page, "0_tiny")
    choice(page, "Ratio").select_option("0.1")
    lines = downloaded(page, "LaTeX").splitlines()
    assert lines[:3] == [
        "% needs \\usepackage{booktabs}",
        "\\begin{tabular}{llrrrrrrrr}",
        "\\toprule",
    ]
    header = lines[3]
    dense = lines[5]
    pruned = lines[7]
    for row in (header, dense, pruned):
        assert row.count(" & ") == 9
    assert header.startswith(
        "metric & structure & ratio & removed & parameters & wikitext2/perplexity@128 & "
    )
    assert dense.startswith("dense &  &  & 0.0000 & ")
    assert "$\\pm$" in dense
    assert pruned.startswith("IFV & AL-AM & 0.1 & ")
    assert pruned.endswith(" \\\\")
    assert lines[-2:] == ["\\bottomrule", "\\end{tabular}"]


def test_the_failed_cell_shows_its_whole_error_and_its_log(page: Page) -> None:
    row = page.locator("#cells tr.failed")
    assert CRASH in row.locator(".error").inner_text()
    assert page.title() != "owned"
    row.locator(".error a").click()
    assert page.inner_text("body").strip() == "what happened"


@pytest.mark.long
@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        pytest.param(390, "dark", marks=pytest.mark.long),
    ],
)
def test_axe_finds_no_violation(browser: Browser, index: Path, width: int, scheme: str) -> None:
    viewport = {"width": width, "height": 800}
    with opened(browser, index.as_uri(), viewport=viewport, color_scheme=scheme) as page:
        results = Axe().run(page, options={"preload": False})

    for violation in results.response["violations"]:
        place = violation["nodes"][0]["html"]
        assert violation["impact"] not in ("serious", "critical"), f"{violation['id']}: {place}"


def test_every_link_leads_to_a_file_beside_the_page(page: Page, index: Path) -> None:
    links = page.locator("a").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    files = [link for link in links if not link.startswith("#")]
    assert any(link.endswith("/report.json") for link in files)
    for file in files:
        assert (index.parent / file).is_file(), file
