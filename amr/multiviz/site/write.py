"""Writes the site: its program, the media, a script a clip, and last the index, so that what is there is whole."""

import functools
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amr.datamodules.cut import cut, probe
from amr.datamodules.work import Progress
from amr.errors import UserError
from amr.files import write_bytes
from amr.multiviz.site.pack import script
from amr.multiviz.site.source import Source

STATIC = Path(__file__).parent / "static"
FORMAT = 1  # of the data; another one is written anew
THUMB = (96, 64)  # pixels


def write_site(analyses: Sequence[Path], out: Path) -> None:
    """Writes a site of one analysis, or of two, whose clips are then shown side by side.

    Clips and media that are there already are kept unless what they come from is newer: interrupted work goes on. A
    clip whose media cannot be shown is left without, and the page says why.

    Args:
        analyses: One or two folders that `amr analyze` wrote; two of the same labels and modalities.
        out: The site's folder: a new one, an empty one, or one that holds a site.

    Raises:
        UserError: An analysis cannot be read, two do not go together, or `out` holds something else.
    """
    if not 1 <= len(analyses) <= 2:
        raise UserError(f"{len(analyses)} analyses; a site shows one, or two side by side")
    sources = [Source(Path(folder)) for folder in analyses]
    if len(sources) == 2:
        _check_pair(*sources)
    _begin(sources, out)
    titles = _titles(sources)
    places = [_media(source, out) for source in sources]
    clips: dict[str, Any] = {}
    for source, media in zip(sources, places, strict=True):
        for id, row in source.rows.items():
            one = clips.setdefault(id, {"slug": row["slug"], "label": source.labels.index(row["label"]), "media": None})
            one["media"] = one["media"] or media.get(id)
            one["split"] = source.summary["split"]
    thumbs: set[str] = set()
    for number, source in enumerate(sources):
        thumbs |= _clips(source, number, out)
    index = {
        "format": FORMAT,
        "runs": [{**source.run(), "name": title} for source, title in zip(sources, titles, strict=True)],
        "clips": {
            "id": list(clips),
            **{key: [one[key] for one in clips.values()] for key in ("slug", "label", "split", "media")},
            "thumb": np.array([one["slug"] in thumbs for one in clips.values()]),
            "runs": [source.columns(clips) for source in sources],
        },
    }
    _replace(out / "data" / "index.js", script("index", index))


def _check_pair(one: Source, other: Source) -> None:
    for key in ("labels", "modalities"):
        if getattr(one, key) != getattr(other, key):
            raise UserError(f"{other.folder}: its {key} are not those of {one.folder}; only like can be compared")
    if not set(one.rows) & set(other.rows):
        raise UserError(f"{other.folder}: it has no clip in common with {one.folder}")


def _titles(sources: Sequence[Source]) -> list[str]:
    titles = [str(source.summary["title"]) for source in sources]
    if len(set(titles)) < len(titles):
        titles = [f"{title} ({source.checkpoint[:8]})" for title, source in zip(titles, sources, strict=True)]
    if len(set(titles)) < len(titles):  # one checkpoint, analysed twice
        titles = [f"{title} {number}" for number, title in enumerate(titles, 1)]
    return titles


def _begin(sources: Sequence[Source], out: Path) -> None:
    """Puts the program in place; data of other analyses, or of another format, go."""
    marker = out / "site.json"
    plans = [hashlib.sha256((source.folder / "plan.json").read_bytes()).hexdigest() for source in sources]
    wanted = {"format": FORMAT, "analyses": plans}
    if marker.is_file():
        if json.loads(marker.read_text()) != wanted:
            for folder in ("data", "thumbs"):
                shutil.rmtree(out / folder, ignore_errors=True)
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: it holds something that is not a site of amr; name another folder")
    _replace(marker, f"{json.dumps(wanted)}\n".encode())
    for file in sorted(STATIC.rglob("*")):
        if file.is_file():
            name = file.relative_to(STATIC)
            _replace(out / (name if name.name == "index.html" else "static" / name), file.read_bytes())


def _media(source: Source, out: Path) -> dict[str, dict[str, Any]]:
    """The window of each shown clip, cut once; what the page is told of it, by id."""
    found: dict[str, dict[str, Any]] = {}
    progress = Progress(f"media of {source.summary['title']}", len(source.shown), "clips")
    for id in source.shown:
        row = source.rows[id]
        target = out / "media" / f"{row['slug']}.mp4"
        files, why = source.media(id)
        if why is None and not _newer(target, *files.values()):
            why = cut(files, target, row["start"], row["end"])
        if target.is_file():  # also where its file has gone since: it was whole
            found[id] = {"file": f"media/{target.name}", "start": row["start"] or 0.0, **probe(target)}
        else:
            found[id] = {"why": why or "its media could not be read"}
        progress.advance(1)
    return found


def _clips(source: Source, number: int, out: Path) -> set[str]:
    """Scripts of an analysis, and thumbnails of its explained clips; returns the slugs that have one."""
    thumbs: set[str] = set()
    pictured = source.pictured()
    _replace(out / f"data/{number}/units.js", script(f"{number}/units", source.units()))
    ends = set(source.extremes)
    todo = [(row["slug"], "clips") for row in source.rows.values() if row["explained"]]
    todo += [(row["slug"], "extremes") for row in source.rows.values() if row["slug"] in ends]
    progress = Progress(f"maps of {source.summary['title']}", len(todo), "clips")
    for slug, part in todo:
        npz, key = source.folder / part / f"{slug}.npz", f"{number}/{part}/{slug}"
        _unless_newer(out / "data" / f"{key}.js", functools.partial(_clip, source, key, npz), npz)
        if pictured is not None:
            _unless_newer(out / "thumbs" / f"{slug}.jpg", functools.partial(_thumbnail, npz, *pictured), npz)
            thumbs.add(slug)
        progress.advance(1)
    return thumbs


def _clip(source: Source, key: str, npz: Path) -> bytes:
    return script(key, source.clip(npz))


def _thumbnail(npz: Path, modality: str, blocks: int) -> bytes:
    """A small picture of a clip: the middle one of its frames, or its spectrogram."""
    from PIL import Image

    with np.load(npz) as archive:
        picture = archive[f"picture/{modality}"]
    width = picture.shape[1] // blocks
    image = Image.fromarray(picture[:, blocks // 2 * width : (blocks // 2 + 1) * width])
    image.thumbnail((THUMB[0] * 2, THUMB[1] * 2))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _replace(target: Path, content: bytes) -> None:
    if not target.is_file() or target.read_bytes() != content:
        write_bytes(target, content)


def _unless_newer(target: Path, content: Callable[[], bytes], *sources: Path) -> None:
    if not _newer(target, *sources):
        write_bytes(target, content())


def _newer(target: Path, *sources: Path) -> bool:
    """Whether a file is there and no older than what it comes from, as far as that is still there."""
    if not target.is_file():
        return False
    made = target.stat().st_mtime_ns
    return all(not one.is_file() or one.stat().st_mtime_ns <= made for one in sources)
