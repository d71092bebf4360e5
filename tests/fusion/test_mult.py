"""MulT against torch's own attention with the same weights; padding, lacking modalities and what is read out."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amr.fusion import MulT
from amr.fusion.mult import CrossmodalLayer, CrossmodalTransformer, sinusoids
from amr.utils.errors import UserError

DIMS = {"text": 5, "sound": 3, "sight": 4}
LENGTHS = {"text": 6, "sound": 4, "sight": 1}


def sequences(clips: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {m: torch.randn(clips, LENGTHS[m], size, generator=generator).double() for m, size in DIMS.items()}


def mult(dims: Mapping[str, int] = DIMS, **options: Any) -> MulT:
    torch.manual_seed(0)
    return MulT(dims, 3, **{"dim": 8, "heads": 2, **options}).double().eval()


def by_torch(layer: CrossmodalLayer, x: Tensor, source: Tensor, there: Tensor) -> Tensor:
    """The layer made of `nn.MultiheadAttention`."""
    size = x.shape[2]
    attention = nn.MultiheadAttention(size, layer.heads, batch_first=True).double()
    attention.load_state_dict(
        {
            "in_proj_weight": layer.qkv.weight,
            "in_proj_bias": layer.qkv.bias,
            "out_proj.weight": layer.out.weight,
            "out_proj.bias": layer.out.bias,
        }
    )
    asked = layer.norm1(source)
    x = x + attention(layer.norm1(x), asked, asked, key_padding_mask=~there)[0]
    inner, act, outer = layer.feed_forward
    out: Tensor = x + outer(act(inner(layer.norm2(x)))).to(x)
    return out


def transform(net: nn.Module, x: Tensor, source: Tensor | None, there: Tensor) -> Tensor:
    assert isinstance(net, CrossmodalTransformer)
    for layer in net.layers:
        assert isinstance(layer, CrossmodalLayer)
        x = by_torch(layer, x, x if source is None else source, there)
    out: Tensor = net.norm(x)
    return out


@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("positions", [True, False])
def test_equals_torchs_attention(readout: Any, positions: bool) -> None:
    """Clip by clip, with the padding of one modality cut off by hand."""
    head = mult(readout=readout, positions=positions, layers=2, self_layers=2)
    e = sequences()
    e["text"][1, 4:] = 0  # two tokens of padding
    rows = []
    for clip in range(3):
        tokens = {}
        for m, sequence in e.items():
            kept = sequence[clip : clip + 1, : 4 if (m, clip) == ("text", 1) else None]
            tokens[m] = kept @ head.get_parameter(f"projections.{m}.weight").T
            if positions:
                for t in range(tokens[m].shape[1]):
                    for k in range(0, 8, 2):
                        angle = torch.tensor(t / 10000 ** (k / 8))
                        tokens[m][0, t, k] += angle.sin()
                        tokens[m][0, t, k + 1] += angle.cos()
        read = []
        for target in DIMS:
            parts = [
                transform(
                    head.get_submodule(f"crossmodal.{target}.{m}"),
                    tokens[target],
                    tokens[m],
                    torch.ones(1, tokens[m].shape[1]) > 0,
                )
                for m in DIMS
                if m != target
            ]
            joint = torch.cat(parts, 2)
            out = transform(head.reinforced[target], joint, None, torch.ones(1, joint.shape[1]) > 0)
            read.append(out[:, -1] if readout == "last" else out.mean(1))
        h = torch.cat(read, 1)
        w1, b1, w2, b2 = (head.get_parameter(f"residual.{n}") for n in ("0.weight", "0.bias", "2.weight", "2.bias"))
        rows.append(h + (h @ w1.T + b1).clamp(min=0) @ w2.T + b2)
    assert rows[0].shape == (1, 3 * 2 * 8)
    torch.testing.assert_close(head.fuse(e), torch.cat(rows), rtol=1e-6, atol=1e-6)


def test_sinusoids_of_an_odd_size() -> None:
    found = sinusoids(3, 5)
    assert found.shape == (3, 5)
    torch.testing.assert_close(found[:, 0], torch.arange(3.0).sin())
    torch.testing.assert_close(found[2, 3], (torch.tensor(2.0) / 10000**0.4).cos())


def test_a_lacking_modality_is_not_there() -> None:
    """Its zeros are not attended to and not read out, whatever their number; the others answer as before."""
    head = mult()
    e = sequences()
    lacking = {**e, "sound": torch.zeros_like(e["sound"])}
    longer = {**e, "sound": torch.zeros(3, 9, 3).double()}
    torch.testing.assert_close(head(lacking), head(longer))
    assert not torch.allclose(head(lacking), head(e))
    none = {m: torch.zeros_like(x).requires_grad_() for m, x in e.items()}
    logits = head(none)
    gradients = torch.autograd.grad(logits.sum(), list(none.values()))
    assert logits.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)


def test_reads_order_and_every_token() -> None:
    e = sequences()
    flipped = {**e, "text": e["text"].flip(1)}
    assert not torch.allclose(mult()(flipped), mult()(e))
    still = mult(readout="mean", positions=False)
    torch.testing.assert_close(still(flipped), still(e))
    for t in range(LENGTHS["text"]):
        changed = {**e, "text": e["text"].clone()}
        changed["text"][:, t] += 1
        assert not torch.allclose(mult()(changed), mult()(e))


def test_a_lone_modality_has_its_self_attention() -> None:
    head = mult({"text": 5})
    assert head.fuse({"text": sequences()["text"]}).shape == (3, 8)
    assert not [name for name, _ in head.named_parameters() if name.startswith("crossmodal")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"heads=3: must divide dim=8, so be one of 1, 2, 4, 8"),
        ({"layers": 0}, r"layers=0: must be at least 1"),
        ({"self_layers": 0}, r"self_layers=0: must be at least 1"),
        ({"readout": "first"}, r"readout='first': must be one of last, mean"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mult(**options)
