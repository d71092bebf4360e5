"""Pictures of maps. Matplotlib is imported by the functions that draw; pyplot never."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from amr.datamodules.transforms import Picture

DIVERGING = "PuOr_r"  # colour-blind safe; white is zero
GREY = "gray"
ACROSS = 5  # pictures in a row


def draw_maps(
    title: str, pictures: "Mapping[str, Picture]", maps: Mapping[str, Sequence[tuple[str, Tensor]]], dpi: int = 90
) -> bytes:
    """A PNG with every modality's input and, over it, each method's map.

    Orange speaks for the explained class and purple against it. Each map has its own scale, which its title gives.

    Args:
        title: Title of the whole.
        pictures: A modality's input.
        maps: (method, importance of each atom (A,)) of each modality.
        dpi: Dots an inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = {m: -(-(len(found) + 1) // ACROSS) for m, found in maps.items()}
    figure = Figure(figsize=(3.2 * ACROSS, 0.6 + 2.1 * sum(rows.values())), dpi=dpi, layout="constrained")
    figure.suptitle(_plain(title), fontsize=13, x=0.01, ha="left")
    axes: Any = figure.subplots(sum(rows.values()), ACROSS, squeeze=False)
    line = 0
    for modality, found in maps.items():
        picture = pictures[modality]
        grey = picture.image if picture.image.ndim == 2 else picture.image.mean(2)
        cells = [cell for row in axes[line : line + rows[modality]] for cell in row]
        line += rows[modality]
        for cell in cells:
            cell.set_axis_off()
        cells[0].imshow(picture.image, cmap=GREY, aspect="auto", interpolation="nearest")
        cells[0].set_title(f"{modality} ({picture.unit})", fontsize=9, loc="left")
        for cell, (method, values) in zip(cells[1:], found, strict=False):
            values = values.float()
            top = float(values.abs().max()) or 1.0
            cell.imshow(grey, cmap=GREY, aspect="auto", interpolation="nearest")
            shown = values.numpy()[picture.atom]
            cell.imshow(shown, cmap=DIVERGING, vmin=-top, vmax=top, alpha=0.65, aspect="auto", interpolation="nearest")
            cell.set_title(f"{method.replace('_', ' ')} (± {top:.2g})", fontsize=9, loc="left")
    canvas, buffer = FigureCanvasAgg(figure), io.BytesIO()
    canvas.print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _plain(text: str) -> str:
    """Text with escaped dollars, which would start a formula."""
    return text.replace("$", r"\$")
