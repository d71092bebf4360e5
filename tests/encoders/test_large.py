"""What every large encoder keeps: shapes, gradients, determinism, bf16, pickling, absent clips, checkpoints."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from amr.classifier import FusionClassifier
from amr.encoders import Encoder, SpectrogramTransformer, Video3DEncoder, VideoTransformerEncoder, WaveformEncoder
from amr.fusion import Attention
from amr.load import load_model
from amr.model import FusionModel
from amr.regularizers import AMR
from amr.utils.errors import UserError

AST: dict[str, Any] = {"input_size": (32, 64), "dim": 32, "depth": 2, "heads": 4}
CASES: dict[str, tuple[Callable[[], Encoder], tuple[int, ...], tuple[int, ...]]] = {
    "r2plus1d": (lambda: Video3DEncoder(), (9, 3, 16, 16), (512,)),
    "mc3 tokens": (lambda: Video3DEncoder("mc3_18", pool=False), (3, 3, 16, 16), (3, 512)),
    "mvit v2 tokens": (
        lambda: VideoTransformerEncoder("mvit_v2_s", frames=4, size=32, pool=False),
        (4, 3, 32, 32),
        (2, 768),
    ),
    "swin tokens": (lambda: VideoTransformerEncoder("swin3d_t", pool=False), (5, 3, 33, 40), (3, 768)),
    "wav2vec2": (lambda: WaveformEncoder(layers=1), (1, 400), (768,)),
    "hubert tokens": (
        lambda: WaveformEncoder("hubert_large", layers=1, freeze_features=True, pool=False),
        (1, 1040),
        (3, 1024),
    ),
    "ast": (lambda: SpectrogramTransformer(**AST, stride=10, dropout=0.1), (1, 40, 65), (32,)),
    "ast mean": (lambda: SpectrogramTransformer(2, **AST, pooling="mean"), (2, 32, 64), (32,)),
    "ast tokens": (lambda: SpectrogramTransformer(**AST, pool=False), (1, 33, 90), (5, 32)),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, Encoder, Tensor]:
    torch.manual_seed(0)
    build, shape, _ = CASES[request.param]
    return request.param, build(), torch.randn(3, *shape)


def test_shape_and_gradients(case: tuple[str, Encoder, Tensor]) -> None:
    name, encoder, x = case
    before = x.clone()
    encoding = encoder.train()(x)
    assert encoding.shape == (3, *CASES[name][2])
    assert encoder.out_dim == encoding.shape[-1]
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(encoding.square().sum(), trained)  # raises if one is unused, which DDP refuses
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert torch.equal(x, before)


def test_evaluation_is_deterministic_and_by_row(case: tuple[str, Encoder, Tensor]) -> None:
    _, encoder, x = case
    encoder.eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        encoding = encoder(x)
        assert torch.equal(encoder(x), encoding)
        torch.testing.assert_close(torch.cat([encoder(row[None]) for row in x]), encoding, rtol=1e-3, atol=1e-4)
    assert torch.equal(torch.get_rng_state(), state)


def test_bf16_step(case: tuple[str, Encoder, Tensor]) -> None:
    _, encoder, x = case
    with torch.autocast("cpu", torch.bfloat16):
        encoding = encoder.train()(x)
    encoding.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters() if p.requires_grad)
    encoder.zero_grad()


def test_pickling(case: tuple[str, Encoder, Tensor]) -> None:
    _, encoder, x = case
    encoder.eval()
    twin = pickle.loads(pickle.dumps(encoder))  # noqa: S301  # our own bytes
    with torch.no_grad():
        assert torch.equal(twin(x), encoder(x))


def test_absent_clips(case: tuple[str, Encoder, Tensor]) -> None:
    name, encoder, x = case
    encoder.eval()
    model = FusionModel({"m": encoder}, Attention({"m": encoder.out_dim}, 2, dim=8, heads=2))
    x = x.clone()
    x[1] = torch.nan
    some = model.encode({"m": x}, {"m": torch.tensor([True, False, True])})["m"]
    assert torch.equal(some[1], torch.zeros(CASES[name][2]))
    torch.testing.assert_close(some[::2], encoder(x[::2]))
    none = model.encode({"m": x}, {"m": torch.zeros(3, dtype=torch.bool)})["m"]
    assert torch.equal(none, torch.zeros(3, *CASES[name][2]))
    torch.autograd.backward(none.sum())
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    encoder.zero_grad()
    assert len([*model.head_parameters()]) + len([*encoder.parameters()]) == len([*model.parameters()])


ENCODERS: dict[str, dict[str, Any]] = {
    "wave": {
        "class_path": "amr.encoders.WaveformEncoder",
        "init_args": {"layers": 1, "freeze_features": True, "pool": False, "weights": "gone.pt"},
    },
    "spectrogram": {
        "class_path": "amr.encoders.SpectrogramTransformer",
        "init_args": {**AST, "input_size": [32, 64], "weights": "gone.pt"},
    },
}


@pytest.mark.filterwarnings("ignore:.*(num_workers|LeafSpec|logging interval)")
def test_a_run_and_its_checkpoint(tmp_path: Path) -> None:
    """An epoch in bf16 with AMR; the checkpoint needs none of the files that the encoders started from."""
    encoders: dict[str, Encoder] = {
        "wave": WaveformEncoder(layers=1, freeze_features=True, pool=False),
        "spectrogram": SpectrogramTransformer(**AST),
    }
    model = FusionClassifier(encoders, Attention, num_classes=2, amr=AMR())
    model.config = {"encoders": ENCODERS, "fusion": "amr.fusion.Attention"}
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    shapes = {"wave": (1, 1040), "spectrogram": (1, 40, 65)}
    clips = [
        {"inputs": {name: torch.randn(*shape) for name, shape in shapes.items()}, "label": i % 2, "id": str(i)}
        for i in range(4)
    ]
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader: DataLoader[Any] = DataLoader(clips, batch_size=2)  # type: ignore[arg-type]  # a list is a dataset
    trainer.fit(model, loader, loader)
    after = model.model.state_dict()
    frozen = {key for key in after if torch.equal(before[key], after[key])}
    assert frozen == {key for key in after if "feature_extractor" in key}
    assert all(value.isfinite().all() for value in after.values())

    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    loaded = load_model(tmp_path / "a.ckpt")
    inputs = {name: torch.randn(2, *shape) for name, shape in shapes.items()}
    assert torch.equal(loaded(inputs), model.eval()(inputs))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VideoTransformerEncoder("mvit"), "arch='mvit': must be one of mvit_v1_b, .*, swin3d_b"),  # type: ignore[arg-type]
        (lambda: VideoTransformerEncoder(frames=3), "frames=3: must be a multiple of 2"),
        (lambda: VideoTransformerEncoder(size=(224, 100)), "size=224 x 100: must be multiples of 32 pixels"),
        (lambda: VideoTransformerEncoder("swin3d_t", size=224), "frames and size are mvit's; swin3d_t takes any"),
        (lambda: VideoTransformerEncoder(weights="no.pt"), "one of MViT_V2_S_Weights.KINETICS400_V1"),
        (
            lambda: VideoTransformerEncoder(frames=2, size=32)(torch.zeros(1, 4, 3, 32, 32)),
            r"mvit_v2_s takes 2 frames of 32 x 32 pixels .*, got shape \(1, 4, 3, 32, 32\)",
        ),
        (lambda: WaveformEncoder("wavlm"), "arch='wavlm': must be one of wav2vec2_base, .*, hubert_xlarge"),  # type: ignore[arg-type]
        (lambda: WaveformEncoder(layers=13), "layers=13: must be in 1 to 12 for wav2vec2_base"),
        (lambda: WaveformEncoder(dropout=1.0), r"dropout=1.0: must be in \[0, 1\)"),
        (lambda: WaveformEncoder(layers=1, weights="HUBERT_BASE"), "must be a file or one of WAV2VEC2_BASE, "),
        (lambda: WaveformEncoder(layers=1)(torch.zeros(2, 1, 399)), r"at least 400 samples .*\(2, 1, 399\)"),
        (lambda: WaveformEncoder(layers=1)(torch.zeros(2, 2, 800)), r"takes \(B, 1, samples\)"),
        (lambda: WaveformEncoder(layers=1)(torch.zeros(2, 1, 64, 301)), r"audio.kind is waveform"),
        (lambda: SpectrogramTransformer(stride=0), "stride=0: must be at least 1"),
        (lambda: SpectrogramTransformer(dim=100), "dim=100: must be a multiple of heads = 12"),
        (lambda: SpectrogramTransformer(mlp_ratio=0), "mlp_ratio=0: must be positive"),
        (lambda: SpectrogramTransformer(dropout=-0.1), r"dropout=-0.1: must be in \[0, 1\)"),
        (lambda: SpectrogramTransformer(pooling="max"), "pooling='max': must be one of cls, mean"),  # type: ignore[arg-type]
        (lambda: SpectrogramTransformer(input_size=(8, 64)), r"input_size=\(8, 64\): must be at least patch = 16"),
        (
            lambda: SpectrogramTransformer(heads=8, weights="ViT_B_16_Weights.IMAGENET1K_V1"),
            "heads=8: must be 12 for ViT_B_16_Weights.IMAGENET1K_V1",
        ),
        (
            lambda: SpectrogramTransformer(**AST, weights="ViT_B_32_Weights.IMAGENET1K_V1"),
            "must be a file or one of ViT_B_16_Weights.IMAGENET1K_V1, ",
        ),
        (lambda: SpectrogramTransformer(**AST)(torch.zeros(2, 1, 40, 15)), r"at least patch = 16 .*\(2, 1, 40, 15\)"),
        (lambda: SpectrogramTransformer(**AST)(torch.zeros(2, 3, 40, 40)), "in_channels = 1, got shape"),
    ],
)
def test_mistakes(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
