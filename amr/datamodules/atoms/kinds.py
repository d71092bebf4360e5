"""Kinds of inputs: the atoms of a modality, their names, and their baselines."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amr.datamodules.atoms.baselines import How, baseline_of
from amr.datamodules.atoms.blocks import (
    column_atoms,
    patch_atoms,
    series_atoms,
    spectrogram_atoms,
    vector_atoms,
    video_atoms,
    waveform_atoms,
)
from amr.datamodules.atoms.partition import Atoms
from amr.datamodules.atoms.words import Pieces, segment_atoms, token_atoms
from amr.utils.errors import UserError, listed

DIMENSIONS = {  # of one input
    "tokens": (1,),
    "vector": (1,),
    "table": (1,),
    "series": (2,),
    "regions": (2,),
    "waveform": (1, 2),
    "image": (3,),
    "frames": (4,),
    "spectrogram": (2, 3),
}
FINE: dict[str, tuple[int, ...]] = {
    **{"tokens": (64,), "vector": (16,), "table": (64,), "series": (8,), "waveform": (16,), "regions": (64,)},
    **{"image": (4, 4), "frames": (4, 4, 4), "spectrogram": (8, 8)},
}
COARSE: dict[str, tuple[int, ...]] = {
    **{"tokens": (6,), "vector": (6,), "table": (6,), "series": (4,), "waveform": (6,), "regions": (9,)},
    **{"image": (3, 3), "frames": (2, 2, 2), "spectrogram": (4, 4)},
}
MASKS = ("[MASK]", "<mask>", "[PAD]", "<pad>", "[UNK]", "<unk>", "<unknown>")
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "<pad>", "<s>", "</s>", "<|startoftext|>", "<|endoftext|>")
IDS = "ids"
MOST_PARTS = 128  # of a series; with more channels neighbouring ones go together
STEPS = 512  # of a series that is shown


@dataclass(frozen=True, eq=False)
class Kind:
    """Kind of one modality's inputs.

    Args:
        kind: tokens (T,) of ids; vector (D,); table (D,) of named columns; series (T, channels); waveform (..., T);
            regions (R, F), such as features of each object of an image, none of which is split;
            image (C, H, W); frames (T, C, H, W); spectrogram (..., F, T).
        names: Names of a table's columns or of a series' channels. With `owner`, of each dimension: `sex=f`, `sex=m`.
        owner: A table's column of each dimension, from 0, where one-hot categories take several. None: one each.
        vocabulary: Text of each token id, in the order of ids; `"ids"` shows the numbers. None: the tokenizer's, or
            the batches bring their own `tokens`.
        tokenizer: A tokenizer with `convert_ids_to_tokens`, as Hugging Face's; its special and mask tokens are used.
        special: Ids that are in no word and never replaced: padding, begin, end. None: the tokenizer's, or those of the
            vocabulary that are called so, such as `[PAD]`.
        baseline: Replacement of a removed atom: zero, mean, blur (`baseline_of`), a number, an id, or a
            tensor that broadcasts to one input. None: zero; of a table, series, image or frames the mean; of tokens
            the mask token, else padding, else the unknown one.
        seconds: Duration of one input of time. None: unknown, and steps are counted.
        hz: Lowest and highest frequency of a spectrogram. None: unknown, and bins are counted.
        blocks: Number of atoms along each axis: (frequency, time), (rows, columns), (frames, rows, columns), or one
            number. None: `FINE`.
        coarse: The same where pairs of atoms are explained. None: `COARSE`.

    Raises:
        UserError: An option has a value that is not allowed, or does not go with the kind.
    """

    kind: str
    names: Sequence[str] = ()
    owner: Sequence[int] | None = None
    vocabulary: Sequence[str] | None = None
    tokenizer: Any = None
    special: Collection[int] | None = None
    baseline: How | float | Tensor | None = None
    seconds: float | None = None
    hz: tuple[float, float] | None = None
    blocks: tuple[int, ...] | int | None = None
    coarse: tuple[int, ...] | int | None = None

    def __post_init__(self) -> None:
        if self.kind not in DIMENSIONS:
            raise UserError(f"kind={self.kind!r}: must be one of {', '.join(DIMENSIONS)}")
        only = {
            **dict.fromkeys(("vocabulary", "tokenizer", "special"), ("tokens",)),
            "names": ("table", "series"),
            "owner": ("table",),
            "seconds": ("series", "waveform", "spectrogram"),
            "hz": ("spectrogram",),
        }
        for key, kinds in only.items():
            value = getattr(self, key)
            if value is not None and value != () and self.kind not in kinds:
                raise UserError(f"{key}: must not be given for the kind {self.kind}; it is of {', '.join(kinds)}")
        if self.tokenizer is not None and not callable(getattr(self.tokenizer, "convert_ids_to_tokens", None)):
            raise UserError(f"tokenizer={type(self.tokenizer).__name__}: must have convert_ids_to_tokens(ids)")
        for key in ("blocks", "coarse"):
            given = getattr(self, key)
            count = len(FINE[self.kind])
            if given is not None and len(_tuple(given)) != count:
                raise UserError(f"{key}={given}: must be {count} numbers for the kind {self.kind}")

    def check(self, modality: str, x: Tensor) -> None:
        """Refuses inputs (N, ...) that are of another kind; the message names the modality."""
        allowed = DIMENSIONS[self.kind]
        if x.ndim - 1 not in allowed or (self.kind == "tokens") == x.is_floating_point():
            what = "ids, integers" if self.kind == "tokens" else "floating-point"
            sizes = " or ".join(map(str, allowed))
            there = f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
            raise UserError(
                f"inputs.{modality}: {there}; must be {what} with {sizes} "
                f"dimension{'s' if allowed != (1,) else ''} a clip, for the kind {self.kind}"
            )

    def pieces(self, ids: Tensor) -> list[str | None]:
        """The text of each token of one clip's ids (T,); None for those in no word.

        Raises:
            UserError: No vocabulary or tokenizer is known, or an id is not in it.
        """
        numbers = ids.tolist()
        if self.tokenizer is not None:
            texts = self.tokenizer.convert_ids_to_tokens(numbers)
        elif self.vocabulary == IDS:
            texts = [f"#{number}" for number in numbers]
        elif self.vocabulary is not None:
            if numbers and not 0 <= min(numbers) <= max(numbers) < len(self.vocabulary):
                wrong = next(number for number in numbers if not 0 <= number < len(self.vocabulary))
                raise UserError(f"id {wrong}: must be below {len(self.vocabulary)}, the size of the vocabulary")
            texts = [self.vocabulary[number] for number in numbers]
        else:
            raise UserError(
                "no text of the ids is known; must have a vocabulary, a tokenizer, `tokens` in the batches, or "
                'vocabulary="ids" to show numbers'
            )
        apart = self.apart
        return [None if number in apart else text for number, text in zip(numbers, texts, strict=True)]

    @property
    def apart(self) -> frozenset[int]:
        """Ids that belong to no word."""
        if self.special is not None:
            return frozenset(self.special)
        if self.tokenizer is not None:  # what is unknown, or masked, is a word of the text
            there = set(getattr(self.tokenizer, "all_special_ids", ()))
            words = {getattr(self.tokenizer, f"{name}_token_id", None) for name in ("unk", "mask")}
            return frozenset(there - words)
        if self.vocabulary is None or isinstance(self.vocabulary, str):
            return frozenset({0})
        return frozenset(i for i, text in enumerate(self.vocabulary) if text in SPECIAL)

    @property
    def mask(self) -> int:
        """The id that a word is replaced by."""
        for name in ("mask_token_id", "pad_token_id", "unk_token_id"):
            if (found := getattr(self.tokenizer, name, None)) is not None:
                return int(found)
        if self.vocabulary is not None and not isinstance(self.vocabulary, str):
            return next((list(self.vocabulary).index(name) for name in MASKS if name in self.vocabulary), 0)
        return 0

    @property
    def how(self) -> How | float | Tensor:
        """Baseline that replaces a removed atom."""
        if self.baseline is not None:
            return self.baseline
        if self.kind == "tokens":
            return self.mask
        return "mean" if self.kind in ("table", "series", "image", "frames") else "zero"

    @property
    def nothing(self) -> str:
        """The same in words."""
        if isinstance(self.how, str):
            return {"zero": "zeros", "mean": "the mean", "blur": "a blurred copy"}[self.how]
        if self.kind == "tokens" and not isinstance(self.how, Tensor):
            number = int(self.how)
            known = self.tokenizer is not None or self.vocabulary not in (None, IDS)
            text = Kind("tokens", vocabulary=self.vocabulary, tokenizer=self.tokenizer, special=()) if known else None
            return f"the token {text.pieces(torch.tensor([number]))[0] if text else number}"
        return f"{self.how}" if not isinstance(self.how, Tensor) else "given values"

    def baseline_for(self, x: Tensor) -> Tensor | float:
        """Baseline for clips x (N, ...): see `baseline_of`."""
        return baseline_of(self.kind, self.how, x)

    def atoms(
        self,
        x: Tensor,
        *,
        coarse: bool = False,
        tokens: Sequence[Pieces] | None = None,
        segments: Tensor | None = None,
    ) -> Atoms:
        """The atoms of clips.

        Args:
            x: Inputs, (N, ...), of which all but the shape matters only for tokens.
            coarse: Fewer atoms.
            tokens: The text of each token of each clip; None: those of the ids.
            segments: Segments of images, (N, H, W).

        Returns:
            `ClipAtoms` of the N clips for tokens and segments, else atoms of all clips.
        """
        shape = tuple(x.shape[1:])
        wanted = self.coarse if coarse else self.blocks
        most = _tuple(wanted) if wanted is not None else (COARSE if coarse else FINE)[self.kind]
        if self.kind == "tokens":
            texts = tokens if tokens is not None else [self.pieces(ids) for ids in x]
            return token_atoms(texts, shape[0], most=most[0])
        if segments is not None:
            return segment_atoms(segments, shape)
        match self.kind:
            case "table":
                owner = list(range(shape[0]) if self.owner is None else self.owner)
                return column_atoms(owner, names=self.columns(owner), most=most[0])
            case "vector":
                return vector_atoms(shape[0], min(most[0], shape[0]))
            case "series":
                windows = min(most[0], shape[0])
                groups = min(2, shape[1]) if coarse else min(shape[1], max(1, MOST_PARTS // windows))
                return series_atoms(shape, windows, names=self.names, seconds=self.seconds, groups=groups)
            case "regions":  # a region is told as a step
                return series_atoms(shape, min(most[0], shape[0]), groups=1)
            case "waveform":
                made = waveform_atoms(shape, min(most[0], shape[-1]), self.seconds or float(shape[-1]))
                return made if self.seconds else _renamed(made, {"_s": "step"})
            case "spectrogram":
                hz, seconds = self.hz or (0.0, float(shape[-2])), self.seconds or float(shape[-1])
                blocks = [min(count, size) for count, size in zip(most, shape[-2:], strict=True)]
                made = spectrogram_atoms(shape, *blocks, seconds=seconds, hz=hz)
                known = self.hz is not None and self.seconds is not None
                return made if known else _renamed(made, {"_s": "step", "_hz": "bin"})
            case "image":
                return patch_atoms(shape, min(most[0], shape[-2]), min(most[1], shape[-1]))
        frames, rows, columns = most
        return video_atoms(shape, (min(rows, shape[-2]), min(columns, shape[-1])), min(frames, shape[0]))

    def columns(self, owner: Sequence[int]) -> tuple[str, ...]:
        """Names of a table's columns; empty where they have none."""
        if self.owner is None or len(self.names) != len(owner):
            return tuple(self.names)
        first = dict(zip(reversed(owner), reversed(self.names), strict=True))
        several = {column for column in first if list(owner).count(column) > 1}
        return tuple(first[c].partition("=")[0] if c in several else first[c] for c in sorted(first))

    def looks(self, x: Tensor, atoms: Atoms) -> dict[str, NDArray[Any]]:
        """Arrays of one input that a page shows besides its picture.

        Args:
            x: The input, as people know it: not standardized.
            atoms: Its atoms.

        Returns:
            Of a table `value`, the text of each atom (A,); of a series `series`, float32 (steps, channels), thinned out
            to `STEPS` steps; nothing of other kinds.
        """
        if self.kind == "series":
            every = max(1, -(-len(x) // STEPS))
            return {"series": x[::every].float().numpy()}
        if self.kind != "table":
            return {}
        texts = []
        for atom in range(len(atoms)):
            members = (atoms.label == atom).nonzero().flatten().tolist()
            owner = members if self.owner is None else [self.owner[i] for i in members]
            if len(members) == 1:
                texts.append(f"{float(x[members[0]]):.4g}")
            elif len(set(owner)) == 1 and len(self.names) == len(x):
                texts.append(self.names[members[int(x[members].argmax())]].partition("=")[2])
            else:
                texts.append(f"{len(set(owner))} columns")
        return {"value": np.array(texts)}


def _renamed(atoms: Atoms, keys: Mapping[str, str]) -> Atoms:
    """Atoms whose seconds and Hz are steps and bins."""
    known = {"_s": ("start_s", "end_s"), "_hz": ("low_hz", "high_hz")}
    names = {old: new for unit, key in keys.items() for old, new in zip(known[unit], (key, f"end_{key}"), strict=True)}
    places = tuple({names[key]: value for key, value in place.items()} for place in atoms.coordinates)
    return replace(atoms, coordinates=places)


def as_kind(modality: str, given: Any) -> Kind:
    """Kind of a modality from a `Kind`, the name of one, or its options.

    Raises:
        UserError: It is something else; the message names the modality.
    """
    if isinstance(given, Kind):
        return given
    options = {"kind": given} if isinstance(given, str) else given
    known = [field.name for field in fields(Kind)]
    if not isinstance(options, Mapping) or "kind" not in options:
        raise UserError(f"kinds.{modality}={str(given)[:40]}: must be a kind ({', '.join(DIMENSIONS)}) or a Kind")
    if unknown := [str(name) for name in options if name not in known]:
        raise UserError(f"kinds.{modality}: no option {unknown[0]!r}; must be of {listed(known)}")
    try:
        return Kind(**options)
    except UserError as error:
        raise UserError(f"kinds.{modality}.{error}") from None


def _tuple(value: tuple[int, ...] | int) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
