"""Writes the site: its program, the media, one script per clip, and last the index, so that no part is incomplete."""

import functools
import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amr.datamodules.store.cut import cut, probe
from amr.report.parts.beside import CARD, around, link, report_near
from amr.report.site.pack import script
from amr.report.site.source import Source
from amr.utils.errors import UserError
from amr.utils.files import locked, sweep, write_bytes, write_text
from amr.utils.readers import TEXT_BYTES, opened, printable, read_arrays, read_json, read_text, reading
from amr.utils.streams import Progress

STATIC = Path(__file__).parent / "static"
FORMAT = 1  # of the data; another one is written anew
THUMB = (96, 64)  # pixels
MADE = "made.txt"


class Made:
    """Origin of each file of a site, kept in `made.txt`: a line of digest and name; a file's last one counts.

    Modification times do not tell: a copy, a clock that was set back or a restored backup has any time.

    Args:
        out: The site's folder.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.file = out, out / MADE
        lines = read_text(self.file).splitlines() if self.file.is_file() else []
        pairs = [line.partition("  ") for line in lines]
        self._origins = {name: digest for digest, _, name in pairs if len(digest) == 64 and name}
        if len(self._origins) < len(lines):
            write_text(self.file, "".join(f"{digest}  {name}\n" for name, digest in self._origins.items()))

    def is_of(self, target: Path, origin: str) -> bool:
        """Whether a file is there and was made from this."""
        return target.is_file() and self._origins.get(self._name(target)) == origin

    def is_known(self, target: Path) -> bool:
        """Whether a file is there and was made by this site."""
        return target.is_file() and self._name(target) in self._origins

    def add(self, target: Path, origin: str) -> None:
        """Notes what a file, which is in place, was made from."""
        self._origins[self._name(target)] = origin
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(f"{origin}  {self._name(target)}\n")

    def _name(self, target: Path) -> str:
        return target.relative_to(self.out).as_posix()


def write_site(
    analyses: Sequence[str | Path],
    out: str | Path,
    roots: Sequence[Path] = (),
    *,
    follow_links: bool = False,
    report: str | Path | None = None,
) -> list[Source]:
    """Writes a site of one analysis, or of two, whose clips are then shown side by side.

    Clips and media that are there already are kept unless the content that they come from has changed: interrupted work
    continues. A clip whose media cannot be shown is left without, and the page says why.

    Args:
        analyses: One or two folders that `amr analyze` wrote; two of the same labels and modalities.
        out: The site's folder: a new one, an empty one, or one that holds a site.
        roots: Folder of the clips' files of each analysis, or one of all. What an analysis says of it is not trusted:
            without a root, only media that lie within the analysis itself are shown.
        follow_links: Whether links below a root that lead out of it are followed.
        report: The page of `amr compare` that the site links to. None: a `report.html` beside the site or the runs.

    Returns:
        The analyses as they were read.

    Raises:
        UserError: An analysis cannot be read, two do not go together, another process writes the site, or `out` holds
            something else.
    """
    out = Path(out)
    if not 1 <= len(analyses) <= 2:
        raise UserError(f"{len(analyses)} analyses; a site shows one, or two side by side")
    if len(roots) not in (0, 1, len(analyses)):
        raise UserError(f"--root: {len(roots)} folders; must be one for all, or one for each of {len(analyses)}")
    if missing := [root for root in roots if not root.is_dir()]:
        raise UserError(f"--root: {missing[0]}: no such folder")
    each = [*roots] if len(roots) == len(analyses) else [roots[0] if roots else None] * len(analyses)
    sources = [Source(Path(folder), root, links=follow_links) for folder, root in zip(analyses, each, strict=True)]
    if len(sources) == 2:
        _check_pair(*sources)
    _check_place(out)
    with locked(out, "name another folder"):
        sweep(out)
        _write(sources, out, None if report is None else Path(report))
    return sources


def _write(sources: Sequence[Source], out: Path, report: Path | None) -> None:
    _begin(sources, out)
    made = Made(out)
    titles = _titles(sources)
    places = [_media(source, out, made) for source in sources]
    clips: dict[str, Any] = {}
    for source, media in zip(sources, places, strict=True):
        label = {name: i for i, name in enumerate(source.labels)}
        for id, row in source.rows.items():
            truth = [label[name] for name in (row["labels"] if source.several else [row["label"]])]
            one = clips.setdefault(id, {"slug": row["slug"], "truth": truth, "media": None})
            one["media"] = one["media"] or media.get(id)
            one["split"] = source.summary["split"]
    thumbs: set[str] = set()
    for number, source in enumerate(sources):
        thumbs |= _clips(source, number, out, made)
    snippets: dict[str, str] = {}
    for source in sources:
        for id, (jpeg, text) in source.thumbs().items():
            if id not in clips:
                continue
            snippets.setdefault(id, text)
            if jpeg is not None and clips[id]["slug"] not in thumbs:
                _replace(out / "thumbs" / f"{clips[id]['slug']}.jpg", jpeg)
                thumbs.add(clips[id]["slug"])
    cards = [link(file, out) if (file := _card(source)) else None for source in sources]
    report = report or report_near([out.parent, *(place for source in sources for place in around(_folder(source)))])
    index = {
        "format": FORMAT,
        "runs": [
            {**source.run(), "name": title, "card": card}
            for source, title, card in zip(sources, titles, cards, strict=True)
        ],
        "report": None if report is None else link(report, out),
        "clips": {
            "id": list(clips),
            **{key: [one[key] for one in clips.values()] for key in ("slug", "split", "media")},
            "label": [one["truth"][0] if one["truth"] else -1 for one in clips.values()],
            **({"labels": [one["truth"] for one in clips.values()]} if sources[0].several else {}),
            "snippet": [snippets.get(id, "") for id in clips],
            "thumb": np.array([one["slug"] in thumbs for one in clips.values()]),
            "runs": [source.columns(clips) for source in sources],
        },
    }
    _replace(out / "data" / "index.js", script("index", index))


def _folder(source: Source) -> Path:
    """The run's folder, if the checkpoint lies in one."""
    return Path(str(source.summary.get("checkpoint", ""))).parent.parent


