"""The site in a browser, made from two analyses with awkward names."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from amr.report.site import write_site
from amr.utils.readers import read_arrays
from tests.report.site.analysis import write_analysis
from tests.report.site.browser import serve, visit

EVIL = "<img src=x onerror=alert(1)>"
LONG = "Motorcycle_with_a_sidecar_that_has_no_space_in_its_name"
LABELS = ("b", "d", EVIL, LONG, "train horning loudly in the distance", "s")
VIEWS = (
    "#/",
    "#/clips",
    "#/clip/clip00001",
    "#/clip/clip00009",
    "#/units",
    "#/unit/{unit}?clip=clip00001",
    "#/compare",
    "#/compare/clip00002",
)


@pytest.fixture(scope="module")
def analyses(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("analyses")
    one = write_analysis(folder / "naive", 60, 5, ids=[EVIL], labels=LABELS, units=8)
    other = write_analysis(folder / "amr", 60, 5, ids=[EVIL], labels=LABELS, units=8, title="w/ AMR", lean=0.5, seed=1)
    (one / "root/2.mp4").unlink()  # the third clip's media are gone
    rows = {"problem": "the file 2.mp4 is gone"}
    _change(one / "predictions.parquet", "clip00002", rows)
    _change(other / "predictions.parquet", "clip00002", rows)
    truth = {row["id"]: row["label"] for row in _rows(one / "predictions.parquet")}
    path = other / "predictions.parquet"  # both are of the same clips
    same = [{**row, "label": truth[row["id"]], "correct": truth[row["id"]] == row["predicted"]} for row in _rows(path)]
    _write(path, same)
    return [one, other]


@pytest.fixture(scope="module")
def site(analyses: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    write_site(analyses, out)
    return out


@pytest.fixture(scope="module")
def address(request: pytest.FixtureRequest, site: Path) -> Iterator[str]:
    """Of the site, on disk or, for tests that ask for it, on a web server."""
    if getattr(request, "param", "file") == "file":
        yield f"{site.as_uri()}/"
        return
    with serve(site) as url:
        yield url


both = pytest.mark.parametrize("address", ["file", "server"], indirect=True)


def _units(site: Path) -> list[int]:
    import base64
    import gzip

    text = (site / "data/0/units.js").read_text()
    packed = gzip.decompress(base64.b64decode(json.loads(text[text.index(",") + 1 : text.rindex(")")])))
    head = json.loads(packed[4 : 4 + int.from_bytes(packed[:4], "little")])
    return [one["unit"] for one in head["units"]]


@both
def test_every_view(watched: Page, address: str, site: Path) -> None:
    unit = _units(site)[0]
    for view in VIEWS:
        visit(watched, address, view.format(unit=unit))
        said = watched.locator("main").inner_text()
        assert "This cannot be shown" not in said
        assert not {"null", "undefined", "NaN"} & {*said.split()}
    assert watched.evaluate("document.querySelectorAll('main img[src=x], script:not([src])').length") == 0


def test_the_policy_is_strict(site: Path) -> None:
    page = (site / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]
    assert "http" not in policy[1]
    assert not re.search(r"<style|style=|\son\w+=|<script(?! src=)", page)
    for script in (site / "static").glob("*.js"):  # text is set as text
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script.read_text()
        ), script.name


def test_labels_and_names_show_as_text(watched: Page, address: str) -> None:
    visit(watched, address, "#/clips?maps=yes")
    row = watched.get_by_role("link", name=EVIL).first
    expect(row).to_contain_text(EVIL)
    row.click()
    expect(watched.locator("h1")).to_have_text(EVIL)
    visit(watched, address, "#/")
    expect(watched.get_by_text(EVIL).first).to_be_attached()
    assert watched.evaluate("document.querySelectorAll('img').length") == 0


@both
def test_who_decides(watched: Page, address: str) -> None:
    """The conflict test and the right/wrong table of each run; the sum of the lost cells is not a line of its own."""
    visit(watched, address, "#/")
    about = watched.locator("section.card", has=watched.get_by_role("heading", name="Dominance", exact=True))
    expect(about).to_contain_text("another number, which stands in Who decides.")
    card = watched.locator("section.card", has=watched.get_by_role("heading", name="Who decides"))
    tables = [table.locator("tr").all_inner_texts() for table in card.locator("table").all()]
    assert len(tables) == 4  # two runs
    lines = [[" ".join(line.split()) for line in table] for table in tables[:2]]
    assert lines[0][1:] == ["audio 71.0 % 20.0 % 9.0 %", "video 19.0 % 72.0 % 9.0 %"]
    assert lines[1][1:] == [
        "audio, video right redundant 40.0 %",
        "audio right unique 25.0 %",
        "video right unique 6.0 %",
        "none right synergistic 8.0 %",
        "audio wrong lost 2.0 %",
        "video wrong lost 4.0 %",
        "audio, video wrong lost 1.0 %",
        "none wrong neither 14.0 %",
    ]
    # The cards name no place that is not there.
    watched.evaluate("AMR.site.runs.forEach((run) => { run.robust = {}; })")
    watched.keyboard.press("t")
    expect(about).to_contain_text("another number, which the run's files do not have.")
    expect(card).to_have_count(0)
    watched.evaluate(
        "AMR.site.runs[0].history[3]['val/acc'] = 1; AMR.site.runs[0].history[3]['val/decision_share/audio'] = 0.6"
    )
    watched.keyboard.press("t")
    expect(about).to_contain_text("another number, which stands under each dominance above.")
    expect(watched.locator(".tile", has_text="Dominance of audio").first).to_contain_text("of the decisions 60.0 %")


def test_play_and_seek(watched: Page, address: str) -> None:
    visit(watched, address, "#/clip/clip00001")
    video = watched.locator("video")
    expect(video).to_have_js_property("readyState", 4)
    slider = watched.get_by_role("slider", name="Time in the audio").first
    width = slider.evaluate("(one) => one.clientWidth")
    slider.click(position={"x": width / 2, "y": 20})
    expect(slider).to_have_attribute("aria-valuenow", re.compile("0.3[123]"))
    assert abs(watched.evaluate("document.querySelector('video').currentTime") - 0.32) < 0.02
    slider.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuenow", re.compile("0.3[01]"))
    slider.press("Home")
    expect(slider).to_have_attribute("aria-valuenow", "0.00")
    watched.get_by_label("Speed").select_option("0.1")
    watched.get_by_role("button", name="Play").click()
    expect(slider).not_to_have_attribute("aria-valuenow", "0.00")  # the cursor moves with the sound
    cursor = watched.locator(".cursor").first.evaluate("(one) => one.style.transform")
    assert float(re.search(r"\(([\d.]+)px", cursor)[1]) > 0  # type: ignore[index]
    watched.get_by_role("button", name="Pause").click()
    watched.locator("h1").click()
    watched.keyboard.press(" ")
    expect(video).to_have_js_property("paused", False)


def pixels(page: Page) -> str:
    return str(
        page.evaluate(
            "[...document.querySelectorAll('.watch canvas, .frames canvas')].map((c) => c.toDataURL()).join()"
        )
    )


def test_class_method_and_strength_change_the_maps(watched: Page, address: str) -> None:
    visit(watched, address, "#/clip/clip00001")
    seen = {pixels(watched)}
    watched.get_by_label("Maps explain the class").select_option(index=1)
    seen.add(pixels(watched))
    watched.get_by_label("Method").first.select_option(label="Occlusion")
    seen.add(pixels(watched))
    watched.get_by_label("Strength of the map").fill("20")
    seen.add(pixels(watched))
    assert len(seen) == 4
    expect(watched).to_have_url(re.compile("method=occlusion"))
    expect(watched).to_have_url(re.compile("class=.*strength=20"))
    before = pixels(watched)
    watched.reload()
    expect(watched.locator(".watch canvas").first).to_be_visible()
    assert pixels(watched) == before  # a deep link
    expect(watched.get_by_text("Faithfulness").first).to_be_visible()
    watched.locator("details", has_text="When not to trust it").first.locator("summary").click()
    expect(watched.get_by_text("Redundant atoms hide one another").first).to_be_visible()


def test_intervals_and_synergies_show(watched: Page, address: str, analyses: list[Path]) -> None:
    visit(watched, address, "#/")
    table = watched.get_by_role("region", name="Synergy of the top blocks of each kind of map")
    wanted = {(r["stage"], r["method"]) for r in _rows(analyses[0] / "trust.parquet") if r["synergy"] is not None}
    expect(table.locator("tbody tr")).to_have_count(len(wanted))
    row = table.locator("tr", has=watched.get_by_text("LIME", exact=True))
    expect(row).to_contain_text("+0.25")
    expect(row.get_by_role("img", name="0.25, interval 0.13 to 0.45").first).to_be_visible()
    scores = watched.get_by_role("region", name="Faithfulness of each kind of map")
    expect(scores.locator("tr", has_text="One modality").filter(has_text="audio × video")).to_have_count(0)
    visit(watched, address, "#/clip/clip00001?method=kernel_shap")
    arrays = read_arrays(analyses[0] / "clips/clip00001.npz")
    value, half = float(arrays["shapley"][0, 0]), float(arrays["shapley_half"][0, 0])
    said = watched.locator("dd", has=watched.locator("svg")).first
    found = re.match(r"([+−]?[\d.]+) ± ([\d.]+)", said.inner_text().replace("\n", " "))
    assert found
    assert float(found[1].replace("−", "-")) == pytest.approx(value, abs=0.006)
    assert float(found[2]) == pytest.approx(half, abs=0.006)
    watched.locator("summary", has_text="Strongest pieces").first.click()
    top = watched.get_by_role("region", name="Strongest pieces, audio").locator("tbody tr").first
    order = int(np.abs(arrays["U/audio/kernel_shap"][0]).argmax())
    expect(top).to_contain_text(f"± {arrays['U_half/audio/kernel_shap'][0, order]:.3f}")


def test_a_map_without_strength_is_the_picture(watched: Page, address: str) -> None:
    visit(watched, address, "#/clip/clip00001?strength=0")
    plain = watched.evaluate(
        """(() => { const c = document.querySelector('.watch canvas');
        return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; })()"""
    )
    rgba = np.array(plain).reshape(-1, 4)
    assert (np.ptp(rgba[:, :3], axis=1) <= 2).all()  # grey
    assert rgba[:, 0].std() > 10


def test_equal_steps_look_equal(watched: Page, address: str) -> None:
    """Colours of a map at one brightness, as they come out, in CIELAB by an independent route."""
    visit(watched, address, "#/")
    values = np.linspace(-1, 1, 33)
    colours = watched.evaluate(
        """(values) => { const c = document.createElement('canvas');
        const grey = new Uint8Array(values.length).fill(128);
        AMR.paint(c, grey, values.map((_, i) => i), values, {width: values.length, height: 1, top: 1, strength: 0.75});
        return [...c.getContext('2d').getImageData(0, 0, values.length, 1).data]; }""",
        values.tolist(),
    )
    lab = cielab(np.array(colours).reshape(-1, 4)[:, :3] / 255)
    assert np.ptp(lab[:, 0]) < 6  # brightness stays that of the picture
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert steps.max() / steps.min() < 3
    middle = len(values) // 2
    assert np.linalg.norm(lab[middle, 1:]) < 2  # zero has no colour
    assert lab[0, 2] < -15 < 15 < lab[-1, 2]  # the ends differ in blue against yellow, which the colour-blind see
    ramp = watched.evaluate("Array.from({length: 33}, (_, i) => AMR.cividis(i / 32))")
    light = cielab(np.array(ramp) / 255)[:, 0]
    assert (np.diff(light) > 0).all()
    assert np.diff(light).max() / np.diff(light).min() < 3


def cielab(rgb: Any) -> Any:
    """sRGB (N, 3) in 0..1 to CIELAB, D65 (IEC 61966-2-1, CIE 15)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    t = xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def test_pick_an_atom(watched: Page, address: str, analyses: list[Path]) -> None:
    visit(watched, address, "#/clip/clip00001?cross=ablation&atom=audio:9")
    section = watched.locator("section", has=watched.get_by_role("heading", name="Interaction"))
    first, second = (
        section.get_by_role("group", name=re.compile("pick a block")),
        section.get_by_role("group", name=re.compile("pick a patch")),
    )
    expect(first.locator("[aria-pressed=true]")).to_have_count(1)
    told = second.locator("button").first.get_attribute("aria-label")
    with np.load(analyses[0] / "clips/clip00001.npz") as archive:
        expected = archive["C/audio/video/ablation"][0, 9, 0]
    assert told is not None
    assert told.endswith(f"{expected:+.3f}".replace("-", "−"))
    first.locator("[aria-pressed=true]").press("ArrowRight")  # moves; Enter picks
    watched.keyboard.press("Enter")
    expect(watched).to_have_url(re.compile("atom=audio%3A10"))
    second.first.locator("button").first.click()
    expect(watched).to_have_url(re.compile("atom=video%3A0"))
    expect(second.locator("[aria-pressed=true]").first).to_be_visible()
    section.get_by_label("Method").select_option(label="Second order")
    expect(section.get_by_text("piecewise linear")).to_be_visible()


