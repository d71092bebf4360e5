"""From real clips to the page, by the commands alone: two tiny models of GRID's digits."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from playwright.sync_api import Page, expect

from amr.cli import main
from amr.report.site import write
from tests.report.site.browser import serve, visit

DIGITS, EACH = 3, {"train": 10, "val": 3, "test": 2}  # clips of a digit
ENCODERS = {
    "audio": {"class_path": "amr.encoders.SmallCNN", "init_args": {"width": 4, "out_dim": 8}},
    "video": {"class_path": "amr.encoders.SmallFrameCNN", "init_args": {"frames": 4, "width": 4, "out_dim": 8}},
}
ANALYZE = ["--samples", "8", "--units", "2", "--classes", "2"]
ANALYZE += ["--stages", "prediction", "representation", "errors", "clips"]

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's and sklearn's of few clips


@pytest.fixture(scope="module")
def analyses(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two analyses, each of which has written its site; the file of one test clip is gone."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "clips/clips").mkdir(parents=True)
    with (shared_data / "grid/digits.csv").open() as file:
        listed = list(csv.DictReader(file))
    rows = []
    for label in sorted({row["label"] for row in listed})[:DIGITS]:
        for split, count in EACH.items():
            rows += [row for row in listed if (row["label"], row["split"]) == (label, split)][:count]
    for row in rows:
        shutil.copy(shared_data / "grid" / row["file"], folder / "clips" / row["file"])
    with (folder / "clips/digits.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    data = {
        "class_path": "amr.datamodules.Clips",
        "init_args": {
            **{"root": str(folder / "clips"), "csv": "digits.csv", "store": str(folder / "store"), "batch_size": 10},
            **{"num_workers": 0, "prepare_workers": 1},
            "decode": {"sample_rate": 16000, "fps": 12.5, "size": 28, "crop": [67, 32, 42, 64]},
            "audio": {"seconds": 0.64, "kind": "log_mel", "n_fft": 400, "hop_length": 320, "n_mels": 32},
            "video": {"frames": 4, "size": [28, 43], "grayscale": True},
        },
    }
    trainer = {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False}
    (folder / "run.yaml").write_text(
        yaml.safe_dump({"data": data, "model": {"encoders": ENCODERS}, "trainer": trainer})
    )
    found = {}
    for name, method in (("naive", []), ("amr", ["--model.amr.weight", "1.0"])):
        run = ["--name", name, "--runs_dir", str(folder / "runs"), "--wandb", "disabled"]
        assert main(["fit", "--config", str(folder / "run.yaml"), *method, *run]) == 0
        found[name] = folder / name
    gone = next(row for row in rows if row["split"] == "test")
    (folder / "clips" / gone["file"]).unlink()
    for name, out in found.items():
        checkpoint = folder / "runs" / name / "checkpoints/best.ckpt"
        few = {"naive": "6", "amr": "2"}[name]
        assert main(["analyze", "--ckpt", str(checkpoint), "--out", str(out), "--clips", few, *ANALYZE]) == 0
    found["gone"] = Path(gone["id"])
    return found


@pytest.fixture(scope="module")
def both(analyses: dict[str, Path]) -> Path:
    out = analyses["naive"].parent / "both"
    assert main(["site", str(analyses["naive"]), str(analyses["amr"]), "--out", str(out)]) == 0
    return out


def clips(analysis: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(analysis / "predictions.parquet").to_pylist()
    return [row for row in rows if row["explained"]]


@pytest.mark.parametrize("where", ["disk", "server"])
def test_a_visit(page: Page, analyses: dict[str, Path], tmp_path: Path, where: str) -> None:
    """What a person does who opens the site for the first time."""
    site = analyses["naive"] / "site"
    if where == "disk":
        _visit(page, f"{site.as_uri()}/", analyses, tmp_path)
    else:
        with serve(site) as address:
            _visit(page, address, analyses, tmp_path)


def _visit(page: Page, address: str, analyses: dict[str, Path], tmp_path: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    visit(page, address, "")
    summary = json.loads((analyses["naive"] / "summary.json").read_text())
    expect(page.get_by_text(f"{100 * summary['accuracy']:.1f} %", exact=True).first).to_be_visible()
    page.get_by_role("link", name="Clips", exact=True).click()
    page.get_by_label("Maps").select_option("yes")
    expect(page.locator("main [role=status]")).to_have_text(re.compile("^6 clips"))
    played = next(row for row in clips(analyses["naive"]) if row["problem"] is None)
    page.get_by_role("link", name=re.compile(f"^{played['id']}:")).click()
    expect(page.locator("h1")).to_have_text(played["id"])
    expect(page.locator("video")).to_have_js_property("readyState", 4)
    page.get_by_label("Speed").select_option("0.1")
    page.get_by_role("button", name="Play").click()
    slider = page.get_by_role("slider", name="Time in the audio").first
    expect(slider).not_to_have_attribute("aria-valuenow", "0.00")
    page.get_by_role("button", name="Pause").click()
    slider.click(position={"x": slider.evaluate("(one) => one.clientWidth") * 0.75, "y": 30})
    expect(slider).to_have_attribute("aria-valuenow", re.compile(r"0\.4[789]"))
    maps = "[...document.querySelectorAll('.watch canvas')].map((one) => one.toDataURL()).join()"
    seen = {page.evaluate(maps)}
    page.get_by_label("Maps explain the class").select_option(index=1)
    seen.add(page.evaluate(maps))
    page.get_by_label("Method").first.select_option("integrated_gradients")
    seen.add(page.evaluate(maps))
    assert len(seen) == 3
    page.locator(".graph [role=link]").first.click()
    expect(page.locator("h1")).to_have_text(re.compile("^Unit "))
    expect(page.locator(".end-clip canvas").first).to_be_visible()
    page.get_by_label("Concept").fill("lips closed")
    page.reload()
    expect(page.get_by_label("Concept")).to_have_value("lips closed")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export names").click()
    download.value.save_as(tmp_path / "names.json")
    assert main(["agreement", str(tmp_path / "names.json"), str(tmp_path / "names.json")]) == 0
    assert asked
    assert all(url.startswith((address, "blob:")) for url in asked)


def test_media_that_are_gone(page: Page, analyses: dict[str, Path], both: Path) -> None:
    index = {row["id"]: row for row in pq.read_table(analyses["naive"] / "predictions.parquet").to_pylist()}
    gone = index[str(analyses["gone"])]
    assert gone["problem"]
    assert not (both / "media" / f"{gone['slug']}.mp4").exists()
    visit(page, f"{both.as_uri()}/", f"#/clip/{gone['slug']}")
    expect(page.locator(".gone")).to_contain_text(gone["problem"])


def test_naive_against_amr(page: Page, analyses: dict[str, Path], both: Path) -> None:
    visit(page, f"{both.as_uri()}/", "#/compare")
    page.locator("tbody a").first.click()
    expect(page.locator(".vs section")).to_have_count(2)
    titles = [json.loads((analyses[name] / "summary.json").read_text())["title"] for name in ("naive", "amr")]
    assert page.locator(".vs h2").all_inner_texts() == titles


def test_analyze_goes_on(analyses: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while the site is written: the analysis is not run again, nor are media cut that are there."""
    out = tmp_path / "again"
    shutil.copytree(analyses["naive"], out, ignore=shutil.ignore_patterns("site"))
    checkpoint = analyses["naive"].parent / "runs/naive/checkpoints/best.ckpt"
    command = ["analyze", "--ckpt", str(checkpoint), "--out", str(out), "--clips", "6", *ANALYZE]
    calls: list[Path] = []
    cut = write.cut  # type: ignore[attr-defined]

    def stop(files: Any, target: Path, *window: Any) -> Any:
        calls.append(target)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return cut(files, target, *window)

    monkeypatch.setattr(write, "cut", stop)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    assert main(command) == 130
    kept = {path: path.stat().st_mtime_ns for path in (out / "site/media").iterdir()}
    assert kept
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (out / "site/data/index.js").is_file()
