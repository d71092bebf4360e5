"""Links between a report, a site and a card, if they exist beside each other.

A link is relative and stays near: pages may be copied elsewhere as a whole, and those for others should not say how a
disk is laid out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

REPORT, CARD, SITE = "report.html", "card.md", "site.json"  # the last in the folder of a site
_MARK = b"<title>Comparison on "
_UP = 3  # folders that a link may go up
_MOST = 20  # sites that are named


def link(target: Path, start: Path) -> str | None:
    """A relative URL of a file from a page's folder; None where it is too far off."""
    try:
        relative = Path(os.path.relpath(target.resolve(), start.resolve()))
    except ValueError:  # another drive
        return None
    return None if relative.parts.count("..") > _UP else quote(os.fsencode(relative.as_posix()))


def report_near(folders: Iterable[Path]) -> Path | None:
    """The first report.html in these folders that `amr compare` wrote."""
    for folder in folders:
        file = folder / REPORT
        if file.is_file():
            with file.open("rb") as stream:
                if _MARK in stream.read(4096):
                    return file
    return None


def around(run: Path) -> list[Path]:
    """Where a run's report and sites are looked for: its own folder, that of the runs, and the one above."""
    run = run.resolve()
    return [run, run.parent, run.parent.parent]


def sites_near(folders: Iterable[Path]) -> list[Path]:
    """The index pages of sites in these folders: `site`, `analysis/site` or `analyses/amr/site`, by any first name.

    No folder's content is listed but that of these: it may be a hundred thousand clips.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        for pattern in (f"*/{SITE}", f"*/site/{SITE}", f"analyses/*/site/{SITE}"):
            for marker in sorted(folder.glob(pattern)):
                page = marker.with_name("index.html")
                if page.is_file():
                    found[page] = None
                if len(found) == _MOST:
                    return list(found)
    return list(found)
