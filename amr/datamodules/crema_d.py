"""CREMA-D: 7,442 clips of 91 actors saying twelve sentences in six emotions."""

import re
from pathlib import Path
from typing import Any, Literal

from amr.datamodules.base import ClipDataModule
from amr.datamodules.folders import check_folder, found_elsewhere
from amr.datamodules.listing import read_cells, stable_order
from amr.datamodules.store.media import Clip
from amr.utils.errors import UserError

LABELS = ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"]
_NAME = re.compile(rf"(\d{{4}})_[A-Z]{{3}}_({'|'.join(LABELS)})_[A-Z]{{1,2}}")  # actor, sentence, emotion, level
_FOLDERS = {"audio": "AudioWAV", "video": "VideoFlash"}
_SUFFIXES = {  # in the order in which they are taken, in small or capital letters
    "audio": (".wav", ".mp3", ".flac", ".m4a"),
    "video": (".flv", ".mp4", ".mkv", ".webm", ".mov", ".avi"),
}

Files = dict[str, dict[str, Path]]  # by modality and clip


class CremaD(ClipDataModule):
    """CREMA-D as downloaded: sound from `AudioWAV/*.wav`, frames from `VideoFlash/*.flv`.

    The label is in the file's name. A clip that is in one folder only is listed; `prepare` reports the other file as
    missing. Copies whose files end in capital letters, or were converted to another format such as .mp4, are read as
    they are. A copy that has one of the two folders can be used with `modalities` set to what is there.

    Args:
        root: Folder with `AudioWAV` and `VideoFlash`.
        split: actor: 70 % of the actors train, 10 % validate and 20 % test, so that nobody is on two sides. ogm: the
            lists that came with OGM-GE, for comparison with published numbers; every actor is on both sides, and a
            tenth of each class is cut from train to validate. all: every clip is in each split; for overfitting a
            handful of clips to see that a model learns, never for scores.
        split_seed: Chooses the actors, or the validation clips of `ogm`; apart from `seed`, so that runs with several
            seeds share a test set.
        ogm_split: Folder with the lists `train.csv` and `test.csv` (lines `1041_TIE_NEU_XX,NEU`), for split=ogm.
        kwargs: See `ClipDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        split: Literal["actor", "ogm", "all"] = "actor",
        split_seed: int = 0,
        ogm_split: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        self.name = "crema_d"
        self.split, self.split_seed = split, split_seed
        self.ogm_split = None if ogm_split is None else Path(ogm_split)
        super().__init__(root, **kwargs)

    def list_clips(self) -> tuple[list[Clip], list[str]]:
        """Name the clips by the files in the two folders, or by OGM-GE's lists."""
        files = self._scan()
        match self.split:
            case "actor":
                splits = self._split_by_actor(self._clips_in(files))
            case "ogm":
                splits = self._read_ogm_split()
            case "all":
                splits = dict.fromkeys(self._clips_in(files), "all")
            case _:
                raise UserError(f"data.split={self.split!r}: must be actor, ogm or all")
        return [_clip(id, splits[id], files) for id in sorted(splits)], LABELS

    def _scan(self) -> Files:
        """The files in the two folders."""
        check_folder(self.root, "data.root")
        files: Files = {modality: {} for modality in _FOLDERS}
        for modality, folder in _FOLDERS.items():
            kinds = _SUFFIXES[modality]
            for path in sorted((self.root / folder).glob("[!.]*.*")):
                if (kind := path.suffix.lower()) in kinds:
                    id = _checked(path.stem, str(path))
                    other = files[modality].get(id)
                    if other is None or kinds.index(kind) < kinds.index(other.suffix.lower()):
                        files[modality][id] = Path(folder, path.name)
        return files

    def _clips_in(self, files: Files) -> list[str]:
        """The clips in either folder; each modality that is wanted must have some."""
        for modality in self.modalities:
            if not files[modality]:
                folder = self.root / _FOLDERS[modality]
                what = f"no {'/'.join(_SUFFIXES[modality])} files in it" if folder.is_dir() else "no such folder"
                there = [m for m in _FOLDERS if files[m]]
                hint = f"; there is {there[0]} alone: use --data.modalities [{there[0]}]" if there else ""
                hint = hint or found_elsewhere(self.root, [Path(_FOLDERS[modality])])
                raise UserError(f"CREMA-D's {folder}: {what}{hint}")
        return sorted({id for ids in files.values() for id in ids})

    @property
    def split_kind(self) -> str:
        """How the splits were made, in a few words."""
        match self.split:
            case "actor":
                return f"by actor, nobody on two sides, 70, 10 and 20 %, split_seed {self.split_seed}"
            case "ogm":
                return (
                    "the random train and test lists of OGM-GE, every actor on both sides; a tenth of train validates"
                )
            case _:
                return "every clip in every split, so held-out numbers are of training clips"

    def _split_by_actor(self, ids: list[str]) -> dict[str, str]:
        actors = stable_order({id[:4] for id in ids}, self.split_seed)
        if len(actors) < 3:
            raise UserError(
                f"{self.root}: clips of {len(actors)} actor{'s' * (len(actors) > 1)}, and split=actor needs at least 3;"
                " use split=all to overfit a few clips"
            )
        val = max(1, round(0.1 * len(actors)))
        test = max(1, round(0.2 * len(actors)))
        part = {actor: "val" if i < val else "test" if i < val + test else "train" for i, actor in enumerate(actors)}
        return {id: part[id[:4]] for id in ids}

    def _read_ogm_split(self) -> dict[str, str]:
        if self.ogm_split is None:
            raise UserError("data.split=ogm: data.ogm_split must name the folder with its train.csv and test.csv")
        lists = {
            split: _read_list(check_folder(self.ogm_split, "data.ogm_split") / f"{split}.csv")
            for split in ("train", "test")
        }
        both = sorted(set(lists["train"]) & set(lists["test"]))
        if both:
            raise UserError(f"{self.ogm_split}: clip {both[0]!r} is in train.csv and in test.csv")
        splits = {id: split for split, ids in lists.items() for id in ids}
        for label in LABELS:
            of_label = stable_order((id for id in lists["train"] if _label(id) == label), self.split_seed)
            splits.update(dict.fromkeys(of_label[: round(0.1 * len(of_label))], "val"))
        return splits


def _clip(id: str, split: str, files: Files) -> Clip:
    """The clip with its files; one that is not there by the name under which it was published."""
    published = {m: Path(folder, f"{id}{_SUFFIXES[m][0]}") for m, folder in _FOLDERS.items()}
    return Clip(id, _label(id), split, {m: files[m].get(id, path) for m, path in published.items()})


def _label(id: str) -> str:
    return id.split("_")[2]


def _checked(id: str, where: str) -> str:
    if not _NAME.fullmatch(id):
        raise UserError(
            f"{where}: {id!r} is not named as CREMA-D's clips are: 1001_DFA_ANG_XX, with {', '.join(LABELS)}"
        )
    return id


def _read_list(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; data.ogm_split must hold train.csv and test.csv")
    ids = []
    for where, cells in read_cells(path, "data.ogm_split"):
        if len(cells) != 2 or _label(_checked(cells[0], where)) != cells[1]:
            raise UserError(f"{where}: {','.join(cells)!r} is not a name and the label in it")
        ids.append(cells[0])
    return ids
