"""Samples that are made in memory: what is planted is there, and decides the class."""

import re
from collections.abc import Callable

import pytest
import torch

from amr.datamodules.synthetic import patients as p
from amr.datamodules.synthetic import sentiment as s
from amr.datamodules.synthetic import shapes as q
from amr.datamodules.synthetic.samples import Samples
from amr.utils.errors import UserError

MADE = (q.shapes, q.captions, s.sentiment, p.patients)


def colour_and_shape(pixels: torch.Tensor) -> tuple[str, str] | None:
    """What a cell (3, 8, 8) without noise shows, read from its pixels alone."""
    lit = pixels.max(0).values > 0.3
    if not lit.any():
        return None
    red, green, blue = (pixels[:, lit].mean(1) > 0.5).tolist()
    colour = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 0): "yellow"}[red, green, blue]
    return colour, {36: "square", 24: "circle", 20: "cross", 18: "triangle"}[int(lit.sum())]


@pytest.mark.parametrize("make", MADE)
def test_evidence_is_of_the_atoms_and_the_seed_is_all(make: Callable[[int, int], Samples]) -> None:
    made, again, other = make(40, 1), make(40, 1), make(40, 2)
    for name, x in made.inputs.items():
        assert torch.equal(x, again.inputs[name])
        assert not torch.equal(x, other.inputs[name])
        assert made.evidence[name].shape == (40, len(made.atoms(name)))
        assert made.evidence[name].any(1).all()
        made.kinds[name].check(name, x)
    for (first, second), pairs in made.together.items():
        assert (pairs.any(2) <= made.evidence[first]).all()
        assert (pairs.any(1) <= made.evidence[second]).all()
    assert len(made.batches(16)) == 3
    assert made.batches(16)[2]["id"][-1] == "s00039"
    half = made.pick(made.labels == 0)
    assert set(half.labels.tolist()) == {0}
    assert len(half) == int((made.labels == 0).sum())
    with pytest.raises(UserError, match="count=0, seed=0: must be at least 1"):
        make(0, 0)


def test_answers_are_read_from_the_pictures() -> None:
    made = q.shapes(80, 3, noise=0.0)
    grid = made.inputs["image"].unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    for n in range(len(made)):
        words = [q.WORDS[i] for i in made.inputs["question"][n].tolist()]
        asked = next(word for word in words if word in (*q.SHAPES, *q.COLOURS))
        there = {i: found for i, cell in enumerate(grid[n]) if (found := colour_and_shape(cell))}
        assert len(there) == 3
        place, (colour, shape) = next((i, found) for i, found in there.items() if asked in found)
        assert made.classes[int(made.labels[n])] == (shape if "shape" in words else colour)
        pair = made.together["question", "image"][n].nonzero().tolist()
        assert pair == [[words.index(asked), place]]


def test_captions_differ_in_one_word() -> None:
    made = q.captions(80, 3, noise=0.0)
    grid = made.inputs["image"].unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    for n in range(len(made)):
        words = [q.WORDS[i] for i in made.inputs["caption"][n].tolist()]
        told = [tuple(words[1:3]), tuple(words[5:7])]
        there = [found for cell in grid[n] if (found := colour_and_shape(cell))]
        assert made.classes[int(made.labels[n])] == ("fits" if all(one in there for one in told) else "differs")
        assert sum(one not in there for one in told) == int(made.groups[n] > 0)


def test_cells_show_what_they_say() -> None:
    pixels, shown = q.cells(60, 1, noise=0.0)
    for cell, number in zip(pixels, shown.tolist(), strict=True):
        expected = (q.COLOURS[(number - 1) % 4], q.SHAPES[(number - 1) // 4]) if number else None
        assert colour_and_shape(cell) == expected


def test_not_turns_the_sentiment_around() -> None:
    made = s.sentiment(200, 1, noise=0.0)
    for n in range(len(made)):
        words = [s.WORDS[i] for i in made.inputs["text"][n].tolist()]
        by_word = 1 if {*words} & {"good", "great", "lovely"} else -1
        by_sound = int(made.inputs["audio"][n].sum().sign())
        mouth = made.inputs["video"][n, :, 0, [4, 6], 2].sum(0)  # up, down
        total = by_word + by_sound + (1 if mouth[0] > mouth[1] else -1)
        assert made.labels[n] == int((total > 0) != ("not" in words))
        assert bool(made.together["text", "audio"][n].any()) == ("not" in words)
    assert 0.2 < made.groups.double().mean() < 0.5


def test_risks_add_up() -> None:
    made = p.patients(200, 1, noise=0.0)
    by_table = (made.inputs["table"] * torch.tensor([1.0, 1, 1, 1, -1])).sum(1)
    by_series = (made.inputs["series"].sum(1) * torch.tensor([1.0, -1, 1, -1])).sum(1) / 4
    assert torch.equal(made.labels, (by_table + by_series > 0).long())
    assert not made.together
    agree = (by_table * by_series > 0).double().mean()
    assert 0.35 < agree < 0.65  # the two are drawn apart


def test_names_of_the_words_are_unique() -> None:
    for words in (q.WORDS, s.WORDS):
        assert len({*words}) == len(words)
        assert all(re.fullmatch(r"[a-z<>]+", word) for word in words)
