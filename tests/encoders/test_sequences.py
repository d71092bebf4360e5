"""Texts, time series and tables: independent references, padding, second derivatives, refusals, ids through a run."""

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from amr.classifier import FusionClassifier
from amr.encoders import Encoder, SeriesEncoder, TableEncoder, TextEncoder
from amr.encoders.series import GRU
from amr.fusion import MulT
from amr.regularizers import AMR
from amr.utils.errors import UserError
from tests.training import fit

IDS = torch.tensor([[3, 5, 1, 0, 0], [2, 2, 6, 4, 1], [0, 0, 0, 0, 0]])
CASES: dict[str, tuple[Callable[..., Encoder], Callable[[], Tensor]]] = {
    "text transformer": (lambda **kw: TextEncoder(7, dim=8, heads=2, layers=2, **kw), lambda: IDS),
    "text gru": (lambda **kw: TextEncoder(7, "gru", dim=8, layers=2, **kw), lambda: IDS),
    "series gru": (lambda **kw: SeriesEncoder(3, "gru", 8, 2, padded=True, **kw), lambda: series()),
    "series tcn": (lambda **kw: SeriesEncoder(3, "tcn", 8, 2, padded=True, **kw), lambda: series()),
}


def series() -> Tensor:
    x = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0, 3:] = 0
    x[1, 2] = 0  # in the middle: no padding
    x[2] = 0
    return x


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pool", [True, False])
def test_padding_changes_nothing(name: str, pool: bool) -> None:
    torch.manual_seed(0)
    build, data = CASES[name]
    encoder, x = build(pool=pool).double(), data()
    encoding = encoder(x)
    assert encoding.shape == ((3, 8) if pool else (3, 5, 8))
    assert encoder.out_dim == 8
    assert encoder.description is not None
    wider = encoder(torch.cat([x, torch.zeros_like(x[:, :2])], dim=1))
    torch.testing.assert_close(wider if pool else wider[:, :5], encoding)
    assert not encoding[2].any()
    alone = encoder(x[:1, :3])
    torch.testing.assert_close(alone if pool else alone[0], encoding[:1] if pool else encoding[0, :3])
    if not pool:
        assert not encoding[0, 3:].any()
        assert encoding[1].any(dim=1).all()
        torch.testing.assert_close(encoder(x)[1:2], encoder(x[1:2]))
    changed = x.clone()
    changed[1, 0] = 5 if "text" in name else -changed[1, 0]
    assert not torch.allclose(encoder(changed)[1], encoding[1])
    parameters = list(encoder.parameters())
    gradients = torch.autograd.grad(encoding.square().sum(), parameters)  # raises if one is unused
    assert all(g.isfinite().all() and g.any() for g in gradients)


def test_gru_equals_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = GRU(3, 4, 2).double(), nn.GRU(3, 4, 2, batch_first=True).double()
    for layer in range(2):
        for side, part in (("ih", ours.inputs[layer]), ("hh", ours.states[layer])):
            for key in ("weight", "bias"):
                theirs.get_parameter(f"{key}_{side}_l{layer}").data.copy_(part.get_parameter(key).data)
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(ours(x, torch.ones(2, 6, dtype=torch.bool)), theirs(x)[0])


def test_convolutions_by_hand_and_causal() -> None:
    torch.manual_seed(0)
    encoder = SeriesEncoder(2, "tcn", 3, layers=2, pool=False).double()
    net: Any = encoder.net
    x = torch.randn(1, 9, 2, dtype=torch.float64)

    def convolved(layer: Any, steps: list[Tensor], apart: int) -> list[Tensor]:
        zero = torch.zeros_like(steps[0])
        seen = [[steps[t - k * apart] if t >= k * apart else zero for k in (2, 1, 0)] for t in range(9)]
        return [layer.bias + sum(layer.weight[:, :, j] @ s for j, s in enumerate(row)) for row in seen]

    steps: list[Tensor] = list(x[0])
    before = [net.skip(step) for step in steps]
    for block in range(2):
        inner = [s.clamp(min=0) for s in convolved(net.first[block], steps, 2**block)]
        inner = [s.clamp(min=0) for s in convolved(net.second[block], inner, 2**block)]
        steps = before = [(b + s).clamp(min=0) for b, s in zip(before, inner, strict=True)]
    torch.testing.assert_close(encoder(x)[0], torch.stack(steps))
    mean = SeriesEncoder(2, "tcn", 3, layers=2).double()
    mean.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(mean(x), encoder(x).mean(1))


def test_text_pools_by_mean_and_by_the_last_state() -> None:
    torch.manual_seed(0)
    expected: dict[str, Callable[[Tensor], Tensor]] = {"transformer": lambda t: t.mean(0), "gru": lambda t: t[-1]}
    for arch, pool in expected.items():
        tokens = TextEncoder(7, arch, 8, pool=False)  # type: ignore[arg-type]
        whole = TextEncoder(7, arch, 8)  # type: ignore[arg-type]
        whole.load_state_dict(tokens.state_dict())
        torch.testing.assert_close(whole(IDS)[0], pool(tokens(IDS)[0, :3]))
    assert not torch.allclose(whole(IDS[:1]), whole(IDS[:1, [1, 0, 2, 3, 4]]))


