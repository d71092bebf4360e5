"""The large encoders equal the libraries' own models, with weights of every kind and position embeddings resized."""

import math
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn
from torchaudio.models import wav2vec2_model
from torchaudio.pipelines import Wav2Vec2Bundle
from torchvision.models import VisionTransformer
from torchvision.models._api import WeightsEnum
from torchvision.models.video import MViT, mc3_18, mvit_v1_b, mvit_v2_s, r2plus1d_18, swin3d_t

from amr.encoders import Encoder, SpectrogramTransformer, Video3DEncoder, VideoTransformerEncoder, WaveformEncoder
from amr.encoders.positions import resample
from amr.encoders.waveform import _ARCHS
from amr.utils.errors import UserError


def save(module: nn.Module | dict[str, Tensor], folder: Path) -> str:
    path = folder / "weights.pt"
    torch.save(module if isinstance(module, dict) else module.state_dict(), path)
    return str(path)


def features(model: nn.Module, classifier: nn.Module, x: Tensor) -> Tensor:
    """What `classifier` gets when `model` runs on `x`."""
    seen: list[Tensor] = []
    handle = classifier.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    return seen[0]


@torch.no_grad()
def encode(encoder: Encoder, x: Tensor) -> Tensor:
    encoding: Tensor = encoder.eval()(x)
    return encoding


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# Position embeddings.


@pytest.mark.parametrize("sizes", [(7, 9), (14, 3), (1, 1), (5, 20)])
def test_resample_equals_torch(sizes: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 5, 9)
    torch.testing.assert_close(resample(x, sizes), F.interpolate(x, sizes, mode="bilinear"))
    assert resample(x, (5, 9)) is x


# Video.


@pytest.mark.parametrize(("arch", "build"), [("mc3_18", mc3_18), ("r2plus1d_18", r2plus1d_18)])
def test_3d_equals_torchvision(arch: Any, build: Any, tmp_path: Path) -> None:
    reference = build()
    path = save(reference, tmp_path)
    x = torch.randn(1, 9, 3, 32, 32)
    expected = features(reference, reference.fc, x.transpose(1, 2))
    pooled, tokens = (Video3DEncoder(arch, path, pool) for pool in (True, False))
    assert torch.equal(encode(pooled, x), expected)
    torch.testing.assert_close(encode(tokens, x).mean(1), expected, rtol=1e-4, atol=1e-5)


def test_swin_equals_torchvision(tmp_path: Path) -> None:
    reference = swin3d_t()
    path = save(reference, tmp_path)
    x = torch.randn(1, 6, 3, 64, 48)
    expected = features(reference, reference.head, x.transpose(1, 2))
    pooled, tokens = (VideoTransformerEncoder("swin3d_t", path, pool) for pool in (True, False))
    torch.testing.assert_close(encode(pooled, x), expected)
    assert encode(tokens, x).shape == (1, 3, 768)
    torch.testing.assert_close(encode(tokens, x).mean(1), expected)


@pytest.fixture
def small_mvit(monkeypatch: pytest.MonkeyPatch) -> MViT:
    """torchvision's own MViT v1, built for 4 frames of 32 x 64."""

    class Small(MViT):
        def __init__(self, **options: Any) -> None:
            super().__init__(**(options | {"temporal_size": 4, "spatial_size": (32, 64)}))

    with monkeypatch.context() as patched:
        patched.setattr("torchvision.models.video.mvit.MViT", Small)
        model: MViT = mvit_v1_b()
    return model


def test_mvit_v1_equals_torchvision(small_mvit: MViT, tmp_path: Path) -> None:
    encoder = VideoTransformerEncoder("mvit_v1_b", save(small_mvit, tmp_path), frames=4, size=(32, 64))
    x = torch.randn(2, 4, 3, 32, 64)
    assert torch.equal(encode(encoder, x), features(small_mvit, small_mvit.head, x.transpose(1, 2)))


def test_mvit_v2_equals_torchvision(tmp_path: Path) -> None:
    reference = mvit_v2_s()
    encoder = VideoTransformerEncoder("mvit_v2_s", save(reference, tmp_path), frames=4, size=(64, 32))
    reference.pos_encoding.temporal_size, reference.pos_encoding.spatial_size = 2, (16, 8)
    x = torch.randn(2, 4, 3, 64, 32)
    assert torch.equal(encode(encoder, x), features(reference, reference.head, x.transpose(1, 2)))


