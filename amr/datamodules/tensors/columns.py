"""How a modality is made of columns: what a configuration says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from amr.utils.errors import UserError, listed

Kind = Literal["vector", "table", "series", "tokens", "image", "spectrogram", "frames"]
SHAPES: dict[str, str] = {
    "vector": "(D,)",
    "table": "(columns,)",
    "series": "(T, channels)",
    "tokens": "(T,) ids, or a text",
    "image": "(H, W), (C, H, W) or (H, W, C)",
    "spectrogram": "(F, T) or (C, F, T)",
    "frames": "(T, H, W), (T, C, H, W) or (T, H, W, C)",
}
"""Shapes that one clip's value may have, without the batch dimension."""
STANDARDIZED = ("vector", "table", "series", "spectrogram")  # by default


@dataclass(frozen=True)
class Column:
    """One modality: the columns that it is made of, and their kind.

    Args:
        kind: vector (D,); table, of one number or category per column; series (T, channels); tokens (T,), ids or text;
            image (C, H, W); spectrogram (C, F, T); frames (T, C, H, W).
        columns: Name of the column, or names of several that go side by side (table: columns, series: channels). None:
            the modality's own name.
        file: File that holds the columns, with as many rows in the same order as `source`. None: `source` has them.
        names: Names of the columns of a table that is one array.
        length: Steps T of series and tokens: longer ones are cut, shorter ones padded at the end. None: the longest.
        standardize: Whether to subtract the training clips' mean and divide by their deviation, by dimension (vector,
            table), channel (series, image, frames) or as a whole (spectrogram). None: for all kinds but images, frames.
        channels: Where the channels of images and frames are. None: last if the last size is 1, 3 or 4 and the
            first is not.
        vocabulary: Tokens' texts in the order of ids from 2 on, or a text file with one per line. None: those of the
            training clips, the most frequent first. Ids in the data need none.
        unit: Unit of one token of a text: a word between blanks, or a character.
        most: Largest size of a vocabulary that is made.
        present: Name of a boolean column that says which clips have the modality. None: those that have a value.

    Raises:
        UserError: An option has a value that is not allowed, or does not go with the kind.
    """

    kind: Kind
    columns: str | list[str] | None = None
    file: str | None = None
    names: list[str] | None = None
    length: int | None = None
    standardize: bool | None = None
    channels: Literal["first", "last"] | None = None
    vocabulary: str | list[str] | None = None
    unit: Literal["word", "character"] = "word"
    most: int = 10_000
    present: str | None = None

    def __post_init__(self) -> None:
        for key, allowed in (
            ("kind", Kind),
            ("channels", Literal["first", "last"]),
            ("unit", Literal["word", "character"]),
        ):
            value = getattr(self, key)
            if value not in get_args(allowed) and not (key == "channels" and value is None):
                raise UserError(f"{key}={value!r}: must be one of {', '.join(get_args(allowed))}")
        for key, least in (("length", 1), ("most", 1)):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise UserError(f"{key}={value!r}: must be a whole number of at least {least}")
        only = {
            "names": ("table",),
            "length": ("series", "tokens"),
            "channels": ("image", "frames"),
            "vocabulary": ("tokens",),
        }
        for key, kinds in only.items():
            if getattr(self, key) is not None and self.kind not in kinds:
                raise UserError(
                    f"{key}={getattr(self, key)!r}: must be null for the kind {self.kind}; it is of {', '.join(kinds)}"
                )
        if self.standardize and self.kind == "tokens":
            raise UserError("standardize=true: must be false or null for tokens, which are ids")
        several = isinstance(self.columns, list)
        if several and (self.kind not in ("table", "series") or not self.columns):
            raise UserError(f"columns={self.columns!r}: must be one name; several are for a table or a series")
        if several and self.names is not None:
            raise UserError("names: must be null with several columns, which have names")

    @property
    def standardizes(self) -> bool:
        """Whether values are standardized."""
        return self.kind in STANDARDIZED if self.standardize is None else self.standardize

    def of(self, modality: str) -> list[str]:
        """The columns' names."""
        if self.columns is None:
            return [modality]
        return [self.columns] if isinstance(self.columns, str) else list(self.columns)


def as_column(modality: str, given: Any) -> Column:
    """Column from a configuration or a dictionary about a modality.

    Raises:
        UserError: It is of another form; the message names the modality.
    """
    key = f"data.modalities.{modality}"
    if isinstance(given, Column):
        return given
    if isinstance(given, str):
        given = {"kind": given}
    if not isinstance(given, Mapping):
        raise UserError(f"{key}={given!r}: must be a kind ({', '.join(SHAPES)}), or options such as {{kind: vector}}")
    known = [field.name for field in fields(Column)]
    if unknown := [name for name in given if name not in known]:
        raise UserError(f"{key}: no option {unknown[0]!r}; must be of {listed(known)}")
    if "kind" not in given:
        raise UserError(f"{key}: no kind; must be one of {', '.join(SHAPES)}")
    try:
        return Column(**given)
    except UserError as error:
        raise UserError(f"{key}.{error}") from None