def _card(source: Source) -> Path | None:
    """The run's model card, if there is one."""
    folder = _folder(source)
    return folder / CARD if (folder / "run.json").is_file() and (folder / CARD).is_file() else None


def _check_pair(one: Source, other: Source) -> None:
    for key in ("labels", "modalities", "several"):
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


def _check_place(out: Path) -> None:
    if (out / "site.json").is_file():
        return
    if out.exists() and not (out.is_dir() and all(path.name == ".lock" for path in out.iterdir())):
        raise UserError(f"{out}: it holds something that is not a site of amr; name another folder")


def _begin(sources: Sequence[Source], out: Path) -> None:
    """Puts the program in place; data of other analyses, or of another format, go."""
    marker = out / "site.json"
    plans = [_digest(source.path("plan.json"), most=TEXT_BYTES) for source in sources]
    wanted = {"format": FORMAT, "analyses": plans}
    if marker.is_file() and read_json(marker) != wanted:
        for folder in ("data", "thumbs"):
            shutil.rmtree(out / folder, ignore_errors=True)
        (out / MADE).unlink(missing_ok=True)  # media of unknown origin could be those of another clip
    _replace(marker, f"{json.dumps(wanted)}\n".encode())
    for file in sorted(STATIC.rglob("*")):
        if file.is_file():
            name = file.relative_to(STATIC)
            _replace(out / (name if name.name == "index.html" else "static" / name), file.read_bytes())


def _media(source: Source, out: Path, made: Made) -> dict[str, dict[str, Any]]:
    """Cuts the window of each shown clip once; returns the facts for the page, by id."""
    found: dict[str, dict[str, Any]] = {}
    progress = Progress(f"media of {printable(source.summary['title'])}", len(source.shown), "clips")
    for id in source.shown:
        row = source.rows[id]
        target = out / "media" / f"{row['slug']}.mp4"
        if source.summary.get("root") is None and not any(row.get(f"file_{m}") for m in source.modalities):
            found[id] = {"none": True}  # there are only the inputs
            progress.advance(1)
            continue
        files, why = source.media(id)
        if why is None:
            origin = _origin([files[m] for m in sorted(files)], row["start"], row["end"], sorted(files))
            if not made.is_of(target, origin):
                target.unlink(missing_ok=True)
                if (why := cut(files, target, row["start"], row["end"])) is None:
                    made.add(target, origin)
        if made.is_known(target):  # also where its file has gone since: it was whole
            found[id] = {"file": f"media/{target.name}", "start": row["start"] or 0.0, **probe(target)}
        else:
            found[id] = {"why": why or "its media could not be read"}
        progress.advance(1)
    return found


def _clips(source: Source, number: int, out: Path, made: Made) -> set[str]:
    """Scripts of an analysis, and thumbnails of its explained clips; returns the slugs that have one."""
    thumbs: set[str] = set()
    pictured = source.pictured()
    _replace(out / f"data/{number}/units.js", script(f"{number}/units", source.units()))
    ends = set(source.extremes)
    todo = [(row["slug"], "clips") for row in source.rows.values() if row["explained"]]
    todo += [(row["slug"], "extremes") for row in source.rows.values() if row["slug"] in ends]
    progress = Progress(f"maps of {printable(source.summary['title'])}", len(todo), "clips")
    for slug, part in todo:
        npz, key = source.path(f"{part}/{slug}.npz"), f"{number}/{part}/{slug}"
        origin = _origin([npz], pictured)
        for target, content in (
            (out / "data" / f"{key}.js", functools.partial(_clip, source, key, npz)),
            *(
                [(out / "thumbs" / f"{slug}.jpg", functools.partial(_thumbnail, npz, *pictured))]
                if pictured and slug not in thumbs
                else []
            ),
        ):
            if not made.is_of(target, origin):
                write_bytes(target, content())
                made.add(target, origin)
        if pictured is not None:
            thumbs.add(slug)
        progress.advance(1)
    return thumbs


def _clip(source: Source, key: str, npz: Path) -> bytes:
    return script(key, source.clip(npz))


def _thumbnail(npz: Path, modality: str, blocks: int) -> bytes:
    """A small picture of a clip: the middle one of its frames, or its spectrogram."""
    with reading(npz, "an archive as `amr analyze` writes it"):
        return _jpeg(read_arrays(npz)[f"picture/{modality}"], blocks)


def _jpeg(picture: NDArray[Any], blocks: int) -> bytes:
    from PIL import Image

    width = picture.shape[1] // blocks
    image = Image.fromarray(picture[:, blocks // 2 * width : (blocks // 2 + 1) * width])
    image.thumbnail((THUMB[0] * 2, THUMB[1] * 2))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _replace(target: Path, content: bytes) -> None:
    if not target.is_file() or target.read_bytes() != content:
        write_bytes(target, content)


def _origin(files: Sequence[Path], *about: Any) -> str:
    """A digest of what a file is made from: the content of others, and how."""
    parts = [_digest(file) for file in files]
    return hashlib.sha256(json.dumps([FORMAT, parts, about], default=str).encode()).hexdigest()


def _digest(file: Path, most: int = 1 << 40) -> str:
    """Sha256 of a file's content."""
    with opened(file, most) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