@pytest.mark.parametrize("arch", ["gru", "tcn"])
def test_second_derivatives_of_series(arch: Any) -> None:
    torch.manual_seed(0)
    encoder = SeriesEncoder(2, arch, 3).double()
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: encoder(x).square(), (x,), fast_mode=True)


def test_table_by_hand() -> None:
    torch.manual_seed(0)
    encoder = TableEncoder([0, 3, 0, 2], embedding=2, hidden=[], out_dim=4)
    x = torch.tensor([[0.5, 2, -1, 0], [7, 0, 3, 1]])
    first, second = (layer.get_parameter("weight") for layer in encoder.embeddings)
    flat = torch.cat([x[:, [0, 2]], first[[2, 0]], second[[0, 1]]], dim=1)
    layer = encoder.mlp.layers[0]
    torch.testing.assert_close(encoder(x), flat @ layer.get_parameter("weight").T + layer.get_parameter("bias"))
    whole = torch.tensor([[1, 2, -1, 0], [7, 0, 3, 1]])
    torch.testing.assert_close(encoder(whole), encoder(whole.float()))
    assert encoder.description is not None
    assert TableEncoder([2, 2])(torch.zeros(3, 2)).shape == (3, 64)


class Batches(pl.LightningDataModule):
    """The given batches, in training and validation."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Any:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]

    val_dataloader = train_dataloader


@pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval)")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_ids_stay_ids_through_a_run(precision: Any) -> None:
    """Loader, masks of clips that lack the text, AMR, and every precision leave ids int64."""
    torch.manual_seed(0)
    seen: list[Tensor] = []
    encoders = {"text": TextEncoder(7, dim=8, heads=2, pool=False), "series": SeriesEncoder(3, dim=8, pool=False)}
    encoders["text"].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    ids, label = torch.randint(1, 7, (12, 4)), torch.arange(12) % 2
    has = torch.arange(12) % 3 > 0
    ids[~has] = 0

    def batch(rows: Tensor, lacking: Tensor) -> dict[str, Any]:
        inputs = {"text": ids[rows], "series": ids[rows, :, None].float().expand(-1, -1, 3)}
        return {"inputs": inputs, "label": label[rows], "present": {"text": lacking[rows]}}

    batches = [batch(torch.arange(6), has), batch(torch.arange(6, 12), torch.zeros(12, dtype=torch.bool))]
    model = FusionClassifier(encoders, lambda d, c: MulT(d, c, dim=8, layers=1), num_classes=2, amr=AMR())
    before = [p.clone() for p in model.parameters()]
    fit(model, Batches(batches), max_epochs=1, precision=precision)
    assert {x.dtype for x in seen} == {torch.int64}
    assert any(len(x) == 4 for x in seen), "clips that lack the text never reach its encoder"
    assert all(p.isfinite().all() for p in model.parameters())
    assert not torch.equal(before[0], next(model.parameters()))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TextEncoder(0), "TextEncoder: vocabulary=0: must be at least 1"),
        (lambda: TextEncoder(5, "lstm"), "TextEncoder: arch='lstm': must be one of transformer, gru"),  # type: ignore[arg-type]
        (lambda: TextEncoder(5, dim=6), "TextEncoder: dim=6: must be a multiple of heads = 4"),
        (lambda: TextEncoder(5, padding=5), "padding=5: must be at least 0 and below vocabulary = 5"),
        (lambda: TextEncoder(5)(torch.zeros(2, 3)), r"takes ids, \(B, T\) int64 .* got \(2, 3\) of float32"),
        (lambda: TextEncoder(5)(torch.zeros(2, dtype=torch.long)), r"takes ids, .* got \(2,\) of int64"),
        (lambda: TextEncoder(5)(torch.tensor([[1, 5]])), "id 5: must be at least 0 and below vocabulary = 5"),
        (lambda: TextEncoder(5)(torch.tensor([[1, -1]])), "id -1: must be at least 0 and below vocabulary = 5"),
        (lambda: SeriesEncoder(3, layers=0), "SeriesEncoder: layers=0: must be at least 1"),
        (lambda: SeriesEncoder(3, "lstm"), "SeriesEncoder: arch='lstm': must be one of gru, tcn"),  # type: ignore[arg-type]
        (lambda: SeriesEncoder(3)(torch.zeros(2, 5)), r"channels = 3, got shape \(2, 5\)"),
        (lambda: TableEncoder([]), r"TableEncoder: columns=\[\]: must be 0 or a number of values"),
        (lambda: TableEncoder([0, -1]), r"columns=\[0, -1\]: must be 0 or a number of values"),
        (lambda: TableEncoder([0, 2], embedding=0), "embedding=0: must be at least 1"),
        (lambda: TableEncoder([0, 2])(torch.zeros(2, 3)), r"takes \(B, 2\), got shape \(2, 3\)"),
        (
            lambda: TableEncoder([0, 2])(torch.full((2, 2), 2.0)),
            "column 1 has the code 2: must be at least 0 and below 2",
        ),
    ],
)
def test_mistakes(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
