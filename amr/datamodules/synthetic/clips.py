"""Clips made here, with a known amount of evidence in each modality."""

import csv
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any, Literal

from amr.datamodules.base import ClipDataModule
from amr.datamodules.listing import stable_order
from amr.datamodules.store.media import MODALITIES, Clip
from amr.datamodules.store.report import PrepareReport
from amr.datamodules.synthetic.planted import FRAMES, Place, Planted, Task
from amr.datamodules.synthetic.synthesis import SECONDS, SIDE, Evidence, Recipe, cue_of, write_clips
from amr.utils.errors import UserError
from amr.utils.streams import Progress
from amr.utils.work import run_tasks

_BATCH = 20  # clips a task


class Synthetic(ClipDataModule):
    """Real mp4 files, made on first use.

    A pulsing tone's pitch and rhythm tell the class, and so does the angle of a drifting bar. Each modality shows the
    clip's own class with probability `evidence`, and one drawn from all C classes otherwise, so alone it allows an
    accuracy of e + (1 - e) / C: with six classes 95.8 % for e = 0.95 and 66.7 % for e = 0.6. Of each class 70 % train,
    15 % validate and 15 % test.

    With a `task` it is known what tells the class, and where. A tone glides for 3/8 of the time within 3/8 of the
    spectrum (in mel), and a bar stands for half of the frames within a square of 3/8 of the picture's side, at places
    drawn for each clip; all else is noise. The glide's slope and the bar's angle are the cues, of C values each. With

    - audio_only the audio cue is the class, and the video cue is drawn from all C;
    - video_only it is the other way round;
    - redundant both are the class;
    - synergistic the class is their sum modulo C: one alone allows no more than 1 / C, the two together everything.

    The clips are a function of the arguments alone. They lie in a folder named by these, with their listing and the
    class that each modality shows (with a task, its cue and its place in the file) in `clips.csv`.

    Args:
        root: Folder for the folders of clips; made if absent.
        classes: Number of classes, at least 2.
        clips: Number of clips, at least 10 per class.
        clips_seed: Seed of the clips; apart from `seed`, so that runs with several seeds share them.
        task: Task, which decides where the class shows; its place is then known. None: both modalities, by `evidence`.
        evidence: Probability by modality that the clip's class is shown; of clips without a task.
        audio_snr_db: Power of the tone to that of the white noise over it, dB. A task is easy from 0 on.
        video_noise: Standard deviation of the noise over the frames, of 255.
        names: Names of the classes. `numbers`: class0, class1, ...; `cues`: the tone's pitch and the angle from upright
            of the bar, such as `300 Hz, 0°`, of clips without a task.
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
        task: Task | None = None,
        names: Literal["numbers", "cues"] = "numbers",
        **kwargs: Any,
    ) -> None:
        if classes < 2:
            raise UserError(f"data.classes={classes}: must be at least 2")
        if clips < 10 * classes:
            raise UserError(f"data.clips={clips}: must be at least {10 * classes}: 10 a class")
        if clips_seed < 0 or video_noise < 0:
            raise UserError(f"data.clips_seed={clips_seed}, data.video_noise={video_noise}: must be at least 0")
        if task is not None and evidence != Evidence():
            raise UserError(f"data.evidence has no effect with data.task={task}; leave one of them out")
        if task is not None and names == "cues":
            raise UserError(f"data.names=cues: must be numbers with data.task={task}")
        self._names = names
        self.recipe: Recipe | Planted
        if task is None:
            self.name = "synthetic"
            self.recipe = Recipe(classes, clips_seed, evidence, audio_snr_db, video_noise)
        else:
            self.name = f"synthetic-{task}"
            self.recipe = Planted(classes, clips_seed, task, audio_snr_db, video_noise)
        self._count = clips
        named = {} if names == "numbers" else {"names": names}  # clips.csv has them
        knobs = json.dumps({"clips": clips, **asdict(self.recipe), **named}, sort_keys=True)
        kind = "" if task is None else f"{task}-"
        folder = Path(root) / f"{kind}{classes}x{clips}-{hashlib.sha256(knobs.encode()).hexdigest()[:8]}"
        super().__init__(folder, **kwargs)

    def list_clips(self) -> tuple[list[Clip], list[str]]:
        """Work out the listing; no file is needed."""
        classes = range(self.recipe.classes)
        if self._names == "cues":
            cues = [cue_of(k / self.recipe.classes) for k in classes]
            labels = [f"{pitch:.0f} Hz, {math.degrees(angle):.0f}°" for pitch, _, angle in cues]
        else:
            labels = [f"class{k}" for k in classes]
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

    @property
    def split_kind(self) -> str:
        """How the splits were made, in a few words."""
        return "70, 15 and 15 % of each class, by a hash"

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
        """Which modalities show each clip's own class; none by itself in the synergistic task."""
        return {clip.id: self.recipe.shows(int(clip.id)) for clip in self.clips}

    def place(self, id: str) -> dict[str, dict[str, float]]:
        """Where in the inputs a clip's cues are, with the keys and in the units of `atoms(modality).coordinates`.

        Inputs as in evaluation, without augmentation. `clips.csv` has the places in the file.

        Args:
            id: Id of the clip.

        Returns:
            For audio `start_s`, `end_s`, `low_hz`, `high_hz`; for video `frame` and `end_frame` among the frames that
            the input has, and `top`, `left`, `bottom`, `right` in pixels of the input. Ends are exclusive.

        Raises:
            UserError: The clips have no task, there is no such clip, or the options of decoding and of the transforms
                leave its place open.
        """
        if not isinstance(self.recipe, Planted):
            raise UserError("data.task is null: only clips of a task have a known place")
        if id not in {clip.id for clip in self.clips}:
            raise UserError(f"{self.name}: no clip {id!r}")
        if self.decode.fps is not None or self.decode.crop is not None:
            raise UserError("places are known only with data.decode.fps and data.decode.crop null")
        if self.audio.fit == "tile" and self.audio.seconds > SECONDS:
            raise UserError(f"a place repeats with data.audio.fit=tile; set data.audio.seconds to {SECONDS} or less")
        at = self.recipe.place(int(id))
        skipped = 0.0 if self.audio.crop == "first" else max(0.0, (SECONDS - self.audio.seconds) / 2)
        frames, _, height, width = self.video.shape()
        # Those whose middle frame shows it: the transform takes the middle of each of its equal segments.
        shown = [i for i in range(frames) if at.frame <= int((i + 0.5) * FRAMES / frames) < at.end_frame]
        return {
            "audio": {
                "start_s": at.start_s - skipped,
                "end_s": at.end_s - skipped,
                "low_hz": at.low_hz,
                "high_hz": at.high_hz,
            },
            "video": {
                "frame": shown[0] if shown else 0,
                "end_frame": shown[-1] + 1 if shown else 0,
                "top": at.top * height / SIDE,
                "left": at.left * width / SIDE,
                "bottom": at.bottom * height / SIDE,
                "right": at.right * width / SIDE,
            },
        }

    def _prepare(
        self, executor: Executor | None = None, *, recheck: bool = False, origin: Path | None = None
    ) -> PrepareReport:
        if origin is None:
            self.generate()
        return super()._prepare(executor, recheck=recheck, origin=origin)

    def _write_listing(self, path: Path) -> None:
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            columns = ["id", "file", "label", "split", *(f"{modality}_cue" for modality in MODALITIES)]
            planted = isinstance(self.recipe, Planted)
            writer.writerow([*columns, *(field.name for field in fields(Place) if planted)])
            for clip in self.clips:
                cues = self.recipe.cues(int(clip.id))
                row = [clip.id, clip.files["audio"].as_posix(), clip.label, clip.split]
                if isinstance(self.recipe, Planted):
                    place = astuple(self.recipe.place(int(clip.id)))
                    writer.writerow([*row, *(cues[modality] for modality in MODALITIES), *place])
                else:
                    writer.writerow([*row, *(self.labels[cues[modality]] for modality in MODALITIES)])
        temporary.replace(path)
