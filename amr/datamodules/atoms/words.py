"""Atoms of texts: words, joined from the pieces that a tokenizer made of them."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from amr.datamodules.atoms.partition import ClipAtoms
from amr.utils.errors import UserError

Pieces = Sequence[str | None]
"""The text of each token of one clip, in order; None for a token that is in no word: padding, begin, end."""

BEGINS, CONTINUES, ENDS = ("▁", "Ġ"), "##", "</w>"
"""How tokenizers mark that a piece begins a word (SentencePiece, byte-level BPE), continues or ends one."""


def words_of(pieces: Pieces) -> tuple[list[int], list[str]]:
    """Joins word pieces.

    Pieces that begin with `##` continue a word (WordPiece). Where any piece begins with `▁` or `Ġ`, only these begin a
    word (SentencePiece, byte-level BPE); where any ends in `</w>`, a word ends there (CLIP). Without any mark every
    piece is a word.

    Args:
        pieces: The text of each token.

    Returns:
        The word of each token, counted from 0, -1 for tokens in none; and the text of each word.
    """
    texts = [piece for piece in pieces if piece is not None]
    begins = any(text.startswith(BEGINS) for text in texts)
    ends = any(text.endswith(ENDS) for text in texts)
    place: list[int] = []
    words: list[str] = []
    fresh = True  # the next piece begins a word, whatever it says
    for piece in pieces:
        if piece is None:
            place.append(-1)
            fresh = True
            continue
        if not (begins or ends):
            fresh = fresh or not piece.startswith(CONTINUES)
        elif begins:
            fresh = fresh or piece.startswith(BEGINS)
        if fresh:
            words.append("")
        words[-1] += _readable(
            piece.removeprefix(CONTINUES).removesuffix(ENDS), byte_level="Ġ" in "".join(texts) or ends
        )
        place.append(len(words) - 1)
        fresh = piece.endswith(ENDS) if ends else False
    return place, words


def token_atoms(texts: Sequence[Pieces], length: int, *, most: int | None = None) -> ClipAtoms:
    """One atom per word of each text.

    Args:
        texts: The pieces of each clip's text; a text may be shorter than `length`.
        length: Tokens T of the input; what lies behind a text's end is in no atom.
        most: Number of atoms at most; in longer texts neighbouring words go together. None: every word by itself.

    Returns:
        Atoms of inputs (T,), with the words as `texts`. Coordinates are `word`, or `part` where words go together.

    Raises:
        UserError: A text has more pieces than the input has tokens, or no text has a word.
    """
    joined = []
    for number, pieces in enumerate(texts):
        if len(pieces) > length:
            raise UserError(f"tokens: text {number} has {len(pieces)} pieces; must be at most {length}, one per token")
        joined.append(words_of(pieces))
    longest = max((len(words) for _, words in joined), default=0)
    if not longest:
        raise UserError("tokens: no text has a word; must have some")
    count = min(longest, most or longest)
    label = torch.full((len(texts), length), -1)
    named = []
    for row, (place, words) in enumerate(joined):
        blocks = min(count, len(words))
        edges = [block * len(words) // blocks for block in range(blocks + 1)] if blocks else [0]
        block_of = [block for block, (start, end) in enumerate(pairwise(edges)) for _ in range(start, end)]
        label[row, : len(place)] = torch.tensor([block_of[word] if word >= 0 else -1 for word in place])
        parts = [" ".join(words[start:end]) for start, end in pairwise(edges)]
        named.append((*parts, *[""] * (count - len(parts))))
    key = "word" if count == longest else "part"
    coordinates = tuple({key: float(i), f"end_{key}": float(i + 1)} for i in range(count))
    return ClipAtoms(label, coordinates, (count,), texts=tuple(named))


def segment_atoms(segments: torch.Tensor, shape: Sequence[int], names: Sequence[Sequence[str]] = ()) -> ClipAtoms:
    """Segments of images that a person has drawn, such as one per object; channels go together.

    Args:
        segments: Each pixel's segment, (N, H, W) integers: 0 to A - 1, and -1 for pixels in none. One map, (1, H, W),
            serves all clips.
        shape: One input's, (C, H, W) or (frames, C, H, W).
        names: Names of each clip's segments. Empty: they are numbered.

    Raises:
        UserError: The maps are of another size than the images, or not of integers.
    """
    size = tuple(shape[-2:])
    if segments.is_floating_point() or segments.ndim != 3 or tuple(segments.shape[1:]) != size or len(shape) < 3:
        raise UserError(
            f"segments: {segments.dtype} {tuple(segments.shape)}; must be integers (N, {', '.join(map(str, size))})"
        )
    label = segments.long().reshape(len(segments), *[1] * (len(shape) - 2), *size).expand(-1, *shape)
    count = int(segments.max()) + 1
    if count < 1 or int(segments.min()) < -1:
        raise UserError("segments: must be 0 to A - 1, at least one, and -1 for pixels in none")
    coordinates = tuple({"segment": float(i)} for i in range(count))
    texts = tuple((*given, *[""] * (count - len(given))) for given in names)
    return ClipAtoms(label, coordinates, (count,), texts=texts)


def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (Radford et al. 2019)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(rest)}


_BYTES = _byte_of()


def _readable(piece: str, *, byte_level: bool) -> str:
    """A piece without its marks."""
    if byte_level and all(character in _BYTES for character in piece):
        return bytes(_BYTES[character] for character in piece).decode("utf-8", "replace").strip()
    return piece.removeprefix("▁").removeprefix("Ġ")
