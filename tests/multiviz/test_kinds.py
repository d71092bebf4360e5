"""Oracles for kinds that are no sound or film: words, patches, columns, channels."""

import pytest
import torch
from torch import Tensor, nn

from amr.datamodules.atoms import Kind, patch_atoms, token_atoms
from amr.multiviz import explained
from amr.multiviz.base import Several
from amr.multiviz.crossmodal import ablation, joint_shap, second_order
from amr.multiviz.trust import synergy
from amr.multiviz.unimodal import (
    gradient_input,
    gradient_shap,
    integrated_gradients,
    kernel_shap,
    lime,
    occlusion,
)
from tests.multiviz.early import CLASSES, WORDS, Bag, early

PIECES = ("", "un", "##like", "##ly", "red", "cube", "##s", "a", "b", "c", "d", "e")
"""Texts of the ids of `early`; 0 is padding."""


def texts(*lengths: int) -> Tensor:
    """Ids of texts of these lengths, padded by 0."""
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(1, WORDS, (len(lengths), max(lengths)), generator=generator)
    return torch.where(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None], ids, 0)


@pytest.mark.parametrize("lengths", [(1,), (5, 3), (40, 7, 23)])
def test_a_bag_of_words_recovers_its_weights_at_any_length(lengths: tuple[int, ...]) -> None:
    bag = Bag()
    model = explained(bag, modalities=("text", "image"), num_classes=CLASSES, embeddings={"text": "words"})
    clips = {"text": texts(*lengths), "image": torch.randn(len(lengths), 4, dtype=torch.float64)}
    atoms = Kind("tokens", vocabulary=PIECES, special=[0]).atoms(clips["text"])
    weights = bag.words.weight.detach()[clips["text"]][..., 2]  # (N, T)
    wanted = torch.zeros(len(lengths), len(atoms), dtype=torch.float64)
    for n, place in enumerate(atoms.label.tolist()):  # a word's weight is that of its pieces
        for t, word in enumerate(place):
            wanted[n, word] += weights[n, t] if word >= 0 else 0
    samples = 4 * len(atoms) + 8
    arguments = (model, clips, "text", 2, atoms)
    found = {
        "lime": lime(*arguments, baseline=0, samples=samples, ridge=0.0),
        "occlusion": occlusion(*arguments, baseline=0),
        "kernel_shap": kernel_shap(*arguments, baseline=0, samples=samples),
        "integrated_gradients": integrated_gradients(*arguments, baseline=0, steps=2),
        "gradient_input": gradient_input(*arguments),
    }
    for name, one in found.items():
        torch.testing.assert_close(one.values.double(), wanted, msg=name)


def test_a_planted_token_is_found() -> None:
    """The class is decided by whether word 9 is there, which stands elsewhere in each clip."""

    class Planted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(WORDS, WORDS)
            nn.init.eye_(self.words.weight)

        def forward(self, text: Tensor) -> Tensor:
            there = self.words(text)[..., 9].amax(1)
            return torch.stack([there, 1 - there], 1) * 4

    ids = torch.tensor([[4, 9, 5, 0], [9, 7, 8, 4], [7, 7, 4, 9]])
    atoms = Kind("tokens", vocabulary=PIECES, special=[0]).atoms(ids)
    model = explained(Planted(), modalities=("text",), num_classes=2, embeddings={"text": "words"})
    place = [list(one).index("c") for one in atoms.texts]  # type: ignore[attr-defined]
    assert place == [1, 0, 3]
    for method in (occlusion, lime, kernel_shap, integrated_gradients, gradient_shap):
        values = method(model, {"text": ids}, "text", 0, atoms, **({} if method is gradient_shap else {"baseline": 0}))
        assert values.values.argmax(1).tolist() == place, method