def test_mvit_tokens(small_mvit: MViT, tmp_path: Path) -> None:
    """The last norm's output without the class token, averaged over space."""
    encoder = VideoTransformerEncoder("mvit_v1_b", save(small_mvit, tmp_path), pool=False, frames=4, size=(32, 64))
    x = torch.randn(1, 4, 3, 32, 64)
    seen: list[Tensor] = []
    small_mvit.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    features(small_mvit, small_mvit.head, x.transpose(1, 2))
    expected = torch.stack([seen[0][0, 1:3].mean(0), seen[0][0, 3:5].mean(0)])  # 1 x 2 patches a step in time
    torch.testing.assert_close(encode(encoder, x)[0], expected)


def test_mvit_positions_of_another_input(tmp_path: Path) -> None:
    state = mvit_v1_b().state_dict()
    net = VideoTransformerEncoder("mvit_v1_b", save(state, tmp_path), frames=4, size=(32, 64)).net
    assert isinstance(net, MViT)
    space, time = (state[f"pos_encoding.{key}_pos"] for key in ("spatial", "temporal"))
    grid = F.interpolate(space.T.reshape(1, -1, 56, 56), (8, 16), mode="bilinear")
    torch.testing.assert_close(net.pos_encoding.spatial_pos, grid[0].flatten(1).T, check_dtype=False)
    expected = F.interpolate(time.T[None], 2, mode="linear")[0].T
    torch.testing.assert_close(net.pos_encoding.temporal_pos, expected)
    assert torch.equal(net.blocks[3].attn.qkv.weight, state["blocks.3.attn.qkv.weight"])  # type: ignore[union-attr,arg-type]


def test_mvit_positions_of_no_square(small_mvit: MViT, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"keys 1 of another shape \(pos_encoding.spatial_pos\)"):
        VideoTransformerEncoder("mvit_v1_b", save(small_mvit, tmp_path), frames=4, size=32)


# Waveforms.

BASE: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": None,
    "extractor_conv_bias": False,
    "encoder_embed_dim": 768,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 128,
    "encoder_pos_conv_groups": 16,
    "encoder_num_layers": 2,
    "encoder_num_heads": 12,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 3072,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
    "aux_num_out": 29,
}
LARGE = BASE | {
    "extractor_mode": "layer_norm",
    "encoder_embed_dim": 1024,
    "encoder_num_heads": 16,
    "encoder_ff_interm_features": 4096,
    "encoder_layer_norm_first": True,
}


@pytest.mark.parametrize(("arch", "layers"), [("wav2vec2_base", 1), ("wav2vec2_base", 2), ("hubert_large", 1)])
def test_waveform_equals_torchaudio(arch: Any, layers: int, tmp_path: Path) -> None:
    reference = wav2vec2_model(**(BASE if arch == "wav2vec2_base" else LARGE)).eval()
    path = save(reference, tmp_path)
    x = torch.randn(2, 1, 1700)
    with torch.no_grad():
        expected = reference.extract_features(x[:, 0], num_layers=layers)[0][-1]
        if arch == "hubert_large":  # its layers end before their norm
            expected = reference.encoder.transformer.layer_norm(expected)  # type: ignore[operator,union-attr]
    tokens = WaveformEncoder(arch, path, layers=layers, pool=False)
    assert encode(tokens, x).shape[1] == 1 + (1700 - 400) // 320
    torch.testing.assert_close(encode(tokens, x), expected, rtol=1e-3, atol=1e-4)
    pooled = WaveformEncoder(arch, path, layers=layers)
    torch.testing.assert_close(encode(pooled, x), expected.mean(1), rtol=1e-3, atol=1e-4)


def test_waveform_weights_of_every_age(tmp_path: Path) -> None:
    """Older files name the weight norm's parts otherwise; this class's own have none."""
    state = dict(wav2vec2_model(**BASE).state_dict())
    encoder = WaveformEncoder(weights=save(state, tmp_path), layers=2)
    conv = "encoder.transformer.pos_conv_embed.conv"
    old = dict(state)
    old[f"{conv}.weight_g"] = old.pop(f"{conv}.parametrizations.weight.original0")
    old[f"{conv}.weight_v"] = old.pop(f"{conv}.parametrizations.weight.original1")
    for file in (old, dict(encoder.net.state_dict())):
        twin = WaveformEncoder(weights=save(file, tmp_path), layers=2)
        assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("arch", _ARCHS)