def test_graph_aims_and_opens(watched: Page, address: str) -> None:
    visit(watched, address, "#/clip/clip00001")
    classes = watched.locator(".graph [role=button]")
    expect(classes.first).to_have_attribute("aria-pressed", "true")
    classes.nth(1).hover()
    assert watched.locator(".graph.hot").count() == 1
    before = pixels(watched)
    classes.nth(1).click()
    expect(watched.locator(".graph [role=button]").nth(1)).to_have_attribute("aria-pressed", "true")
    assert pixels(watched) != before
    unit = watched.locator(".graph [role=link]").first
    unit.focus()
    watched.keyboard.press("Enter")
    expect(watched.locator("h1")).to_contain_text("Unit ")
    expect(watched).to_have_url(re.compile("clip=clip00001"))


@both
def test_name_a_unit(watched: Page, address: str, site: Path, tmp_path: Path) -> None:
    unit = _units(site)[0]
    visit(watched, address, f"#/unit/{unit}")
    watched.get_by_label("Concept").fill(EVIL)
    watched.reload()
    expect(watched.get_by_label("Concept")).to_have_value(EVIL)
    with watched.expect_download() as download:
        watched.get_by_role("button", name="Export names").click()
    path = tmp_path / "names.json"
    download.value.save_as(path)
    content = json.loads(path.read_text())
    assert content["names"] == {str(unit): EVIL}
    assert content["checkpoint"] == f"{0:064x}"
    watched.get_by_label("Concept").fill("")
    watched.reload()
    expect(watched.get_by_label("Concept")).to_have_value("")
    chooser = watched.locator("input[type=file]")
    chooser.set_input_files(path)
    expect(watched.get_by_label("Concept")).to_have_value(EVIL)
    path.write_text(json.dumps({**content, "checkpoint": "other"}))
    chooser.set_input_files(path)
    expect(watched.get_by_role("alert")).to_have_text("the file names the units of another checkpoint")
    path.write_text("{")
    chooser.set_input_files(path)
    expect(watched.get_by_role("alert")).to_have_text("the file is not JSON")
    visit(watched, address, "#/units")
    expect(watched.get_by_text(EVIL, exact=True).first).to_be_visible()


