"""Clips made here, with a known amount of evidence in each modality."""

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amr.datamodules.base import ClipDataModule, stable_order
from amr.datamodules.media import MODALITIES, Clip
from amr.datamodules.prepare import PrepareReport
from amr.datamodules.synthesis import Evidence, Recipe, write_clips
from amr.datamodules.work import Progress, run_tasks
from amr.errors import UserError

_BATCH = 20  # clips a task


class Synthetic(ClipDataModule):
    """Real mp4 files, made on first use.

    A pulsing tone's pitch and rhythm tell the class, and so does the angle of a drifting bar. Each modality shows the
    clip's own class with probability `evidence`, and one drawn from all C classes otherwise, so alone it allows an
    accuracy of e + (1 - e) / C: with six classes 95.8 % for e = 0.95 and 66.7 % for e = 0.6. Of each class 70 % train,
    15 % validate and 15 % test.

    The clips are a function of the arguments alone. They lie in a folder named by these, with their listing and the
    class that each modality shows in `clips.csv`.

    Args:
        root: Folder for the folders of clips; made if absent.
        classes: Number of classes, at least 2.
        clips: Number of clips, at least 10 a class.
        clips_seed: Of the clips; apart from `seed`, so that runs with several seeds share them.
        evidence: Probability by modality that the clip's class is shown.
        audio_snr_db: Power of the tone to that of the white noise over it, dB.
        video_noise: Standard deviation of the noise over the frames, of 255.
        kwargs: See `ClipDataModule`.
    """

    def __init__(
        self,
        root: str | Path = "synthetic",
        classes: int = 6,
        clips: int = 600,
        clips_seed: int = 0,
        evidence: Evidence = Evidence(),  # noqa: B008  # frozen
        audio_snr_db: float = -18.0,
        video_noise: float = 30.0,
        **kwargs: Any,
    ) -> None:
        if classes < 2:
            raise UserError(f"data.classes is {classes}; it must be at least 2")
        if clips < 10 * classes:
            raise UserError(f"data.clips is {clips}; it must be at least {10 * classes}: 10 a class")
        if clips_seed < 0 or video_noise < 0:
            raise UserError("data.clips_seed and data.video_noise must be at least 0")
        self.name = "synthetic"
        self.recipe = Recipe(classes, clips_seed, evidence, audio_snr_db, video_noise)
        self._count = clips
        knobs = json.dumps({"clips": clips, **asdict(self.recipe)}, sort_keys=True)
        folder = Path(root) / f"{classes}x{clips}-{hashlib.sha256(knobs.encode()).hexdigest()[:8]}"
        super().__init__(folder, **kwargs)

    def list_clips(self) -> tuple[list[Clip], list[str]]:
        """Work out the listing; no file is needed."""
        labels = [f"class{k}" for k in range(self.recipe.classes)]
        by_label = defaultdict(list)
        for i in range(self._count):
            by_label[self.recipe.label(i)].append(f"{i:05d}")
        clips = []
        for label, ids in by_label.items():
            held_out = round(0.15 * len(ids))
            for i, id in enumerate(stable_order(ids, self.recipe.seed)):
                split = "val" if i < held_out else "test" if i < 2 * held_out else "train"
                clips.append(Clip(id, labels[label], split, dict.fromkeys(MODALITIES, Path(f"clips/{id}.mp4"))))
        return sorted(clips, key=lambda clip: clip.id), labels

    def generate(self) -> None:
        """Make the files that are not there yet.

        Raises:
            UserError: The folder cannot be written, or a worker process died.
        """
        folder, listing = self.root / "clips", self.root / "clips.csv"
        there = {path.name for path in folder.glob("*.mp4")} if folder.is_dir() else set()
        todo = [i for i in range(self._count) if f"{i:05d}.mp4" not in there]
        if not todo and listing.is_file():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            progress = Progress(f"make {self.root.name}", len(todo), "clips")
            tasks = [(folder, self.recipe, todo[i : i + _BATCH]) for i in range(0, len(todo), _BATCH)]
            for count in run_tasks(write_clips, tasks, workers=self.prepare_workers):
                progress.advance(count)
            self._write_listing(listing)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{self.root}: cannot write clips ({error.strerror}); name another data.root") from error

    def evidence(self) -> Mapping[str, frozenset[str]]:
        """Which modalities show each clip's own class."""
        cues = {clip.id: self.recipe.cues(int(clip.id)) for clip in self.clips}
        own = {clip.id: self.recipe.label(int(clip.id)) for clip in self.clips}
        return {id: frozenset(m for m, cue in shown.items() if cue == own[id]) for id, shown in cues.items()}

    def _prepare(self, executor: Executor | None = None, *, recheck: bool = False) -> PrepareReport:
        self.generate()
        return super()._prepare(executor, recheck=recheck)

    def _write_listing(self, path: Path) -> None:
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "file", "label", "split", *(f"{modality}_cue" for modality in MODALITIES)])
            for clip in self.clips:
                cues = self.recipe.cues(int(clip.id))
                shown = [self.labels[cues[modality]] for modality in MODALITIES]
                writer.writerow([clip.id, clip.files["audio"].as_posix(), clip.label, clip.split, *shown])
        temporary.replace(path)
