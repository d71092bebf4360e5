"""The site of `amr analyze`: time to write a clip, bytes a clip, and how long the list of clips takes to filter.

A made-up analysis (tests/report/site/analysis.py) of 5,000 clips, some of them explained, with 64 atoms a modality,
four classes, ten kinds of maps and six units a clip. The browser is Debian's Chromium; a keystroke is an input event in
the search field, timed in the page up to the layout of the new rows, and up to the frame after it. Prints a table and
one JSON line.

    python -m benchmarks.site [--clips 5000] [--explained 200]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from amr.report.site import write_site
from benchmarks.common import machine, report
from tests.report.site.analysis import write_analysis
from tests.report.site.conftest import ARGUMENTS

TYPED = "clip0123 b s"  # matches all, ten, one, ... clips on the way
KEYSTROKE = """async (text) => {
  const box = document.querySelector("[data-search]"), list = document.querySelector(".list");
  const start = performance.now();
  box.value = text;
  box.dispatchEvent(new Event("input"));
  void list.offsetHeight;
  const laid = performance.now() - start;
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  return [laid, performance.now() - start, AMR.stats.scanned, AMR.stats.rows];
}"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=5000, help="clips that are listed (5000)")
    parser.add_argument("--explained", type=int, default=200, help="of them, with maps and media (200)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        analysis = write_analysis(Path(name) / "analysis", options.clips, options.explained)
        site = Path(name) / "site"
        start = time.perf_counter()
        write_site([analysis], site)
        written = time.perf_counter() - start
        start = time.perf_counter()
        write_site([analysis], site)
        again = time.perf_counter() - start
        maps = [path.stat().st_size for path in (site / "data/0/clips").iterdir()]
        media = [path.stat().st_size for path in (site / "media").iterdir()]
        thumbs = [path.stat().st_size for path in (site / "thumbs").iterdir()]
        archives = [path.stat().st_size for path in (analysis / "clips").iterdir()]
        index = (site / "data/index.js").stat().st_size
        laid, framed, opened, rows = _browser(site)
    report(
        {
            "benchmark": "site",
            "machine": machine("cpu"),
            "clips": options.clips,
            "explained": options.explained,
            "write_ms_a_clip": round(1000 * written / options.explained, 1),
            "write_again_ms_a_clip": round(1000 * again / options.explained, 2),
            "kb_a_clip": round(statistics.mean(maps) / 1000, 1),
            "kb_a_clip_in_the_analysis": round(statistics.mean(archives) / 1000, 1),
            "kb_a_thumbnail": round(statistics.mean(thumbs) / 1000, 1),
            "kb_media_a_clip": round(statistics.mean(media) / 1000, 1),
            "index_kb": round(index / 1000, 1),
            "open_ms": round(opened),
            "keystroke_ms": round(statistics.median(laid), 2),
            "keystroke_ms_max": round(max(laid), 2),
            "keystroke_frame_ms": round(statistics.median(framed), 2),
            "keystroke_frame_ms_max": round(max(framed), 2),
            "rows_in_the_page": rows,
        }
    )


def _browser(site: Path) -> tuple[list[float], list[float], float, int]:
    """Milliseconds of each keystroke to layout and to the next frame, of opening the list; rows at most."""
    with sync_playwright() as playwright:
        binary = os.environ.get("AMR_CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=binary, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        start = time.perf_counter()
        page.goto(f"{site.as_uri()}/index.html#/clips")
        page.wait_for_selector(".row")
        opened = 1000 * (time.perf_counter() - start)
        texts = [TYPED[:n] for n in range(1, len(TYPED) + 1)]
        texts += [*texts[-2::-1], ""]
        found = [page.evaluate(KEYSTROKE, text) for text in texts * 3]
        browser.close()
    return [one[0] for one in found], [one[1] for one in found], opened, max(one[3] for one in found)


if __name__ == "__main__":
    main()
