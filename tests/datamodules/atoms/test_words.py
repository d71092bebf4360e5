"""Words joined from word pieces, and what happens to tokens that are in none."""

import pytest
import torch

from amr.datamodules.atoms import Atoms, ClipAtoms, segment_atoms, token_atoms, words_of
from amr.utils.errors import UserError


@pytest.mark.parametrize(
    ("pieces", "place", "words"),
    [
        ([None, "un", "##believ", "##able", "!", None, None], [-1, 0, 0, 0, 1, -1, -1], ["unbelievable", "!"]),
        (["▁the", "▁caf", "é", "."], [0, 1, 1, 1], ["the", "café."]),
        (["A", "Ġcaf", "Ã©", "Ġnow"], [0, 1, 1, 2], ["A", "café", "now"]),
        (["a</w>", "photo</w>", "gra", "ph</w>"], [0, 1, 2, 2], ["a", "photo", "graph"]),
        (["red", "cube"], [0, 1], ["red", "cube"]),
        ([None, "##s"], [-1, 0], ["s"]),
        (["<b>&", "##amp;"], [0, 0], ["<b>&amp;"]),  # text stays text
    ],
    ids=["wordpiece", "sentencepiece", "byte-level", "clip", "words", "begins with a rest", "markup"],
)
def test_pieces_join_to_words(pieces: list[str | None], place: list[int], words: list[str]) -> None:
    assert words_of(pieces) == (place, words)


def test_texts_of_several_lengths_share_their_atoms() -> None:
    atoms = token_atoms([[None, "a", "b", "##c", None], ["d"], []], 5)
    assert atoms.label.tolist() == [[-1, 0, 1, 1, -1], [0, -1, -1, -1, -1], [-1] * 5]
    assert atoms.texts == (("a", "bc"), ("d", ""), ("", ""))
    assert [one["word"] for one in atoms.coordinates] == [0, 1]
    ids = torch.arange(10, 15).expand(3, 5)
    replaced = atoms.replace(ids, torch.tensor([[True, False]] * 3), 0)
    assert replaced.tolist() == [[10, 11, 0, 0, 14], [10, 11, 12, 13, 14], [10, 11, 12, 13, 14]]
    assert atoms.sum(torch.tensor([[1.0, 2, 4, 8, 16]] * 3)).tolist() == [[2, 12], [1, 0], [0, 0]]
    one = atoms.of(0)  # of every row of a single clip
    assert one.replace(ids[0], torch.eye(2).bool(), 0).tolist() == [[10, 11, 0, 0, 14], [10, 0, 12, 13, 14]]
    assert one.sum(torch.ones(4, 5)).tolist() == [[1, 2]] * 4
    assert atoms.of(torch.tensor([1, 1, 0])).texts == (("d", ""), ("d", ""), ("a", "bc"))
    with pytest.raises(UserError, match=r"of 3 clips, got 2 rows"):
        atoms.replace(ids[:2], torch.ones(2, 2).bool(), 0)


def test_long_texts_have_parts_of_neighbouring_words() -> None:
    atoms = token_atoms([list("abcdefg"), list("xy")], 7, most=3)
    assert atoms.texts == (("a b", "c d", "e f g"), ("x", "y", ""))
    assert atoms.label.tolist() == [[0, 0, 1, 1, 2, 2, 2], [0, 1, -1, -1, -1, -1, -1]]
    assert set(atoms.coordinates[0]) == {"part", "end_part"}


def test_elements_in_no_atom_stay() -> None:
    atoms = Atoms(torch.tensor([0, -1, 1]), ({}, {}), (2,))
    assert atoms.replace(torch.ones(3), torch.zeros(1, 2).bool(), 0.0).tolist() == [[0, 1, 0]]
    assert atoms.sum(torch.tensor([[1.0, 2, 4]])).tolist() == [[1, 4]]


def test_segments_take_all_channels() -> None:
    drawn = torch.tensor([[[0, 0], [-1, 1]], [[0, -1], [-1, -1]]])
    atoms = segment_atoms(drawn, (3, 2, 2), [["cube", "ball"], ["cone"]])
    assert atoms.shape == (3, 2, 2)
    assert atoms.texts == (("cube", "ball"), ("cone", ""))
    x = torch.ones(2, 3, 2, 2)
    gone = atoms.replace(x, torch.tensor([[False, True]] * 2), 0.0)
    assert gone[:, 0].tolist() == gone[:, 2].tolist() == [[[0, 0], [1, 1]], [[0, 1], [1, 1]]]
    assert atoms.sum(x).tolist() == [[6, 3], [3, 0]]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: token_atoms([["a", "b"]], 1), "text 0 has 2 pieces; must be at most 1"),
        (lambda: token_atoms([[None]], 1), "no text has a word"),
        (lambda: segment_atoms(torch.zeros(1, 3, 2).long(), (3, 2, 2)), r"must be integers \(N, 2, 2\)"),
        (lambda: ClipAtoms(torch.tensor([[0, 2]]), ({}, {}), (2,)), "got 0 to 2"),
        (lambda: ClipAtoms(torch.tensor([[0]]), ({},), (1,), texts=(("a", "b"),)), "must be of 1 clips and 1 atoms"),
    ],
)
def test_what_does_not_fit_is_refused(make: object, said: str) -> None:
    assert callable(make)
    with pytest.raises(UserError, match=said):
        make()
