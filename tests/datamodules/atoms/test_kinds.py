"""Kinds: what their atoms are, what is called how, and what an atom becomes that is taken away."""

from typing import Any

import pytest
import torch

from amr.datamodules.atoms import Kind, as_kind, baseline_of, column_atoms, patch_atoms, series_atoms, vector_atoms
from amr.utils.errors import UserError


class Tokenizer:
    """As a Hugging Face one: 0 padding, 1 begin, 2 unknown, 3 mask."""

    words = ("[PAD]", "[CLS]", "[UNK]", "[MASK]", "un", "##likely")
    all_special_ids, mask_token_id, unk_token_id, pad_token_id = (0, 1, 2, 3), 3, 2, 0

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.words[i] for i in ids]


def test_a_table_has_named_columns() -> None:
    atoms = column_atoms([0, 1, 1, 2], names=["age", "sex", "pulse"])
    assert (atoms.label.tolist(), atoms.names) == ([0, 1, 1, 2], ("age", "sex", "pulse"))
    assert column_atoms(5, most=2).label.tolist() == [0, 0, 1, 1, 1]


def test_a_series_has_windows_of_each_channel() -> None:
    atoms = series_atoms((5, 2), 2, names=["heart", "breath"], seconds=10)
    assert atoms.label.T.tolist() == [[0, 0, 1, 1, 1], [2, 2, 3, 3, 3]]
    assert atoms.names == ("heart", "heart", "breath", "breath")
    assert atoms.coordinates[3] == {
        **{"channel": 1, "end_channel": 2, "step": 2, "end_step": 5, "start_s": 4, "end_s": 10}
    }
    assert series_atoms((4, 3), 1, groups=1, names="abc").names == ("a, b, c",)


def test_patches_and_blocks() -> None:
    atoms = patch_atoms((3, 4, 6), 2, 3)
    assert (atoms.grid, atoms.label[2].tolist()[0]) == ((2, 3), [0, 0, 1, 1, 2, 2])
    assert atoms.coordinates[5] == {"top": 2, "bottom": 4, "left": 4, "right": 6}
    assert vector_atoms(5, 2).label.tolist() == [0, 0, 1, 1, 1]


def test_ids_have_texts_of_a_tokenizer_a_vocabulary_or_the_batch() -> None:
    ids = torch.tensor([[1, 4, 5, 0], [1, 2, 3, 0]])
    kind = Kind("tokens", tokenizer=Tokenizer())
    assert kind.atoms(ids).label.tolist() == [[-1, 0, 0, -1], [-1, 0, 1, -1]]
    assert kind.atoms(ids).texts == (("unlikely", ""), ("[UNK]", "[MASK]"))  # type: ignore[attr-defined]
    assert (kind.how, kind.nothing) == (3, "the token [MASK]")
    listed = Kind("tokens", vocabulary=["<pad>", "<unknown>", "a", "b"])
    assert (listed.pieces(torch.tensor([2, 1, 0])), listed.how) == (["a", "<unknown>", None], 0)
    assert Kind("tokens", vocabulary="ids").pieces(torch.tensor([7, 0])) == ["#7", None]
    assert Kind("tokens").atoms(ids, tokens=[["x"], ["y", "z"]]).texts == (("x", ""), ("y", "z"))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="must have a vocabulary, a tokenizer"):
        Kind("tokens").pieces(torch.tensor([1]))
    with pytest.raises(UserError, match="id 9: must be below 4"):
        listed.pieces(torch.tensor([9]))


SHAPES = {
    **{"vector": (5,), "table": (5,), "series": (6, 2), "regions": (6, 2), "waveform": (9,)},
    **{"image": (3, 6, 8), "frames": (4, 3, 6, 8), "spectrogram": (6, 7)},
}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_has_atoms_and_a_baseline(kind: str) -> None:
    x = torch.randn(3, *SHAPES[kind], generator=torch.Generator().manual_seed(0)) + 2
    made = Kind(kind)
    made.check("m", x)
    for coarse in (False, True):
        atoms = made.atoms(x, coarse=coarse)
        assert atoms.shape == x.shape[1:]
        gone = atoms.replace(x, torch.zeros(3, len(atoms)).bool(), made.baseline_for(x))
        assert torch.equal(gone, torch.as_tensor(made.baseline_for(x)).expand_as(x))
    assert len(made.atoms(x)) >= len(made.atoms(x, coarse=True))
    axes = {
        "vector": (0,),
        "table": (0,),
        "series": (0, 1),
        "regions": (0, 1),
        "image": (0, 2, 3),
        "frames": (0, 1, 3, 4),
    }
    axes |= {"waveform": (0, 1), "spectrogram": (0, 2)}
    torch.testing.assert_close(baseline_of(kind, "mean", x), x.mean(axes[kind], keepdim=True))
    assert baseline_of(kind, "zero", x) == 0


@pytest.mark.parametrize("kind", ["image", "frames", "series", "spectrogram", "waveform"])
def test_a_blur_keeps_what_is_flat_and_drops_details(kind: str) -> None:
    shape = SHAPES[kind]
    flat = torch.full((2, *shape), 3.0)
    torch.testing.assert_close(baseline_of(kind, "blur", flat), flat)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    blurred = torch.as_tensor(baseline_of(kind, "blur", x))
    assert blurred.shape == x.shape
    assert float(blurred.std()) < float(x.std())
    if kind == "waveform":  # by the definition: a Gaussian of an eighth of the size, ends repeated
        offsets = torch.arange(-3, 4)
        weights = torch.exp(-0.5 * (offsets / (9 / 8)) ** 2)
        wanted = [(weights * x[0, (offsets + t).clamp(0, 8)]).sum() / weights.sum() for t in range(9)]
        torch.testing.assert_close(blurred[0], torch.stack(wanted))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("text", r"kinds\.m\.kind='text': must be one of tokens"),
        ({"kind": "image", "names": ["a"]}, "names: must not be given for the kind image"),
        ({"kind": "table", "hz": (0, 1)}, "hz: must not be given"),
        ({"kind": "tokens", "tokenizer": 3}, "must have convert_ids_to_tokens"),
        ({"kind": "image", "blocks": 3}, "blocks=3: must be 2 numbers"),
        ({"name": "x"}, "must be a kind"),
        ({"kind": "table", "vocab": 1}, "no option 'vocab'"),
    ],
)
def test_what_is_no_kind_is_refused(given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        as_kind("m", given)


def test_inputs_of_another_kind_are_refused() -> None:
    with pytest.raises(UserError, match=r"inputs\.m: float32 \(2, 3\); must be ids, integers with 1 dimension a clip"):
        Kind("tokens").check("m", torch.zeros(2, 3))
    with pytest.raises(UserError, match="must be floating-point with 3 dimensions a clip, for the kind image"):
        Kind("image").check("m", torch.zeros(2, 3))
    with pytest.raises(UserError, match="have no mean; give an id"):
        baseline_of("tokens", "mean", torch.zeros(2, 3).long())
    with pytest.raises(UserError, match="must be an id"):
        baseline_of("tokens", 0.5, torch.zeros(2, 3).long())
    with pytest.raises(UserError, match="have no blur"):
        baseline_of("table", "blur", torch.zeros(2, 3))
