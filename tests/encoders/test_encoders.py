"""Shapes, independence of rows, refusals, and initial weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet34_Weights, resnet18
from torchvision.models.video import R3D_18_Weights

from amr.encoders import Encoder, MLPEncoder, ResNetEncoder, SmallCNN, SmallFrameCNN, Video3DEncoder, load_weights
from amr.encoders.cnn import grid_pool
from amr.encoders.weights import find_weights
from amr.utils.errors import UserError

CASES: dict[str, tuple[Callable[[], Encoder], tuple[int, ...], int]] = {
    "resnet image": (lambda: ResNetEncoder(18, in_channels=1), (1, 40, 33), 512),
    "resnet frames": (lambda: ResNetEncoder(34), (2, 3, 32, 32), 512),
    "r3d": (lambda: Video3DEncoder("r3d_18"), (4, 3, 16, 16), 512),
    "r2plus1d": (lambda: Video3DEncoder("r2plus1d_18"), (4, 3, 16, 16), 512),
    "small": (lambda: SmallCNN(2, width=4, out_dim=10), (2, 64, 65), 10),
    "small tiny": (lambda: SmallCNN(), (1, 5, 3), 64),
    "small frames": (lambda: SmallFrameCNN(1, width=4, out_dim=10), (8, 1, 32, 48), 10),
    "small one frame": (lambda: SmallFrameCNN(3), (1, 3, 8, 8), 64),
    "mlp": (lambda: MLPEncoder(12, [5, 6], 7), (3, 4), 7),
    "linear": (lambda: MLPEncoder(12, [], 7), (12,), 7),
}
every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_shape_gradients_and_rows(case: str) -> None:
    torch.manual_seed(0)
    build, shape, out_dim = CASES[case]
    encoder = build()
    x = torch.randn(2, *shape)
    encoding = encoder(x)
    assert encoding.shape == (2, out_dim)
    assert encoder.out_dim == out_dim
    gradients = torch.autograd.grad(encoding.square().sum(), list(encoder.parameters()))  # raises if one is unused
    assert all(gradient.isfinite().all() for gradient in gradients)
    encoder.eval()
    rows = torch.cat([encoder(row[None]) for row in x])
    torch.testing.assert_close(rows, encoder(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("r3d", "r2plus1d")])
def test_one_row_batch_trains(case: str) -> None:
    build, shape, _ = CASES[case]
    if case == "small tiny":
        shape = (1, 9, 9)  # batch norm wants more than one value a channel
    if case in ("small one frame", "resnet frames"):
        shape = (*shape[:2], 40, 40)
    assert build()(torch.randn(1, *shape)).isfinite().all()


def test_resnet_averages_frames() -> None:
    encoder = ResNetEncoder().eval()
    x = torch.randn(2, 3, 3, 32, 32)
    expected = torch.stack([encoder(x[:, i]) for i in range(3)]).mean(0)
    torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-4)


def test_resnet_equals_torchvision() -> None:
    torch.manual_seed(0)
    reference = resnet18()
    torch.manual_seed(0)
    encoder = ResNetEncoder().eval()
    reference.fc = nn.Identity()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(encoder(x), reference.eval()(x))
    std = ResNetEncoder(in_channels=1).resnet.conv1.weight.std().item()
    assert std == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)  # He et al. 2015, fan out


def test_3d_takes_time_second() -> None:
    encoder = Video3DEncoder("r3d_18").eval()
    x = torch.randn(1, 4, 3, 16, 16)
    assert torch.equal(encoder(x), encoder.resnet(x.permute(0, 2, 1, 3, 4)))


def test_frame_cnn_sees_motion() -> None:
    torch.manual_seed(0)
    encoder = SmallFrameCNN(3, frames=8).eval()
    x = torch.randn(1, 8, 3, 32, 48)
    assert not torch.allclose(encoder(x), encoder(x.flip(1)), atol=1e-3)


@pytest.mark.parametrize("size", [(4, 4), (9, 8), (2, 5), (1, 1), (13, 7)])
def test_grid_pool_equals_torch(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(grid_pool(x, (4, 4)), F.adaptive_avg_pool2d(x, (4, 4)))


def test_mlp_by_hand() -> None:
    encoder = MLPEncoder(4, [3], 2)
    x = torch.randn(5, 2, 2)
    w1, b1, w2, b2 = encoder.parameters()
    torch.testing.assert_close(encoder(x), (x.flatten(1) @ w1.T + b1).clamp(min=0) @ w2.T + b2)


# Initial weights.


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(resnet18().state_dict())


def save(content: Any, folder: Path) -> str:
    path = folder / "weights.pth"
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}])
def test_weights_from_file(wrap: Callable[[Any], Any], state: dict[str, Tensor], tmp_path: Path) -> None:
    encoder = ResNetEncoder(weights=save(wrap(state), tmp_path))
    own = encoder.resnet.state_dict()
    assert own.keys() == {key for key in state if not key.startswith("fc.")}
    assert all(torch.equal(own[key], state[key]) for key in own)


def test_one_channel_sums_rgb(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(state, tmp_path)
    rgb, gray = ResNetEncoder(weights=path).eval(), ResNetEncoder(in_channels=1, weights=path).eval()
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(gray(x), rgb(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


def test_weights_without_batch_counters(state: dict[str, Tensor], tmp_path: Path) -> None:
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    ResNetEncoder(weights=save(old, tmp_path))


def test_3d_weights_from_file(tmp_path: Path) -> None:
    source = Video3DEncoder("r3d_18").resnet.state_dict()
    own = Video3DEncoder("r3d_18", save(source, tmp_path)).resnet.state_dict()
    assert all(torch.equal(own[key], source[key]) for key in source)


def test_weights_that_do_not_fit(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"keys \d+ missing \(layer1\.2\.conv1\.weight, .*\.\.\.\)$"):
        ResNetEncoder(34, weights=save(state, tmp_path))
    extra = state | {"conv9.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"keys 1 unexpected \(conv9\.weight\)"):
        ResNetEncoder(weights=save(extra, tmp_path))
    with pytest.raises(UserError, match=r"keys 1 of another shape \(conv1\.weight\)"):
        ResNetEncoder(in_channels=2, weights=save(state, tmp_path))


def test_nothing_is_loaded_from_weights_that_do_not_fit(state: dict[str, Tensor], tmp_path: Path) -> None:
    module = resnet18()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(module, save({k: v for k, v in state.items() if "layer4" not in k}, tmp_path), ResNet18_Weights)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": 3}, {"a": "b"}, {1: torch.zeros(1)}])
def test_files_without_a_state_dict(content: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must hold a state dict"):
        ResNetEncoder(weights=save(content, tmp_path))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02cos\nsystem\n."])
def test_files_of_another_kind(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth is not a file of tensors") as error:
        ResNetEncoder(weights=str(path))
    assert "\n" not in str(error.value)


def test_named_weights() -> None:
    assert find_weights("ResNet18_Weights.IMAGENET1K_V1", ResNet18_Weights) is ResNet18_Weights.IMAGENET1K_V1
    assert find_weights("R3D_18_Weights.KINETICS400_V1", R3D_18_Weights) is R3D_18_Weights.KINETICS400_V1
    assert find_weights("ResNet34_Weights.DEFAULT", ResNet34_Weights) is ResNet34_Weights.IMAGENET1K_V1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: ResNetEncoder(weights="nowhere.pth"),
            "'nowhere.pth': must be a file or one of ResNet18_Weights.IMAGENET1K_V1",
        ),
        (lambda: ResNetEncoder(34, weights="ResNet18_Weights.IMAGENET1K_V1"), "one of ResNet34_Weights.IMAGENET1K_V1"),
        (lambda: Video3DEncoder(weights="R3D_18_Weights.KINETICS400_V1"), "one of R2Plus1D_18_Weights.KINETICS400_V1"),
        (lambda: ResNetEncoder(50), "depth=50: must be one of 18, 34"),  # type: ignore[arg-type]
        (lambda: ResNetEncoder(in_channels=0), "in_channels=0: must be at least 1"),
        (lambda: Video3DEncoder("c3d"), "arch='c3d': must be one of r3d_18, mc3_18, r2plus1d_18"),  # type: ignore[arg-type]
        (lambda: SmallCNN(width=0), "SmallCNN: width=0: must be at least 1"),
        (lambda: SmallFrameCNN(out_dim=-1), "SmallFrameCNN: out_dim=-1: must be at least 1"),
        (lambda: MLPEncoder(4, [0]), "MLPEncoder: in_dim, hidden, out_dim=.*: must be at least 1"),
        (lambda: MLPEncoder(4)(torch.zeros(2, 5)), r"in_dim is 4, got 5 from shape \(2, 5\)"),
        (
            lambda: SmallCNN()(torch.zeros(2, 3, 8, 8)),
            r"C = in_channels = 1, got shape \(2, 3, 8, 8\)",
        ),
        (lambda: SmallFrameCNN()(torch.zeros(2, 3, 8, 8)), r"takes \(B, N, C, H, W\)"),
        (lambda: ResNetEncoder()(torch.zeros(2, 8, 8)), r"takes \(B, C, H, W\) or \(B, N, C, H, W\)"),
        (lambda: Video3DEncoder()(torch.zeros(2, 4, 1, 8, 8)), r"in_channels = 3, got"),
    ],
)
def test_mistakes(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_frame_cnn_resamples_time() -> None:
    """Twice the frames are averaged in pairs, half of them are repeated."""
    torch.manual_seed(0)
    encoder = SmallFrameCNN(1, frames=4).eval()
    x = torch.randn(2, 8, 1, 32, 48)
    torch.testing.assert_close(encoder(x), encoder(x.view(2, 4, 2, 1, 32, 48).mean(2)))
    torch.testing.assert_close(encoder(x[:, :2]), encoder(x[:, :2].repeat_interleave(2, 1)))