def test_architectures_are_torchaudios(arch: Any) -> None:
    """Every size, by shape, and what shapes do not tell, of the factory and of each named bundle."""
    with torch.device("meta"):
        own, reference = WaveformEncoder(arch).net, getattr(torchaudio.models, arch)()
    conv = "encoder.transformer.pos_conv_embed.conv"
    shapes = {key: value.shape for key, value in own.state_dict().items()}
    expected = {key: value.shape for key, value in reference.state_dict().items()}
    assert expected.pop(f"{conv}.parametrizations.weight.original1") == shapes.pop(f"{conv}.weight")
    del expected[f"{conv}.parametrizations.weight.original0"]
    assert shapes == expected
    for name in _ARCHS[arch].bundles:
        params = getattr(torchaudio.pipelines, name)._params
        assert params["encoder_embed_dim"] == _ARCHS[arch].dim
        assert params["encoder_num_layers"] == _ARCHS[arch].layers
        assert params["encoder_num_heads"] == _ARCHS[arch].heads
        assert params["extractor_mode"] == _ARCHS[arch].extractor_mode
        assert params["extractor_conv_bias"] == _ARCHS[arch].conv_bias
        assert params["encoder_layer_norm_first"] == _ARCHS[arch].norm_first


def test_waveform_weights_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle downloads, here from the address that it asks for, and torchaudio loads."""
    monkeypatch.setitem(torchaudio.pipelines.WAV2VEC2_BASE._params, "encoder_num_layers", 2)
    state = wav2vec2_model(**BASE | {"aux_num_out": None}).state_dict()
    asked: list[str] = []

    def download(url: str) -> dict[str, Tensor]:
        asked.append(url)
        return dict(state)

    monkeypatch.setattr("torchaudio.pipelines._wav2vec2.utils.load_state_dict_from_url", download)
    encoder = WaveformEncoder(weights="WAV2VEC2_BASE", layers=1)
    assert len(asked) == 1
    assert asked[0].endswith("wav2vec2_fairseq_base_ls960.pth")
    key = "encoder.transformer.layers.0.attention.k_proj.weight"
    assert torch.equal(encoder.net.get_parameter(key), state[key])


def test_waveform_weights_in_a_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wav2vec2_model(**LARGE)
    wrapper = nn.Module()
    wrapper.model = model
    monkeypatch.setattr(Wav2Vec2Bundle, "get_model", lambda self: wrapper)
    encoder = WaveformEncoder("hubert_large", "HUBERT_LARGE", layers=1)
    key = "encoder.transformer.layers.0.attention.k_proj.weight"
    assert torch.equal(encoder.net.get_parameter(key), model.get_parameter(key))


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(Wav2Vec2Bundle, "get_model", refuse)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)
    message = r"weights: cannot download .*no route to host.*a local file can be named instead"
    with pytest.raises(UserError, match=message):
        WaveformEncoder(weights="WAV2VEC2_BASE", layers=1)
    with pytest.raises(UserError, match=message):
        VideoTransformerEncoder("swin3d_t", "Swin3D_T_Weights.KINETICS400_V1")


def test_features_are_frozen() -> None:
    encoder = WaveformEncoder(layers=1, freeze_features=True)
    frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in encoder.named_parameters() if name.startswith("net.feature_extractor.")}
    assert all(parameter.requires_grad for parameter in WaveformEncoder(layers=1).parameters())


# Spectrograms.

SIZES: dict[str, Any] = {"dim": 48, "depth": 2, "heads": 12, "input_size": (64, 64)}


@pytest.fixture
def vit() -> VisionTransformer:
    return VisionTransformer(64, 16, num_layers=2, num_heads=12, hidden_dim=48, mlp_dim=192)


def test_transformer_equals_torchvision(vit: VisionTransformer, tmp_path: Path) -> None:
    encoder = SpectrogramTransformer(3, **SIZES, weights=save(vit, tmp_path))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encode(encoder, x), features(vit, vit.heads, x))


def test_one_channel_sums_rgb(vit: VisionTransformer, tmp_path: Path) -> None:
    path = save(vit, tmp_path)
    gray, rgb = SpectrogramTransformer(1, **SIZES, weights=path), SpectrogramTransformer(3, **SIZES, weights=path)
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(encode(gray, x), encode(rgb, x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_pooling_and_tokens() -> None:
    cls = SpectrogramTransformer(**SIZES, stride=10)
    mean, tokens = (
        SpectrogramTransformer(**SIZES, stride=10, pooling="mean"),
        SpectrogramTransformer(**SIZES, stride=10, pool=False),
    )
    mean.load_state_dict(cls.state_dict())
    tokens.load_state_dict(cls.state_dict())
    x = torch.randn(2, 1, 64, 81)
    seen: list[Tensor] = []
    cls.ln.register_forward_hook(lambda module, args, output: seen.append(output))
    assert torch.equal(encode(cls, x), seen[0][:, 0])
    assert seen[0].shape == (2, 1 + 5 * 7, 48)
    torch.testing.assert_close(encode(mean, x), seen[0][:, 1:].mean(1))
    last = seen[0][:, 1:][:, 6::7].mean(1)  # patches are in order of frequency, then time
    torch.testing.assert_close(encode(tokens, x)[:, -1], last)


def test_patches_know_their_place() -> None:
    """At another size, a patch gets the position at the same part of frequency and time."""
    encoder = SpectrogramTransformer(dim=4, depth=1, heads=1, input_size=(64, 160))
    wide = F.interpolate(encoder.positions, (4, 20), mode="bilinear")
    seen: list[Tensor] = []
    encoder.dropout.register_forward_hook(lambda module, args, output: seen.append(output))
    encode(encoder, torch.zeros(1, 1, 64, 320))
    assert encoder.conv_proj.bias is not None
    torch.testing.assert_close(seen[0][0, 1:], (wide + encoder.conv_proj.bias[:, None, None])[0].flatten(1).T)


def test_transformer_weights_by_name(vit: VisionTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's file is older than its names for the hidden layers."""
    state = {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for key, value in vit.state_dict().items()
    }
    assert len(vit.state_dict().keys() - state.keys()) == 8
    vit.load_state_dict(state)  # as torchvision reads it
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **kwargs: state)
    sizes = SIZES | {"input_size": (64, 1024)}
    encoder = SpectrogramTransformer(3, **sizes, weights="ViT_B_16_Weights.IMAGENET1K_V1")
    grid = vit.encoder.pos_embedding[:, 1:].transpose(1, 2).reshape(1, 48, 4, 4)
    torch.testing.assert_close(encoder.positions, F.interpolate(grid, (4, 64), mode="bilinear"), check_dtype=False)
    assert torch.equal(encoder.layers[1].mlp[3].weight, vit.encoder.layers[1].mlp[3].weight)  # type: ignore[union-attr,index]


