"""The page of `amr compare` in a browser: sorting, what it saves, themes, a narrow screen."""

import csv
import io
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from amr.report import read_runs, summarise, table_csv, write_report
from tests.report.test_table import seeds

ACCURACIES = {"naive": (0.70, 0.72), "umt": (0.80, 0.83), "ogm": (0.09, 0.10), "pmr": (0.75, 0.74)}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    for method, accuracies in ACCURACIES.items():
        seeds(folder / "runs", method, accuracies)
    write_report(read_runs([folder / "runs"]), folder / "report.html")
    return folder / "report.html"


def methods(page: Page) -> list[str]:
    rows: list[str] = page.locator("table").first.locator("tbody th").all_text_contents()
    return rows


def test_columns_sort_by_their_numbers(browser: Browser, report: Path) -> None:
    """9.5 is below 71: numbers, not texts; a second click turns the order round."""
    page = browser.new_page()
    page.goto(report.as_uri())
    assert methods(page) == ["naive", "umt", "ogm", "pmr"]
    head = page.locator("table").first.locator("thead th", has_text="Accuracy").first
    head.get_by_role("button").click()
    assert methods(page) == ["umt", "pmr", "naive", "ogm"]
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").press("Enter")
    assert methods(page) == ["ogm", "naive", "pmr", "umt"]
    page.close()


def test_what_the_page_saves(browser: Browser, report: Path, tmp_path: Path) -> None:
    """The CSV reads back to the table's numbers; each figure saves its SVG."""
    page = browser.new_page(accept_downloads=True)
    page.goto(report.as_uri())
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV", exact=True).click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    text = (tmp_path / "table.csv").read_text()
    assert text == table_csv(summarise(read_runs([report.parent / "runs"])))
    assert [line["method"] for line in csv.DictReader(io.StringIO(text))] == ["naive", "umt", "ogm", "pmr"]
    with page.expect_download() as download:
        page.get_by_role("link", name="SVG", exact=True).first.click()
    assert download.value.suggested_filename.endswith(".svg")
    download.value.save_as(tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text().startswith("<svg ")
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_narrow_page_in_both_themes(browser: Browser, report: Path, theme: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=theme)  # type: ignore[arg-type]
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    found = Axe().run(page).response["violations"]
    assert [problem["id"] for problem in found] == []
    page.close()
