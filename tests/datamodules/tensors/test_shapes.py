"""Atoms and pictures of tensors of which only the shape is known."""

import pytest
import torch

from amr.datamodules.tensors import tensor_atoms, tensor_picture

SHAPES = [(1,), (5,), (100,), (3, 50), (1, 16, 16), (3, 2, 2), (6, 3, 8, 8), (2, 2, 2, 2, 7)]


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_element_is_in_one_of_even_blocks(shape: tuple[int, ...], coarse: bool) -> None:
    atoms = tensor_atoms(shape, coarse=coarse)
    assert atoms.label.shape == shape
    counts = torch.bincount(atoms.label.flatten())
    assert len(counts) == len(atoms) <= (16 if len(shape) < 3 or len(shape) == 5 else 64)
    assert counts.min() > 0
    if len(shape) in (3, 4):  # channels go together
        assert torch.equal(atoms.label, atoms.label.narrow(-3, 0, 1).expand(shape))
    if len(shape) == 1:  # contiguous, of sizes that differ by one at most
        assert torch.equal(atoms.label, atoms.label.sort().values)
        assert counts.max() - counts.min() <= 1
        starts = [int((atoms.label == i).nonzero().min()) for i in range(len(atoms))]
        assert [place["dimension"] for place in atoms.coordinates] == starts
        assert [place["end_dimension"] for place in atoms.coordinates] == [*starts[1:], *shape]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_picture_shows_the_elements_that_it_names(shape: tuple[int, ...]) -> None:
    atoms, x = tensor_atoms(shape), torch.randn(shape)
    picture = tensor_picture(x, atoms)
    assert picture.image.shape[:2] == picture.element.shape == picture.atom.shape
    assert torch.equal(torch.from_numpy(picture.atom), atoms.label.flatten()[torch.from_numpy(picture.element)])
    if len(shape) not in (3, 4):
        assert torch.equal(torch.from_numpy(picture.image), x.flatten()[torch.from_numpy(picture.element)])
        assert picture.element.size == x.numel()
