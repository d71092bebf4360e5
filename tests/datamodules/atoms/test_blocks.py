import pytest
import torch

from amr.datamodules.atoms import Atoms, flat_atoms, spectrogram_atoms, video_atoms, waveform_atoms
from amr.utils.errors import UserError


def test_spectrogram_blocks_are_where_their_coordinates_say() -> None:
    atoms = spectrogram_atoms((1, 7, 10), 3, 4, seconds=2.0, hz=(0, 7000))
    assert (len(atoms), atoms.grid, atoms.label.shape) == (12, (3, 4), (1, 7, 10))
    for a, where in enumerate(atoms.coordinates):
        low, high = where["low_hz"] / 1000, where["high_hz"] / 1000
        start, end = where["start_s"] * 5, where["end_s"] * 5
        inside = torch.zeros(1, 7, 10, dtype=torch.bool)
        inside[:, round(low) : round(high), round(start) : round(end)] = True
        assert torch.equal(atoms.label == a, inside)
    sizes = torch.bincount(spectrogram_atoms((7, 10), 3, 1, seconds=1, hz=(0, 1)).label.flatten()) / 10
    assert sizes.max() - sizes.min() <= 1


def test_spectrogram_takes_the_edges_of_its_bins() -> None:
    edges = [0.0, 100.0, 300.0, 700.0]  # as mel bins: unequal
    atoms = spectrogram_atoms((3, 2), 2, 1, seconds=1.0, hz=edges)
    assert [(c["low_hz"], c["high_hz"]) for c in atoms.coordinates] == [(0.0, 100.0), (100.0, 700.0)]


def test_waveform_segments() -> None:
    atoms = waveform_atoms((2, 10), 3, seconds=5.0)
    assert atoms.label.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2, 2]] * 2
    assert atoms.coordinates[1] == {"start_s": 1.5, "end_s": 3.0}


@pytest.mark.parametrize("shape", [(3, 2, 5, 4), (2, 5, 4)])
def test_patches_are_where_their_coordinates_say(shape: tuple[int, ...]) -> None:
    blocks = 2 if len(shape) == 4 else 1
    atoms = video_atoms(shape, (2, 3), blocks)
    assert atoms.grid == (blocks, 2, 3)
    label = atoms.label.reshape(-1, 2, 5, 4)
    for a, c in enumerate(atoms.coordinates):
        inside = torch.zeros(label.shape, dtype=torch.bool)
        frames, rows, columns = (
            slice(int(c[first]), int(c[last]))
            for first, last in (("frame", "end_frame"), ("top", "bottom"), ("left", "right"))
        )
        inside[frames, :, rows, columns] = True
        assert torch.equal(label == a, inside)


def test_flat_atoms_of_vectors_and_tokens() -> None:
    assert flat_atoms(3).coordinates == ({"dimension": 0.0}, {"dimension": 1.0}, {"dimension": 2.0})
    tokens = flat_atoms((2, 3))
    assert tokens.grid == (2, 3)
    assert tokens.coordinates[4] == {"token": 1.0, "dimension": 1.0}


def test_replace_keeps_and_replaces_whole_atoms() -> None:
    atoms = waveform_atoms((1, 5), 2, 1.0)
    x = torch.arange(1.0, 6).reshape(1, 5)
    keep = torch.tensor([[True, False], [False, True], [True, True], [False, False]])
    before = x.clone()
    expected = torch.tensor([[1.0, 2, -1, -1, -1], [-1, -1, 3, 4, 5], [1, 2, 3, 4, 5], [-1, -1, -1, -1, -1]])
    assert torch.equal(atoms.replace(x, keep, -1.0)[:, 0], expected)
    assert torch.equal(atoms.replace(x.expand(4, 1, 5), keep, torch.full((1, 5), -1.0))[:, 0], expected)
    assert torch.equal(x, before)
    assert torch.equal(atoms.mask(keep)[:, 0], expected >= 0)


