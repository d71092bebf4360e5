"""Links between report, site and card: they lead to files that are there, and not far off."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from amr.report import read_run, write_report
from amr.report.card import write_card
from amr.report.parts.beside import link, report_near, sites_near
from tests.report.runs import epoch, results, write_run


def site(folder: Path) -> Path:
    """As much of a site as a link needs."""
    folder.mkdir(parents=True)
    (folder / "site.json").write_text("{}")
    (folder / "index.html").write_text("<title>site</title>")
    return folder / "index.html"


def test_a_report_and_a_card_lead_to_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amr.report.page.plot_curves", lambda *_: [])
    place = tmp_path / "my work #1"
    facts: dict[str, Any] = {"settings": {}, "listed": 4, "split": "given", "clips": {"train": 2, "val": 1, "test": 1}}
    paths = [
        write_run(place / f"runs/{name}", epoch(0, 0.5), results(0.5), method=name, **facts)
        for name in ("naive", "amr")
    ]
    pages = [site(place / "site"), site(place / "analyses/amr/site")]
    write_card(paths[0])
    write_report([read_run(path) for path in paths], place / "report.html")
    text = (place / "report.html").read_text()
    links = re.findall(r'<a href="([^"]+)"', text.partition("Beside this page")[2])
    assert [(place / unquote(href)).resolve() for href in links] == [*pages, paths[0] / "card.md"]
    write_card(paths[0])  # the report is there now
    card = (paths[0] / "card.md").read_text().partition("Beside it: ")[2]
    linked = [(paths[0] / unquote(href)).resolve() for href in re.findall(r"\]\(([^)]+)\)", card.partition("\n")[0])]
    assert linked == [place / "report.html", *pages]


def test_nothing_beside_is_no_heading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amr.report.page.plot_curves", lambda *_: [])
    path = write_run(tmp_path / "a/b/c/d/run", epoch(0, 0.5))
    write_report([read_run(path)], tmp_path / "report.html")
    assert "Beside this page" not in (tmp_path / "report.html").read_text()


def test_what_is_far_or_another_page_is_not_linked(tmp_path: Path) -> None:
    assert link(tmp_path / "x y/card.md", tmp_path / "a/b/c") == "../../../x%20y/card.md"
    assert link(tmp_path / "card.md", tmp_path / "a/b/c/d") is None
    (tmp_path / "report.html").write_text("<title>Somebody else's</title>")
    assert report_near([tmp_path]) is None
    site(tmp_path / "clips/many/deep")  # folders of folders are not searched
    assert sites_near([tmp_path]) == []
