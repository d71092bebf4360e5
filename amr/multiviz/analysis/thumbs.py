"""A small picture of each clip of the split, or the first words of a text, for lists of clips."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amr.datamodules.atoms import Atoms, ClipAtoms
from amr.multiviz.analysis.analysis import Analysis
from amr.utils.arrays import Row, is_whole, write_table
from amr.utils.streams import Progress

FILE = "thumbs.parquet"
SIZE = (192, 128)  # pixels; shown at half of it
LETTERS = 120
# Keys of coordinates of atoms that are looked at as a picture; a modality of frames comes before one of a spectrogram.
PICTURED = (("frame",), ("top", "segment", "bin"), ("low_hz",))
SPOKEN = ("word", "part")


def write(analysis: Analysis) -> None:
    """Writes thumbs.parquet, a row per clip: its id, a JPEG or none, and a text or none; unless it is there.

    The picture is of the first modality that has one: the middle of its frames, an image, or a spectrogram. Without
    any, the text is the beginning of the first modality of words. Data with neither leave no file.
    """
    path = analysis.out / FILE
    keys = {m: atoms.coordinates[0].keys() for m, atoms in analysis.fine.items()}
    shown = next((m for kind in PICTURED for m in keys if keys[m] & set(kind) and not keys[m] & set(SPOKEN)), None)
    spoken = next((m for m in keys if keys[m] & set(SPOKEN)), None)
    if is_whole(path) or (shown is None and spoken is None):
        return
    dataset, progress = analysis.data.clips_of(analysis.split), Progress("thumbnails", len(analysis.index), "clips")
    rows: list[Row] = []
    for position, id in enumerate(analysis.clips.ids):
        row: Row = {"id": id, "jpeg": None, "text": None}
        if shown is not None:
            atoms = analysis.atoms([position])[shown]
            x = dataset[analysis.index[position]]["inputs"][shown]
            frames = atoms.grid[0] if "frame" in keys[shown] else 1
            row["jpeg"] = jpeg(analysis.data.picture(shown, x, atoms).image, frames)
        elif spoken is not None:
            row["text"] = _words(analysis.atoms([position])[spoken])
        rows.append(row)
        progress.advance(1)
    import pyarrow as pa

    fields = [("id", pa.string()), ("jpeg", pa.binary()), ("text", pa.string())]
    write_table(path, pa.Table.from_pylist(rows, pa.schema(fields)))


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