def test_filter_sort_and_link(watched: Page, address: str, analyses: list[Path]) -> None:
    rows = _rows(analyses[0] / "predictions.parquet")
    visit(watched, address, "#/clips")
    found = watched.locator("main [role=status]")
    expect(found).to_have_text("60 clips of 60")
    watched.get_by_label("Outcome").select_option("wrong")
    wrong = [row for row in rows if not row["correct"]]
    expect(found).to_have_text(f"{len(wrong)} clips of 60")
    watched.get_by_label("from, %").fill("70")
    leaning = [row for row in wrong if row["share_audio"] >= 0.7]
    expect(found).to_have_text(f"{len(leaning)} clips of 60")
    watched.get_by_label("Sort by").select_option("share")
    top = max(leaning, key=lambda row: row["share_audio"])
    expect(watched.locator(".row").first).to_contain_text(top["id"])
    expect(watched).to_have_url(re.compile("low=70&sort=share"))
    watched.reload()
    expect(found).to_have_text(f"{len(leaning)} clips of 60")
    watched.get_by_role("button", name="Show all").click()
    watched.get_by_label("Search").fill("clip0000")
    expect(found).to_have_text("9 clips of 60")
    watched.get_by_label("Error", exact=True).select_option(index=1)
    kind = watched.get_by_label("Error", exact=True).input_value()
    expected = [
        row
        for row in rows
        if row["id"].startswith("clip0000") and f"{row['error_kind']} {row['error_modality'] or ''}".strip() == kind
    ]
    expect(found).to_have_text(re.compile(f"^{len(expected)} clip"))
    watched.get_by_role("button", name="Show all").click()
    watched.locator(".list").focus()
    watched.keyboard.press("ArrowDown")
    watched.keyboard.press("ArrowDown")
    expect(watched.locator(".row").nth(1)).to_be_focused()
    watched.keyboard.press("Enter")
    expect(watched.locator("h1")).not_to_have_text("Clips")


