"""VGGSound: 199,176 ten-second clips of 309 sounds from YouTube, about a fifth of which is gone."""

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from amr.datamodules.base import ClipDataModule
from amr.datamodules.clips import find_file
from amr.datamodules.folders import RootFolder, check_folder, found_elsewhere
from amr.datamodules.listing import read_cells, read_lines, stable_order
from amr.datamodules.store.media import MODALITIES, Clip
from amr.datamodules.store.report import PrepareReport
from amr.utils.errors import UserError
from amr.utils.streams import status

_VIDEO = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".flv")  # in the order in which they are taken
_SUFFIXES = {"audio": (".wav", *_VIDEO), "video": _VIDEO}
_DEPTH = 2  # levels of subfolders that are searched

Row = tuple[str, int, str, str]  # video id, start in seconds, label, split
Found = str | tuple[str, str]  # a clip's file, or those of its sound and picture, "" for none


class VGGSound(ClipDataModule):
    """VGGSound as downloaded: the official CSV and a folder with whatever clips could be had.

    Every row of the CSV is listed, as `<video id>_<start, six digits>`; rows without a file are counted, reported as
    missing and left out of the batches. So splits, class indices and the store's shards do not depend on which files
    there are, and clips may be moved or deleted once they are prepared.

    Files lie in `root` or up to two levels of subfolders below, under any of the names in use: `<id>_<start>` with or
    without leading zeros, `<id>_<start>_<end>`, and the latter in milliseconds. Sound is taken from .wav if there is
    one, else, as frames are, from .mp4, .mkv, .webm, .mov, .avi or .flv, the first of these that is there; of several
    files of one kind, from that whose path comes first in the alphabet.

    Args:
        root: Folder of the clips.
        csv: The official list (video id, start, label, train or test; no header), or one with the columns of the
            official test.csv (file, label), whose clips are all test. Relative to the current folder or else to `root`.
        labels: Class names in the order of the class indices, or a file, found as `csv` is: the official stat.csv,
            whose labels are sorted as in the official code, or a text file with one per line. None: those in the CSV,
            sorted; with the official files that is the same.
        val_fraction: Part of the training videos that validates; all clips of a video are on the same side.
        split_seed: Chooses them; apart from `seed`, so that runs with several seeds share their splits.
        kwargs: See `ClipDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        csv: str | Path = "vggsound.csv",
        labels: list[str] | str | None = None,
        val_fraction: float = 0.05,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if not 0 <= val_fraction < 1:
            raise UserError(f"data.val_fraction={val_fraction}: must be at least 0 and below 1")
        self.name = "vggsound"
        self.csv = Path(csv) if Path(csv).exists() else check_folder(Path(root), "data.root") / csv
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self._labels = labels
        self._found: dict[str, Found] | None = None
        super().__init__(root, **kwargs)
        if not any(self.store.glob("shard-*")):  # else training can do without the clips
            check_folder(self.root, "data.root")

    def list_clips(self) -> tuple[list[Clip], list[str]]:
        """Read the CSV; the folder is not looked at before clips are to be decoded."""
        labels = self._read_labels()
        clips = _read_csv(self.csv, labels)
        videos = stable_order({_video(clip) for clip in clips if clip.split == "train"}, self.split_seed)
        count = max(1, round(self.val_fraction * len(videos))) if self.val_fraction else 0
        val = set(videos[:count])
        for i, clip in enumerate(clips):
            if clip.split == "train" and _video(clip) in val:
                clips[i] = replace(clip, split="val")
        return clips, labels or sorted({clip.label for clip in clips})

    @property
    def split_kind(self) -> str:
        """How the splits were made, in a few words."""
        part = f"{self.val_fraction:g} of the training videos, split_seed {self.split_seed}, validate"
        return f"the official test list; {part}"

    def locate(self, clip: Clip) -> Clip:
        """The clip with the files found for it; one that was not found gets its official name."""
        if self._found is None:
            self._found = self._scan()
        files = _files(self._found[clip.id])
        return replace(clip, files={m: Path(f or f"{clip.id}.mp4") for m, f in zip(MODALITIES, files, strict=True)})

    def evidence(self) -> Mapping[str, frozenset[str]]:
        """Modalities that show each test clip's class (audible, visible), by VGGSounder's tags.

        Raises:
            UserError: The package is not installed.
        """
        return {id: found for id, found in read_tags(self.clips).items() if found}

    def _prepare(
        self, executor: Executor | None = None, *, recheck: bool = False, origin: Path | None = None
    ) -> PrepareReport:
        self._found = None  # files may have come since
        return super()._prepare(executor, recheck=recheck, origin=origin)

    def _scan(self) -> dict[str, Found]:
        """Each clip's files, from one pass over the folder; says how many clips there are."""
        found: dict[str, Found] = {clip.id: "" for clip in self.clips}  # "" until a file is found
        root = RootFolder(check_folder(self.root, "data.root"), self.follow_links)
        for folder, name, is_link in _walk(root, "", _DEPTH):
            stem, dot, suffix = name.rpartition(".")
            for id in _readings(stem):
                if id not in found:
                    continue
                if dot + suffix.lower() not in _SUFFIXES["audio"]:
                    continue
                if is_link:
                    _check_link(root, folder + name)
                best = [_better(m, folder + name, old) for m, old in zip(MODALITIES, _files(found[id]), strict=True)]
                found[id] = best[0] if best[0] == best[1] else (best[0], best[1])
        listed, present = Counter(c.split for c in self.clips), Counter(c.split for c in self.clips if found[c.id])
        parts = ", ".join(f"{split} {present[split]} of {n}" for split, n in listed.items())
        status(f"{self.name}: {present.total()} of {len(found)} clips are in {self.root} ({parts})")
        if not present:
            example = f"{self.clips[0].id}.mp4"
            other = found_elsewhere(self.root, [Path(f"{clip.id}.mp4") for clip in self.clips[:20]])
            raise UserError(
                f"data.root={self.root}: no file is named as a clip of {self.csv} is, like {example}{other}"
            )
        return found

    def _read_labels(self) -> list[str]:
        """The given ones; none: those in the CSV."""
        if self._labels is None or isinstance(self._labels, list):
            labels = self._labels or []
        else:
            path = find_file(self._labels, self.root)
            if path.suffix == ".csv":
                labels = sorted(cells[0] for _, cells in read_cells(path, "data.labels"))
            else:
                labels = read_lines(path, "data.labels")
        if len(set(labels)) < len(labels):
            raise UserError(f"data.labels={self._labels}: names {Counter(labels).most_common(1)[0][0]!r} twice")
        return labels

    def _default_store(self) -> Path:
        """One store per list: another list's shards would replace this one's."""
        return Path(f"{super()._default_store()}-{self.csv.stem}")

    def _check_listing(self) -> None:
        """Checks nothing: the reader has checked each line, and `_scan` checks paths."""