class Bilinear(nn.Module):
    """Logit c of words w and patches p: Σ_t Σ_s v(w_t)' M_c mean(p_s)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, 4, padding_idx=0).double()
        self.matrix = nn.Parameter(torch.randn(2, 4, 3).double())

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return torch.einsum("btd,cde,behw->bc", self.words(text), self.matrix, image) / 4


def test_tokens_by_patches_of_a_bilinear_head_are_its_matrix() -> None:
    net = Bilinear()
    model = explained(net, modalities=("text", "image"), num_classes=2, embeddings={"text": "words"})
    generator = torch.Generator().manual_seed(3)
    clips = {"text": texts(6, 4), "image": torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)}
    words, patches = Kind("tokens", vocabulary=PIECES, special=[0]).atoms(clips["text"]), patch_atoms((3, 4, 4), 2, 2)
    means = clips["image"].reshape(2, 3, 2, 2, 2, 2).mean((3, 5)).flatten(2)  # (N, 3, patches)
    pieces = torch.einsum("btd,de,bes->bts", net.words.weight[clips["text"]], net.matrix[1], means).detach()
    wanted = torch.zeros(2, len(words), 4, dtype=torch.float64)
    for n, place in enumerate(words.label.tolist()):
        for t, word in enumerate(place):
            if word >= 0:
                wanted[n, word] += pieces[n, t]
    sides = ("text", words), ("image", patches)
    nothing = {"text": torch.zeros(1, dtype=torch.int64), "image": torch.zeros(1, dtype=torch.float64)}
    torch.testing.assert_close(ablation(model, clips, 1, *sides, nothing), wanted)
    several = Several(torch.tensor([[1], [1]]))
    joint = joint_shap(model, clips, several, *sides, nothing, samples=4096, repeats=1).pairs.values[:, 0]
    torch.testing.assert_close(joint, wanted)
    # The mixed derivative is by vectors and pixels, each summed: the matrix between sums of either.
    ones = torch.einsum("de,bs->bs", net.matrix[1], torch.ones(2, 4, dtype=torch.float64)).detach()
    sizes = torch.stack([torch.bincount(place[place >= 0], minlength=len(words)) for place in words.label]).double()
    torch.testing.assert_close(
        second_order(model, clips, 1, *sides).as_subclass(Tensor), sizes[:, :, None] * ones[:, None]
    )


def test_clips_of_several_lengths_are_explained_as_each_alone() -> None:
    """All methods give for a batch of texts of several words what they give for each text."""
    model = early(padded=True, carry_ids=["text"])
    generator = torch.Generator().manual_seed(5)
    clips = {"text": texts(6, 3, 5), "image": torch.randn(3, 3, 8, 8, generator=generator)}
    atoms = Kind("tokens", vocabulary=PIECES, special=[0]).atoms(clips["text"])
    assert {len([text for text in one if text]) for one in atoms.texts} != {len(atoms)}  # type: ignore[attr-defined]
    blurred = Kind("image", baseline="blur").baseline_for(clips["image"])
    patches = patch_atoms((3, 8, 8), 2, 2)
    for n in range(3):
        one = {m: x[n : n + 1] for m, x in clips.items()}
        for method in (occlusion, lime, kernel_shap, integrated_gradients, gradient_input):
            options = {} if method is gradient_input else {"baseline": 1}
            whole = method(model, clips, "text", 0, atoms, **options).values[n]
            alone = method(model, one, "text", 0, atoms.of(n), **options).values[0]
            torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)
        for unimodal in (occlusion, integrated_gradients):
            whole = unimodal(model, clips, "image", 0, patches, baseline=blurred).values[n]
            alone = unimodal(model, one, "image", 0, patches, baseline=blurred[n]).values[0]  # type: ignore[index]
            torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)
    maps = {"text": occlusion(model, clips, "text", 0, atoms), "image": occlusion(model, clips, "image", 0, patches)}
    together = synergy(model, clips, 0, maps, orders=1, steps=2)["text", "image"]
    assert together.curve.shape == (3, 3)
    with pytest.raises(Exception, match=r"of 3 clips, got 1; say of which clips"):
        occlusion(model, {m: x[:1] for m, x in clips.items()}, "text", 0, atoms)
    assert token_atoms([["a"]], 6).of(2).texts == (("a",),)  # of a single text: of every clip