def test_transformer_file(tmp_path: Path) -> None:
    encoder = SpectrogramTransformer(**SIZES)
    path = save(encoder, tmp_path)
    twin = SpectrogramTransformer(**SIZES, weights=path)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), twin.parameters(), strict=True))
    longer = SpectrogramTransformer(**SIZES | {"input_size": (64, 128)}, weights=path)
    x = torch.randn(1, 1, 64, 128)
    torch.testing.assert_close(encode(longer, x), encode(encoder, x))  # resized once, or in every pass
    with pytest.raises(UserError, match=r"keys 12 missing \(layers.encoder_layer_2.ln_1.weight, "):
        SpectrogramTransformer(**SIZES | {"depth": 3}, weights=path)


def test_positions_of_no_square(vit: VisionTransformer, tmp_path: Path) -> None:
    state = dict(vit.state_dict())
    state["encoder.pos_embedding"] = state["encoder.pos_embedding"][:, :-1]
    with pytest.raises(UserError, match=r"1 missing \(positions\); 1 unexpected \(pos_embedding\)"):
        SpectrogramTransformer(3, **SIZES, weights=save(state, tmp_path))


def test_initial_spread() -> None:
    encoder = SpectrogramTransformer(2, dim=96, depth=1, heads=1, input_size=(64, 320))
    assert encoder.conv_proj.weight.std().item() == pytest.approx(math.sqrt(1 / (2 * 16**2)), rel=0.05)
    assert encoder.positions.std().item() == pytest.approx(0.02, rel=0.05)