def read_tags(clips: Collection[Clip], tags: Path | None = None) -> dict[str, frozenset[str]]:
    """Tags of VGGSounder (Zverev et al. 2025) for clips' own classes: audible, visible, or both.

    Args:
        clips: Only these; their ids are VGGSounder's.
        tags: A CSV with video_id, label and modality (A, V or AV); None: that of the package `vggsounder`, clips with
            background music among them.

    Returns:
        Modalities by clip id; none for a clip whose own label the annotators did not find. Clips that the tags do not
        have are left out.

    Raises:
        UserError: The package is not installed.
    """
    try:
        from vggsounder import VGGSounder
    except ImportError as error:
        raise UserError("VGGSounder's tags are not installed; pip install 'amr-fusion[vggsound]'") from error
    known = VGGSounder(tags, background_music=None)
    meaning = {"A": MODALITIES[:1], "V": MODALITIES[1:], "AV": MODALITIES}
    found = {}
    for clip in clips:
        if clip.id in known:
            tagged = dict(zip((row := known[clip.id]).labels, row.modalities, strict=True))
            found[clip.id] = frozenset(meaning[tagged[clip.label]] if clip.label in tagged else ())
    return found


def _files(found: Found) -> tuple[str, str]:
    return (found, found) if isinstance(found, str) else found


