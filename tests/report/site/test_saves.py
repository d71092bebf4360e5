"""What the site saves: every table reads back to the numbers that it is made of, every map is a picture."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from amr.report.site import write_site
from amr.utils.readers import read_object
from tests.report.site.analysis import write_analysis
from tests.report.site.browser import visit

LABELS = ("b", "=1+1", 'a "b", c', "m")


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_analysis(tmp_path_factory.mktemp("saves") / "naive", 40, 3, labels=LABELS, units=6)


@pytest.fixture(scope="module")
def site(analysis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    write_site([analysis], out)
    return out


@pytest.fixture
def narrow(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    yield page
    page.close()


def saved(page: Page, button: Locator) -> tuple[str, bytes]:
    """Name and content of what a button saves."""
    with page.expect_download() as download:
        button.click()
    page.wait_for_timeout(120)  # Chromium drops what a page saves beyond ten files a second
    path = download.value.path()
    return download.value.suggested_filename, Path(path).read_bytes()


def lines(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_tables_of_the_overview_read_back(page: Page, site: Path, analysis: Path) -> None:
    visit(page, f"{site.as_uri()}/", "#/")
    summary = read_object(analysis / "summary.json")
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    buttons = page.get_by_role("button", name="CSV: ")
    files = dict(saved(page, buttons.nth(i)) for i in range(buttons.count()))
    assert len(files) == buttons.count() > 6  # a name each
    assert buttons.count() >= page.locator("main table:not(.u-legend)").count()  # none is without
    for name, content in files.items():
        rows = list(csv.reader(io.StringIO(content.decode())))
        assert len(rows) > 1, name
        assert len({len(row) for row in rows}) == 1, name

    confusion = list(csv.reader(io.StringIO(files["Confusion-matrix-naive.csv"].decode())))
    assert confusion[0][1:] == [row[0] for row in confusion[1:]] == list(LABELS)
    assert [[int(cell) for cell in row[1:]] for row in confusion[1:]] == summary["confusion"]
    for row in lines(files["Dominance-by-class-naive.csv"]):
        assert float(row["audio"]) == summary["dominance_by_class"][row["class"]]["audio"]
    trust = [
        row for row in pq.read_table(analysis / "trust.parquet").to_pylist() if row["score_name"] or row["warnings"]
    ]
    table = lines(files["Faithfulness-of-each-kind-of-map.csv"])
    assert len(table) == len(trust)
    for key, column in (("score", "score"), ("low", "score low"), ("high", "score high"), ("stability", "stability")):
        told = sorted(float(row[column]) for row in table if row[column])
        assert told == sorted(row[key] for row in trust if row[key] is not None)
    epochs = lines(files["Dominance-and-accuracy-over-epochs.csv"])
    assert [float(row["accuracy"]) for row in epochs] == [row["val/acc"] for row in summary["history"]]
    robust = lines(files["Use-of-the-modalities.csv"])
    assert {float(row["naive"]) for row in robust} == set(summary["robust"].values())


def test_the_list_is_saved_as_it_is_filtered(page: Page, site: Path, analysis: Path) -> None:
    rows = pq.read_table(analysis / "predictions.parquet").to_pylist()
    visit(page, f"{site.as_uri()}/", "#/clips?outcome=wrong&sort=share")
    name, content = saved(page, page.get_by_role("button", name="CSV: clips of this list"))
    wrong = sorted((row for row in rows if not row["correct"]), key=lambda row: -row["share_audio"])
    found = lines(content)
    assert name == "clips.csv"
    assert [row["id"] for row in found] == [row["id"] for row in wrong]
    for row, true in zip(found, wrong, strict=True):
        assert (row["class"], row["predicted"], row["right"]) == (true["label"], true["predicted"], "0")
        assert float(row["share of audio"]) == np.float32(true["share_audio"])
        assert float(row["confidence"]) == np.float32(true["confidence"])


def test_every_map_is_a_picture(page: Page, site: Path) -> None:
    """The pixels of a map, each as a square; frames lie side by side."""
    visit(page, f"{site.as_uri()}/", "#/clip/clip00001")
    buttons = page.get_by_role("button", name="PNG: ")
    assert buttons.count() == page.locator(".map").count() == 4  # two maps, and the two sides of their interaction
    for i in range(4):
        name, content = saved(page, buttons.nth(i))
        image = Image.open(io.BytesIO(content)).convert("RGB")
        canvases = page.locator(".map").nth(i).locator("canvas:not(.ramp)")
        sizes: list[Any] = canvases.evaluate_all(
            "all => all.map(c => [c.width, c.height, "
            "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]])"
        )
        (width, height, data), scale = sizes[0], round(image.height / sizes[0][1])
        assert name.startswith("clip00001-")
        assert name.endswith(".png")
        assert image.width >= 700
        first = np.asarray(image)[scale // 2 : height * scale : scale, scale // 2 : width * scale : scale]
        np.testing.assert_array_equal(first, np.array(data).reshape(height, width, 4)[..., :3])
        assert image.width == len(sizes) * width * scale + 4 * (len(sizes) - 1) * (len(sizes) > 1)
    visit(page, f"{site.as_uri()}/", "#/units")
    page.locator(".unit").first.click()
    expect(page.locator(".end-clip .map")).to_have_count(16)  # of four clips at either end
    expect(page.get_by_role("button", name="PNG: ")).to_have_count(16)


def test_a_list_has_heads_and_something_to_see_of_each_clip(page: Page, site: Path, analysis: Path) -> None:
    visit(page, f"{site.as_uri()}/", "#/clips?sort=id")
    heads = page.locator(".rowheads span").all_text_contents()
    assert heads == ["", "Clip", "Class → prediction", "Confidence", "Shares", "Error"]
    row = page.locator(".row").nth(4)  # not explained
    left = [page.locator(".rowheads span").nth(i).bounding_box() for i in (1, 3)]
    right = [row.locator(f":scope > :nth-child({i})").bounding_box() for i in (2, 4)]
    assert [round(box["x"]) for box in left if box] == [round(box["x"]) for box in right if box]
    expect(row).to_contain_text("clip00004")
    assert row.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    mapped = {path.stem for part in ("clips", "extremes") for path in (analysis / part).glob("*.npz")}
    number = next(i for i in range(0, 40, 3) if f"clip{i:05d}" not in mapped)  # without a picture
    page.get_by_label("Search").fill(f"clip{number:05d}")
    expect(page.locator(".row .words")).to_have_text([f"words of {number}"])


def test_a_wide_table_shows_that_it_scrolls(narrow: Page, site: Path) -> None:
    """Its bar takes room where bars else lie over the content, and its edge is shaded."""
    visit(narrow, f"{site.as_uri()}/", "#/")
    table = narrow.get_by_role("region", name="Faithfulness of each kind of map")
    sizes = table.evaluate("e => [e.scrollWidth, e.clientWidth, getComputedStyle(e).overflowX]")
    assert sizes[0] > sizes[1]
    assert sizes[2] == "auto"
    assert "linear-gradient" in table.evaluate("e => getComputedStyle(e).backgroundImage")
