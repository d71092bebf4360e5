"""The texts of a listing's clips, as token ids: the modality `text` of clips of sound and picture."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from amr.datamodules.atoms import Kind
from amr.datamodules.corruptions import Context, Corruption
from amr.datamodules.loader import seeded
from amr.datamodules.store.media import Clip
from amr.datamodules.tensors.columns import Column
from amr.datamodules.tensors.spoil import corruptions_of
from amr.datamodules.tensors.values import PAD, modality_of
from amr.utils.errors import UserError

TEXT = "text"  # the modality
NO_TEXT = "empty in the listing"  # reason why a clip lacks it


@dataclass(frozen=True)
class TextColumn:
    """Column of a listing that is a text, and how it becomes token ids: (T,) int64, 0 for padding, 1 for unknown.

    Args:
        column: Name of the CSV's column. A clip whose cell is empty lacks the text.
        length: Number of tokens T: longer texts are cut, shorter ones padded at the end. None: the longest text's.
        vocabulary: Tokens' texts in the order of ids from 2 on, or a text file with one per line. None: those of the
            training clips, the most frequent first.
        unit: Unit of one token: a word between blanks, or a character.
        most: Largest size of a vocabulary that is made.

    Raises:
        UserError: An option has a value that is not allowed.
    """

    column: str = TEXT
    length: int | None = None
    vocabulary: str | list[str] | None = None
    unit: Literal["word", "character"] = "word"
    most: int = 10_000

    def __post_init__(self) -> None:
        try:
            self.as_tokens()
        except UserError as error:
            raise UserError(f"data.text.{error}") from None

    def as_tokens(self) -> Column:
        """The same as a modality of `Tensors`."""
        return Column("tokens", self.column, length=self.length, unit=self.unit, most=self.most)


class ClipTexts(Mapping[str, Tensor]):
    """Ids of the texts of a listing's clips, by clip. They lie in memory; the store has nothing of them.

    Args:
        options: How texts become ids.
        clips: The listing.
        texts: Each clip's text; empty where it has none.
        vocabulary: Tokens' texts, where they are given.
        fitted: Length and vocabulary of a checkpoint; None: taken from the training clips.

    Raises:
        UserError: No training clip has a text.
    """

    def __init__(
        self,
        options: TextColumn,
        clips: Sequence[Clip],
        texts: Sequence[str],
        vocabulary: Sequence[str] | None = None,
        fitted: dict[str, Any] | None = None,
    ) -> None:
        train = np.array([clip.split in ("train", "all") for clip in clips])
        if not any(text for text, kept in zip(texts, train, strict=True) if kept):
            raise UserError(f"data.text.column={options.column}: no training clip has a text; must be some")
        self._column, entries = options.as_tokens(), [text or None for text in texts]
        ids = [clip.id for clip in clips]
        self._made = modality_of(TEXT, self._column, {options.column: entries}, train, ids, fitted, vocabulary)
        self._place = {id: i for i, id in enumerate(ids) if bool(self._made.present[i])}

    @property
    def fitted(self) -> dict[str, Any]:
        """Length and vocabulary, in plain types."""
        return self._made.fitted

    @property
    def kind(self) -> Kind:
        """Kind of the texts for an analysis; removed words become padding."""
        return Kind("tokens", vocabulary=self._made.vocabulary, special=(PAD,), baseline=PAD)

    @property
    def vocabulary(self) -> list[str]:
        """Text of each token id."""
        return self._made.vocabulary

    @property
    def blank(self) -> Tensor:
        """The ids of a clip without text, (T,): padding."""
        return torch.full(self._made.x.shape[1:], PAD)

    @property
    def corruptions(self) -> dict[str, Corruption]:
        """Corruptions of a text, by name."""
        return dict(corruptions_of(self._column, self._made))

    def __getitem__(self, id: str) -> Tensor:
        """Ids of a clip's text (T,) int64."""
        return self._made.x[self._place[id]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)


def as_it_is(ids: Tensor, *, train: bool) -> Tensor:  # noqa: ARG001
    """The transform of a clip's text."""
    return ids


def batch_as_it_is(texts: Sequence[Tensor], draws: object, *, train: bool) -> Tensor:  # noqa: ARG001
    """The transform of a batch of texts, (B, T)."""
    return torch.stack(tuple(texts))


class CorruptedText:
    """A transform of a clip's text, which is corrupted.

    Args:
        corruption: Corruption to apply.
        level: How much.
        key: Seed of the corruption, besides the clip.
    """

    def __init__(self, corruption: Corruption, level: float, key: str) -> None:
        self.corruption, self.level, self.key = corruption, level, key

    def __call__(self, ids: Tensor, *, train: bool) -> Tensor:
        """Corrupt (T,) ids."""
        with seeded(self.key, torch.initial_seed()):
            return self.corruption.apply(ids, self.level, Context())
