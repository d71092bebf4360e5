"""A small picture of each clip of the split, or the first words of a text, for lists of clips."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amr.datamodules import ListedClips
from amr.datamodules.atoms import Atoms, ClipAtoms
from amr.utils.arrays import Row, is_whole, write_table
from amr.utils.streams import Progress

if TYPE_CHECKING:
    from amr.multiviz.analysis.plain import PlainClips

FILE = "thumbs.parquet"
SIZE = (192, 128)  # pixels; shown at half of it
LETTERS = 120
# Keys of coordinates of atoms that are looked at as a picture; a modality of frames comes before one of a spectrogram.
PICTURED = (("frame",), ("top", "segment", "bin"), ("low_hz",))
SPOKEN = ("word", "part")


class Thumbnails:
    """The rows of thumbs.parquet, made of batches that are read for something else.

    The picture is of the first modality that has one: the middle of its frames, an image, or a spectrogram. Without
    any, the text is the beginning of the first modality of words.

    Args:
        data: The data of an analysis.
        fine: Atoms of each modality's clips of the split.
        place: Position of each clip in the split's dataset, by id.
    """

    def __init__(self, data: "ListedClips | PlainClips", fine: Mapping[str, Atoms], place: Mapping[str, int]) -> None:
        self.data, self.fine, self.place = data, fine, place
        self.rows: dict[str, Row] = {}
        self._keys = {m: atoms.coordinates[0].keys() for m, atoms in fine.items()}
        spoken = [m for m, keys in self._keys.items() if keys & set(SPOKEN)]
        pictured = [m for kind in PICTURED for m, keys in self._keys.items() if keys & set(kind) and m not in spoken]
        self.modality = next(iter([*pictured, *spoken]), None)
        """The modality that is shown; None for data that have neither pictures nor words."""

    def see(self, batch: Mapping[str, Any]) -> None:
        """Makes the rows of a batch's clips, those that lack the modality left out."""
        if self.modality is None:
            return
        present = (batch.get("present") or {}).get(self.modality)
        for row, id in enumerate(batch["id"]):
            if id in self.place and (present is None or present[row]):
                self.add(id, batch["inputs"][self.modality][row])

    def add(self, id: str, x: Tensor) -> None:
        """Makes a clip's row of its input in the modality that is shown."""
        assert self.modality is not None
        atoms, keys = self.fine[self.modality].of(torch.tensor([self.place[id]])), self._keys[self.modality]
        row: Row = {"id": id, "jpeg": None, "text": None}
        if keys & set(SPOKEN):
            row["text"] = _words(atoms)
        else:
            frames = atoms.grid[0] if "frame" in keys else 1
            row["jpeg"] = jpeg(self.data.picture(self.modality, x.cpu(), atoms).image, frames)
        self.rows[id] = row

    def write(self, path: Path, ids: Sequence[str], dataset: Any) -> None:
        """Writes a row per clip: its id, a JPEG or none, and a text or none; unless it is there.

        Args:
            path: The file; there is none for data that have neither pictures nor words.
            ids: The clips.
            dataset: The split's, from which clips are read that were in no batch.
        """
        if self.modality is None or is_whole(path):
            return
        left = [id for id in ids if id not in self.rows]
        progress = Progress("thumbnails", len(left), "clips")
        for id in left:
            self.add(id, dataset[self.place[id]]["inputs"][self.modality])
            progress.advance(1)
        import pyarrow as pa

        fields = [("id", pa.string()), ("jpeg", pa.binary()), ("text", pa.string())]
        write_table(path, pa.Table.from_pylist([self.rows[id] for id in ids], pa.schema(fields)))


def jpeg(picture: NDArray[Any], frames: int = 1) -> bytes:
    """A picture (H, W) or (H, W, 3) of any range as a small JPEG; of frames side by side, the middle one."""
    from PIL import Image

    width = picture.shape[1] // frames
    low, high = float(picture.min()), float(picture.max())
    scaled = ((picture - low) / ((high - low) or 1.0) * 255).round().astype(np.uint8)
    image = Image.fromarray(scaled[:, frames // 2 * width : (frames // 2 + 1) * width])
    image.thumbnail(SIZE)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _words(atoms: Atoms) -> str | None:
    if not isinstance(atoms, ClipAtoms) or not atoms.texts:
        return None
    text = " ".join(filter(None, atoms.texts[0]))
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"