def test_sum_adds_the_elements_of_each_atom() -> None:
    atoms = video_atoms((2, 3, 5, 4), (2, 3), 1)
    values = torch.randn(4, 2, 3, 5, 4, dtype=torch.float64)
    expected = torch.stack([(values * (atoms.label == a)).flatten(1).sum(1) for a in range(len(atoms))], 1)
    torch.testing.assert_close(atoms.sum(values), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: waveform_atoms((1, 4), 5, 1.0), "segments=5: must be in 1 to 4"),
        (lambda: waveform_atoms((1, 4), 2, 0.0), "seconds=0.0: must be positive"),
        (lambda: waveform_atoms((), 2, 1.0), "samples"),
        (lambda: spectrogram_atoms((4,), 1, 1, seconds=1, hz=(0, 1)), "F, T"),
        (lambda: spectrogram_atoms((3, 2), 0, 1, seconds=1, hz=(0, 1)), "freq_blocks=0: must be in 1 to 3"),
        (lambda: spectrogram_atoms((3, 2), 1, 3, seconds=1, hz=(0, 1)), "time_blocks=3: must be in 1 to 2"),
        (lambda: spectrogram_atoms((3, 2), 1, 1, seconds=1, hz=(0, 1, 2)), "4 ascending edges"),
        (lambda: spectrogram_atoms((3, 2), 1, 1, seconds=1, hz=(1, 1)), "ascending"),
        (lambda: video_atoms((1, 3, 4, 4), (5, 1), 1), "patches=5: must be in 1 to 4"),
        (lambda: video_atoms((1, 3, 4, 4), (1, 1), 2), "frames=2: must be in 1 to 1"),
        (lambda: video_atoms((4, 4), (1, 1), 1), "C, H, W"),
        (lambda: flat_atoms((2, 3, 4)), "vectors"),
        (lambda: Atoms(torch.tensor([0, 2]), ({}, {}), (2,)), "labels must be 0 to 1"),
        (lambda: flat_atoms(3).sum(torch.zeros(1, 4)), "made for inputs of shape"),
        (lambda: flat_atoms(3).replace(torch.zeros(4), torch.ones(1, 3, dtype=torch.bool)), "made for inputs"),
    ],
)
def test_impossible_atoms_are_refused(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]


def test_overlap_is_the_share_of_the_elements_that_lie_in_the_place() -> None:
    atoms = video_atoms((4, 1, 12, 12), (3, 3), 2)  # atoms of 2 frames x 4 x 4 pixels
    place = {"frame": 1, "end_frame": 3, "top": 2, "bottom": 9, "left": 4, "right": 12}
    inside = torch.zeros(4, 1, 12, 12)
    inside[1:3, :, 2:9, 4:12] = 1
    expected = atoms.sum(inside[None])[0] / 32
    assert torch.equal(atoms.overlap(place), expected.double())
    flat = {key: value for key, value in place.items() if "frame" not in key}  # at any time
    inside[:, :, 2:9, 4:12] = 1
    assert torch.equal(atoms.overlap(flat), atoms.sum(inside[None])[0].double() / 32)
    assert not atoms.overlap({"top": 20, "bottom": 30}).any()


def test_overlap_in_seconds_and_hz() -> None:
    atoms = spectrogram_atoms((4, 4), 2, 2, seconds=2.0, hz=[0, 100, 300, 700, 1500])
    share = atoms.overlap({"start_s": 0.5, "end_s": 1.25, "low_hz": 150, "high_hz": 900})
    assert share.tolist() == pytest.approx([0.5 * 0.5, 0.25 * 0.5, 0.5 * 0.5, 0.25 * 0.5])


@pytest.mark.parametrize("place", [{}, {"top": 1}, {"start_s": 0, "end_s": 1}, {"top": 0, "bottom": 1, "size": 3}])
def test_overlap_refuses_other_axes(place: dict[str, float]) -> None:
    with pytest.raises(UserError, match="both ends of axes among"):
        video_atoms((1, 4, 4), (2, 2), 1).overlap(place)