def test_five_thousand_clips(page: Page, tmp_path: Path) -> None:
    """A keystroke looks at each clip once and makes only the rows on show; benchmarks/site.py has the milliseconds."""
    analysis = write_analysis(tmp_path / "large", 5000, 3, labels=LABELS, units=4)
    write_site([analysis], tmp_path / "site")
    visit(page, f"{(tmp_path / 'site').as_uri()}/", "#/clips")
    found, rows = page.locator("main [role=status]"), page.locator(".row")
    expect(found).to_have_text("5,000 clips of 5,000")
    for text, count in (("clip0", 5000), ("clip012", 100), ("clip01234", 1), ("clip01234x", 0), ("", 5000)):
        page.get_by_label("Search").fill(text)
        expect(found).to_have_text(f"{count:,} clip{'' if count == 1 else 's'} of 5,000")
        stats = page.evaluate("AMR.stats")
        assert (stats["scanned"], stats["matched"]) == (5000, count)
        assert stats["milliseconds"] > 0
        assert rows.count() == stats["rows"] <= min(count, 40)
    page.locator(".list").evaluate("(list) => { list.scrollTop = list.scrollHeight; }")
    expect(page.locator("[aria-posinset='5000']")).to_be_visible()
    assert rows.count() <= 40


@both
def test_two_models(watched: Page, address: str, analyses: list[Path]) -> None:
    visit(watched, address, "#/compare")
    one, other = ({row["id"]: row["correct"] for row in _rows(path / "predictions.parquet")} for path in analyses)
    only = sum(one[id] and not other[id] for id in one)
    watched.get_by_role("link", name="only naive").click()
    expect(watched.locator("main [role=status]")).to_have_text(re.compile(f"^{only} clip"))
    visit(watched, address, "#/compare/clip00001")
    expect(watched.locator(".vs section")).to_have_count(2)
    expect(watched.locator(".vs .map canvas")).to_have_count(10)
    watched.get_by_role("slider").nth(1).press("End")  # one player, both cursors
    expect(watched.get_by_role("slider").first).to_have_attribute("aria-valuenow", "0.64")
    watched.get_by_label("Colours").select_option("common")
    expect(watched).to_have_url(re.compile("scale=common"))


