"""Plan of an analysis. Nothing here imports torch, so that the command's help answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from amr.utils.errors import UserError

STAGES = {
    "prediction": (),
    "representation": ("prediction",),
    "errors": (),
    "clips": ("prediction",),
    "trust": ("prediction", "clips"),
    "simulation": ("prediction", "representation"),
    "selection": (),
}
"""The stages in their order, with those that each needs."""


@dataclass(frozen=True)
class Plan:
    """Scope of an analysis: its inputs, stages and limits.

    Args:
        checkpoint: A checkpoint of a run.
        out: Folder for the results.
        data: A configuration with a `data` section, by its file or name, or a class; None for the run's own data.
        split: Split whose clips are used, such as `test`.
        clips: Clips that are explained, at least 2, for EMAP pairs them.
        classes: Classes that each clip is explained for, at least 1.
        units: Penultimate units that each clip is explained for, 0 or more.
        seed: Seed of the choice of clips and of sampled methods.
        samples: Masks a repeat of LIME, SHAP and DIME, at least 1.

    Raises:
        UserError: A number is below the least that is allowed.
    """

    checkpoint: Path
    out: Path
    data: str | Path | None = None
    split: Literal["train", "val", "test"] = "test"
    clips: int = 50
    classes: int = 3
    units: int = 8
    seed: int = 0
    samples: int = 160

    def __post_init__(self) -> None:
        for key, least, why in (
            ("clips", 2, ", for EMAP pairs them"),
            ("classes", 1, ""),
            ("units", 0, ""),
            ("samples", 1, ""),
        ):
            if getattr(self, key) < least:
                raise UserError(f"--{key}={getattr(self, key)}: must be at least {least}{why}")