def _better(modality: str, new: str, old: str) -> str:
    """The preferred one of two files, by kind and then by path; "" means no file."""
    kinds = _SUFFIXES[modality]
    ranked = [(kinds.index(kind), path) for path in (new, old) if (kind := Path(path).suffix.lower()) in kinds]
    return min(ranked)[1] if ranked else ""


def _video(clip: Clip) -> str:
    return clip.id.rpartition("_")[0]


def _id(video: str, start: int) -> str:
    return f"{video}_{start:06d}"


def _readings(stem: str) -> Iterator[str]:
    """The ids of the clips that a file of this name may be; a video's id may itself contain _ and digits."""
    head, _, last = stem.rpartition("_")
    if not last.isdecimal():
        return
    yield _id(head, int(last))
    video, _, first = head.rpartition("_")
    if first.isdecimal() and int(first) < int(last):
        unit = 1000 if int(last) - int(first) >= 1000 else 1  # no clip lasts 1,000 s, or less than one
        yield _id(video, int(first) // unit)


def _walk(root: RootFolder, folder: str, depth: int) -> Iterator[tuple[str, str, bool]]:
    """(folder within the root, name, whether it is a link) of files not hidden, without a system call for each.

    The folder is empty or ends with a slash.
    """
    try:
        with os.scandir(root.base / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    yield folder, entry.name, entry.is_symlink()
                elif depth and not entry.name.lower().endswith(_SUFFIXES["audio"]):  # not a clip's extracted frames
                    if entry.is_symlink():
                        _check_link(root, folder + entry.name)
                    yield from _walk(root, f"{folder}{entry.name}/", depth - 1)
    except OSError as error:
        raise UserError(f"data.root={root.base / folder}: cannot be read ({error.strerror})") from error


def _check_link(root: RootFolder, path: str) -> None:
    if refusal := root.refusal(Path(path)):
        raise UserError(f"data.root: file {path}, {refusal}")


def _read_csv(path: Path, labels: Collection[str]) -> list[Clip]:
    """The clips, without files, in train and test; labels: the allowed ones, or none if all are."""
    no_files: dict[str, Path] = {}  # `locate` knows them; 200,000 paths would take seconds at every start
    allowed, clips = set(labels), dict[str, Clip]()
    for where, cells in read_cells(path, "data.csv"):
        video, start, label, split = _read_row(where, cells)
        if allowed and label not in allowed:
            raise UserError(f"{where}: label {label!r} is not among the {len(allowed)} of data.labels")
        if (id := _id(video, start)) in clips:
            raise UserError(f"{where}: clip {id!r} is listed twice")
        clips[id] = Clip(id, label, split, no_files)
    if not clips:
        raise UserError(f"data.csv={path}: no rows")
    return list(clips.values())


def _read_row(where: str, cells: list[str]) -> Row:
    match cells:
        case [video, start, label, split]:
            pass
        case [name, label]:
            (video, _, start), split = name.rpartition(".")[0].rpartition("_"), "test"
        case _:
            raise UserError(f"{where}: {len(cells)} cells; must be video id, start, label, split; or file, label")
    if not video.replace("-", "").replace("_", "").isalnum() or not (start.isdecimal() and len(start) < 10):
        raise UserError(f"{where}: {video!r} and {start!r} are not a video id (letters, digits, -, _) and seconds")
    if split not in ("train", "test") or not label:
        raise UserError(f"{where}: label={label!r}, split={split!r}: must be any label, and train or test")
    return video, int(start), sys.intern(label), sys.intern(split)  # one string per label, not one per row