def test_media_gone_shows_why(watched: Page, address: str) -> None:
    visit(watched, address, "#/clip/clip00002")
    expect(watched.locator(".gone")).to_contain_text("the file 2.mp4 is gone")
    assert watched.locator(".watch canvas").count() > 0


def test_what_is_not_there(watched: Page, address: str) -> None:
    for where in ("#/clip/nowhere", "#/unit/99999", "#/nothing"):
        visit(watched, address, where)
        expect(watched.locator("h1")).to_have_text("This cannot be shown")
    visit(watched, address, "#/clip/clip00030")
    expect(watched.get_by_text("not among the 5 that were explained")).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessible(browser: Browser, site: Path, theme: Any) -> None:
    context = browser.new_context(color_scheme=theme, reduced_motion="reduce")
    page, unit = context.new_page(), _units(site)[0]
    found = []
    for view in VIEWS:
        visit(page, f"{site.as_uri()}/", view.format(unit=unit))
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        # With another theme, only colours are others.
        only: dict[str, Any] = {"runOnly": ["color-contrast"]} if theme == "dark" else {}
        result = Axe().run(page, options={"resultTypes": ["violations"], **only})
        for violation in result.response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                found.append((view, violation["id"], [node["html"][:120] for node in violation["nodes"][:3]]))
    context.close()
    assert not found, found


def test_themes_and_narrow_screens(browser: Browser, site: Path) -> None:
    context = browser.new_context(color_scheme="dark", viewport={"width": 390, "height": 800})
    page, unit = context.new_page(), _units(site)[0]
    for view in VIEWS:
        visit(page, f"{site.as_uri()}/", view.format(unit=unit))
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, view
        places = [link.bounding_box() for link in page.locator("#nav a").all()]
        assert len(places) == 4
        end = page.locator("#nav").evaluate("(nav) => nav.getBoundingClientRect().right")
        assert all(box and box["x"] + box["width"] <= end + 0.5 for box in places), view  # no word is cut
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark or light").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    context.close()


CUT = """() => [...document.querySelectorAll("main *")].filter((one) => {
    const style = getComputedStyle(one), hides = (way) => ["hidden", "clip"].includes(style[way]);
    const cut = (hides("overflowX") && one.scrollWidth > one.clientWidth + 1)
      || (hides("overflowY") && one.scrollHeight > one.clientHeight + 1);
    return cut && one.clientWidth && one.innerText && !one.matches(".hidden, .shares *, .frame *, select");
}).map((one) => [one.innerText, one.closest("[title]")?.title || ""])"""


def test_a_name_that_is_cut_has_its_full_text(page: Page, site: Path) -> None:
    for width, views in ((390, ("#/", "#/clips", "#/units", "#/compare")), (1280, ("#/clips", "#/clip/clip00001"))):
        page.set_viewport_size({"width": width, "height": 800})
        for view in views:
            visit(page, f"{site.as_uri()}/", view)
            cut = page.evaluate(CUT)
            assert all(text.split()[0] in title for text, title in cut), (view, cut)
            assert view != "#/clips" or any(LONG in title for _, title in cut)  # the test sees what is cut
    assert LONG in page.locator(".graph title").all_text_contents()


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def _change(path: Path, id: str, values: dict[str, Any]) -> None:
    _write(path, [{**row, **values} if row["id"] == id else row for row in _rows(path)])


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)
